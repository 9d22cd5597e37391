"""A picture on a larger canvas: where it lies, and what stands in the new border before a model paints it."""

from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from app.imaging.masks import Box
from app.imaging.sizes import Size

FILL_SIDE = 1024


class Margins(NamedTuple):
    """Pixels added on each side."""

    left: int
    top: int
    right: int
    bottom: int

    def around(self, size: Size) -> Size:
        """The canvas's size for a picture of this size."""
        return size[0] + self.left + self.right, size[1] + self.top + self.bottom

    def place(self, size: Size) -> Box:
        """Where a picture of this size lies on the canvas."""
        return self.left, self.top, self.left + size[0], self.top + size[1]


def extend(image: Image.Image, margins: Margins) -> Image.Image:
    """The picture on its canvas, the border filled with its own mirror image, ever more blurred outwards.

    Near the picture the colours go on as they are, far from it only their mean is left: a model that starts from the
    border's colours finds a plausible continuation, and one that encodes the canvas meets no hard edge. What is blurred
    anyway is made at a small scale.
    """
    scale = min(1.0, FILL_SIDE / max(margins.around(image.size)))
    small = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BOX)
    around = Margins(*(round(margin * scale) for margin in margins))
    pad = ((around.top, around.bottom), (around.left, around.right), (0, 0))
    mirrored = Image.fromarray(np.pad(np.asarray(small), pad, mode="symmetric"))
    distance, reach = border_distance(small.size, around), max(1, *around)
    fill = mirrored
    for level in range(5):
        blurred = mirrored.filter(ImageFilter.GaussianBlur(max(1, reach * 2**level / 32)))
        ramp = np.clip(distance * 8 / reach - level, 0, 1) * 255
        fill = Image.composite(blurred, fill, Image.fromarray(ramp.astype(np.uint8)))
    canvas = fill.resize(margins.around(image.size), Image.Resampling.BICUBIC)
    canvas.paste(image, margins.place(image.size)[:2])
    return canvas


def border_mask(size: Size, margins: Margins, seam: int) -> Image.Image:
    """White in the new border, and in `seam` pixels of the picture along each side that grows."""
    width, height = margins.around(size)
    kept = Image.new("L", (width, height), 255)
    left, top, right, bottom = inset(size, margins, seam)
    kept.paste(0, (left, top, right, bottom))
    return kept


def inset(size: Size, margins: Margins, seam: int) -> Box:
    """The picture's place on the canvas, less `seam` pixels on each side that grows; at least one pixel stays."""
    left, top, right, bottom = margins.place(size)
    across, down = min(seam, (size[0] - 1) // 2), min(seam, (size[1] - 1) // 2)
    return (
        left + across * bool(margins.left),
        top + down * bool(margins.top),
        right - across * bool(margins.right),
        bottom - down * bool(margins.bottom),
    )


def border_distance(size: Size, margins: Margins) -> np.ndarray:
    """How many pixels each pixel of the canvas is away from the picture; 0 inside it. Shape (height, width)."""
    width, height = margins.around(size)
    left, top, right, bottom = margins.place(size)
    across, down = np.arange(width), np.arange(height)
    sideways = np.maximum(np.maximum(left - across, across - right + 1), 0)
    upright = np.maximum(np.maximum(top - down, down - bottom + 1), 0)
    return np.hypot(sideways[None, :], upright[:, None])


def seam_alpha(size: Size, margins: Margins, seam: int) -> Image.Image:
    """How much of the new picture shows: all in the border, fading to none over `seam` pixels of the old picture."""
    kept = inset(size, margins, seam)
    left, top, right, bottom = kept
    inner = Margins(left, top, margins.around(size)[0] - right, margins.around(size)[1] - bottom)
    distance = border_distance((right - left, bottom - top), inner)
    alpha = np.clip(distance / (seam + 1), 0, 1)
    outside = border_distance(size, margins) > 0
    return Image.fromarray((np.where(outside, 1.0, alpha) * 255).astype(np.uint8))
