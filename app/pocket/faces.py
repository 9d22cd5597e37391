"""A face: the geometry that no caption names, the turned head, and the keypoints that follow from both."""

from __future__ import annotations

import math

GEOMETRY = (
    "face_width", "face_length", "jaw_width", "eye_distance", "eye_size", "eye_height", "brow_thickness",
    "brow_tilt", "nose_length", "nose_width", "mouth_width", "mouth_height", "lip_thickness", "ear_size",
)  # fmt: skip
DEPTH = 0.62


class Face:
    """Where everything of one face lies: the geometry vector, turned by the pose, in units of half the picture."""

    def __init__(self, geometry: tuple[float, ...], yaw: float, pitch: float, expression: str):
        """`geometry`: one value of -1 to 1 per name in GEOMETRY; `yaw`, `pitch` in degrees."""
        self.description = (geometry, yaw, pitch, expression)
        g = dict(zip(GEOMETRY, geometry, strict=True))
        self.width = 0.5 * (1 + 0.11 * g["face_width"])
        self.height = 0.6 * (1 + 0.07 * g["face_length"])
        self.y = -0.1
        self.jaw = 0.66 * (1 + 0.2 * g["jaw_width"])
        self.sine_yaw, self.cosine_yaw = math.sin(math.radians(yaw)), math.cos(math.radians(yaw))
        self.sine_pitch, self.cosine_pitch = math.sin(math.radians(pitch)), math.cos(math.radians(pitch))
        self.eye_u = 0.42 * (1 + 0.16 * g["eye_distance"])
        self.eye_v = -0.04 + 0.07 * g["eye_height"]
        surprise = 1.18 if expression == "surprised" else 1.0
        self.eye_rx = 0.125 * (1 + 0.17 * g["eye_size"])
        self.eye_ry = 0.094 * (1 + 0.2 * g["eye_size"]) * surprise
        self.brow_v = self.eye_v - 0.27 - (0.1 if expression == "surprised" else 0)
        self.brow_thickness = 0.055 * (1 + 0.45 * g["brow_thickness"])
        self.brow_tilt = 0.05 * g["brow_tilt"] + {"angry": 0.16, "sad": -0.13}.get(expression, 0.0)
        self.nose_v = self.eye_v + 0.36 * (1 + 0.25 * g["nose_length"])
        self.nose_u = 0.15 * (1 + 0.38 * g["nose_width"])
        self.mouth_u = 0.34 * (1 + 0.22 * g["mouth_width"]) * (0.62 if expression == "surprised" else 1.0)
        self.mouth_v = max(0.6 + 0.06 * g["mouth_height"], self.nose_v + 0.17)
        self.lip = 0.05 * (1 + 0.4 * g["lip_thickness"])
        self.ear = 0.15 * (1 + 0.25 * g["ear_size"])
        self.lift, self.open = {
            "neutral": (0.0, 0.0), "happy": (0.13, 0.13), "sad": (-0.12, 0.0),
            "surprised": (0.0, 0.26), "angry": (-0.05, 0.06),
        }[expression]  # fmt: skip

    def at(self, u: float, v: float, forward: float = 0.0) -> tuple[float, float]:
        """The point (u, v) of the face's front (-1 to 1), `forward` out of it, as the turned head shows it."""
        w = math.sqrt(max(0.0, 1 - 0.75 * u * u - 0.6 * v * v)) * DEPTH + forward
        return (
            self.width * (u * self.cosine_yaw + w * self.sine_yaw),
            self.y + self.height * (v * self.cosine_pitch + w * self.sine_pitch * 0.8),
        )

    def outline(self, scale: float = 1.0) -> list[tuple[float, float]]:
        """The head's silhouette from the right ear over the chin to the left ear and over the crown: 40 points."""
        points = []
        for i in range(40):
            angle = math.tau * i / 40
            u, v = math.cos(angle), math.sin(angle)
            if v > 0:  # below the ears the ellipse narrows to the jaw
                u *= 1 - (1 - self.jaw) * v**1.6 * 0.75
                u = math.copysign(abs(u) ** (1 - 0.18 * v), u)
            shift = 0.16 * self.sine_yaw * max(0.0, v) * self.width
            points.append(
                (
                    scale * u * self.width + shift,
                    self.y + scale * self.height * (v + 0.08 * max(0.0, v) * self.sine_pitch),
                )
            )
        return points

    def eye(self, side: int) -> tuple[float, float]:
        return self.at(side * self.eye_u, self.eye_v)

    def brow(self, side: int) -> list[tuple[float, float]]:
        """Five points from the outer to the inner end."""
        points = []
        for i in range(5):
            t = i / 4
            u = self.eye_u + self.eye_rx / self.width * 1.25 * (1 - 2 * t)
            v = self.brow_v - 0.06 * math.sin(math.pi * t) + self.brow_tilt * (t - 0.5) * 1.4
            points.append(self.at(side * u, v))
        return points

    def eyelid(self, side: int) -> list[tuple[float, float]]:
        """Six points: left corner, two on the upper lid, right corner, two on the lower lid."""
        x, y = self.eye(side)
        rx = self.eye_rx * (0.75 + 0.25 * self.cosine_yaw)
        return [
            (x + rx * math.cos(math.radians(a)), y + self.eye_ry * math.sin(math.radians(a)))
            for a in (180, 240, 300, 0, 60, 120)
        ]

    def mouth(self) -> tuple[list[tuple[float, float]], list[tuple[float, float]]]:
        """Outer (12) and inner (8) contour, each from the left corner clockwise."""

        def contour(count: int, outer: float) -> list[tuple[float, float]]:
            points = []
            for i in range(count):
                angle = math.radians(180 + 360 * i / count)
                u = self.mouth_u * math.cos(angle) * (1.0 if outer else 0.86)
                bend = self.lift * (1 - 2 * (u / self.mouth_u) ** 2)
                half = self.open / 2 + (self.lip if outer else 0.006)
                points.append(self.at(u, self.mouth_v + bend * 0.7 + half * math.sin(angle), 0.05))
            return points

        return contour(12, 1.0), contour(8, 0.0)

    def keypoints(self) -> list[tuple[float, float]]:
        """The 68 points in the usual order (iBUG 300-W): jaw 17, brows 10, nose 9, eyes 12, mouth 20."""
        outline = self.outline()
        jaw = []
        for i in range(17):  # left ear to right ear over the chin: silhouette angles 180 down to 0
            position = 20 * (1 - i / 16)
            low = int(position)
            (ax, ay), (bx, by) = outline[low], outline[min(low + 1, 39)]
            jaw.append((ax + (bx - ax) * (position - low), ay + (by - ay) * (position - low)))
        bridge = [
            self.at(0, self.eye_v + (self.nose_v - self.eye_v) * t, 0.06 + 0.16 * t) for t in (0.0, 0.3, 0.6, 0.88)
        ]
        base = [self.at(self.nose_u * t, self.nose_v + 0.03 * (1 - abs(t)), 0.1) for t in (-1, -0.5, 0, 0.5, 1)]
        outer, inner = self.mouth()
        return [
            *jaw,
            *self.brow(-1),
            *self.brow(1)[::-1],
            *bridge,
            *base,
            *self.eyelid(-1),
            *self.eyelid(1),
            *outer,
            *inner,
        ]

    def depths(self) -> list[float]:
        """How far each of the 68 points lies towards the viewer, from the middle of the head."""
        geometry, yaw, pitch, expression = self.description
        profile = Face(geometry, yaw + 90, pitch, expression)  # what was depth is its picture's x
        points, sides = self.keypoints(), profile.keypoints()
        jaw = []
        for x, y in points[:17]:  # the silhouette is drawn flat, whichever way the head turns
            u, v = x / self.width, (y - self.y) / self.height
            jaw.append(self.width * DEPTH * math.sqrt(max(0.0, 1 - 0.9 * u * u - 0.6 * v * v)))
        eyes = [profile.eye(side)[0] for side in (-1, 1) for _ in range(6)]
        flat = [*jaw, *(x for x, _ in sides[17:36]), *eyes, *(x for x, _ in sides[48:])]
        return [z - (y - self.y) * self.sine_pitch for z, (_, y) in zip(flat, points, strict=True)]


def five_points(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Eyes, nose tip and mouth corners out of the 68 points, the picture's left first (as insightface orders them)."""

    def mean(some):
        return sum(x for x, _ in some) / len(some), sum(y for _, y in some) / len(some)

    return [mean(points[36:42]), mean(points[42:48]), points[30], points[48], points[54]]
