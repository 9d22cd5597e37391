"""A training set on disk: arrays whose entries are a function of a seed and their number, made once, then mapped."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

BATCH = 32
Shapes = Mapping[str, tuple[type, tuple[int, ...]]]
"""Name of an array -> its type and the shape of one entry."""


def build(
    folder: Path,
    name: str,
    shapes: Shapes,
    count: int,
    make: Callable[[range], Mapping[str, np.ndarray]],
    report: Callable[[str], None] = print,
) -> dict[str, np.ndarray]:
    """Append what the files lack of `count` entries (rounded up to BATCH), then map all arrays, read-only."""
    folder.mkdir(parents=True, exist_ok=True)
    count = -(-count // BATCH) * BATCH
    paths = {array: folder / f"{array}-{name}.bin" for array in shapes}
    sizes = {array: np.dtype(kind).itemsize * int(np.prod(shape)) for array, (kind, shape) in shapes.items()}
    for path in paths.values():
        path.touch()
    done = min(paths[array].stat().st_size // sizes[array] for array in shapes) // BATCH * BATCH
    for array, path in paths.items():
        os.truncate(path, done * sizes[array])
    reported = time.monotonic()
    for first in range(done, count, BATCH):
        made = make(range(first, first + BATCH))
        for array, path in paths.items():
            with open(path, "ab") as file:
                file.write(np.ascontiguousarray(made[array], shapes[array][0]).tobytes())
        if time.monotonic() - reported > 20:
            reported = time.monotonic()
            report(f"{name}: {first + BATCH} of {count} entries")
    return {array: np.memmap(paths[array], kind, "r", shape=(count, *shape)) for array, (kind, shape) in shapes.items()}
