"""The pen: shapes in the unit square of one thing, collected, outlined as one silhouette and filled."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

SUPERSAMPLING = 3
OUTLINE_WIDTH = 0.9 / 64  # of half the picture: about one pixel outside the silhouette at 128

Colour = tuple[int, int, int]
Point = tuple[float, float]


def mix(colour: Colour, other: Colour, share: float) -> Colour:
    """`share` of `other` in `colour`, 0 to 1."""
    return tuple(round(a + (b - a) * share) for a, b in zip(colour, other, strict=True))


def lighter(colour: Colour, share: float = 0.35) -> Colour:
    return mix(colour, (255, 255, 255), share)


def darker(colour: Colour, share: float = 0.3) -> Colour:
    return mix(colour, (0, 0, 0), share)


def outline_of(colour: Colour) -> Colour:
    """The line around a thing: a deep shade of its own colour, and a pale one around black."""
    return darker(colour, 0.55) if sum(colour) > 150 else mix(colour, (255, 255, 255), 0.38)


def smooth(points: Sequence[Point], steps: int = 6) -> list[Point]:
    """A closed Catmull-Rom curve through `points`."""
    count, curve = len(points), []
    for i in range(count):
        (ax, ay), (bx, by), (cx, cy), (dx, dy) = (points[(i + k - 1) % count] for k in range(4))
        for step in range(steps):
            t = step / steps
            weights = (
                -0.5 * t + t * t - 0.5 * t**3,
                1 - 2.5 * t * t + 1.5 * t**3,
                0.5 * t + 2 * t * t - 1.5 * t**3,
                -0.5 * t * t + 0.5 * t**3,
            )
            curve.append(
                (
                    weights[0] * ax + weights[1] * bx + weights[2] * cx + weights[3] * dx,
                    weights[0] * ay + weights[1] * by + weights[2] * cy + weights[3] * dy,
                )
            )
    return curve


def oval(x: float, y: float, rx: float, ry: float, start: float = 0, end: float = 360, count: int = 36) -> list[Point]:
    """Points of an ellipse, or of its part from `start` to `end` degrees (clockwise from the right)."""
    whole = end - start >= 360
    steps = count if whole else count + 1
    angles = [math.radians(start + (end - start) * i / count) for i in range(steps)]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


class Pen:
    """Collects shapes in units of half a thing (-1 to 1, y down) and puts them onto a canvas."""

    def __init__(self, x: float, y: float, scale: float, tilt: float = 0.0):
        """`x`, `y`: the centre, `scale`: half the thing's size, all as a share of the picture; `tilt` in degrees."""
        self.x, self.y, self.scale = x, y, scale
        self.cosine, self.sine = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
        self.shapes: list[tuple[list[Point], Colour | None, bool, int]] = []
        self.part = 0  # the class of what is drawn next, for `put_parts`

    def place(self, point: Point) -> Point:
        x, y = point
        return (
            self.x + self.scale * (x * self.cosine - y * self.sine),
            self.y + self.scale * (x * self.sine + y * self.cosine),
        )

    def polygon(self, points: Sequence[Point], colour: Colour | None, outlined: bool = True) -> None:
        """A filled shape; without a colour it is seen by `put_parts` alone."""
        self.shapes.append(([self.place(point) for point in points], colour, outlined, self.part))

    def ellipse(self, x, y, rx, ry, colour: Colour, outlined: bool = True) -> None:
        self.polygon(oval(x, y, rx, ry), colour, outlined)

    def box(self, left, top, right, bottom, colour: Colour, radius: float = 0.0, outlined: bool = True) -> None:
        if not radius:
            self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], colour, outlined)
            return
        corners = ((right, bottom, 0), (left, bottom, 90), (left, top, 180), (right, top, 270))
        points = []
        for x, y, start in corners:
            inner_x = x - radius if x == right else x + radius
            inner_y = y - radius if y == bottom else y + radius
            points += oval(inner_x, inner_y, radius, radius, start, start + 90, 6)
        self.polygon(points, colour, outlined)

    def stroke(self, points: Sequence[Point], width: float, colour: Colour, outlined: bool = False) -> None:
        """A band of the given width along open `points`, with round ends."""
        left, right = [], []
        for i, (x, y) in enumerate(points):
            (ax, ay), (bx, by) = points[max(i - 1, 0)], points[min(i + 1, len(points) - 1)]
            length = math.hypot(bx - ax, by - ay) or 1.0
            nx, ny = -(by - ay) / length * width / 2, (bx - ax) / length * width / 2
            left.append((x + nx, y + ny))
            right.append((x - nx, y - ny))
        self.polygon(left + right[::-1], colour, outlined)
        for x, y in (points[0], points[-1]):
            self.polygon(oval(x, y, width / 2, width / 2, count=14), colour, outlined)

    def put(self, canvas: ImageDraw.ImageDraw, outline: Colour | None) -> None:
        """Draw everything: first the fattened shapes in the outline's colour, then the shapes themselves."""
        side = canvas.im.size[0]
        pixels = [
            ([(x * side, y * side) for x, y in points], colour, outlined)
            for points, colour, outlined, _ in self.shapes
            if colour is not None
        ]
        width = round(OUTLINE_WIDTH * side)
        if outline is not None:
            for points, _, outlined in pixels:
                if outlined:
                    joint = "curve" if len(points) < 12 else None
                    canvas.line([*points, points[0], points[1]], outline, width, joint)
        for points, colour, _ in pixels:
            canvas.polygon(points, colour)

    def put_parts(self, canvas: ImageDraw.ImageDraw) -> None:
        """Draw every shape in the number of its part instead of its colour."""
        side = canvas.im.size[0]
        for points, _, _, part in self.shapes:
            canvas.polygon([(x * side, y * side) for x, y in points], part)


def blank(size: int, colour: Colour) -> Image.Image:
    """A supersampled canvas of one colour."""
    return Image.new("RGB", (size * SUPERSAMPLING, size * SUPERSAMPLING), colour)


def finish(canvas: Image.Image) -> Image.Image:
    """The canvas at its true size, antialiased."""
    return canvas.reduce(SUPERSAMPLING)
