"""The pixels of a face swap: what is cut out around a face, and how the new face is laid back into the picture.

Invariant: outside the mask every byte of the picture stays as it was. The mask comes from what was parsed in the
picture, never from the new face, and it fades inwards only.
"""

import cv2
import numpy as np
from PIL import Image

from app.errors import InvalidRequest
from app.imaging.crop import box_around
from app.imaging.masks import THRESHOLD, Box, fade_inwards
from app.imaging.sizes import Size, round_near

CROP_FACTOR = 3.0
"""Side of the part that is painted anew, in sides of the face; EcomID's face detailer uses the same."""

SWAPPED_PARTS = (1, 2, 3, 4, 5, 6, 10, 11, 12, 13)
"""Skin, brows, eyes, glasses, nose, mouth and lips in BiSeNet's numbers; ears, hair and neck stay the picture's own."""

SMALLEST_FACE_AREA = 0.01
"""Part of an aligned crop that must show a face."""


def face_region(face: tuple[float, float, float, float], picture: Size, factor: float = CROP_FACTOR) -> Box:
    """The square around a face, `factor` times as long as its longer side, moved and cut to lie within the picture."""
    left, top, right, bottom = face
    side = max(right - left, bottom - top)
    inner = (
        max(0, round((left + right - side) / 2)),
        max(0, round((top + bottom - side) / 2)),
        min(picture[0], round((left + right + side) / 2)),
        min(picture[1], round((top + bottom + side) / 2)),
    )
    if inner[0] >= inner[2] or inner[1] >= inner[3]:
        raise InvalidRequest("The face lies outside the picture.")
    return box_around(inner, round(side * (factor - 1) / 2), picture, (1, 1))


def working_size(region: Box, side: int, multiple: int = 8) -> Size:
    """The size at which a model paints a region: its shape, its longer side about `side` (as the model was trained)."""
    width, height = region[2] - region[0], region[3] - region[1]
    scale = side / max(width, height)
    return round_near(width * scale, multiple), round_near(height * scale, multiple)


def swap_mask(parts: np.ndarray, matrix: np.ndarray, picture: Size) -> Image.Image:
    """What of a picture the new face replaces, hard-edged: the face's parts in its aligned crop, mapped back.

    `parts` [512, 512] are BiSeNet's numbers; `matrix` [2, 3] maps the picture to the crop. Holes are filled. An
    `InvalidRequest` where the crop shows no face.
    """
    face = np.isin(parts, SWAPPED_PARTS).astype(np.uint8)
    if face.mean() < SMALLEST_FACE_AREA:
        raise InvalidRequest("No face was seen in the part of the picture that was to be swapped.")
    outlines, _ = cv2.findContours(face, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    # One face, whole: the largest patch, without the holes that a misread pixel leaves.
    whole = np.zeros_like(face)
    cv2.drawContours(whole, [max(outlines, key=cv2.contourArea)], -1, 255, cv2.FILLED)
    mask = cv2.warpAffine(whole, matrix, picture, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return Image.fromarray(np.where(mask >= THRESHOLD, 255, 0).astype(np.uint8))


def soft_mask(mask: Image.Image, face: tuple[float, float, float, float], feather: float = 0.08) -> Image.Image:
    """The mask with an edge that rises inwards over `feather` of the face's longer side; black stays black."""
    side = max(face[2] - face[0], face[3] - face[1])
    return fade_inwards(mask, max(1, round(side * feather)))


def require_face_in_mask(mask: Image.Image, face: tuple[float, float, float, float]) -> None:
    """`InvalidRequest` where the white of a mask lies beside the face that was to be changed."""
    box = tuple(round(edge) for edge in face)
    if not (np.asarray(mask.crop(box)) >= THRESHOLD).any():
        raise InvalidRequest(
            "The mask misses the face: no white part of it lies within the face's box.", face=list(box)
        )


def match_colours(painted: Image.Image, original: Image.Image, mask: Image.Image) -> Image.Image:
    """The painted picture with the original's mean and spread of lightness and colour, as both are inside the mask.

    All three are of one size. Measured in CIELAB, weighted by the mask; the spread changes at most by half.
    """
    weight = np.asarray(mask, dtype=np.float64)[..., None] / 255
    if not weight.any():
        raise InvalidRequest("The mask has no white part: nothing would be matched.")
    ours, theirs = (_lab(picture) for picture in (painted, original))
    (our_mean, our_spread), (their_mean, their_spread) = (_spread(values, weight) for values in (ours, theirs))
    gain = np.clip(their_spread / np.maximum(our_spread, 1e-3), 0.5, 1.5)
    matched = ((ours - our_mean) * gain + their_mean).astype(np.float32)
    rgb = np.clip(cv2.cvtColor(matched, cv2.COLOR_LAB2RGB), 0, 1)
    return Image.fromarray((rgb * 255 + 0.5).astype(np.uint8))


def paste_face(original: Image.Image, painted: Image.Image, region: Box, mask: Image.Image) -> Image.Image:
    """The original with the painted region laid over it as far as `mask` (as large as the original) is white.

    The painted region may have the size that a model worked at; colours are matched inside the mask.
    """
    size = region[2] - region[0], region[3] - region[1]
    if painted.size != size:
        painted = painted.resize(size, Image.Resampling.LANCZOS)
    alpha = mask.crop(region)
    painted = match_colours(painted, original.crop(region), alpha)
    result = original.copy()
    result.paste(painted, region[:2], mask=alpha)
    return result


def _lab(picture: Image.Image) -> np.ndarray:
    return cv2.cvtColor(np.asarray(picture, dtype=np.float32) / 255, cv2.COLOR_RGB2LAB).astype(np.float64)


def _spread(values: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted mean and standard deviation of each channel."""
    total = weight.sum()
    mean = (values * weight).sum(axis=(0, 1)) / total
    return mean, np.sqrt((((values - mean) ** 2) * weight).sum(axis=(0, 1)) / total)
