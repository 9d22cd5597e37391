"""Masks: PIL "L" pictures in which white is repainted and black is kept.

A model knows only kept and repainted; half-way is `THRESHOLD`, as in diffusers. Greys matter where two pictures are
laid over each other.
"""

import numpy as np
from PIL import Image

from app.errors import InvalidRequest

THRESHOLD = 128

Box = tuple[int, int, int, int]


def binarise(mask: Image.Image) -> Image.Image:
    """Black and white alone: white from `THRESHOLD` on."""
    return mask.point(lambda value: 255 if value >= THRESHOLD else 0)


def white_box(mask: Image.Image) -> Box:
    """The smallest box (left, top, right, bottom) around all that is repainted; `InvalidRequest` if nothing is."""
    box = binarise(mask).getbbox()
    if box is None:
        raise InvalidRequest("The mask has no white part: nothing would be repainted.")
    return box


def fade_inwards(mask: Image.Image, distance: int) -> Image.Image:
    """The mask with an edge that rises from nothing to full over `distance` pixels, all of them inside the mask.

    Never more than the mask itself, so what is black stays black. A stroke thinner than two fades has steeper edges, so
    that its middle is full all the same: a blur would leave half of what a thin stroke was to remove. The picture's
    own edge is no edge of the mask.
    """
    box = mask.getbbox()
    if distance == 0 or box is None:
        return mask
    left, top = max(box[0] - 1, 0), max(box[1] - 1, 0)
    grey = np.asarray(mask.crop((left, top, min(box[2] + 1, mask.width), min(box[3] + 1, mask.height))))
    depth = distance_to_black(grey > 0, distance + 1)
    full = np.minimum(highest_around(depth, distance), distance + 1)
    ramp = np.minimum(depth / np.maximum(full, 1), 1)
    faded = Image.new("L", mask.size)
    faded.paste(Image.fromarray((grey * ramp).astype(np.uint8)), (left, top))
    return faded


def distance_to_black(inside: np.ndarray, limit: int) -> np.ndarray:
    """How far each pixel that is inside is from the nearest that is not, in straight lines; at most about `limit`.

    First along the columns, then the best over the neighbouring columns (Felzenszwalb and Huttenlocher's separation,
    with as many neighbours as the limit asks for).
    """
    rows = np.arange(len(inside), dtype=np.int32)[:, None]
    above = rows - np.maximum.accumulate(np.where(inside, -limit, rows), axis=0)
    below = np.minimum.accumulate(np.where(inside, len(inside) + limit, rows)[::-1], axis=0)[::-1] - rows
    upright = np.minimum(np.minimum(above, below), limit) ** 2
    nearest = upright.copy()
    for step in range(1, min(limit, inside.shape[1])):
        np.minimum(nearest[:, step:], upright[:, :-step] + step * step, out=nearest[:, step:])
        np.minimum(nearest[:, :-step], upright[:, step:] + step * step, out=nearest[:, :-step])
    return np.sqrt(nearest, dtype=np.float32)


def highest_around(values: np.ndarray, reach: int) -> np.ndarray:
    """The highest value within `reach` rows and columns of each; windows are doubled, so a wide one costs little."""
    for axis in (0, 1):
        padded = np.pad(values, [(reach, reach) if axis == side else (0, 0) for side in (0, 1)])
        covered = 1
        while covered < 2 * reach + 1:
            step = min(covered, 2 * reach + 1 - covered)
            near, far = np.split(padded, [padded.shape[axis] - step], axis)[0], np.split(padded, [step], axis)[1]
            padded = np.maximum(near, far)
            covered += step
        values = padded
    return values


def cover_cells(mask: Image.Image, cell: int) -> Image.Image:
    """The mask grown to whole cells of `cell` x `cell` pixels: a cell that it touches is white.

    A diffusion model works on cells; diffusers asks only the first pixel of each, so a thin stroke would be missed.
    """
    array = np.asarray(binarise(mask))
    height, width = array.shape
    cells = array.reshape(height // cell, cell, width // cell, cell).max(axis=(1, 3))
    return Image.fromarray(cells.repeat(cell, axis=0).repeat(cell, axis=1))


def sees_white(mask: Image.Image, cell: int) -> bool:
    """Whether any cell's first pixel, the one that diffusers asks, is white."""
    return bool((np.asarray(mask)[::cell, ::cell] >= THRESHOLD).any())
