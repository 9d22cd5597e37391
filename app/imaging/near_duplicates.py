"""Which pictures look alike: a perceptual hash, by whether brightness rises or falls from each place to the next."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

SIDE = 8
NEAR = 6
"""Bits of 64 in which two pictures of one scene may differ: saved anew, scaled, a little brighter."""


def picture_hash(image: Image.Image) -> int:
    """64 bits that stay almost the same when a picture is scaled, saved anew or made a little brighter."""
    grey = np.asarray(image.convert("L").resize((SIDE + 1, SIDE), Image.Resampling.LANCZOS), dtype=np.int16)
    bits = grey[:, 1:] > grey[:, :-1]
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def near_duplicates(hashes: Sequence[int]) -> list[list[int]]:
    """Groups of positions whose pictures look alike, each group and all of them in order; most pictures are in none."""
    groups: list[list[int]] = []
    for position, value in enumerate(hashes):
        group = next((known for known in groups if (hashes[known[0]] ^ value).bit_count() <= NEAR), None)
        if group is None:
            groups.append([position])
        else:
            group.append(position)
    return [group for group in groups if len(group) > 1]
