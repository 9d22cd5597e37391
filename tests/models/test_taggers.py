"""Taggers by ONNX: what they are fed and answer, several a pass, and which folders are none."""

import threading
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

from app.errors import InvalidRequest, JobCancelled
from app.imaging.tag_input import tagger_input
from app.models import taggers
from app.models.device import TorchDevice
from app.models.library import ModelLibrary
from tests.models.onnx_taggers import ROWS, make_tagger, scores_by_hand

CPU = TorchDevice("cpu", "float32")


def pictures(count):
    random = np.random.default_rng(3)
    return [Image.fromarray(random.integers(0, 256, (40 + at, 30, 3), dtype=np.uint8)) for at in range(count)]


@contextmanager
def no_turn():
    yield


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_scores_are_those_of_one_picture_alone(tmp_path, batch):
    tagger = taggers.load(None, make_tagger(tmp_path, batch=batch), CPU)
    images = pictures(19)
    found = np.stack(list(tagger.at_work(no_turn, lambda: None).scores(iter(images))))
    wanted = scores_by_hand(np.stack([tagger_input(image, 32) for image in images]))
    assert np.abs(found - wanted).max() < 1e-5
    assert tagger.calls["passes"] == {"n": 3, 1: 19, 4: 5}[batch]
    assert [label.name for label in tagger.labels] == [name for name, _ in ROWS]
    assert [label.category for label in tagger.labels][1:] == ["rating", *["general"] * 3, "character"]


def test_a_pass_waits_for_its_turn_and_a_cancelled_run_makes_none(tmp_path):
    tagger = taggers.load(None, make_tagger(tmp_path), CPU)
    turns, cancelled = [], threading.Event()

    @contextmanager
    def turn():
        turns.append("in")
        yield
        cancelled.set()

    def check():
        if cancelled.is_set():
            raise JobCancelled

    with pytest.raises(JobCancelled):
        list(tagger.at_work(turn, check).scores(iter(pictures(20))))
    assert turns == ["in"] and tagger.calls["passes"] == 1


def test_a_parked_tagger_is_as_it_was(tmp_path):
    tagger = taggers.load(None, make_tagger(tmp_path), CPU)
    picture = np.full((1, 32, 32, 3), 200, np.float32)
    before = tagger.pass_of(picture)
    tagger._leaves = True  # as on a GPU
    tagger.park()
    assert tagger._session is None
    tagger.place()
    assert np.array_equal(tagger.pass_of(picture), before)


def test_what_does_not_fit_is_refused(tmp_path):
    make_tagger(tmp_path / "few", rows=ROWS[:-1])
    with pytest.raises(InvalidRequest, match="not of one model"):
        taggers.load(None, tmp_path / "few", CPU)
    cut = make_tagger(tmp_path / "cut")
    (cut / "model.onnx").write_bytes((cut / "model.onnx").read_bytes()[:100])
    with pytest.raises(InvalidRequest, match="damaged"):
        taggers.load(None, cut, CPU)


def test_a_users_folder_is_recognised_and_serves_before_pockets(tmp_path):
    folder = make_tagger(tmp_path / "my-tagger")
    (folder / "notes.txt").write_text("not a part of it")
    library = ModelLibrary(tmp_path / "home")
    row = library.add(folder)
    assert (row.spec.id, row.spec.kind, row.spec.tasks) == ("my-tagger", "tagger", ("tag",))
    assert sorted(path.name for path in row.path.iterdir()) == ["model.onnx", "selected_tags.csv"]
    assert library.choose(("tag",)).spec.id == "my-tagger"
    assert ModelLibrary(tmp_path / "other").choose(("tag",)).spec.id == "pocket-tagger"


@pytest.mark.parametrize("text", ["", "name\nhat\n", "tag_id,name,category\n1,hat,x\n", "tag_id,name,category\n"])
def test_a_folder_with_another_table_is_refused(tmp_path, text):
    folder = make_tagger(tmp_path / "tagger")
    (folder / "selected_tags.csv").write_text(text)
    with pytest.raises(InvalidRequest, match=r"selected_tags\.csv"):
        ModelLibrary(tmp_path / "home").add(folder)


def test_a_table_without_a_network_is_refused(tmp_path):
    folder = make_tagger(tmp_path / "tagger")
    (folder / "model.onnx").unlink()
    with pytest.raises(InvalidRequest, match=r"lacks its network, model\.onnx"):
        ModelLibrary(tmp_path / "home").add(folder)
