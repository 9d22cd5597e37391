"""The little world: a scene is a set of facts, drawn by known rules and described in plain words."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from PIL import Image, ImageDraw

from app.pocket import faces, portraits
from app.pocket.faces import Face
from app.pocket.pen import Colour, Pen, blank, finish, outline_of
from app.pocket.portraits import Person
from app.pocket.things import THINGS

COLOURS: dict[str, Colour] = {
    "red": (220, 50, 47),
    "orange": (240, 140, 40),
    "yellow": (245, 215, 60),
    "green": (60, 170, 75),
    "blue": (45, 110, 220),
    "purple": (140, 70, 190),
    "pink": (245, 150, 190),
    "brown": (130, 85, 50),
    "black": (30, 30, 35),
    "white": (245, 245, 245),
    "gray": (140, 145, 150),
    "cyan": (70, 200, 215),
}
SIZES = ("small", "big")
PLACES: dict[str, tuple[float, float]] = {
    "left": (0.27, 0.5),
    "right": (0.73, 0.5),
    "top": (0.5, 0.27),
    "bottom": (0.5, 0.73),
    "center": (0.5, 0.5),
    "top left": (0.27, 0.27),
    "top right": (0.73, 0.27),
    "bottom left": (0.27, 0.73),
    "bottom right": (0.73, 0.73),
}
RELATIONS: dict[str, tuple[tuple[float, float], tuple[float, float]]] = {  # where the first and the second thing lie
    "left of": ((0.26, 0.5), (0.74, 0.5)),
    "right of": ((0.74, 0.5), (0.26, 0.5)),
    "above": ((0.5, 0.26), (0.5, 0.74)),
    "below": ((0.5, 0.74), (0.5, 0.26)),
}
PERSON_FACTS: dict[str, tuple] = {
    "kind": portraits.KINDS,
    "hair_style": portraits.HAIR_STYLES,
    "hair_colour": tuple(portraits.HAIR_COLOURS),
    "eye_colour": tuple(portraits.EYE_COLOURS),
    "skin": tuple(portraits.SKINS),
    "glasses": portraits.GLASSES,
    "expression": portraits.EXPRESSIONS,
    "clothing": portraits.CLOTHES,
    "clothing_colour": tuple(COLOURS),
    "pose": tuple(portraits.POSES),
    "beard": (False, True),
}
"""Every field of `Person` and its values. What is learned from them counts on this order."""

_WHOLE_SIZES = {"small": 0.42, None: 0.68, "big": 0.88}  # of the picture, for one thing in the middle
_PLACED_SIZES = {"small": 0.32, None: 0.46, "big": 0.54}
_PAIR_SIZES = {"small": 0.3, None: 0.42, "big": 0.48}


@dataclass(frozen=True)
class Thing:
    """One thing as captions name it; None stands for what is not said."""

    name: str | None = None
    colour: str | None = None
    size: str | None = None


@dataclass(frozen=True)
class Scene:
    """The facts of one picture: one or two things, or a person, before a background.

    `geometry` (the face, one value of -1 to 1 per faces.GEOMETRY) and `variation` (small shifts) are drawn
    and never named. In a caption's facts None stands for what is not said.
    """

    background: str | None = None
    things: tuple[Thing, ...] = ()
    relation: str | None = None
    place: str | None = None
    person: Person | None = None
    geometry: tuple[float, ...] = ()
    variation: int = 0


def random_scene(rng: random.Random) -> Scene:
    """A scene of the grammar: one thing (half), two things (a fifth), a portrait (three tenths)."""
    kind = rng.random()
    if kind < 0.3:
        return random_portrait(rng)
    background = rng.choice(list(COLOURS))
    others = [name for name in COLOURS if name != background]
    if kind < 0.5:
        names = rng.sample(list(THINGS), 2)
        things = tuple(Thing(name, rng.choice(others), rng.choice((None, None, None, *SIZES))) for name in names)
        return Scene(background, things, relation=rng.choice(list(RELATIONS)), variation=rng.getrandbits(32))
    place = rng.choice(list(PLACES)) if rng.random() < 0.4 else None
    size = rng.choice(SIZES) if rng.random() < 0.35 else None
    thing = Thing(rng.choice(list(THINGS)), rng.choice(others), size)
    return Scene(background, (thing,), place=place, variation=rng.getrandbits(32))


def random_portrait(rng: random.Random) -> Scene:
    """A portrait with a face of its own."""
    kind = rng.choice(portraits.KINDS)
    styles = portraits.HAIR_STYLES if kind == "man" else portraits.HAIR_STYLES[:-1]
    person = Person(
        kind=kind,
        hair_style=rng.choice(styles),
        hair_colour=rng.choice(list(portraits.HAIR_COLOURS)),
        eye_colour=rng.choice(list(portraits.EYE_COLOURS)),
        skin=rng.choice(list(portraits.SKINS)),
        glasses=rng.choice(("none", "none", "glasses", "sunglasses")) if rng.random() < 0.85 else "glasses",
        expression=rng.choice(portraits.EXPRESSIONS),
        clothing=rng.choice(portraits.CLOTHES),
        clothing_colour=rng.choice(list(COLOURS)),
        pose="front" if rng.random() < 0.4 else rng.choice(list(portraits.POSES)),
        beard=kind == "man" and rng.random() < 0.3,
    )
    return Scene(rng.choice(list(COLOURS)), person=person, geometry=random_geometry(rng), variation=rng.getrandbits(32))


def random_geometry(rng: random.Random) -> tuple[float, ...]:
    """The geometry vector of a new face."""
    return tuple(round(rng.uniform(-1, 1), 3) for _ in faces.GEOMETRY)


def draw(scene: Scene, size: int = 128) -> Image.Image:
    """The picture of a complete scene, antialiased, RGB, `size` pixels square; a thing without a name stays away."""
    background = COLOURS[scene.background]
    image = blank(size, background)
    canvas = ImageDraw.Draw(image)
    if scene.person is not None:
        pen, face = _portrait_pen(scene)
        portraits.draw_person(pen, scene.person, face, COLOURS[scene.person.clothing_colour])
        pen.put(canvas, outline_of(portraits.SKINS[scene.person.skin]))
        return finish(image)
    for thing, (x, y, side, tilt) in zip(scene.things, layout(scene), strict=True):
        if thing.name is None:  # its place is kept
            continue
        pen = Pen(x, y, side / 2, tilt)
        colour = COLOURS[thing.colour]
        THINGS[thing.name](pen, colour)
        pen.put(canvas, outline_of(colour))
    return finish(image)


def parts(scene: Scene, size: int = 128) -> Image.Image:
    """Which of portraits.PARTS each pixel of a portrait shows: "L", `size` pixels square."""
    image = Image.new("L", (size, size))
    pen, face = _portrait_pen(scene)
    portraits.draw_person(pen, scene.person, face, COLOURS[scene.person.clothing_colour])
    pen.put_parts(ImageDraw.Draw(image))
    return image


def layout(scene: Scene) -> list[tuple[float, float, float, float]]:
    """Centre x, centre y and side (shares of the picture) and tilt (degrees) of each thing."""
    rng = random.Random(scene.variation)
    if len(scene.things) == 2:
        centres, sizes = RELATIONS[scene.relation], _PAIR_SIZES
    elif scene.place is not None:
        centres, sizes = (PLACES[scene.place],), _PLACED_SIZES
    else:
        centres, sizes = ((0.5, 0.5),), _WHOLE_SIZES
    boxes = []
    for thing, (x, y) in zip(scene.things, centres, strict=True):
        side = sizes[thing.size] * rng.uniform(0.95, 1.04)
        boxes.append((x + rng.uniform(-0.015, 0.015), y + rng.uniform(-0.015, 0.015), side, rng.uniform(-3, 3)))
    return boxes


def _portrait_pen(scene: Scene) -> tuple[Pen, Face]:
    rng = random.Random(scene.variation)
    yaw, pitch = portraits.POSES[scene.person.pose]
    face = Face(scene.geometry, yaw + rng.uniform(-4, 4), pitch + rng.uniform(-3, 3), scene.person.expression)
    return Pen(
        0.5 + rng.uniform(-0.012, 0.012),
        0.5 + rng.uniform(-0.008, 0.008),
        0.5 * rng.uniform(0.98, 1.02),
        rng.uniform(-2, 2),
    ), face


def keypoints(scene: Scene, size: int = 128) -> list[tuple[float, float]]:
    """The 68 face points of a portrait in pixels, in the order of faces.Face.keypoints."""
    pen, face = _portrait_pen(scene)
    return [(x * size, y * size) for x, y in map(pen.place, face.keypoints())]


def pose(scene: Scene) -> tuple[float, float]:
    """Yaw and pitch of a portrait in degrees, its small shift included."""
    _, face = _portrait_pen(scene)
    return math.degrees(math.asin(face.sine_yaw)), math.degrees(math.asin(face.sine_pitch))


def keypoint_depths(scene: Scene, size: int = 128) -> list[float]:
    """How far each of the 68 points lies towards the viewer, in pixels, from the middle of the head."""
    _, face = _portrait_pen(scene)
    return [z * size / 2 for z in face.depths()]


def same_person(scene: Scene, rng: random.Random) -> Scene:
    """Another portrait of the same face: other clothes, pose, expression and background."""
    other = random_portrait(rng)
    person = replace(
        scene.person,
        pose=other.person.pose,
        expression=other.person.expression,
        clothing=other.person.clothing,
        clothing_colour=other.person.clothing_colour,
    )
    return replace(other, person=person, geometry=scene.geometry)
