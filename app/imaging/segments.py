"""Masks of things: what a segmenter answers, and how a mask is grown, turned round and softened for its use."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageChops

from app.errors import InvalidRequest
from app.imaging.masks import binarise, fade_inwards
from app.imaging.opencv import load_opencv


@dataclass(frozen=True, eq=False)
class Segment:
    """A PIL L mask as large as the picture, white is the thing; `score` is its quality as the model foretells it (the
    overlap with the true mask, 0 to 1), None where nothing foretells one."""

    mask: Image.Image
    score: float | None = None


def best_of(segments: Sequence[Segment], index: int | None = None) -> Segment:
    """The one of this number, else that of the highest score, else the first."""
    if index is not None:
        if index >= len(segments):
            raise InvalidRequest(f"There are {len(segments)} masks, from 0; there is none of number {index}.",
                                 field="mask_index")  # fmt: skip
        return segments[index]
    return max(segments, key=lambda segment: segment.score or 0.0)


def united(segments: Sequence[Segment]) -> Image.Image:
    """One mask that is white wherever any of these is."""
    mask = segments[0].mask
    for segment in segments[1:]:
        mask = ImageChops.lighter(mask, segment.mask)
    return mask


def grown(mask: Image.Image, pixels: int) -> Image.Image:
    """Black and white, the white part reaching so many pixels further, or less far where negative; round corners."""
    mask = binarise(mask)
    box = mask.getbbox()
    if pixels == 0 or box is None:
        return mask
    cv2 = load_opencv()
    reach = abs(pixels)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    left, top = max(box[0] - reach, 0), max(box[1] - reach, 0)
    part = np.asarray(mask.crop((left, top, min(box[2] + reach, mask.width), min(box[3] + reach, mask.height))))
    # The picture's own edge is no edge of the thing: beyond it the mask goes on as it is.
    change = cv2.dilate if pixels > 0 else cv2.erode
    changed = Image.new("L", mask.size)
    changed.paste(Image.fromarray(change(part, kernel)), (left, top))
    return changed


def made_ready(mask: Image.Image, *, grow: int = 0, invert: bool = False, blur: int = 0) -> Image.Image:
    """The mask turned round if so wished, then grown, then softened inwards over so many pixels."""
    mask = binarise(mask)
    if invert:
        mask = ImageChops.invert(mask)
    return fade_inwards(grown(mask, grow), blur)


def described(segment: Segment) -> dict[str, Any]:
    """Score, share of the picture, and box of a mask, as an answer says them."""
    box = binarise(segment.mask).getbbox()
    white = segment.mask.histogram()[128:]
    return {
        "score": None if segment.score is None else round(float(segment.score), 4),
        "share": round(sum(white) / (segment.mask.width * segment.mask.height), 6),
        "box": list(box) if box else None,
    }
