"""The maps that ControlNets follow, as far as they need no weights: edges, lines, coarse colours, what is masked.

Lines are white on black, as the published networks were trained. Each map is as large as its picture.
"""

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from app.imaging.known_maps import paper
from app.imaging.opencv import load_opencv

CANNY_LOW, CANNY_HIGH = 100, 200
"""What the published networks' own annotator asks of a gradient: a weak edge, and one that starts a line."""

LINE_SIGMA, LINE_FLOOR, LINE_SHADE = 6.0, 16.0, 127.0
SCRIBBLE_SIGMAS, SCRIBBLE_THRESHOLD = (0.5, 5.0), 32
SOFT_SIGMAS, SOFT_FLOOR, SOFT_GAMMA = (1.0, 2.0, 4.0), 48.0, 1.5
TILE_SHRINK = 8
COLOUR_CELL = 64
DEPTH_SHARE = 16
"""Nothing tells how deep a scene is: it is taken to be as deep as half its shorter side (Sobel's sum counts eight)."""

NORMAL_BACKGROUND = 0.1
"""Of the range of depths: what is farther away looks straight at the viewer."""


def canny(image: Image.Image, low: int = CANNY_LOW, high: int = CANNY_HIGH) -> Image.Image:
    """Thin edges, by Canny."""
    return _grey(load_opencv().Canny(np.asarray(image), low, high))


def lineart(image: Image.Image) -> Image.Image:
    """Drawn lines: what is darker than its surroundings, by the difference from a blurred copy."""
    pixels = np.asarray(image, np.float32)
    darker = (_blurred(pixels, LINE_SIGMA) - pixels).min(axis=2).clip(0, 255)
    seen = darker[darker > LINE_FLOOR / 2]
    strength = max(LINE_FLOOR, float(np.median(seen)) if seen.size else 0.0)
    return _grey((darker / strength * LINE_SHADE).clip(0, 255).astype(np.uint8))


def scribble(image: Image.Image) -> Image.Image:
    """Broad strokes: two blurs that differ by more than a threshold."""
    pixels = np.asarray(image, np.float32)
    fine, coarse = (_blurred(pixels, sigma) for sigma in SCRIBBLE_SIGMAS)
    return _grey(np.where(2 * (coarse - fine).min(axis=2).clip(0, 255) > SCRIBBLE_THRESHOLD, 255, 0).astype(np.uint8))


def softedge(image: Image.Image) -> Image.Image:
    """Soft edges: the colour gradient at several scales, averaged. It follows contrast and knows no things."""
    strength = contrast(np.asarray(image, np.float32)) ** SOFT_GAMMA
    return _grey((strength * 255).astype(np.uint8))


def contrast(layers: np.ndarray) -> np.ndarray:
    """How strongly any layer (float32 [height, width, layers], 0 to 255) changes at each pixel: 0 to 1.

    1 is what one pixel in a hundred reaches, and never less than a few grey levels: that is noise, whatever the
    picture's strongest edge is.
    """
    cv2 = load_opencv()
    total = np.zeros(layers.shape[:2], np.float32)
    for sigma in SOFT_SIGMAS:
        smooth = _blurred(layers, sigma)
        across, down = cv2.Sobel(smooth, cv2.CV_32F, 1, 0), cv2.Sobel(smooth, cv2.CV_32F, 0, 1)
        total += np.hypot(across, down).max(axis=2) * sigma
    return (total / max(float(np.percentile(total, 99)), SOFT_FLOOR)).clip(0, 1)


def tile(image: Image.Image) -> Image.Image:
    """The picture without its fine detail, which the network then adds."""
    small = (max(1, image.width // TILE_SHRINK), max(1, image.height // TILE_SHRINK))
    return image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BICUBIC)


def color(image: Image.Image) -> Image.Image:
    """A mosaic of the picture's colours, 64 pixels a stone."""
    small = (max(1, image.width // COLOUR_CELL), max(1, image.height // COLOUR_CELL))
    return image.resize(small, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.NEAREST)


def inpaint(image: Image.Image, mask: Image.Image) -> np.ndarray:
    """[1, height, width, 3] of 0 to 1, and -1 where the mask (as large) is white: what is to be made anew."""
    pixels = np.asarray(image, np.float32) / 255
    return np.where((np.asarray(mask) > 127)[..., None], np.float32(-1), pixels)[None]


def shown(conditioning: np.ndarray) -> Image.Image:
    """What `inpaint` made as a picture: masked parts are black."""
    return Image.fromarray((conditioning[0].clip(0, 1) * 255).round().astype(np.uint8))


def depth_map(depth: np.ndarray) -> Image.Image:
    """Nearness [height, width] in any unit as grey: near is white."""
    near, far = float(depth.max()), float(depth.min())
    return _grey(((depth - far) / max(near - far, 1e-6) * 255).round().astype(np.uint8))


def normal_map(depth: np.ndarray) -> Image.Image:
    """The surface's direction out of nearness [height, width]: red to the left, green up, blue to the viewer."""
    cv2 = load_opencv()
    near, far = float(depth.max()), float(depth.min())
    scaled = ((depth - far) / max(near - far, 1e-6)).astype(np.float32)
    unit = min(scaled.shape) / DEPTH_SHARE
    across = cv2.Sobel(scaled, cv2.CV_32F, 1, 0, ksize=3) * unit
    down = cv2.Sobel(scaled, cv2.CV_32F, 0, 1, ksize=3) * unit
    across[scaled < NORMAL_BACKGROUND], down[scaled < NORMAL_BACKGROUND] = 0, 0
    normal = np.stack([across, down, np.ones_like(across)], axis=2)
    normal /= np.linalg.norm(normal, axis=2, keepdims=True)
    return Image.fromarray(((normal + 1) * 127.5).round().astype(np.uint8))


def ink(image: Image.Image) -> Image.Image:
    """A drawing with dark lines on light paper as white lines on black; what tint and shade the paper has is lost."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    share = (pixels / np.maximum(paper(pixels), 1)).mean(axis=2).clip(0, 1)
    return _grey(np.rint(255 * (1 - share)).astype(np.uint8))


def under_lines(image: Image.Image, lines: Image.Image) -> Image.Image:
    """The picture with white-on-black lines (as large) on it in black, each as dark as it was light."""
    share = 1 - np.asarray(lines.convert("L"), np.float32)[..., None] / 255
    return Image.fromarray(np.rint(np.asarray(image, np.float32) * share).astype(np.uint8))


DRAWN: Mapping[str, Callable[[Image.Image], Image.Image]] = {
    "canny": canny,
    "lineart": lineart,
    "lineart_anime": lineart,
    "softedge": softedge,
    "scribble": scribble,
    "tile": tile,
    "color": color,
}
"""Control type -> what draws its map out of a picture."""


def _grey(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values).convert("RGB")


def _blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    return load_opencv().GaussianBlur(pixels, (0, 0), sigma)
