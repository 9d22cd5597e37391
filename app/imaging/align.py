"""Edits that stay put: how far an edited picture slid against its original, and how it is laid back onto it.

An instruction editor works at a size of its own, and what it paints comes back a few pixels beside and a little larger
than what it was shown. Two measurements find that: matched features say roughly how, and phase correlation of many
small windows says exactly; windows in which something was edited disagree with the rest and are outvoted. A picture of
which too few windows agree is left as it is.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from app.imaging.opencv import load_opencv

LARGEST_SHIFT = 0.06
"""Share of the longer side: what slid further is no slip of an editor but another picture."""
LARGEST_ZOOM = 0.06
ENOUGH = 0.35
"""Share of the windows that must agree, of those that show anything."""
FEWEST_WINDOWS = 6
AGREES = 1.0
"""Pixels within which a window agrees with what was measured."""
WINDOW = 64
STILL = 0.05
"""Pixels: nothing is laid anew for less."""
ROUNDS = 4


@dataclass(frozen=True)
class Motion:
    """Where an edited picture's middle lies against the original's, in pixels, and how much larger it is.

    `confidence` is the share of windows that agree on it, from 0 to 1.
    """

    x: float = 0.0
    y: float = 0.0
    zoom: float = 1.0
    confidence: float = 0.0

    @property
    def is_sure(self) -> bool:
        """Whether enough of the picture agrees for it to be laid back."""
        return self.confidence >= ENOUGH

    def matrix(self, size: tuple[int, int]) -> np.ndarray:
        """[2, 3] from the original's pixels to the edited picture's, for pictures of this (width, height)."""
        middle = np.array([(size[0] - 1) / 2, (size[1] - 1) / 2])
        moved = middle + np.array([self.x, self.y]) - self.zoom * middle
        return np.array([[self.zoom, 0, moved[0]], [0, self.zoom, moved[1]]])

    def at_the_corners(self, size: tuple[int, int]) -> float:
        """The most pixels by which anything of a picture of this (width, height) is off."""
        reach = abs(self.zoom - 1) / 2
        return float(np.hypot(abs(self.x) + reach * size[0], abs(self.y) + reach * size[1]))

    def told(self) -> dict[str, float]:
        """It as an answer states it."""
        return {
            "x": round(self.x, 2),
            "y": round(self.y, 2),
            "zoom": round(self.zoom, 4),
            "confidence": round(self.confidence, 2),
        }


@dataclass(frozen=True)
class Aligned:
    """A picture laid back onto its original: how it lay before and after; the same twice where it was left."""

    image: Image.Image
    before: Motion
    after: Motion
    moved: bool

    def told(self) -> dict[str, object]:
        """It as an answer states it."""
        return {"before": self.before.told(), "after": self.after.told(), "moved": self.moved}


def undo_resize(edited: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture at the original's (width, height), each edge on its edge.

    An editor stretches a picture onto sides of its own; the way back stretches both sides by exactly as much, also
    where rounding changed the shape.
    """
    return edited if edited.size == size else edited.resize(size, Image.Resampling.LANCZOS)


def align(original: Image.Image, edited: Image.Image) -> Aligned:
    """The edited picture, of the original's size, laid back onto it.

    What slid in from outside is the original's own edge. Where the measurement is not sure, or a second one says that
    laying back made it worse, the picture stays as it is.
    """
    before = measure(original, edited)
    size = original.size
    if not before.is_sure or before.at_the_corners(size) < STILL:
        return Aligned(edited, before, before, False)
    laid = lay_back(original, edited, before)
    after = measure(original, laid)
    if not after.is_sure or after.at_the_corners(size) > before.at_the_corners(size):
        return Aligned(edited, before, before, False)
    return Aligned(laid, before, after, True)


def lay_back(original: Image.Image, edited: Image.Image, motion: Motion) -> Image.Image:
    """The edited picture moved and zoomed back; the original's pixels where it does not reach."""
    cv2 = load_opencv()
    size, matrix = original.size, motion.matrix(original.size)
    flags = cv2.INTER_LANCZOS4 | cv2.WARP_INVERSE_MAP
    pixels = cv2.warpAffine(
        np.asarray(edited.convert("RGB")), matrix, size, flags=flags, borderMode=cv2.BORDER_REFLECT_101
    )
    columns = matrix[0, 0] * np.arange(size[0]) + matrix[0, 2]
    rows = matrix[1, 1] * np.arange(size[1]) + matrix[1, 2]
    inside = ((rows >= 0) & (rows <= size[1] - 1))[:, None] & ((columns >= 0) & (columns <= size[0] - 1))
    return Image.fromarray(np.where(inside[..., None], pixels, np.asarray(original.convert("RGB"))))


def measure(original: Image.Image, edited: Image.Image) -> Motion:
    """How the edited picture, of the same size, lies against the original; a confidence of 0 where nothing is known."""
    size = original.size
    first, second = _structure(original), _structure(edited)
    best = Motion()
    # Features may be wrong, and most pictures did not move far: both are tried, and the better one is kept.
    for start in dict.fromkeys((_by_features(original, edited), Motion())):
        motion = _refined(first, second, start)
        if motion.confidence > best.confidence:
            best = motion
    if abs(best.zoom - 1) > LARGEST_ZOOM or max(abs(best.x), abs(best.y)) > LARGEST_SHIFT * max(size):
        return Motion()
    return best


def _structure(image: Image.Image) -> np.ndarray:
    """What stays of a picture when its light and colours change: grey without its slow part, of even contrast."""
    cv2 = load_opencv()
    grey = np.asarray(image.convert("L"), dtype=np.float32)
    fine = cv2.GaussianBlur(grey, (0, 0), 1.0)
    slow = fine - cv2.GaussianBlur(grey, (0, 0), 12.0)
    spread = np.sqrt(cv2.GaussianBlur(slow * slow, (0, 0), 24.0))
    return slow / (spread + 4.0)


def _by_features(original: Image.Image, edited: Image.Image) -> Motion:
    """Matched corners of both pictures; no motion where too few agree."""
    cv2 = load_opencv()
    detector = cv2.SIFT_create(nfeatures=3000)
    greys = [np.asarray(image.convert("L")) for image in (original, edited)]
    (points, words), (others, other_words) = (detector.detectAndCompute(grey, None) for grey in greys)
    if words is None or other_words is None or min(len(points), len(others)) < 2 * FEWEST_WINDOWS:
        return Motion()
    pairs = cv2.BFMatcher().knnMatch(words, other_words, k=2)
    good = [pair[0] for pair in pairs if len(pair) == 2 and pair[0].distance < 0.75 * pair[1].distance]
    if len(good) < 2 * FEWEST_WINDOWS:
        return Motion()
    here = np.array([points[match.queryIdx].pt for match in good])
    there = np.array([others[match.trainIdx].pt for match in good])
    matrix, inliers = cv2.estimateAffinePartial2D(here, there, method=cv2.RANSAC, ransacReprojThreshold=2.0)
    if matrix is None or inliers.sum() < 2 * FEWEST_WINDOWS:
        return Motion()
    zoom = float(np.hypot(matrix[0, 0], matrix[1, 0]))
    middle = np.array([(original.width - 1) / 2, (original.height - 1) / 2])
    x, y = matrix[:, :2] @ middle + matrix[:, 2] - middle
    return Motion(float(x), float(y), zoom)


def _refined(first: np.ndarray, second: np.ndarray, start: Motion) -> Motion:
    """The motion by many windows' phase correlation, from a start that is some pixels off."""
    cv2 = load_opencv()
    size = first.shape[::-1]
    motion = start
    for _ in range(ROUNDS):
        flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
        back = cv2.warpAffine(second, motion.matrix(size), size, flags=flags, borderMode=cv2.BORDER_REFLECT_101)
        places, slips = _window_slips(first, back)
        if len(places) < FEWEST_WINDOWS:
            return Motion()
        (x, y, zoom), agreeing = _vote(places, slips)
        motion = Motion(motion.x + x, motion.y + y, motion.zoom * zoom, float(agreeing.mean()))
        if abs(motion.zoom - 1) > 2 * LARGEST_ZOOM or agreeing.sum() < FEWEST_WINDOWS:
            return Motion()
    return motion


def _window_slips(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Middles of windows that show something, from the picture's middle, and by how much each slid: both [n, 2]."""
    cv2 = load_opencv()
    height, width = first.shape
    side = min(WINDOW, height // 3, width // 3) // 2 * 2
    if side < 16:
        return np.empty((0, 2)), np.empty((0, 2))
    hann = cv2.createHanningWindow((side, side), cv2.CV_32F)
    places, slips = [], []
    for top in np.linspace(0, height - side, max(3, 2 * height // side - 1)).astype(int):
        for left in np.linspace(0, width - side, max(3, 2 * width // side - 1)).astype(int):
            one, other = (grey[top : top + side, left : left + side] for grey in (first, second))
            if min(one.std(), other.std()) < 0.25:
                continue
            slip, response = cv2.phaseCorrelate(np.ascontiguousarray(one), np.ascontiguousarray(other), hann)
            # A window without a peak was edited, or is all noise: it votes for nothing, and counts as one that does not
            # agree.
            slips.append(slip if response > 0.1 else (np.inf, np.inf))
            places.append((left + side / 2 - width / 2, top + side / 2 - height / 2))
    return np.array(places), np.array(slips)


def _vote(places: np.ndarray, slips: np.ndarray) -> tuple[tuple[float, float, float], np.ndarray]:
    """Shift and zoom that most windows agree on (random pairs, then least squares), and which windows those are."""
    heard = np.isfinite(slips).all(axis=1)
    best = np.zeros(len(places), dtype=bool)
    if heard.sum() < FEWEST_WINDOWS:
        return (0.0, 0.0, 1.0), best
    chance, candidates = np.random.default_rng(0), np.flatnonzero(heard)
    for _ in range(200):
        one, other = chance.choice(candidates, 2, replace=False)
        apart = places[other] - places[one]
        slope = float(apart @ (slips[other] - slips[one]) / max(float(apart @ apart), 1.0))
        agreeing = heard & _near(places, slips, slips[one] - slope * places[one], slope)
        if agreeing.sum() > best.sum():
            best = agreeing
    shift, slope = np.zeros(2), 0.0
    for _ in range(3):
        if best.sum() < 3:
            return (0.0, 0.0, 1.0), best
        where, how = places[best], slips[best]
        spread = where - where.mean(axis=0)
        slope = float((spread * (how - how.mean(axis=0))).sum() / max(float((spread * spread).sum()), 1.0))
        shift = how.mean(axis=0) - slope * where.mean(axis=0)
        best = heard & _near(places, slips, shift, slope)
    return (float(shift[0]), float(shift[1]), 1 + slope), best


def _near(places: np.ndarray, slips: np.ndarray, shift: np.ndarray, slope: float) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        off = np.linalg.norm(slips - (shift + slope * places), axis=1)
    return off < AGREES
