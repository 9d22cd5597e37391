"""The world draws what a scene says, by the count of pixels."""

import random

import numpy as np
import pytest

from app.pocket import faces, measure, portraits, world
from app.pocket.things import THINGS
from app.pocket.world import COLOURS, PLACES, RELATIONS, Scene, Thing


def share_of(image, colour: str) -> float:
    return float((np.asarray(image) == COLOURS[colour]).all(-1).mean())


def contrasting(name: str) -> str:
    return "blue" if name in ("red", "orange", "yellow", "white", "pink", "brown") else "yellow"


@pytest.mark.parametrize("colour", COLOURS)
def test_background_has_exactly_its_colour(colour):
    picture = world.draw(Scene(colour, (Thing("square", contrasting(colour)),)))
    assert share_of(picture, colour) > 0.5
    assert picture.getpixel((0, 0)) == picture.getpixel((127, 127)) == COLOURS[colour]


@pytest.mark.parametrize("name", THINGS)
def test_thing_has_its_colour_and_its_outline(name):
    assert len(THINGS) >= 16
    for colour in COLOURS:
        picture = world.draw(Scene(contrasting(colour), (Thing(name, colour),)))
        found = measure.find(picture)
        assert measure.colour_of(found) == colour
        assert share_of(picture, colour) > 0.02
    assert measure.outline_of(found) == name


@pytest.mark.parametrize("place", PLACES)
def test_thing_lies_at_its_place(place):
    picture = world.draw(Scene("white", (Thing("car", "red"),), place=place))
    assert measure.is_at(measure.find(picture), place, picture.size)


def test_sizes_differ():
    areas = [
        measure.foreground(world.draw(Scene("white", (Thing("star", "red", size),)))).mean()
        for size in ("small", None, "big")
    ]
    assert areas[0] * 1.5 < areas[1] < areas[2] / 1.3


@pytest.mark.parametrize("relation", RELATIONS)
def test_two_things_stand_in_their_relation(relation):
    scene = Scene("white", (Thing("apple", "red"), Thing("boat", "blue")), relation=relation)
    picture = world.draw(scene)
    found = [measure.find(picture, region) for region in measure.regions_of(scene)]
    assert [measure.colour_of(part) for part in found] == ["red", "blue"]
    assert [measure.outline_of(part) for part in found] == ["apple", "boat"]


def test_portraits_show_skin_hair_and_glasses():
    rng = random.Random(4)
    for _ in range(60):
        scene = world.random_portrait(rng)
        picture = world.draw(scene)
        assert measure.background_colour(picture) == scene.background
        assert measure.is_portrait(picture)
        if scene.person.hair_style != "bald":
            assert measure.hair_colour_of(picture) == scene.person.hair_colour
        if scene.person.pose == "front":
            assert (measure.dark_around_eyes(picture) > 0.26) == (scene.person.glasses != "none")
            assert scene.person.beard or measure.skin_of(picture) == scene.person.skin


def test_keypoints_lie_on_the_face_and_turn_with_it():
    rng = random.Random(2)
    scene = world.random_portrait(rng)
    noses = {}
    for pose in portraits.POSES:
        person = type(scene.person)(**{**vars(scene.person), "pose": pose})
        points = world.keypoints(Scene(scene.background, person=person, geometry=scene.geometry))
        assert len(points) == 68
        assert all(0 < x < 128 and 0 < y < 128 for x, y in points)
        five = faces.five_points(points)
        assert five[0][0] < five[2][0] < five[1][0]
        noses[pose] = five[2]
    assert noses["left"][0] + 10 < noses["front"][0] < noses["right"][0] - 10
    assert noses["up"][1] + 5 < noses["front"][1] < noses["down"][1] - 5


def test_pupils_are_where_the_keypoints_say():
    person = portraits.Person(
        "man", "short", "black", "blue", "pale", "none", "neutral", "shirt", "red", "front", False
    )
    scene = Scene("white", person=person, geometry=(0.0,) * len(faces.GEOMETRY))
    picture = world.draw(scene)
    for x, y in faces.five_points(world.keypoints(scene))[:2]:
        assert sum(picture.getpixel((round(x), round(y)))) < 200


def test_geometry_is_seen_and_never_named():
    rng = random.Random(8)
    scene = world.random_portrait(rng)
    other = world.same_person(scene, rng)
    assert other.geometry == scene.geometry
    wide = Scene(**{**vars(scene), "geometry": (1.0, *scene.geometry[1:])})
    narrow = Scene(**{**vars(scene), "geometry": (-1.0, *scene.geometry[1:])})
    difference = np.asarray(world.draw(wide), int) - np.asarray(world.draw(narrow), int)
    assert (np.abs(difference).sum(-1) > 60).mean() > 0.02


def test_same_seed_same_pictures():
    one, other = (
        [world.draw(world.random_scene(rng)).tobytes() for _ in range(20)]
        for rng in (random.Random(7), random.Random(7))
    )
    assert one == other
    assert len(set(one)) == 20


def test_larger_pictures_show_the_same_scene():
    scene = world.random_portrait(random.Random(1))
    small, large = world.draw(scene, 128), world.draw(scene, 256).resize((128, 128))
    assert np.abs(np.asarray(small, int) - np.asarray(large, int)).mean() < 4
