"""Only what an editor changed, pasted into the original: everything else keeps the original's bytes.

What changed is what differs by more than the editor's own noise: a light shift of all colours and the blur of its
autoencoder are no change, and along sharp edges a little more is forgiven.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from app.imaging.opencv import load_opencv

LEAST = 12.0
"""Levels of 255 below which nothing counts as a change."""
EDGE_SLIP = 0.6
"""Pixels by which an edge may lie elsewhere without having changed."""
SMALLEST_SHARE = 2e-4
"""Of the picture's pixels: what is smaller is noise."""
LEAST_GAIN = 0.6
"""A channel's contrast is not taken to have changed by more, nor by its inverse."""
MOST_SHIFT = 32.0
"""Levels of 255 by which an editor shifts all of a picture unasked; what shifts by more was asked for."""
MOST = 0.7
"""Share of the picture above which it was made anew as a whole, and nothing is to be pasted."""


@dataclass(frozen=True)
class Pasted:
    """The original with the changes on it; `mask` (L) is black where every byte is the original's.

    `share` is that of pixels that are not black. Where nothing changed in places, or everything, the picture is the
    edited one, `mask` is None and `note` says so.
    """

    image: Image.Image
    mask: Image.Image | None
    share: float
    note: str | None = None


def paste_changes(original: Image.Image, edited: Image.Image, *, grow: int = 8, feather: int = 8) -> Pasted:
    """The original with what changed in the edited picture, which has its size and lies on it.

    The mask is what changed, grown by `grow` pixels and fading over `feather` more.
    """
    before = np.asarray(original.convert("RGB"))
    after = np.asarray(edited.convert("RGB"))
    gains, offsets = _colour_shift(before, after)
    # As the editor would have left it, had it changed nothing: what it made too light stays at the end of the scale.
    untouched = np.clip(before * gains + offsets, 0, 255)
    changed = difference_mask(untouched, after)
    share = float(changed.mean())
    if share == 0.0:
        return Pasted(edited, None, 0.0, "Nothing changed in one place more than in others, so nothing was pasted.")
    if share > MOST:
        return Pasted(edited, None, share, "Most of the picture changed, so it was not pasted into the original.")
    alpha = faded(changed, grow, feather)
    mixed = before + ((after - offsets) / gains - before) * (alpha[..., None] / 255.0)
    pixels = np.where(alpha[..., None] > 0, np.clip(np.rint(mixed), 0, 255).astype(np.uint8), before)
    return Pasted(Image.fromarray(pixels), Image.fromarray(alpha), float((alpha > 0).mean()))


def difference_mask(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where `after` differs from `before` (both [height, width, 3]) by more than noise: bool [height, width]."""
    cv2 = load_opencv()
    first, second = (cv2.GaussianBlur(pixels.astype(np.float32), (0, 0), 1.5) for pixels in (before, after))
    difference = np.abs(second - first).max(axis=-1)
    slope = np.zeros_like(difference)
    for channel in range(3):
        across, down = (cv2.Sobel(first[..., channel], cv2.CV_32F, *way, scale=1 / 8) for way in ((1, 0), (0, 1)))
        slope = np.maximum(slope, np.hypot(across, down))
    # An edge's slope reaches as far as it may lie off.
    slope = cv2.dilate(slope, np.ones((3, 3), np.uint8))
    rest = np.maximum(difference - EDGE_SLIP * slope, 0)
    # What most places differ by is noise, unless most of the picture is another.
    middle = 0.0 if _mostly_differs(before, after) else float(np.median(rest))
    noise = 1.4826 * float(np.median(np.abs(rest - middle))) if middle else 0.0
    seeds = rest > max(LEAST, middle + 6 * noise)
    # Around what surely changed, also what changed less.
    weak = rest > max(LEAST / 2, middle + 3 * noise)
    return _touching(weak, _large(seeds))


def faded(mask: np.ndarray, grow: int, feather: int) -> np.ndarray:
    """The mask (bool), its holes closed, full for `grow` pixels around it, then fading to 0 over `feather`: uint8."""
    cv2 = load_opencv()
    round_ = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * grow + 1, 2 * grow + 1))
    closed = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_CLOSE, round_, borderValue=0)
    away = cv2.distanceTransform(1 - closed, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    fade = np.clip(1 - (away - grow) / (feather + 1), 0, 1) if feather else away <= grow
    return np.rint(255 * fade).astype(np.uint8)


def _mostly_differs(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether even the quieter half of the picture is another, by more than lost detail: then no place stands out."""
    cv2 = load_opencv()
    few = tuple(max(1, round(side * min(1.0, 64 / max(before.shape[:2])))) for side in before.shape[1::-1])
    first, second = (cv2.resize(p.astype(np.float32), few, interpolation=cv2.INTER_AREA) for p in (before, after))
    return float(np.median(np.abs(second - first).max(axis=-1))) > LEAST


def _colour_shift(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gain and offset of each channel from `before` to `after`, as most of the pixels tell; none where they do not."""
    step = max(1, int(np.sqrt(before.shape[0] * before.shape[1] / 40_000)))
    few, many = before[::step, ::step].astype(np.float64), after[::step, ::step].astype(np.float64)
    kept = (few > 4).all(axis=-1) & (few < 251).all(axis=-1) & (many > 4).all(axis=-1) & (many < 251).all(axis=-1)
    within, least = kept.copy(), 0.4 * max(int(kept.sum()), 1)
    for _ in range(6):
        gains, offsets = np.ones(3), np.zeros(3)
        for channel in range(3):
            x, y = few[..., channel][kept], many[..., channel][kept]
            if len(x) > 50 and x.std() > 4:
                gains[channel], offsets[channel] = np.polyfit(x, y, 1)
            elif len(x) > 50:
                offsets[channel] = np.median(y - x)
        shifted = few * gains + offsets
        off = np.abs(shifted - many).max(axis=-1)
        # What was edited is far off and does not count.
        kept = within & (off <= max(4.0, 2 * float(np.median(off[within])) if within.any() else 4.0))
        if kept.sum() < least or (gains < LEAST_GAIN).any() or (gains > 1 / LEAST_GAIN).any():
            return np.ones(3), np.zeros(3)
    if kept.any() and np.abs((shifted - few)[kept].mean(axis=0)).max() > MOST_SHIFT:
        return np.ones(3), np.zeros(3)
    return gains, offsets


def _large(mask: np.ndarray) -> np.ndarray:
    """The connected parts that are no specks."""
    cv2 = load_opencv()
    count, labels, facts, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    least = max(12, SMALLEST_SHARE * mask.size)
    large = np.zeros(count, dtype=bool)
    large[1:] = facts[1:, cv2.CC_STAT_AREA] >= least
    return large[labels]


def _touching(mask: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """The connected parts of a mask that hold a seed."""
    cv2 = load_opencv()
    count, labels = cv2.connectedComponents((mask | seeds).astype(np.uint8), connectivity=8)
    held = np.zeros(count, dtype=bool)
    held[np.unique(labels[seeds])] = True
    held[0] = False
    return held[labels]
