"""Masks without weights: OpenCV's GrabCut, told by points or boxes what is meant.

GrabCut (Rother, Kolmogorov and Blake, 2004) learns the colours of what is inside and outside from a first guess, and
cuts along the strongest edges between them. It knows no things, so a point is answered with three guesses of growing
reach, and nothing says how good they are.
"""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from app.imaging.opencv import load_opencv
from app.imaging.prompts import FloatBox, Point, Prompts

LONGEST_SIDE = 384
"""Of the copy in which GrabCut works: its time grows with the pixels."""

REACHES = (1 / 20, 1 / 10, 1 / 5)
"""How far from the points the thing is first guessed to reach, in shares of the picture's shorter side."""

ROUNDS = 4
SURE = 0.35
"""Share of the reach around a point that is sure to belong to what it points at."""
SURE_IN_BOX = 0.12
"""The same beside a box, in shares of its shorter side."""
FAR = 4.0
"""Reaches from the points beyond which nothing belongs to the thing."""


def segment(image: Image.Image, prompts: Prompts) -> list[Image.Image]:
    """PIL L masks as large as the picture, white is the thing.

    Of points three, from a small reach to a large one; beside a box one; of several boxes one each.
    """
    if prompts.boxes:
        return [_cut(image, box, prompts.points, prompts.negative_points) for box in prompts.boxes]
    shorter = min(image.size)
    return [_grow(image, prompts, max(share * shorter, 3.0)) for share in REACHES]


def _grow(image: Image.Image, prompts: Prompts, reach: float) -> Image.Image:
    """The thing at these points, guessed to reach so far."""
    xs, ys = zip(*prompts.points, strict=True)
    far = FAR * reach
    window = (min(xs) - far, min(ys) - far, max(xs) + far, max(ys) + far)
    return _within(image, window, prompts.points, prompts.negative_points, reach, framed=False)


def _cut(image: Image.Image, box: FloatBox, points: Sequence[Point], negative_points: Sequence[Point]) -> Image.Image:
    """The thing in a box."""
    left, top, right, bottom = box
    across, down = (right - left) / 2, (bottom - top) / 2
    window = (left - across, top - down, right + across, bottom + down)
    return _within(image, window, points, negative_points, min(across, down) / 2, framed=True, box=box)


def _within(
    image: Image.Image,
    window: FloatBox,
    points: Sequence[Point],
    negative_points: Sequence[Point],
    reach: float,
    *,
    framed: bool,
    box: FloatBox | None = None,
) -> Image.Image:
    """One run of GrabCut in a window of the picture, at most `LONGEST_SIDE` long."""
    cv2 = load_opencv()
    left, top = max(int(window[0]), 0), max(int(window[1]), 0)
    right, bottom = min(int(np.ceil(window[2])), image.width), min(int(np.ceil(window[3])), image.height)
    part = image.crop((left, top, right, bottom))
    scale = min(1.0, LONGEST_SIDE / max(part.size))
    size = max(8, round(part.width * scale)), max(8, round(part.height * scale))
    pixels = cv2.cvtColor(np.asarray(part.resize(size, Image.Resampling.BOX)), cv2.COLOR_RGB2BGR)
    across, down = size[0] / part.width, size[1] / part.height

    def local(found: Sequence[Point]) -> list[tuple[int, int]]:
        return [(min(int((x - left) * across), size[0] - 1), min(int((y - top) * down), size[1] - 1)) for x, y in found]

    inside, outside = local(points), local(negative_points)
    labels = np.full((size[1], size[0]), cv2.GC_BGD, np.uint8)
    sure = max(1, round(SURE * reach * across))
    if framed and box is not None:
        (x0, y0), (x1, y1) = local([box[:2], (box[2] - 1e-3, box[3] - 1e-3)])
        labels[y0 : y1 + 1, x0 : x1 + 1] = cv2.GC_PR_FGD
        sure = max(1, round(SURE_IN_BOX * min(x1 - x0, y1 - y0)))
    else:
        for radius, label in ((FAR, cv2.GC_PR_BGD), (1.0, cv2.GC_PR_FGD)):
            for point in inside:
                cv2.circle(labels, point, max(2, round(radius * reach * across)), int(label), -1)
    for point in inside:
        cv2.circle(labels, point, sure, int(cv2.GC_FGD), -1)
    for point in outside:
        cv2.circle(labels, point, sure, int(cv2.GC_BGD), -1)
    # Its first guess of the colours is drawn at random: the same wish must give the same mask.
    cv2.setRNGSeed(0)
    if np.isin(labels, (cv2.GC_BGD, cv2.GC_PR_BGD)).any():
        cv2.grabCut(pixels, labels, None, np.zeros((1, 65)), np.zeros((1, 65)), ROUNDS, cv2.GC_INIT_WITH_MASK)
    found = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    found = _of_one_piece(found, inside, outside)
    mask = Image.new("L", image.size, 0)
    grown = Image.fromarray(found * 255).resize(part.size, Image.Resampling.BILINEAR)
    mask.paste(grown.point(lambda grey: 255 if grey >= 128 else 0), (left, top))
    return mask


def _of_one_piece(
    found: np.ndarray, inside: Sequence[tuple[int, int]], outside: Sequence[tuple[int, int]]
) -> np.ndarray:
    """The pieces that the points lie in, or the largest one, smoothed; holes stay only where a point asks for one."""
    cv2 = load_opencv()
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    smooth = cv2.morphologyEx(cv2.morphologyEx(found, cv2.MORPH_OPEN, kernel), cv2.MORPH_CLOSE, kernel)
    for x, y in inside:
        cv2.circle(smooth, (x, y), 2, 1, -1)
    count, pieces, statistics, _ = cv2.connectedComponentsWithStats(smooth)
    if count < 2:
        return found
    kept = {int(pieces[y, x]) for x, y in inside} - {0}
    kept = kept or {1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))}
    piece = np.isin(pieces, list(kept)).astype(np.uint8)
    if outside:
        return piece
    outlines, _ = cv2.findContours(piece, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(np.zeros_like(piece), outlines, -1, 1, cv2.FILLED)
