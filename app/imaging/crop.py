"""The part of a picture that a model works on, and the way back to the same pixels.

Invariant: what comes back lies where it was taken. Sizes that a model cannot take are padded on the right and at the
bottom and cut again; a change of scale maps the whole box onto the whole sheet both ways, so nothing shifts.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from app.imaging.masks import Box, binarise, cover_cells
from app.imaging.sizes import Size, round_up


@dataclass(frozen=True)
class Sheet:
    """A part of a picture as a model is handed it.

    `box` is the part (left, top, right, bottom); `scaled` the size that it was brought to; `image` and `mask` are that
    part, padded so that both sides are multiples of what the model asks for.
    """

    box: Box
    scaled: Size
    image: Image.Image
    mask: Image.Image

    def cut(self, painted: Image.Image) -> Image.Image:
        """The model's picture without the padding."""
        return painted if painted.size == self.scaled else painted.crop((0, 0, *self.scaled))

    def lay_over(self, original: Image.Image, painted: Image.Image, alpha: Image.Image) -> Image.Image:
        """The original with the model's picture in its place as far as `alpha` (as large as the original) is white."""
        left, top, right, bottom = self.box
        part = self.cut(painted)
        if part.size != (right - left, bottom - top):
            part = part.resize((right - left, bottom - top), Image.Resampling.LANCZOS)
        result = original.copy()
        result.paste(part, (left, top), mask=alpha.crop(self.box))
        return result


def lay_out(
    image: Image.Image, mask: Image.Image, box: Box, scaled: Size, *, multiple: int, cover: bool = False
) -> Sheet:
    """The box of a picture and its mask as a sheet; with `cover` the mask grows to the model's whole cells."""
    part, part_mask = image.crop(box), mask.crop(box)
    if part.size != scaled:
        part = part.resize(scaled, Image.Resampling.LANCZOS)
        # Whatever of a white pixel falls into a pixel of the sheet makes it white: a thin stroke must not vanish.
        part_mask = binarise(part_mask).resize(scaled, Image.Resampling.BILINEAR).point(lambda grey: 255 if grey else 0)
    part, part_mask = pad_to_multiple(part, multiple), pad_to_multiple(part_mask, multiple, mode="edge")
    return Sheet(box, scaled, part, cover_cells(part_mask, multiple) if cover else part_mask)


def pad_to_multiple(image: Image.Image, multiple: int, *, mode: str = "symmetric") -> Image.Image:
    """The picture grown on the right and at the bottom to multiples, mirrored (`symmetric`) or repeated (`edge`)."""
    right, bottom = (round_up(side, multiple) - side for side in image.size)
    if not right and not bottom:
        return image
    array = np.asarray(image)
    return Image.fromarray(np.pad(array, ((0, bottom), (0, right)) + ((0, 0),) * (array.ndim - 2), mode=mode))


def box_around(inner: Box, padding: int, picture: Size, aspect: Size) -> Box:
    """A box around `inner` with `padding` on each side, grown to the shape of `aspect` as far as the picture reaches.

    The shorter side grows evenly to both sides of `inner`, and moves inwards at the picture's edges.
    """
    left, top = max(inner[0] - padding, 0), max(inner[1] - padding, 0)
    right, bottom = min(inner[2] + padding, picture[0]), min(inner[3] + padding, picture[1])
    width, height = right - left, bottom - top
    if width * aspect[1] < height * aspect[0]:
        left, right = _grow(left, right, -(-height * aspect[0] // aspect[1]), picture[0])
    else:
        top, bottom = _grow(top, bottom, -(-width * aspect[1] // aspect[0]), picture[1])
    return left, top, right, bottom


def _grow(start: int, end: int, length: int, limit: int) -> tuple[int, int]:
    """The span grown evenly to `length`, at most `limit`, and moved to lie within 0 and `limit`."""
    length = min(length, limit)
    start = min(max(start - (length - (end - start)) // 2, 0), limit - length)
    return start, start + length
