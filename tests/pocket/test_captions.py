"""Captions say a scene's facts, and are read back as those facts."""

import random

import pytest

from app.pocket import captions, world
from app.pocket.portraits import Person
from app.pocket.world import Scene, Thing


def test_captions_are_read_back_as_the_facts_they_say():
    rng = random.Random(0)
    for _ in range(3000):
        facts = captions.mention(world.random_scene(rng), rng)
        text = captions.word(facts, rng)
        read = captions.parse(text)
        if len(facts.things) == 2 and read.relation is None:  # "a car next to a tree": either may stand on the left
            assert set(read.things) == set(facts.things) and read.background == facts.background
        else:
            assert read == facts, text


def test_captions_use_only_words_of_the_vocabulary():
    rng, known = random.Random(1), set(captions.vocabulary())
    for _ in range(1000):
        text = captions.caption(world.random_scene(rng), rng)
        assert set(text.replace(",", " ").split()) <= known


def test_one_scene_has_many_wordings():
    scene = Scene("blue", (Thing("car", "red"),), variation=1)
    assert len({captions.caption(scene, random.Random(i)) for i in range(200)}) > 60


@pytest.mark.parametrize(
    ("prompt", "facts"),
    [
        ("a red car, blue background", Scene("blue", (Thing("car", "red"),))),
        ("A photo of a Grey Automobile on a violet backdrop!", Scene("purple", (Thing("car", "gray"),))),
        ("a little teal cup in the upper left corner", Scene(None, (Thing("mug", "cyan", "small"),), place="top left")),
        ("a red car to the left of a big blue tree, white background",
         Scene("white", (Thing("car", "red"), Thing("tree", "blue", "big")), relation="left of")),
        ("gleeful dragon", Scene()),
        ("a smiling woman with long blond hair and blue eyes, wearing spectacles and a red sweater, looking left",
         Scene(person=Person("woman", "long", "blond", "blue", None, "glasses", "happy", "sweater", "red", "left"))),
    ],
)  # fmt: skip
def test_plain_prompts_are_understood(prompt, facts):
    assert captions.parse(prompt) == facts
