"""Edits of the little world: a scene before and after one wish, and the wish in plain words of the grammar."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

from app.pocket import portraits
from app.pocket.things import THINGS
from app.pocket.world import COLOURS, Scene, Thing, random_scene

OF_THINGS = ("colour", "colour", "background", "replace", "replace", "add", "remove")
OF_PORTRAITS = ("background", "hair", "clothing", "glasses on", "glasses off", "pose", "pose")
PORTRAITS = 0.3  # of the edits
COLOUR_UNSAID = 0.15  # of the things that are added or put in another's place

_WORDS: dict[str, tuple[str, ...]] = {
    "colour": (
        "make the {thing} {colour}", "change the {thing} to {colour}", "turn the {thing} {colour}",
        "paint the {thing} {colour}", "a {colour} {thing}", "{colour} {thing}", "the {thing} should be {colour}",
    ),
    "background": (
        "make the background {colour}", "{colour} background", "change the background to {colour}",
        "on a {colour} background", "put it in front of a {colour} background",
    ),
    "replace": (
        "turn the {thing} into a {other}", "replace the {thing} with a {other}", "make the {thing} a {other}",
        "change the {thing} to a {other}",
    ),
    "add": ("add a {other}", "put a {other} next to it", "add a {other} next to the {thing}", "draw a {other} there"),
    "remove": ("remove the {other}", "take the {other} away", "no {other}", "without the {other}"),
    "hair": ("make the hair {colour}", "{colour} hair", "change the hair to {colour}", "dye the hair {colour}"),
    "clothing": ("make the {thing} {colour}", "a {colour} {thing}", "change the {thing} to {colour}"),
    "glasses on": ("add {other}", "put on {other}", "with {other}", "wearing {other}"),
    "pose": ("turn the head {way}", "look {way}", "looking {way}", "the head should be turned {way}"),
    "glasses off": ("remove the glasses", "without glasses", "no glasses", "take the glasses off"),
}  # fmt: skip
_WAYS = {"front": "straight ahead", "left": "left", "right": "right", "up": "up", "down": "down"}


@dataclass(frozen=True)
class Edit:
    """One wish: both scenes share layout and face, so only what was wished for differs.

    `place` is the number of the thing that is changed, None where none is.
    """

    kind: str
    instruction: str
    before: Scene
    after: Scene
    place: int | None = None


def random_edit(rng: random.Random) -> Edit:
    """A scene of the grammar and a wish that changes it."""
    portrait = rng.random() < PORTRAITS
    scene = random_scene(rng)
    while (scene.person is not None) != portrait:
        scene = random_scene(rng)
    return _of_portrait(scene, rng) if portrait else _of_things(scene, rng)


def _another(values, *taken, rng: random.Random):
    return rng.choice([value for value in values if value not in taken])


def _say(kind: str, rng: random.Random, **words: str) -> str:
    return rng.choice(_WORDS[kind]).format(**words)


def _of_things(scene: Scene, rng: random.Random) -> Edit:
    kind = rng.choice(OF_THINGS)
    if kind in ("add", "remove"):
        while len(scene.things) != 2:
            scene = random_scene(rng)
        return _of_presence(kind, scene, rng)
    place = rng.randrange(len(scene.things))
    thing = scene.things[place]
    worn = [other.colour for other in scene.things]
    if kind == "background":
        colour = _another(COLOURS, scene.background, *worn, rng=rng)
        return Edit(kind, _say(kind, rng, colour=colour), scene, replace(scene, background=colour))
    if kind == "colour":
        colour = _another(COLOURS, scene.background, thing.colour, rng=rng)
        new, told = replace(thing, colour=colour), {"colour": colour}
    else:
        name = _another(THINGS, *(other.name for other in scene.things), rng=rng)
        new, told = replace(thing, name=name), {"other": name}
    things = tuple(new if number == place else other for number, other in enumerate(scene.things))
    return Edit(kind, _say(kind, rng, thing=thing.name, **told), scene, replace(scene, things=things), place)


def _of_presence(kind: str, scene: Scene, rng: random.Random) -> Edit:
    """A second thing comes or goes; its place is kept."""
    place = rng.randrange(2)
    thing, left = scene.things[place], scene.things[1 - place]
    alone = replace(scene, things=tuple(Thing() if n == place else other for n, other in enumerate(scene.things)))
    said = thing.name if rng.random() < COLOUR_UNSAID else f"{thing.colour} {thing.name}"
    before, after = (alone, scene) if kind == "add" else (scene, alone)
    return Edit(kind, _say(kind, rng, thing=left.name, other=said), before, after, place)


def _of_portrait(scene: Scene, rng: random.Random) -> Edit:
    kind, person = rng.choice(OF_PORTRAITS), scene.person
    if kind == "background":
        colour = _another(COLOURS, scene.background, rng=rng)
        return Edit(kind, _say(kind, rng, colour=colour), scene, replace(scene, background=colour))
    if kind == "hair" and person.hair_style != "bald":
        colour = _another(portraits.HAIR_COLOURS, person.hair_colour, rng=rng)
        told, new = {"colour": colour}, replace(person, hair_colour=colour)
    elif kind == "glasses on":
        glasses = rng.choice(("glasses", "sunglasses"))
        person, told = replace(person, glasses="none"), {"other": glasses}
        new = replace(person, glasses=glasses)
    elif kind == "pose":
        pose = _another(portraits.POSES, person.pose, rng=rng)
        told, new = {"way": _WAYS[pose]}, replace(person, pose=pose)
    elif kind == "glasses off":
        person, told = replace(person, glasses=rng.choice(("glasses", "sunglasses"))), {}
        new = replace(person, glasses="none")
    else:
        kind = "clothing"
        colour = _another(COLOURS, scene.background, person.clothing_colour, rng=rng)
        told, new = {"thing": person.clothing, "colour": colour}, replace(person, clothing_colour=colour)
    return Edit(kind, _say(kind, rng, **told), replace(scene, person=person), replace(scene, person=new))
