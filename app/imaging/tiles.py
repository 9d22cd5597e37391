"""A picture made larger part by part: which part a network sees, which pixels of the result are its, and no seams.

Invariant: a pixel of the result is the same however the picture was cut, as long as `reach` is how far the network
looks. The result is cut into whole pixels; each part is handed over with everything around it that its pixels depend
on, and the picture's own edge is the edge of every part that touches it. A change of size after the network is done on
each part with the filter's own reach around it, so the network's picture never stands whole. The price is the ring
around each part, which is computed twice.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise

from PIL import Image

from app.imaging.masks import Box
from app.imaging.sizes import Size

LANCZOS_REACH = 3
"""Pixels of the smaller of two grids that Lanczos looks at on each side."""
SMALLEST_SIDE = 16

Network = Callable[[Image.Image], Image.Image]
"""A part of the picture to the same part, `scale` times as large."""


@dataclass(frozen=True)
class Grid:
    """How many parts a picture is cut into."""

    columns: int
    rows: int

    @property
    def count(self) -> int:
        """All of them."""
        return self.columns * self.rows


@dataclass(frozen=True)
class Pass:
    """One pass over a whole picture: from which size to which, in how many parts."""

    size: Size
    target: Size
    grid: Grid


@dataclass(frozen=True)
class Enlarged:
    """A picture made larger: how, in how many passes and parts, and sentences about what differs from the wish."""

    image: Image.Image
    passes: int
    tiles: int
    reach: int
    notes: list[str] = field(default_factory=list)


def sizes_on_the_way(size: Size, target: Size, scale: int) -> list[Size]:
    """What each pass makes: the network's own multiple until the target is within reach, then the target."""
    found, now = [], size
    while scale > 1 and any(side * scale < wanted for side, wanted in zip(now, target, strict=True)):
        now = (now[0] * scale, now[1] * scale)
        found.append(now)
    return [*found, target]


def grid_of_side(size: Size, side: int) -> Grid:
    """Parts that keep at most `side` pixels each way."""
    return Grid(math.ceil(size[0] / side), math.ceil(size[1] / side))


def grid_of_area(size: Size, area: float, reach: int) -> Grid:
    """The parts of which none shows a network more than `area` pixels and which together show it the fewest.

    Where even the smallest parts show more, those of `SMALLEST_SIDE` pixels.
    """
    width, height = size
    best, least = Grid(math.ceil(width / SMALLEST_SIDE), math.ceil(height / SMALLEST_SIDE)), math.inf
    for columns in range(1, math.ceil(width / SMALLEST_SIDE) + 1):
        seen = width if columns == 1 else min(width, math.ceil(width / columns) + 2 * reach)
        if seen * height <= area:
            rows, whole = 1, columns * seen * height
        else:
            inner = int(area / seen) - 2 * reach
            if inner < SMALLEST_SIDE:
                continue
            rows = math.ceil(height / inner)
            whole = columns * rows * seen * min(height, math.ceil(height / rows) + 2 * reach)
        if whole < least:
            best, least = Grid(columns, rows), whole
    return best


def enlarge(
    image: Image.Image,
    step: Pass,
    network: Network,
    *,
    scale: int,
    reach: int,
    multiple: int = 1,
    ramp: int = 0,
    on_tile: Callable[[], None] = lambda: None,
) -> Image.Image:
    """The picture at the pass's target size; `on_tile` is called after each part and may raise.

    `multiple` is what the network cuts its input into, so that every part is cut as the whole would be. `ramp` are
    pixels of the picture over which a part fades into those before it, for a network that looks at more than `reach`.
    """
    result = Image.new(image.mode, step.target)
    ratio = tuple(side * scale / wanted for side, wanted in zip(step.size, step.target, strict=True))
    for core in cores(step.target, step.grid):
        fades = tuple(min(start, round(ramp * scale / by)) for start, by in zip(core[:2], ratio, strict=True))
        box = (core[0] - fades[0], core[1] - fades[1], core[2], core[3])
        seen = _around(box, step.size, ratio, scale, reach, multiple)
        part = network(image.crop(seen))
        inner = tuple(edge * ratio[at % 2] - seen[at % 2] * scale for at, edge in enumerate(box))
        if ratio == (1.0, 1.0):
            piece = part.crop(tuple(map(int, inner)))
        else:
            piece = part.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS, box=inner)
        result.paste(piece, box[:2], mask=_fading(piece.size, fades) if any(fades) else None)
        on_tile()
    return result


def cores(size: Size, grid: Grid) -> Iterator[Box]:
    """The parts of a picture of this size, row by row."""
    across = [round(size[0] * number / grid.columns) for number in range(grid.columns + 1)]
    down = [round(size[1] * number / grid.rows) for number in range(grid.rows + 1)]
    for top, bottom in pairwise(down):
        for left, right in pairwise(across):
            if left < right and top < bottom:
                yield left, top, right, bottom


def _around(
    box: Box, size: Size, ratio: tuple[float, float], scale: int, reach: int, multiple: int
) -> tuple[int, int, int, int]:
    """What of the picture the pixels in `box` of the result depend on."""
    starts, ends = [], []
    for at, by in enumerate(ratio):
        filtered = 0.0 if by == 1 else LANCZOS_REACH * max(1.0, by) + 1
        start = math.floor((box[at] * by - filtered) / scale) - reach
        end = math.ceil((box[at + 2] * by + filtered) / scale) + reach
        starts.append(max(0, start // multiple * multiple))
        ends.append(min(size[at], -(-end // multiple) * multiple))
    return starts[0], starts[1], ends[0], ends[1]


def _fading(size: Size, fades: tuple[int, ...]) -> Image.Image:
    """White, but rising from black over so many pixels from the left and from the top."""
    import numpy as np

    across, down = (
        np.minimum(1, (np.arange(side) + 0.5) / fade) if fade else np.ones(side)
        for side, fade in zip(size, fades, strict=True)
    )
    return Image.fromarray((down[:, None] * across[None] * 255 + 0.5).astype(np.uint8))
