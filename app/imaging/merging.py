"""What edits of one picture changed, laid over it: a difference that is too small to be meant is left out."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from app.imaging.opencv import load_opencv

SEEN = 20.0
"""Grey levels by which a smoothed pixel must differ to count as changed: a decoder's own error stays below it."""

SMOOTH, GROWN, FEATHERED = 2.0, 9, 4.0
"""Pixels at 512: over which differences are smoothed, by which what changed grows, over which its edge fades."""


def changed(original: Image.Image, edited: Image.Image) -> np.ndarray:
    """[height, width] of 0 to 1: how far each pixel of the edit (as large) counts as changed."""
    cv2 = load_opencv()
    scale = max(1.0, min(original.size) / 512)
    difference = np.asarray(edited, np.float32) - np.asarray(original, np.float32)
    strength = np.abs(cv2.GaussianBlur(difference, (0, 0), SMOOTH * scale)).max(axis=2)
    side = round(GROWN * scale) | 1
    grown = cv2.dilate((strength > SEEN).astype(np.float32), np.ones((side, side), np.uint8))
    return cv2.GaussianBlur(grown, (0, 0), FEATHERED * scale).clip(0, 1)


def merged(original: Image.Image, edits: Sequence[Image.Image]) -> Image.Image:
    """The picture with what each edit of it changed, the later over the earlier; one edit alone is itself.

    What no edit changed keeps its bytes.
    """
    if len(edits) == 1:
        return edits[0]
    result = np.asarray(original, np.float32)
    for edit in edits:
        share = changed(original, edit)[..., None]
        result = result * (1 - share) + np.asarray(edit, np.float32) * share
    return Image.fromarray(result.round().clip(0, 255).astype(np.uint8))
