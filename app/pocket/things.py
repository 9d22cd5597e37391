"""The things of the little world: each one function that draws a silhouette in its own colour."""

from __future__ import annotations

import math

from app.pocket.pen import Colour, Pen, darker, lighter, oval, smooth

INK = (45, 45, 52)
GLASS = (222, 238, 248)
CHALK = (245, 245, 245)
LEAF = (60, 150, 70)
WOOD = (120, 80, 50)
METAL = (105, 110, 118)


def car(pen: Pen, colour: Colour) -> None:
    body = [(-1, 0.32), (-0.98, -0.02), (-0.6, -0.12), (-0.36, -0.5), (0.3, -0.5), (0.62, -0.1), (0.95, 0.0), (1, 0.32)]
    pen.polygon(body, colour)
    pen.polygon([(-0.42, -0.12), (-0.27, -0.38), (-0.06, -0.38), (-0.06, -0.12)], GLASS, False)
    pen.polygon([(0.06, -0.12), (0.06, -0.38), (0.23, -0.38), (0.43, -0.12)], GLASS, False)
    pen.box(-1, 0.2, 1, 0.32, darker(colour), outlined=False)
    for x in (-0.54, 0.54):
        pen.ellipse(x, 0.32, 0.25, 0.25, INK)
        pen.ellipse(x, 0.32, 0.11, 0.11, (190, 195, 200), False)


def house(pen: Pen, colour: Colour) -> None:
    pen.box(0.38, -0.85, 0.6, -0.3, darker(colour, 0.45))
    pen.box(-0.74, -0.2, 0.74, 0.9, colour)
    pen.polygon([(-1, -0.14), (0, -0.95), (1, -0.14)], darker(colour, 0.4))
    pen.box(-0.17, 0.3, 0.17, 0.9, WOOD, outlined=False)
    for x in (-0.46, 0.46):
        pen.box(x - 0.16, 0.1, x + 0.16, 0.42, GLASS, outlined=False)


def tree(pen: Pen, colour: Colour) -> None:
    pen.polygon([(-0.14, 0.2), (0.14, 0.2), (0.2, 0.98), (-0.2, 0.98)], WOOD)
    for x, y, r in ((-0.42, 0.0, 0.42), (0.42, 0.0, 0.42), (0, -0.44, 0.52), (0, 0.05, 0.45)):
        pen.ellipse(x, y, r, r, colour)
    for x, y, r in ((-0.17, -0.58, 0.16), (-0.52, -0.08, 0.13)):
        pen.ellipse(x, y, r, r, lighter(colour, 0.22), False)


def mug(pen: Pen, colour: Colour) -> None:
    handle = oval(0.5, 0.08, 0.38, 0.4, -85, 85, 20)
    pen.stroke(handle, 0.2, colour, True)
    pen.box(-0.75, -0.62, 0.5, 0.8, colour, 0.16)
    pen.ellipse(-0.125, -0.62, 0.625, 0.17, darker(colour, 0.45))
    pen.box(-0.6, -0.3, -0.46, 0.6, lighter(colour, 0.4), 0.06, False)


def bottle(pen: Pen, colour: Colour) -> None:
    pen.box(-0.17, -1.0, 0.17, -0.8, WOOD, outlined=True)
    glass = [
        (-0.15, -0.82),
        (0.15, -0.82),
        (0.16, -0.42),
        (0.42, -0.1),
        (0.42, 0.95),
        (-0.42, 0.95),
        (-0.42, -0.1),
        (-0.16, -0.42),
    ]
    pen.polygon(glass, colour)
    pen.box(-0.42, 0.22, 0.42, 0.6, lighter(colour, 0.7), outlined=False)
    pen.box(-0.32, -0.04, -0.2, 0.14, lighter(colour, 0.45), outlined=False)


def boat(pen: Pen, colour: Colour) -> None:
    pen.box(-0.05, -0.98, 0.05, 0.4, WOOD, outlined=False)
    pen.polygon([(0.1, -0.92), (0.82, 0.22), (0.1, 0.22)], colour)
    pen.polygon([(-0.1, -0.72), (-0.1, 0.22), (-0.62, 0.22)], lighter(colour, 0.45))
    pen.polygon([(-1, 0.36), (1, 0.36), (0.66, 0.86), (-0.66, 0.86)], colour)
    pen.polygon(
        [(-0.86, 0.56), (0.86, 0.56), (0.79, 0.66), (-0.79, 0.66)],
        CHALK if sum(colour) < 660 else darker(colour),
        False,
    )


def star(pen: Pen, colour: Colour) -> None:
    points = []
    for i in range(10):
        radius, angle = (1.0, 0.43)[i % 2], math.radians(-90 + 36 * i)
        points.append((radius * math.cos(angle), 0.06 + radius * math.sin(angle)))
    pen.polygon(points, colour)
    pen.polygon([(0, 0.06), points[0], points[1]], lighter(colour, 0.25), False)
    pen.polygon([(0, 0.06), points[8], points[9]], lighter(colour, 0.25), False)


def heart(pen: Pen, colour: Colour) -> None:
    points = []
    for i in range(40):
        t = math.tau * i / 40
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3, -y / 16 - 0.1))
    pen.polygon(points, colour)
    pen.ellipse(-0.46, -0.4, 0.2, 0.15, lighter(colour, 0.45), False)


def shoe(pen: Pen, colour: Colour) -> None:
    upper = [
        (-0.9, -0.62),
        (-0.5, -0.5),
        (-0.22, -0.6),
        (0.1, -0.2),
        (0.5, -0.06),
        (0.88, 0.08),
        (1, 0.42),
        (-0.92, 0.42),
        (-0.98, 0.0),
    ]
    pen.polygon(upper, colour)
    pen.box(-1, 0.36, 1.02, 0.6, CHALK if sum(colour) < 660 else (200, 204, 210), 0.1)
    for x, y in ((-0.13, -0.32), (0.05, -0.14), (0.25, -0.03)):
        pen.stroke([(x - 0.1, y + 0.12), (x + 0.08, y - 0.02)], 0.09, lighter(colour, 0.75))
    pen.polygon([(-0.92, 0.36), (-0.97, 0.0), (-0.92, -0.3), (-0.6, -0.2), (-0.55, 0.36)], darker(colour, 0.25), False)


def apple(pen: Pen, colour: Colour) -> None:
    body = [(0, -0.46), (0.4, -0.62), (0.82, -0.36), (0.86, 0.16), (0.58, 0.74), (0.24, 0.92), (0, 0.84)]
    body += [(-x, y) for x, y in body[-2:0:-1]]
    pen.stroke([(0, -0.4), (0.03, -0.7), (0.12, -0.9)], 0.12, WOOD)
    pen.polygon(smooth([(0.12, -0.64), (0.32, -0.92), (0.68, -0.92), (0.46, -0.66)]), LEAF)
    pen.polygon(smooth(body), colour)
    pen.ellipse(-0.48, -0.16, 0.13, 0.2, lighter(colour, 0.5), False)


def fish(pen: Pen, colour: Colour) -> None:
    pen.polygon([(0.42, 0.0), (0.98, -0.5), (0.86, 0.0), (0.98, 0.5)], darker(colour, 0.25))
    pen.polygon(smooth([(-0.3, -0.36), (0.05, -0.68), (0.36, -0.3)]), darker(colour, 0.25))
    pen.polygon(
        smooth(
            [
                (-0.98, 0.02),
                (-0.62, -0.34),
                (-0.12, -0.46),
                (0.36, -0.24),
                (0.6, 0.0),
                (0.36, 0.24),
                (-0.12, 0.46),
                (-0.62, 0.36),
            ]
        ),
        colour,
    )
    pen.polygon(smooth([(-0.1, 0.04), (0.18, -0.04), (0.22, 0.22)]), darker(colour, 0.25), False)
    pen.ellipse(-0.6, -0.08, 0.13, 0.13, CHALK, False)
    pen.ellipse(-0.62, -0.08, 0.07, 0.07, INK, False)


def flower(pen: Pen, colour: Colour) -> None:
    pen.stroke([(0, 0.0), (0.03, 0.5), (0, 0.96)], 0.13, LEAF)
    pen.polygon(smooth([(0.02, 0.86), (0.22, 0.56), (0.6, 0.5), (0.38, 0.8)]), LEAF)
    for i in range(6):
        angle = math.radians(30 + 60 * i)
        pen.ellipse(0.42 * math.cos(angle), -0.3 + 0.42 * math.sin(angle), 0.28, 0.28, colour)
    pen.ellipse(
        0, -0.3, 0.26, 0.26, WOOD if colour[0] > 200 and colour[1] > 120 and colour[2] < 120 else (250, 205, 60), False
    )


def lamp(pen: Pen, colour: Colour) -> None:
    pen.box(-0.07, 0.0, 0.07, 0.85, METAL)
    pen.box(-0.46, 0.8, 0.46, 0.96, METAL, 0.07)
    pen.ellipse(0, 0.12, 0.2, 0.2, (255, 236, 150))
    pen.polygon([(-0.42, -0.95), (0.42, -0.95), (0.86, 0.12), (-0.86, 0.12)], colour)
    pen.polygon([(-0.42, -0.95), (-0.2, -0.95), (-0.42, 0.12), (-0.86, 0.12)], lighter(colour, 0.25), False)


def umbrella(pen: Pen, colour: Colour) -> None:
    pen.stroke([(0, -0.3), (0, 0.76), *oval(0.17, 0.76, 0.17, 0.16, 0, 150, 8)[::-1], (0.34, 0.7)], 0.11, INK)
    pen.box(-0.05, -0.98, 0.05, -0.8, INK, outlined=False)
    dome = oval(0, 0.08, 1.0, 0.94, 180, 360, 24)
    scallops = []
    for x in (0.667, 0.0, -0.667):
        scallops += oval(x, 0.1, 0.333, 0.17, 180, 360, 9)[::-1]
    pen.polygon(dome + scallops, colour)
    left, right = oval(0, 0.08, 0.34, 0.94, 180, 270, 8), oval(0, 0.08, 0.34, 0.94, 270, 360, 8)
    pen.polygon([*left, *right, (0.2, -0.05), (0, -0.08), (-0.2, -0.05)], lighter(colour, 0.3), False)


def circle(pen: Pen, colour: Colour) -> None:
    pen.ellipse(0, 0, 0.86, 0.86, colour)


def square(pen: Pen, colour: Colour) -> None:
    pen.box(-0.78, -0.78, 0.78, 0.78, colour)


def triangle(pen: Pen, colour: Colour) -> None:
    pen.polygon([(0, -0.84), (0.95, 0.8), (-0.95, 0.8)], colour)


def hat(pen: Pen, colour: Colour) -> None:
    pen.polygon([(-0.52, 0.36), (-0.46, -0.72), (0.46, -0.72), (0.52, 0.36)], colour)
    pen.ellipse(0, -0.72, 0.46, 0.11, lighter(colour, 0.2), False)
    pen.ellipse(0, 0.44, 1.0, 0.26, colour)
    pen.polygon(
        [(-0.52, 0.3), (-0.5, 0.02), (0.5, 0.02), (0.52, 0.3), (0.3, 0.37), (-0.3, 0.37)], darker(colour, 0.5), False
    )


def cat(pen: Pen, colour: Colour) -> None:
    for side in (-1, 1):
        pen.polygon([(side * 0.82, -0.95), (side * 0.84, 0.0), (side * 0.16, -0.5)], colour)
        pen.polygon([(side * 0.7, -0.7), (side * 0.7, -0.3), (side * 0.4, -0.48)], (240, 165, 170), False)
    pen.ellipse(0, 0.14, 0.9, 0.74, colour)
    muzzle = lighter(colour, 0.55)
    pen.ellipse(0, 0.48, 0.4, 0.28, muzzle, False)
    for side in (-1, 1):
        pen.ellipse(side * 0.4, 0.02, 0.2, 0.2, CHALK, False)
        pen.ellipse(side * 0.38, 0.03, 0.11, 0.16, INK, False)
        pen.stroke(
            [(side * 0.56, 0.46), (side * 0.98, 0.38)],
            0.05,
            lighter(colour, 0.6) if sum(colour) < 330 else darker(colour, 0.5),
        )
    pen.polygon([(-0.12, 0.34), (0.12, 0.34), (0, 0.48)], (220, 110, 125), False)


def bird(pen: Pen, colour: Colour) -> None:
    for x in (-0.1, 0.18):
        pen.stroke([(x, 0.55), (x, 0.94), (x - 0.14, 0.96)], 0.08, (225, 140, 40))
    pen.polygon([(0.3, 0.0), (0.98, -0.3), (0.98, 0.06), (0.5, 0.42)], darker(colour, 0.25))
    pen.polygon([(-0.68, -0.5), (-1.0, -0.36), (-0.66, -0.26)], (240, 160, 40))
    pen.polygon(
        smooth(
            [
                (-0.72, -0.44),
                (-0.42, -0.86),
                (-0.04, -0.6),
                (0.16, -0.2),
                (0.6, 0.1),
                (0.42, 0.52),
                (-0.06, 0.7),
                (-0.56, 0.44),
                (-0.64, -0.08),
            ]
        ),
        colour,
    )
    pen.polygon(
        smooth([(-0.22, 0.06), (0.2, -0.06), (0.66, 0.12), (0.3, 0.42), (-0.1, 0.36)]), darker(colour, 0.25), False
    )
    pen.ellipse(-0.42, -0.46, 0.11, 0.11, CHALK, False)
    pen.ellipse(-0.44, -0.46, 0.06, 0.06, INK, False)


THINGS = {
    function.__name__: function
    for function in (
        car, house, tree, mug, bottle, boat, star, heart, shoe, apple, fish, flower, lamp, umbrella,
        circle, square, triangle, hat, cat, bird,
    )
}  # fmt: skip
