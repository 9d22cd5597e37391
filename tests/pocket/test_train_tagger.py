"""The tagger of pocket's world: its facts, its training from nothing and resumed, and the shipped one's measure."""

import csv

import numpy as np
import onnxruntime
import torch

from app.imaging.tag_input import tagger_input
from app.pocket import tagger, train_tagger, world
from app.pocket.checkpoints import rng_of


def scenes(seed, count):
    return [world.random_scene(rng_of("tagger test", seed, number)) for number in range(count)]


def test_every_fact_of_a_scene_has_a_tag():
    names = [tag.name for tag in tagger.tags()]
    assert len(names) == len(set(names)) and names[:4] == list(tagger.RATINGS)
    told = [tagger.tags_of(scene) for scene in scenes("facts", 400)]
    assert set.union(*told) <= set(names)
    assert all(any(name.endswith("_background") for name in facts) for facts in told)
    assert len(set.union(*told)) > 0.8 * (len(names) - 4)


def test_probabilities_of_certain_answers_are_the_scenes_own_tags():
    """The network's way from facts to tags, fed with the truth itself."""
    names = np.array([tag.name for tag in tagger.tags()])
    for scene in scenes("certain", 60):
        whole, things, person = tagger.numbers_of(scene)

        def sure(count, at):
            logits = torch.zeros(1, count)
            logits[0, at if at >= 0 else 0] = 60.0
            return logits

        presence = torch.tensor([[60.0 if row[0] else -60.0 for row in things]])
        facts = [
            torch.cat([sure(len(values), row[at]) for row in things])[None]
            for at, values in enumerate(tagger.THING_FACTS.values(), start=1)
        ]
        portrait = torch.tensor([[60.0 if whole[1] else -60.0]])
        people = [sure(len(values), at) for values, at in zip(tagger.PERSON_FACTS.values(), person, strict=True)]
        found = tagger.Tagger.in_tags(presence, *facts, portrait, sure(12, whole[0]), *people)[0].numpy()
        assert set(names[4:][found[4:] > 0.5]) == tagger.tags_of(scene)
        assert found[:4].tolist() == [1, 0, 0, 0]


def test_a_training_is_resumed_and_exported(tmp_path):
    work, out = tmp_path / "work", tmp_path / "tagger"
    arguments = ["--preset", "tiny", "--work", str(work), "--out", str(out)]
    assert train_tagger.main([*arguments, "--steps", "2"]) == 0
    drawn = (work / "pictures-train.bin").stat().st_mtime_ns
    assert train_tagger.main([*arguments, "--steps", "3"]) == 0
    assert (work / "pictures-train.bin").stat().st_mtime_ns == drawn
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    assert session.get_inputs()[0].shape[1:] == [448, 448, 3]
    with (out / "selected_tags.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [tag.name for tag in tagger.tags()]
    assert {row["category"] for row in rows} == {"0", "9"} and int(rows[0]["count"]) == 64


def test_the_shipped_tagger_tells_unseen_pictures():
    session = onnxruntime.InferenceSession(str(train_tagger.FOLDER / train_tagger.MODEL))
    unseen = scenes("unseen", 160)
    pictures = np.stack([tagger_input(world.draw(scene), 448) for scene in unseen])
    guessed = np.concatenate([session.run(None, {"input": pictures[at : at + 16]})[0] for at in range(0, 160, 16)])
    names = np.array([tag.name for tag in tagger.tags()])
    told = [set(names[4:][row[4:] >= train_tagger.THRESHOLD]) for row in guessed]
    truth = [tagger.tags_of(scene) for scene in unseen]
    right = sum(len(found & facts) for found, facts in zip(told, truth, strict=True))
    assert right / sum(map(len, told)) > 0.85 and right / sum(map(len, truth)) > 0.85


def test_it_is_small():
    assert sum(path.stat().st_size for path in train_tagger.FOLDER.iterdir()) < 3e6
