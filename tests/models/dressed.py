"""Additions worn for the length of a `with` block, by modules that nobody else uses."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from app.models.adapters import Addition, Outfit, Vectors, Wardrobe, extended_tables


@contextmanager
def loras(pipeline: Any, additions: Sequence[Addition], wardrobe: Wardrobe | None = None) -> Iterator[None]:
    """These LoRAs on the pipeline's modules."""
    wardrobe = Wardrobe() if wardrobe is None else wardrobe
    wardrobe.wear(wardrobe.make(pipeline, additions))
    try:
        yield
    finally:
        wardrobe.wear(None)


@contextmanager
def textual_inversions(text_encoders: Sequence[Any], additions: Sequence[Addition]) -> Iterator[Vectors]:
    """These textual inversions in the encoders' tables."""
    vectors, tables = extended_tables(text_encoders, additions)
    outfit = Outfit(("inversions",), tuple(tables), vectors)
    outfit.put_on()
    try:
        yield vectors
    finally:
        outfit.take_off()
