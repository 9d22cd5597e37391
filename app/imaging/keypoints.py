"""Keypoints of a face: the picture of five of them that IdentityNet reads, and the same head turned another way.

A head is turned in its own frame (to its right, down its face, out of it), read off its 68 points, so it does not
matter which way a detector counts depth. Yaw and pitch are degrees as the picture shows them: positive yaw turns the
nose to the picture's right, positive pitch turns it down.
"""

import math

import cv2
import numpy as np
from PIL import Image

from app.errors import InvalidRequest
from app.imaging.sizes import Size

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (255, 0, 255))
"""Left eye, right eye, nose, left and right corner of the mouth."""

LIMBS = ((0, 2), (1, 2), (3, 2), (4, 2))
LIMB_HALF_WIDTH, LIMB_SHADE, POINT_RADIUS = 4, 0.6, 10
LEFT_EYE, RIGHT_EYE, NOSE_TIP, MOUTH_CORNERS, JAW_ENDS = slice(36, 42), slice(42, 48), 30, (48, 54), (0, 16)

MOUTH_FORWARD = math.radians(6.45)
"""How far the line from eyes to mouth leans out of a face that looks straight ahead (of insightface's mean face)."""

POSES: dict[str, tuple[float, float]] = {
    "front": (0, 0),
    "left": (-30, 0),
    "right": (30, 0),
    "up": (0, -24),
    "down": (0, 24),
}
"""Name -> yaw and pitch; left is the picture's left."""

SHORT_SIDE, LONGEST_SIDE, MULTIPLE = 1024, 1280, 64


def draw_keypoints(size: Size, points: np.ndarray) -> Image.Image:
    """Five points [5, 2] on black, pixel for pixel as InstantID's `draw_kps`, which its ControlNet was trained on."""
    width, height = size
    picture = np.zeros((height, width, 3), dtype=np.uint8)
    for outer, nose in LIMBS:
        (x0, y0), (x1, y1) = points[outer], points[nose]
        length = math.hypot(x0 - x1, y0 - y1)
        angle = math.degrees(math.atan2(y0 - y1, x0 - x1))
        # Whole numbers by cutting off, never by rounding, and a polygon, not OpenCV's own ellipse: others differ.
        centre = int((x0 + x1) / 2), int((y0 + y1) / 2)
        limb = cv2.ellipse2Poly(centre, (int(length / 2), LIMB_HALF_WIDTH), int(angle), 0, 360, 1)
        cv2.fillConvexPoly(picture, limb, COLOURS[outer])
    picture = (picture * LIMB_SHADE).astype(np.uint8)
    for (x, y), colour in zip(points, COLOURS, strict=True):
        cv2.circle(picture, (int(x), int(y)), POINT_RADIUS, colour, -1)
    return Image.fromarray(picture)


def five_points(points: np.ndarray) -> np.ndarray:
    """Eyes, nose tip and mouth corners [5, 2] of 68 points [68, 2 or 3]."""
    eyes = points[LEFT_EYE].mean(axis=0), points[RIGHT_EYE].mean(axis=0)
    return np.stack([*eyes, points[NOSE_TIP], *points[list(MOUTH_CORNERS)]])[:, :2]


def turn_keypoints(points: np.ndarray, yaw: float, pitch: float) -> np.ndarray:
    """The five points [5, 2] of a head that was turned until it looks along `yaw` and `pitch`, upright."""
    return five_points(turn_head(points, yaw, pitch))


def turn_head(points: np.ndarray, yaw: float, pitch: float) -> np.ndarray:
    """The 68 points [68, 3] turned about the middle between the ears, whichever way they looked before; same scale.

    The third number of the answer is depth towards the viewer.
    """
    points = points.astype(np.float64)
    axes, pivot = _axes(points), _pivot(points)
    turned = (points - pivot) @ axes.T @ _rotation(yaw, pitch).T
    turned[:, :2] += pivot[:2]
    return turned


def head_pose(points: np.ndarray) -> tuple[float, float, float]:
    """Yaw, pitch and roll in degrees of 68 points [68, 3]; positive roll leans the head clockwise in the picture."""
    axes = _axes(points.astype(np.float64))
    # Right, down and out have this sign where depth is counted towards the viewer, the other one where away.
    axes[:, 2] *= np.sign(np.linalg.det(axes))
    right, down, out = axes
    yaw, pitch = math.atan2(-right[2], out[2]), math.asin(np.clip(-down[2], -1, 1))
    return math.degrees(yaw), math.degrees(pitch), math.degrees(math.atan2(-down[0], down[1]))


def reference_size(size: Size) -> Size:
    """What InstantID brings a reference to: short side 1024, long side at most 1280, both cut to multiples of 64."""
    width, height = size
    scale = min(SHORT_SIDE / min(width, height), LONGEST_SIDE / max(width, height))
    if min(width, height) * scale < MULTIPLE:
        raise InvalidRequest(f"A picture of {width}x{height} is too narrow to show a face.", size=[width, height])
    return tuple(round(side * scale) // MULTIPLE * MULTIPLE for side in size)


def _axes(points: np.ndarray) -> np.ndarray:
    """The head's own axes as rows, in the points' space: to the picture's right of it, down its face, out of it."""
    eyes = (points[LEFT_EYE].mean(axis=0) + points[RIGHT_EYE].mean(axis=0)) / 2
    mouth = points[list(MOUTH_CORNERS)].mean(axis=0)
    right = points[RIGHT_EYE].mean(axis=0) - points[LEFT_EYE].mean(axis=0)
    right += points[MOUTH_CORNERS[1]] - points[MOUTH_CORNERS[0]]
    right /= np.linalg.norm(right)
    down = mouth - eyes
    down -= right * (down @ right)
    down /= np.linalg.norm(down)
    out = np.cross(right, down)
    if out @ (points[NOSE_TIP] - eyes) < 0:
        out = -out
    lean = math.cos(MOUTH_FORWARD), math.sin(MOUTH_FORWARD)
    return np.stack([right, down * lean[0] - out * lean[1], out * lean[0] + down * lean[1]])


def _pivot(points: np.ndarray) -> np.ndarray:
    return points[list(JAW_ENDS)].mean(axis=0)


def _rotation(yaw: float, pitch: float) -> np.ndarray:
    """Right, down, out of a head that looks ahead -> the picture's right and down, and towards the viewer."""
    sine, cosine = math.sin(math.radians(yaw)), math.cos(math.radians(yaw))
    turned = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
    sine, cosine = math.sin(math.radians(pitch)), math.cos(math.radians(pitch))
    return np.array([[1, 0, 0], [0, cosine, sine], [0, -sine, cosine]]) @ turned
