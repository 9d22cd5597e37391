"""The holes of a picture filled part by part: what is handed to a filler is a part at full resolution around a hole.

Invariant: no pixel outside the holes is written, whatever the filler answers. Holes that lie near each other are filled
together. One that is too large for a part is filled core by core, the outermost first, so that every core has something
known beside it; what a core's part holds of other cores is only looked at.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from app.imaging.masks import Box, binarise

CELL = 16
"""Holes are told apart on a grid of so many pixels."""

LONGEST_PART = 768
"""Sides of a part are at most so long; LaMa at 768x768 takes about a gigabyte."""

LEAST_CONTEXT = 64
CONTEXT = 0.5
"""How much around a hole is looked at: this share of its longer side, and never less than `LEAST_CONTEXT` pixels."""

Filler = Callable[[Image.Image, Image.Image], Image.Image]
"""A part and its hole (PIL RGB, PIL L in black and white) to the part with the hole filled, as large."""


@dataclass(frozen=True)
class Part:
    """`box` is what the filler sees; of what it answers, `core` is kept."""

    box: Box
    core: Box


def parts_of(mask: Image.Image, *, longest: int = LONGEST_PART) -> list[Part]:
    """The parts in the order in which they are to be filled."""
    array = np.asarray(binarise(mask))
    return [part for box in _clusters(array) for part in _parts_around(box, mask.size, array, longest)]


def fill(
    image: Image.Image, mask: Image.Image, parts: list[Part], filler: Filler, on_part: Callable[[int], None]
) -> Image.Image:
    """The picture with what is white in the mask filled; `on_part` hears the number of each part that is done."""
    result, left = image.copy(), binarise(mask)
    for number, part in enumerate(parts, 1):
        filled = filler(result.crop(part.box), left.crop(part.box))
        left_edge, top_edge = part.box[:2]
        core = tuple(edge - (top_edge if at % 2 else left_edge) for at, edge in enumerate(part.core))
        result.paste(filled.crop(core), part.core[:2], mask=left.crop(part.core))
        left.paste(0, part.core)
        on_part(number)
    return result


def _clusters(array: np.ndarray) -> Iterator[Box]:
    """The box of each group of holes that lie within `LEAST_CONTEXT` of each other."""
    from scipy import ndimage

    height, width = array.shape
    padded = np.pad(array, ((0, -height % CELL), (0, -width % CELL)))
    cells = padded.reshape(padded.shape[0] // CELL, CELL, padded.shape[1] // CELL, CELL).max(axis=(1, 3)) > 0
    near = LEAST_CONTEXT // CELL // 2
    labels, _ = ndimage.label(ndimage.maximum_filter(cells, 2 * near + 1), np.ones((3, 3)))
    for number, found in enumerate(ndimage.find_objects(labels), 1):
        rows, columns = np.nonzero(cells[found] & (labels[found] == number))
        top, left = found[0].start + rows.min(), found[1].start + columns.min()
        bottom, right = found[0].start + rows.max() + 1, found[1].start + columns.max() + 1
        rough = (left * CELL, top * CELL, min(right * CELL, width), min(bottom * CELL, height))
        inner = Image.fromarray(array[rough[1] : rough[3], rough[0] : rough[2]]).getbbox()
        yield (rough[0] + inner[0], rough[1] + inner[1], rough[0] + inner[2], rough[1] + inner[3])


def _parts_around(hole: Box, size: tuple[int, int], array: np.ndarray, longest: int) -> Iterator[Part]:
    context = max(LEAST_CONTEXT, round(CONTEXT * max(hole[2] - hole[0], hole[3] - hole[1])))
    whole = _widened(hole, context, size)
    if max(whole[2] - whole[0], whole[3] - whole[1]) <= longest:
        yield Part(whole, hole)
        return
    margin = min(LEAST_CONTEXT * 2, longest // 4)
    across, down = (_cuts(hole[at], hole[at + 2], longest - 2 * margin) for at in (0, 1))
    cores = []
    for row, (top, bottom) in enumerate(down):
        for column, (left, right) in enumerate(across):
            if array[top:bottom, left:right].any():
                ring = min(row, len(down) - 1 - row, column, len(across) - 1 - column)
                cores.append((ring, row, column, (int(left), int(top), int(right), int(bottom))))
    for *_, core in sorted(cores):
        yield Part(_widened(core, margin, size), core)


def _widened(box: Box, by: int, size: tuple[int, int]) -> Box:
    return (max(box[0] - by, 0), max(box[1] - by, 0), min(box[2] + by, size[0]), min(box[3] + by, size[1]))


def _cuts(start: int, end: int, longest: int) -> list[tuple[int, int]]:
    """The span in equal pieces of at most so many pixels."""
    count = -(-(end - start) // longest)
    edges = [start + (end - start) * number // count for number in range(count + 1)]
    return list(pairwise(edges))
