"""Which pictures look alike: a perceptual hash, by whether brightness rises from place to place, and the mean colour.

A rise of a few levels counts for nothing: in plain areas it is what a lossy file makes of them. The colour stands
beside it because two plain pictures of one outline may differ in nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 8
RISE = 3
NEAR = 12
"""Bits of 128 in which two pictures of one scene may differ: saved anew, scaled, a little brighter."""
NEAR_COLOUR = 24
"""Levels in which each channel of their mean colours may."""


@dataclass(frozen=True)
class Fingerprint:
    """64 bits across and 64 down, and the mean red, green and blue (0 to 255)."""

    bits: int
    colour: tuple[float, float, float]

    def is_near(self, other: "Fingerprint") -> bool:
        """Whether the two pictures look alike."""
        apart = max(abs(own - its) for own, its in zip(self.colour, other.colour, strict=True))
        return (self.bits ^ other.bits).bit_count() <= NEAR and apart <= NEAR_COLOUR


def picture_hash(image: Image.Image) -> Fingerprint:
    """What stays almost the same when a picture is scaled, saved anew or made a little brighter."""
    small = image.convert("RGB").resize((SIDE + 1, SIDE + 1), Image.Resampling.LANCZOS)
    grey = np.asarray(small.convert("L"), dtype=np.int16)
    across = grey[:SIDE, 1:] - grey[:SIDE, :-1] > RISE
    down = grey[1:, :SIDE] - grey[:-1, :SIDE] > RISE
    bits = int.from_bytes(np.packbits(np.concatenate([across.ravel(), down.ravel()])).tobytes(), "big")
    red, green, blue = np.asarray(small, dtype=np.float64).mean(axis=(0, 1))
    return Fingerprint(bits, (float(red), float(green), float(blue)))


def near_duplicates(hashes: Sequence[Fingerprint]) -> list[list[int]]:
    """Groups of positions whose pictures look alike, each group and all of them in order; most pictures are in none."""
    groups: list[list[int]] = []
    for position, value in enumerate(hashes):
        group = next((known for known in groups if hashes[known[0]].is_near(value)), None)
        if group is None:
            groups.append([position])
        else:
            group.append(position)
    return [group for group in groups if len(group) > 1]
