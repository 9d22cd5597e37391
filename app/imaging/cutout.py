"""A product cut out of its picture and set on a canvas: its mask, its place, and the shadow that it throws there.

Invariant: where the cut-out is white, the canvas shows the product's own pixels, brought to the size it has there.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from app.errors import InvalidRequest
from app.imaging.masks import THRESHOLD, binarise
from app.imaging.opencv import load_opencv
from app.imaging.sizes import Size

EVEN = 12.0
"""Deviation of the border's colours (of 255) up to which a background counts as even."""
BESIDE = 40.0
"""Distance in colour from an even background from which a pixel belongs to the product."""
SMALLEST, LARGEST = 0.005, 0.98
"""Shares of a picture that a product may cover."""
GRABCUT_ROUNDS = 5
SHADOW = 0.35
"""How much darker the ground is right under the product."""


@dataclass(frozen=True, eq=False)
class Placed:
    """A product on a canvas: `image` with the ground and its shadow around it, and where it lies (PIL L)."""

    image: Image.Image
    mask: Image.Image


def cut_out(image: Image.Image) -> tuple[Image.Image, str]:
    """The product's mask and how it was found, in words: by an even background, else by OpenCV's GrabCut."""
    pixels = np.asarray(image.convert("RGB"), np.float32)
    border = np.concatenate([pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3),
                             pixels[:, :2].reshape(-1, 3), pixels[:, -2:].reshape(-1, 3)])  # fmt: skip
    colour = np.median(border, axis=0)
    if np.median(np.abs(border - colour)) <= EVEN / 2 and np.abs(border - colour).mean() <= EVEN:
        found = np.linalg.norm(pixels - colour, axis=-1) > BESIDE
        words = "its even background"
    else:
        found = _grabcut(pixels.astype(np.uint8))
        words = "OpenCV's GrabCut"
    mask = _whole(found)
    require_product(mask)
    return mask, words


def require_product(mask: Image.Image) -> None:
    """`InvalidRequest` where a mask shows next to nothing or next to everything."""
    share = (np.asarray(mask) >= THRESHOLD).mean()
    if not SMALLEST <= share <= LARGEST:
        raise InvalidRequest(
            f"The product would cover {share:.1%} of its picture; give a mask that is white on the product alone.",
            field="product_mask",
        )


def place(
    product: Image.Image, mask: Image.Image, size: Size, *, scale: float, at: tuple[float, float], shadow: bool
) -> Placed:
    """The product on a ground of its size: `scale` is the share of the canvas that its longer side takes, `at` the
    share of the width and of the height at which its middle lies. It stays whole within the canvas."""
    box = binarise(mask).getbbox()
    if box is None:
        raise InvalidRequest("The mask has no white part: there is no product.", field="product_mask")
    own, part = product.crop(box), binarise(mask).crop(box)
    factor = min(scale * size[0] / own.width, scale * size[1] / own.height)
    fitted = (max(1, round(own.width * factor)), max(1, round(own.height * factor)))
    own = own.resize(fitted, Image.Resampling.LANCZOS)
    part = part.resize(fitted, Image.Resampling.LANCZOS)
    left = min(max(0, round(at[0] * size[0] - fitted[0] / 2)), size[0] - fitted[0])
    top = min(max(0, round(at[1] * size[1] - fitted[1] / 2)), size[1] - fitted[1])
    ground = ground_of(size)
    whole = Image.new("L", size)
    whole.paste(part, (left, top))
    if shadow:
        ground = ImageChops.multiply(ground, shadow_under(size, (left, top, left + fitted[0], top + fitted[1])))
    ground.paste(own, (left, top), part)
    return Placed(ground, whole)


def ground_of(size: Size) -> Image.Image:
    """A bright wall that becomes a floor: what a model starts from where it is to paint."""
    rows = np.linspace(232, 205, size[1], dtype=np.float32)[:, None, None]
    return Image.fromarray(np.broadcast_to(rows, (size[1], size[0], 3)).astype(np.uint8))


def shadow_under(size: Size, box: tuple[int, int, int, int]) -> Image.Image:
    """White, darker in a soft ellipse where a thing in this box touches the ground."""
    left, _, right, bottom = box
    depth = max(2, round((right - left) * 0.12))
    dark = round(255 * (1 - SHADOW))
    layer = Image.new("L", size, 255)
    ImageDraw.Draw(layer).ellipse((left, bottom - depth, right, bottom + depth // 2), fill=dark)
    return Image.merge("RGB", [layer.filter(ImageFilter.GaussianBlur(max(1, depth // 2)))] * 3)


def _grabcut(pixels: np.ndarray) -> np.ndarray:
    cv2 = load_opencv()
    height, width = pixels.shape[:2]
    inner = (max(1, width // 50), max(1, height // 50), width - 2 * (width // 50) - 1, height - 2 * (height // 50) - 1)
    labels = np.zeros((height, width), np.uint8)
    cv2.setRNGSeed(0)
    cv2.grabCut(pixels[..., ::-1].copy(), labels, inner, np.zeros((1, 65)), np.zeros((1, 65)), GRABCUT_ROUNDS,
                cv2.GC_INIT_WITH_RECT)  # fmt: skip
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)


def _whole(found: np.ndarray) -> Image.Image:
    """One product without specks and holes: patches of a hundredth of the largest stay."""
    cv2 = load_opencv()
    outlines, _ = cv2.findContours(found.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    areas = [cv2.contourArea(outline) for outline in outlines]
    mask = np.zeros(found.shape, np.uint8)
    kept = [outline for outline, area in zip(outlines, areas, strict=True) if area >= max(areas) / 100]
    cv2.drawContours(mask, kept, -1, 255, cv2.FILLED)
    return Image.fromarray(mask)
