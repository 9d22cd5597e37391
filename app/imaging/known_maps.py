"""Whether a picture is a control map already: then it is followed as it is."""

from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from app.imaging.ade20k import PALETTE

LOOKED_AT = 512
"""Pixels of the longer side at which a picture is looked at; whole pixels are picked, none are mixed."""

GREY_SPREAD = 6
"""Levels by which the channels of a grey picture may differ: JPEG leaves that much."""

TINT_SPREAD = 0.08
"""By how much the shares of a paper's red, green and blue that ink lets through may differ."""

LIGHTEST_INK = 160
"""Levels: a ground that is darker is no paper."""

PURE = 40
"""Levels from black or white that still count as such."""


def is_map(kind: str, image: Image.Image) -> bool:
    """Whether this picture looks like a map of this control type: lines white on black, depth grey, poses on black."""
    return bool(_LOOKS[kind](_pixels(image)))


def is_dark_on_white(image: Image.Image) -> bool:
    """Whether this is a drawing with dark lines on white or on light paper of one tint: a map of lines, inverted."""
    pixels = _pixels(image)
    ground = paper(pixels)
    if ground.min() < LIGHTEST_INK or _share(np.abs(pixels - ground).max(axis=2) < PURE) < 0.6:
        return False
    # Ink lets through less of the paper's light, and of each colour alike.
    through = pixels / ground
    return bool(_share(np.ptp(through, axis=2) <= TINT_SPREAD) > 0.99 and through.min() < 0.5)


def paper(pixels: np.ndarray) -> np.ndarray:
    """The colour [3] of what is behind the lines of a drawing [height, width, 3]: most of it is paper."""
    return np.median(pixels.reshape(-1, 3), axis=0)


def _pixels(image: Image.Image) -> np.ndarray:
    step = max(1, max(image.size) // LOOKED_AT)
    return np.asarray(image.convert("RGB"))[::step, ::step].astype(np.int16)


def _share(where: np.ndarray) -> float:
    return float(where.mean())


def _is_grey(pixels: np.ndarray) -> bool:
    return _share(np.ptp(pixels, axis=2) <= GREY_SPREAD) > 0.99


def _is_edges(pixels: np.ndarray) -> bool:
    """Black and white and next to nothing between, mostly black."""
    bright = pixels.max(axis=2)
    pure = _share((bright < PURE) | (bright > 255 - PURE))
    return _is_grey(pixels) and pure > 0.97 and _share(bright < PURE) > 0.5 and bright.max() > 255 - PURE


def _is_lines(pixels: np.ndarray) -> bool:
    """Light lines of any shade on black."""
    bright = pixels.max(axis=2)
    return _is_grey(pixels) and _share(bright < PURE) > 0.5 and bright.max() > 128


def _is_depth(pixels: np.ndarray) -> bool:
    return _is_grey(pixels)


def _is_pose(pixels: np.ndarray) -> bool:
    """Pure colours on black."""
    bright, spread = pixels.max(axis=2), np.ptp(pixels, axis=2)
    drawn = bright > PURE
    return _share(~drawn) > 0.6 and bool(drawn.any()) and _share(spread[drawn] > 0.6 * bright[drawn]) > 0.9


def _is_normals(pixels: np.ndarray) -> bool:
    """Vectors of length one that look at the viewer."""
    vectors = pixels / 127.5 - 1
    whole = np.abs(np.linalg.norm(vectors, axis=2) - 1) < 0.12
    return _share(whole & (vectors[..., 2] > -0.1)) > 0.9


def _is_classes(pixels: np.ndarray) -> bool:
    """Colours of ADE20K's classes and black alone."""
    known = {(0, 0, 0), *(tuple(colour) for colour in PALETTE)}
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    of_a_class = sum(int(count) for colour, count in zip(colours, counts, strict=True) if tuple(colour) in known)
    return of_a_class > 0.95 * counts.sum()


_LOOKS: Mapping[str, Callable[[np.ndarray], bool]] = {
    "canny": _is_edges,
    "depth": _is_depth,
    "lineart": _is_lines,
    "lineart_anime": _is_lines,
    "normal": _is_normals,
    "openpose": _is_pose,
    "scribble": _is_edges,
    "segmentation": _is_classes,
    "softedge": _is_lines,
    # These follow the picture itself.
    "color": lambda pixels: True,
    "inpaint": lambda pixels: True,
    "tile": lambda pixels: True,
}
