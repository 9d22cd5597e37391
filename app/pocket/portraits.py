"""Portraits: a person's named looks, and how they are drawn on a face."""

from __future__ import annotations

import math
from dataclasses import dataclass

from app.pocket.faces import Face
from app.pocket.pen import Colour, Pen, darker, lighter, mix, oval, smooth

KINDS = ("woman", "man")
HAIR_STYLES = ("short", "long", "curly", "bob", "bun", "ponytail", "spiky", "bald")
HAIR_COLOURS: dict[str, Colour] = {
    "black": (42, 37, 42),
    "brown": (112, 70, 42),
    "blond": (238, 202, 105),
    "red": (190, 78, 36),
    "gray": (150, 152, 158),
    "white": (238, 238, 240),
    "pink": (240, 130, 180),
    "blue": (60, 110, 210),
}
EYE_COLOURS: dict[str, Colour] = {
    "brown": (105, 62, 30),
    "blue": (50, 125, 225),
    "green": (50, 155, 80),
    "gray": (128, 138, 148),
}
SKINS: dict[str, Colour] = {
    "pale": (250, 222, 202),
    "tan": (226, 174, 128),
    "brown": (164, 108, 72),
    "dark": (100, 66, 50),
}
GLASSES = ("none", "glasses", "sunglasses")
EXPRESSIONS = ("neutral", "happy", "sad", "surprised", "angry")
CLOTHES = ("t-shirt", "shirt", "sweater", "hoodie", "suit")
POSES: dict[str, tuple[float, float]] = {  # yaw and pitch in degrees, of the picture: left is the viewer's left
    "front": (0, 0),
    "left": (-30, 0),
    "right": (30, 0),
    "up": (0, -24),
    "down": (0, 24),
}
INK = (40, 36, 40)
PARTS = (  # what a pixel of a portrait shows, in the order in which facexlib's BiSeNet counts its classes
    "background", "skin", "left_brow", "right_brow", "left_eye", "right_eye", "glasses", "left_ear", "right_ear",
    "earring", "nose", "mouth", "upper_lip", "lower_lip", "neck", "necklace", "clothes", "hair", "hat",
)  # fmt: skip
_PART = {name: number for number, name in enumerate(PARTS)}


@dataclass(frozen=True)
class Person:
    """A person's looks as captions name them; None stands for what is not said."""

    kind: str | None = None
    hair_style: str | None = None
    hair_colour: str | None = None
    eye_colour: str | None = None
    skin: str | None = None
    glasses: str | None = None
    expression: str | None = None
    clothing: str | None = None
    clothing_colour: str | None = None
    pose: str | None = None
    beard: bool | None = None


def draw_person(pen: Pen, person: Person, face: Face, clothing_colour: Colour) -> None:
    """The whole portrait, back to front."""
    skin = SKINS[person.skin]
    hair = HAIR_COLOURS[person.hair_colour]
    pen.part = _PART["hair"]
    _back_hair(pen, person, face, hair)
    _clothes(pen, person.clothing, clothing_colour, skin)
    for side in (-1, 1):  # an ear that the head turns away from goes behind it
        pen.part = _PART["left_ear" if side < 0 else "right_ear"]
        shift = -0.3 * face.sine_yaw * face.width
        pen.ellipse(
            side * face.width * 1.02 + shift,
            face.y + 0.02 - 0.2 * face.sine_pitch,
            face.ear * 0.7,
            face.ear,
            darker(skin, 0.08),
        )
    pen.part = _PART["skin"]
    pen.polygon(face.outline(), skin)
    if person.beard:
        _beard(pen, face, hair)
    for side in (-1, 1):
        pen.part = _PART["skin"]
        cheek = face.at(side * 0.56, face.nose_v + 0.08)
        if not person.beard:
            pen.ellipse(*cheek, 0.085, 0.06, mix(skin, (225, 90, 80), 0.22), False)
        pen.part = _PART["left_eye" if side < 0 else "right_eye"]
        _eye(pen, person, face, side, skin)
        pen.part = _PART["left_brow" if side < 0 else "right_brow"]
        pen.stroke(
            face.brow(side),
            face.brow_thickness * (1.25 if person.kind == "man" else 0.85),
            darker(hair, 0.35) if sum(hair) > 200 else hair,
        )
    pen.part = _PART["nose"]
    _nose(pen, face, skin)
    _mouth(pen, person, face, skin)
    pen.part = _PART["skin" if person.hair_style == "bald" else "hair"]
    _front_hair(pen, person, face, hair)
    if person.glasses != "none":
        pen.part = _PART["glasses"]
        _glasses(pen, person.glasses, face)


def _eye(pen: Pen, person: Person, face: Face, side: int, skin: Colour) -> None:
    x, y = face.eye(side)
    rx = face.eye_rx * (0.75 + 0.25 * face.cosine_yaw)
    pen.ellipse(x, y, rx, face.eye_ry, (252, 252, 252), False)
    look = (0.05 * face.sine_yaw, 0.035 * face.sine_pitch)
    pen.ellipse(x + look[0], y + look[1], 0.078, min(0.082, face.eye_ry * 0.98), EYE_COLOURS[person.eye_colour], False)
    pen.ellipse(x + look[0], y + look[1], 0.034, 0.036, (15, 15, 18), False)
    lid = oval(x, y, rx * 1.04, face.eye_ry, 185, 355, 10)
    pen.stroke(lid, 0.045 if person.kind == "woman" else 0.034, INK if sum(skin) > 240 else (20, 14, 12))
    if person.kind == "woman":
        outer = x + side * rx
        pen.polygon(
            [
                (outer - side * 0.05, y - face.eye_ry * 0.75),
                (outer + side * 0.085, y - face.eye_ry * 1.0),
                (outer, y - 0.0),
            ],
            INK,
            False,
        )


def _nose(pen: Pen, face: Face, skin: Colour) -> None:
    shade = darker(skin, 0.2)
    left, tip, right = (
        face.at(-face.nose_u, face.nose_v, 0.08),
        face.at(0, face.nose_v + 0.05, 0.2),
        face.at(face.nose_u, face.nose_v, 0.08),
    )
    pen.polygon([face.at(0, face.eye_v + 0.1, 0.1), left, tip, right], darker(skin, 0.07), False)
    pen.stroke(smooth([left, tip, right])[:13], 0.042, shade)


def _mouth(pen: Pen, person: Person, face: Face, skin: Colour) -> None:
    outer, inner = face.mouth()
    lips = (200, 50, 70) if person.kind == "woman" else mix(skin, (150, 50, 50), 0.5)
    pen.part = _PART["lower_lip"]
    pen.polygon(smooth(outer, 3), lips, False)
    pen.part = _PART["upper_lip"]
    pen.polygon([*smooth(outer, 3)[:19], *smooth(inner, 3)[12:0:-1]], None, False)
    pen.part = _PART["mouth"]
    if person.expression in ("happy", "angry"):
        pen.polygon(smooth(inner, 3), (250, 250, 250), False)
    elif person.expression == "surprised":
        pen.polygon(smooth(inner, 3), (70, 20, 25), False)
    else:
        middle = [
            inner[0],
            *[((a[0] + b[0]) / 2, (a[1] + b[1]) / 2) for a, b in zip(inner[1:4], inner[:4:-1], strict=True)],
            inner[4],
        ]
        pen.stroke(middle, 0.022, darker(lips, 0.5))


def _beard(pen: Pen, face: Face, hair: Colour) -> None:
    low = face.outline(1.03)[3:18]
    high = [
        face.at(-0.72, 0.5),
        face.at(-0.5, face.mouth_v - 0.14),
        face.at(0, face.mouth_v - 0.15, 0.05),
        face.at(0.5, face.mouth_v - 0.14),
        face.at(0.72, 0.5),
    ]
    pen.polygon([*low, *high], hair, False)


def _crown(face: Face, scale: float, start: int = 20, end: int = 40) -> list[tuple[float, float]]:
    """The upper silhouette from the left ear to the right ear, fattened by `scale`."""
    return [*face.outline(scale)[start:end], face.outline(scale)[0]]


def _back_hair(pen: Pen, person: Person, face: Face, hair: Colour) -> None:
    deep = darker(hair, 0.25)
    turn = -0.22 * face.sine_yaw * face.width
    if person.hair_style == "long":
        w, top = face.width * 1.22, face.y - 0.1
        pen.polygon(
            [
                (-w + turn, top),
                (w + turn, top),
                (w * 1.08 + turn, 0.86),
                (0.3, 0.9),
                (-0.3, 0.9),
                (-w * 1.08 + turn, 0.86),
            ],
            deep,
        )
    elif person.hair_style == "bob":
        w, top = face.width * 1.24, face.y - 0.1
        pen.polygon(
            [(-w + turn, top), (w + turn, top), (w * 1.04 + turn, 0.4), (0, 0.36), (-w * 1.04 + turn, 0.4)], deep
        )
    elif person.hair_style == "bun":
        pen.ellipse(turn, face.y - face.height * 1.2, 0.25, 0.2, hair)
    elif person.hair_style == "ponytail":
        x = face.width * (1.2 if face.sine_yaw <= 0 else -1.2)
        pen.polygon(
            smooth(
                [(x * 0.6, -0.5), (x * 1.2, -0.36), (x * 1.36, 0.2), (x * 1.14, 0.62), (x * 0.94, 0.2), (x * 0.8, -0.2)]
            ),
            deep,
        )
    elif person.hair_style == "curly":
        for i in range(13):
            angle = math.radians(160 + 220 * i / 12)
            x, y = 1.1 * face.width * math.cos(angle) + turn, face.y + face.height * 1.0 * math.sin(angle)
            pen.ellipse(x, y, 0.18, 0.18, hair)


def _front_hair(pen: Pen, person: Person, face: Face, hair: Colour) -> None:
    style = person.hair_style
    if style == "bald":
        pen.ellipse(-0.16, face.y - face.height * 0.72, 0.1, 0.05, lighter(SKINS[person.skin], 0.4), False)
        return
    line = -0.56 + 0.28 * face.sine_pitch  # more hair shows when the head looks down
    side = 0.12 if style in ("long", "bob", "curly") else -0.2
    hairline = [
        face.at(0.93, side),
        face.at(0.8, line + 0.22),
        face.at(0.5, line),
        face.at(0.0, line - 0.03),
        face.at(-0.5, line),
        face.at(-0.8, line + 0.22),
        face.at(-0.93, side),
    ]
    if style in ("long", "bun"):  # parted in the middle
        hairline[2:5] = [face.at(0.5, line + 0.05), face.at(0.0, line - 0.2), face.at(-0.5, line + 0.05)]
    if style == "bob":  # a straight fringe
        hairline[1:6] = [face.at(u, line + 0.2) for u in (0.82, 0.45, 0.0, -0.45, -0.82)]
    scale = {"long": 1.13, "bob": 1.15, "curly": 1.1}.get(style, 1.09)
    top = _crown(face, scale)
    if style == "spiky":
        spikes = []
        for i in range(8):
            a, b = (math.radians(195 + 150 * k / 8) for k in (i, i + 0.5))
            spikes.append((1.08 * face.width * math.cos(a), face.y + 1.02 * face.height * math.sin(a)))
            spikes.append((1.34 * face.width * math.cos(b), face.y + 1.3 * face.height * math.sin(b)))
        top = [top[0], *spikes, top[-1]]
    pen.polygon([*top, *hairline], hair)
    if style == "curly":
        for u in (-0.7, -0.35, 0.0, 0.35, 0.7):
            x, y = face.at(u, line - 0.06)
            pen.ellipse(x, y, 0.13, 0.11, hair, False)
    elif style != "spiky":
        shine = [(x * 0.86, y * 0.9) for x, y in _crown(face, scale, 25, 31)[:6]]
        pen.stroke(shine, 0.05, lighter(hair, 0.25))


def _clothes(pen: Pen, clothing: str, colour: Colour, skin: Colour) -> None:
    pen.part = _PART["neck"]
    pen.box(-0.2, 0.3, 0.2, 0.72, darker(skin, 0.16))
    pen.part = _PART["clothes"]
    shoulders = [
        (-0.95, 1.05),
        (-0.9, 0.86),
        (-0.68, 0.7),
        (-0.3, 0.62),
        (-0.2, 0.58),
        (0.2, 0.58),
        (0.3, 0.62),
        (0.68, 0.7),
        (0.9, 0.86),
        (0.95, 1.05),
    ]
    pen.polygon(shoulders, colour)
    light, deep = lighter(colour, 0.4), darker(colour, 0.35)
    if clothing == "t-shirt":
        pen.polygon(oval(0, 0.57, 0.28, 0.2, 0, 180, 12), darker(skin, 0.08), False)
        pen.stroke(oval(0, 0.57, 0.3, 0.22, 0, 180, 12), 0.05, deep)
    elif clothing == "shirt":
        pen.polygon([(-0.16, 0.56), (0.16, 0.56), (0, 0.78)], darker(skin, 0.08), False)
        for side in (-1, 1):
            pen.polygon([(side * 0.24, 0.54), (0, 0.78), (side * 0.22, 0.9), (side * 0.36, 0.64)], light, False)
        pen.stroke([(0, 0.8), (0, 1.05)], 0.05, deep)
    elif clothing == "sweater":
        pen.box(-0.27, 0.5, 0.27, 0.72, light, 0.05, False)
        for y in (0.8, 0.92):
            pen.stroke([(-0.8, y + 0.06), (0, y + 0.03), (0.8, y + 0.06)], 0.04, deep)
    elif clothing == "hoodie":
        pen.polygon(
            smooth([(-0.5, 0.62), (-0.26, 0.48), (0, 0.84), (0.26, 0.48), (0.5, 0.62), (0.2, 0.9), (-0.2, 0.9)]),
            deep,
            False,
        )
        for side in (-1, 1):
            pen.stroke([(side * 0.12, 0.84), (side * 0.13, 1.02)], 0.05, (245, 245, 245))
    else:
        pen.polygon([(-0.24, 0.56), (0.24, 0.56), (0, 1.05)], (245, 245, 245), False)
        pen.polygon(
            [(-0.07, 0.64), (0.07, 0.64), (0.09, 1.05), (-0.09, 1.05)],
            (190, 45, 45) if colour[0] < 170 else (45, 45, 60),
            False,
        )
        for side in (-1, 1):
            pen.polygon([(side * 0.24, 0.55), (side * 0.36, 0.6), (side * 0.4, 0.84), (side * 0.06, 1.05)], deep, False)


def _glasses(pen: Pen, glasses: str, face: Face) -> None:
    frame = (25, 25, 30)
    radius = 0.205
    centres = []
    for side in (-1, 1):
        x, y = face.at(side * max(face.eye_u, 0.4), face.eye_v + 0.02, 0.04)
        rx = radius * (0.7 + 0.3 * face.cosine_yaw)
        centres.append((x, y, rx))
        if glasses == "sunglasses":
            pen.ellipse(x, y, rx * 1.05, radius * 0.95, frame, False)
            pen.polygon(
                [(x - 0.12, y - 0.02), (x - 0.02, y - 0.12), (x + 0.03, y - 0.1), (x - 0.1, y + 0.04)],
                (110, 115, 125),
                False,
            )
        else:
            pen.stroke([*oval(x, y, rx, radius, count=24), (x + rx, y)], 0.056, frame)
        ear = (side * face.width * 1.0, face.y - 0.02)
        if (ear[0] - x) * side > rx:
            pen.stroke([(x + side * rx, y - 0.02), ear], 0.05, frame)
    (ax, ay, arx), (bx, by, brx) = centres
    pen.stroke([(ax + arx, ay), (bx - brx, by)], 0.055, frame)
