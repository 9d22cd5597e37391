"""What edits of one picture changed, laid over it: a difference that is too small to be meant is left out."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from app.imaging.paste_changes import difference_mask, faded

GROWN, FEATHERED = 5, 8
"""Pixels at 512 by which what changed grows, and over which its edge fades."""


def merged(original: Image.Image, edits: Sequence[Image.Image]) -> Image.Image:
    """The picture with what each edit of it changed, the later over the earlier; one edit alone is itself.

    What no edit changed keeps its bytes.
    """
    if len(edits) == 1:
        return edits[0]
    before, scale = np.asarray(original), max(1.0, min(original.size) / 512)
    result = before.astype(np.float32)
    for edit in edits:
        after = np.asarray(edit)
        share = faded(difference_mask(before, after), round(GROWN * scale), round(FEATHERED * scale))[..., None] / 255.0
        result = result * (1 - share) + after * share
    return Image.fromarray(result.round().clip(0, 255).astype(np.uint8))
