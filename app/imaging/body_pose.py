"""A body's pose as the picture that pose ControlNets were trained on: OpenPose's eighteen points and their limbs."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from app.imaging.opencv import load_opencv
from app.imaging.sizes import Size

COLOURS = (
    (255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0), (0, 255, 85),
    (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255), (170, 0, 255), (255, 0, 255),
    (255, 0, 170), (255, 0, 85),
)  # fmt: skip
LIMBS = (
    (1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0),
    (0, 14), (14, 16), (0, 15), (15, 17),
)  # fmt: skip
"""Pairs of points in OpenPose's order: nose, neck, right arm, left arm, right leg, left leg, eyes, ears."""

FROM_COCO = (0, None, 6, 8, 10, 5, 7, 9, 12, 14, 16, 11, 13, 15, 2, 1, 4, 3)
"""Which of COCO's seventeen points each of OpenPose's eighteen is; the neck is none of them."""

SHOULDERS = (5, 6)
WIDTH, SHADE, RADIUS = 4, 0.6, 4
"""At 512 pixels; larger pictures have broader limbs."""

SURE = 0.3
"""What a point must score to be drawn."""


def openpose_points(points: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """COCO's points [17, 2] and scores [17] in OpenPose's order, with the neck between the shoulders."""
    left, right = SHOULDERS
    neck, neck_score = (points[left] + points[right]) / 2, min(scores[left], scores[right])
    found = [(neck, neck_score) if place is None else (points[place], scores[place]) for place in FROM_COCO]
    return np.stack([point for point, _ in found]), np.array([score for _, score in found])


def draw_bodies(size: Size, bodies: Sequence[tuple[np.ndarray, np.ndarray]]) -> Image.Image:
    """Each body's eighteen points [18, 2] with their scores [18], on black."""
    cv2 = load_opencv()
    width, height = size
    picture = np.zeros((height, width, 3), np.uint8)
    grown = max(1.0, min(size) / 512)
    for points, scores in bodies:
        for (start, end), colour in zip(LIMBS, COLOURS, strict=False):
            if min(scores[start], scores[end]) < SURE:
                continue
            (x0, y0), (x1, y1) = points[start], points[end]
            centre = int((x0 + x1) / 2), int((y0 + y1) / 2)
            axes = int(math.hypot(x0 - x1, y0 - y1) / 2), round(WIDTH * grown)
            angle = int(math.degrees(math.atan2(y0 - y1, x0 - x1)))
            cv2.fillConvexPoly(picture, cv2.ellipse2Poly(centre, axes, angle, 0, 360, 1), colour)
    picture = (picture * SHADE).astype(np.uint8)
    for points, scores in bodies:
        for (x, y), score, colour in zip(points, scores, COLOURS, strict=True):
            if score >= SURE:
                cv2.circle(picture, (int(x), int(y)), round(RADIUS * grown), colour, -1)
    return Image.fromarray(picture)
