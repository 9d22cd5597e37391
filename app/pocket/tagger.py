"""A small network that names what a picture of pocket's world shows, with the interface of the WD14 taggers.

It reads [n, 448, 448, 3] of 0 to 255, channels blue, green, red, and answers a probability for each row of
selected_tags.csv. Each thing of the world and each fact of a person has a map of its own that says where to look; what
is seen there is read by a small head, so a colour belongs to its thing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from app.pocket import portraits, world
from app.pocket.face_networks import Residual, convolution, places_of
from app.pocket.things import THINGS
from app.pocket.world import COLOURS, PERSON_FACTS, PLACES, Scene

SIDE, LOOK = 448, 112
"""Pixels of the input, and of the copy of it that is looked at."""

RATINGS = ("general", "sensitive", "questionable", "explicit")
THING_FACTS: dict[str, tuple] = {"colour": tuple(COLOURS), "size": ("small", None, "big"), "place": tuple(PLACES)}
HAIR_WORDS = {"bob": "bob_cut", "bun": "hair_bun", "ponytail": "ponytail", "bald": "bald"}
POSE_WORDS = {"front": "looking_at_viewer"} | {name: f"looking_{name}" for name in portraits.POSES if name != "front"}
UNKNOWN = -1
"""What stands for a fact that a picture does not show: the colour of a bald man's hair."""


@dataclass(frozen=True)
class Tag:
    """One row of selected_tags.csv; category 9 is a rating, 0 general."""

    name: str
    category: int


def tags() -> list[Tag]:
    """Every row, in the network's order."""
    things = list(THINGS)
    names = [
        *things,
        *(f"{colour}_{thing}" for thing in things for colour in COLOURS),
        *(size for size in THING_FACTS["size"] if size),
        *(_place_tag(place) for place in PLACES),
        *(f"{colour}_background" for colour in COLOURS),
        "portrait",
        *portraits.KINDS,
        *(HAIR_WORDS.get(style, f"{style}_hair") for style in portraits.HAIR_STYLES),
        *(f"{colour}_hair" for colour in portraits.HAIR_COLOURS),
        *(f"{colour}_eyes" for colour in portraits.EYE_COLOURS),
        *(f"{skin}_skin" for skin in portraits.SKINS),
        *portraits.GLASSES[1:],
        *portraits.EXPRESSIONS,
        *portraits.CLOTHES,
        *(f"{colour}_{piece}" for piece in portraits.CLOTHES for colour in COLOURS),
        *(POSE_WORDS[pose] for pose in portraits.POSES),
        "beard",
    ]
    return [*(Tag(name, 9) for name in RATINGS), *(Tag(name, 0) for name in names)]


def tags_of(scene: Scene) -> set[str]:
    """The tags of a complete scene, by its facts; the rating is not among them."""
    found = {f"{scene.background}_background"}
    for thing, place in zip(scene.things, places_in(scene), strict=True):
        found |= {thing.name, f"{thing.colour}_{thing.name}", _place_tag(place), *((thing.size,) if thing.size else ())}
    person = scene.person
    if person is None:
        return found
    found |= {"portrait", person.kind, person.expression, f"{person.skin}_skin", POSE_WORDS[person.pose]}
    found |= {person.clothing, f"{person.clothing_colour}_{person.clothing}"}
    found.add(HAIR_WORDS.get(person.hair_style, f"{person.hair_style}_hair"))
    if person.hair_style != "bald":
        found.add(f"{person.hair_colour}_hair")
    if person.glasses != "sunglasses":
        found.add(f"{person.eye_colour}_eyes")
    if person.glasses != "none":
        found.add(person.glasses)
    return found | ({"beard"} if person.beard else set())


def _place_tag(place: str) -> str:
    return place.replace(" ", "_") if " " in place else f"{place}_side"


def places_in(scene: Scene) -> list[str]:
    """Where each thing lies, by the name of the nearest place."""
    boxes = world.layout(scene) if scene.things else []
    return [
        min(PLACES, key=lambda name: (PLACES[name][0] - x) ** 2 + (PLACES[name][1] - y) ** 2) for x, y, _, _ in boxes
    ]


def numbers_of(scene: Scene) -> tuple[list[int], list[list[int]], list[int]]:
    """(background and whether a person is shown, [things] each with presence and its facts, a person's facts)."""
    things = [[0, *[UNKNOWN] * len(THING_FACTS)] for _ in THINGS]
    for thing, place in zip(scene.things, places_in(scene), strict=True):
        told = {"colour": thing.colour, "size": thing.size, "place": place}
        things[list(THINGS).index(thing.name)] = [
            1,
            *(values.index(told[name]) for name, values in THING_FACTS.items()),
        ]
    person = scene.person
    facts = [UNKNOWN] * len(PERSON_FACTS)
    if person is not None:
        hidden = ({"hair_colour"} if person.hair_style == "bald" and not person.beard else set()) | (
            {"eye_colour"} if person.glasses == "sunglasses" else set()
        )
        facts = [
            UNKNOWN if name in hidden else values.index(getattr(person, name)) for name, values in PERSON_FACTS.items()
        ]
    return [list(COLOURS).index(scene.background), int(person is not None)], things, facts


def head(inner: int, outer: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inner, 64), nn.ReLU(), nn.Linear(64, outer))


class Tagger(nn.Module):
    """[n, 448, 448, 3] BGR of 0 to 255 to [n, tags] probabilities; `look` answers the logarithms that are trained."""

    WIDTH = 48

    def __init__(self):
        super().__init__()
        self.shrink = nn.AvgPool2d(SIDE // LOOK)
        self.enter = convolution(3, 20, 5, 2)
        self.quarter = nn.Sequential(convolution(20, 40, 3, 2), Residual(40))
        self.eighth = nn.Sequential(convolution(40, 64, 3, 2), Residual(64))
        self.sixteenth = nn.Sequential(convolution(64, 96, 3, 2), Residual(96), Residual(96))
        self.up = nn.Conv2d(96, 64, 1)
        self.up_again = nn.Conv2d(64, self.WIDTH, 1)
        self.side = nn.Conv2d(40, self.WIDTH, 1)
        self.grow = nn.Upsample(scale_factor=2, mode="nearest")
        slots = len(THINGS) + len(PERSON_FACTS) + 1
        self.maps = nn.Conv2d(self.WIDTH, slots, 1)
        self.register_buffer("places", places_of(LOOK // 4), persistent=False)
        seen = self.WIDTH + 4 + 1 + 96
        self.presence = nn.Parameter(torch.zeros(len(THINGS), seen))
        self.presence_bias = nn.Parameter(torch.full((len(THINGS),), -2.0))
        self.things = nn.ModuleDict({name: head(seen, len(values)) for name, values in THING_FACTS.items()})
        self.person = nn.ModuleDict({name: head(seen, len(values)) for name, values in PERSON_FACTS.items()})
        self.background = head(seen, len(COLOURS))
        self.portrait = nn.Linear(96, 1)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        pixels = self.shrink(pictures.permute(0, 3, 1, 2)) / 127.5 - 1
        return self.in_tags(*self.look(pixels.flip(1)))

    def look(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[n, 3, 112, 112] RGB of -1 to 1 to logits: presence [n, things], each fact of things [n, things, values],
        portrait [n, 1], background [n, colours], each fact of a person [n, values]."""
        quarter = self.quarter(self.enter(pixels))
        eighth = self.eighth(quarter)
        sixteenth = self.sixteenth(eighth)
        fine = self.side(quarter) + self.grow(self.up_again(eighth + self.grow(self.up(sixteenth))))
        fine = torch.relu(fine)
        whole = sixteenth.mean((2, 3)).float()
        maps = self.maps(fine).flatten(2).float()
        weights = maps.softmax(-1)
        values = fine.flatten(2).float().transpose(1, 2)
        middle = weights @ self.places
        spread = (weights @ self.places.square() - middle.square()).clamp(min=1e-6).sqrt()
        around = whole[:, None].expand(-1, maps.shape[1], -1)
        seen = torch.cat([weights @ values, middle, spread, maps.logsumexp(-1, keepdim=True) / 8, around], -1)
        count = len(THINGS)
        things = seen[:, :count]
        presence = (things * self.presence).sum(-1) + self.presence_bias
        facts = [layers(things) for layers in self.things.values()]
        person = [layers(seen[:, count + at]) for at, layers in enumerate(self.person.values())]
        return presence, *facts, self.portrait(whole), self.background(seen[:, -1]), *person

    @staticmethod
    def in_tags(presence: torch.Tensor, *told: torch.Tensor) -> torch.Tensor:
        """The logits as the probabilities of `tags()`."""
        there = presence.sigmoid()[..., None]
        colour, size, place = (logits.softmax(-1) * there for logits in told[:3])
        is_portrait = told[3].sigmoid()
        background = told[4].softmax(-1)
        person = {name: logits.softmax(-1) * is_portrait for name, logits in zip(PERSON_FACTS, told[5:], strict=True)}
        style, glasses = person["hair_style"], person["glasses"]
        bald, dark = portraits.HAIR_STYLES.index("bald"), portraits.GLASSES.index("sunglasses")
        certain = is_portrait.clamp(min=1e-6)
        dressed = person["clothing"][:, :, None] * (person["clothing_colour"] / certain)[:, None]
        sizes = size.amax(1)
        found: Sequence[torch.Tensor] = (
            torch.ones_like(is_portrait), torch.zeros_like(background[:, : len(RATINGS) - 1]),
            there[..., 0], colour.flatten(1), sizes[:, :1], sizes[:, 2:], place.amax(1), background, is_portrait,
            person["kind"], style, person["hair_colour"] * (1 - style[:, bald : bald + 1] / certain),
            person["eye_colour"] * (1 - glasses[:, dark : dark + 1] / certain), person["skin"], glasses[:, 1:],
            person["expression"], person["clothing"], dressed.flatten(1), person["pose"], person["beard"][:, 1:],
        )  # fmt: skip
        return torch.cat(list(found), 1)
