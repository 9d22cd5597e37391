"""Trainings as jobs of a real worker process: killed, resumed, cancelled, passed by urgent jobs; what they leave."""

import io
import json
import os
import random
import signal
import time

import gradio as gr
import numpy as np
import pytest
from PIL import Image

from app.core.jobs import JobStatus
from app.core.lora_training import LORA_TRAINING
from app.core.service import Service
from app.core.training_notebook import Notebook, newest_checkpoint
from app.errors import Conflict, InvalidRequest, UnknownJob
from app.imaging.loss_curve import loss_curve, training_picture
from app.imaging.near_duplicates import near_duplicates, picture_hash
from app.models import machine
from app.pocket import world
from app.ui.forms import Form
from app.ui.model_choices import ModelChoices
from tests.engine.conftest import options, until
from tests.models import tiny_step1x
from tests.models.tiny_qwen import make_folder
from tests.parity.cases import DATA

SECONDS = 240.0
WISH = {
    "name": "style thing",
    "trigger_word": "style",
    "instance_prompt": "photo of a cat",
    "model": "tiny-sd15",
    "resolution": 64,
    "rank": 2,
    "learning_rate": 1e-2,
    "max_train_steps": 12,
    "checkpointing_steps": 3,
    "num_inference_steps": 2,
    "seed": 5,
}


@pytest.fixture(scope="module")
def service(checkpoints, tmp_path_factory):
    """A service with one worker process and the real runtime."""
    home = tmp_path_factory.mktemp("home")
    patient = {"worker_lost_seconds": 60.0, "cancel_grace_seconds": 60.0}
    service = Service(
        options(home, catalog="app.core.catalog:CATALOG", devices=("cpu",), precision="float32", **patient)
    )
    for name in ("tiny-sd15", "tiny-sdxl"):
        service.models.add(checkpoints[name], id=name)
    service.models.add(make_folder(home / "published" / "tiny-qwen"), id="tiny-qwen")
    case = json.loads((DATA / "step1x_edit" / "case.json").read_text("utf-8"))
    paired = tiny_step1x.make_folder(home / "published" / "step1x", case["keys"], case["config"], version="1.2")
    service.models.add(paired, id="tiny-step1x")
    service.start()
    yield service
    service.stop(0.0)


@pytest.fixture(scope="module")
def images(service):
    return [service.upload(drawn(number)).id for number in range(3)]


def drawn(seed):
    buffer = io.BytesIO()
    rough = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(rough).resize((64, 64)).save(buffer, "PNG")
    return buffer.getvalue()


def end_of(service, job):
    until(lambda: service.get(job.id).status.is_terminal, SECONDS)
    return service.get(job.id)


@pytest.fixture(scope="module")
def unbroken(service, images):
    """The training as it goes when nothing comes between."""
    done = end_of(service, service.submit("lora-training", {**WISH, "images": images}))
    assert done.status is JobStatus.SUCCEEDED, done.error
    return done


def test_a_training_leaves_a_lora_that_is_usable_at_once(service, unbroken):
    data = unbroken.result["data"]
    assert len(data["losses"]) == data["steps"] == 12 and len(set(data["losses"])) == 12
    row = service.models.get(data["lora"])
    assert (row.spec.kind, row.spec.family, row.installed) == ("lora", "sd15", True)
    assert row.spec.options["trigger"] == "style" and row.spec.title == "style thing"
    wish = {"prompt": "photo of a style cat", "model": "tiny-sd15", "num_inference_steps": 2, "seed": 3}
    wish |= {"width": 64, "height": 64}
    with_it = end_of(service, service.submit("text-to-image", {**wish, "loras": [{"model": data["lora"]}]}))
    without = end_of(service, service.submit("text-to-image", wish))
    one, other = (
        np.asarray(service.storage.open(job.result["images"][0]["id"]), dtype=int) for job in (with_it, without)
    )
    assert np.abs(one - other).max() > 8


def test_a_training_whose_worker_is_killed_ends_with_the_same_losses(service, images, unbroken):
    job = service.submit("lora-training", {**WISH, "images": images})
    until(lambda: service.get(job.id).step >= 7, SECONDS)
    os.kill(service.readiness()["workers"][0]["pid"], signal.SIGKILL)
    done = end_of(service, job)
    assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 2), done.error
    told = [stage for stage in done.result["data"]["stages"] if stage["stage"] == "resumed"]
    assert told and told[0]["step"] >= 6
    assert done.result["data"]["losses"] == unbroken.result["data"]["losses"]


def test_a_cancelled_training_says_how_it_goes_on_and_does(service, images, unbroken):
    job = service.submit("lora-training", {**WISH, "images": images})
    until(lambda: service.get(job.id).step >= 4, SECONDS)
    service.cancel(job.id)
    ended = end_of(service, job)
    assert ended.status is JobStatus.CANCELLED
    last = ended.result["data"]["stages"][-1]
    assert last["stage"] == "checkpoint" and f"resume_from {job.id}" in last["text"] and last["step"] >= 4
    again = end_of(
        service, service.submit("lora-training", {**WISH, "images": images, "resume_from": job.id, "seed": 99})
    )
    assert again.status is JobStatus.SUCCEEDED, again.error
    assert again.result["data"]["losses"] == unbroken.result["data"]["losses"]


def test_an_urgent_job_runs_whole_within_a_step_and_an_equal_one_waits(service, images, unbroken):
    training = service.submit(
        "lora-training", {**WISH, "images": images, "max_train_steps": 60, "checkpointing_steps": 60}
    )
    until(lambda: service.get(training.id).step >= 2, SECONDS)
    picture = {
        "prompt": "a red car",
        "model": "tiny-sdxl",
        "num_inference_steps": 6,
        "width": 64,
        "height": 64,
        "seed": 1,
    }
    equal = service.submit("text-to-image", picture)
    urgent = service.submit("text-to-image", picture, priority=10)
    began = None
    for event in service.watch_blocking(urgent.id, seconds=SECONDS):
        if event.kind in {"step", "started"}:
            began = service.get(training.id).step if began is None else began
        if event.kind == "step":
            now = service.get(training.id)
            assert now.status is JobStatus.RUNNING and now.step - began <= 1
    assert service.get(urgent.id).status is JobStatus.SUCCEEDED, service.get(urgent.id).error
    assert service.get(equal.id).status is JobStatus.QUEUED
    assert service.get(training.id).status is JobStatus.RUNNING
    done = end_of(service, training)
    assert done.status is JobStatus.SUCCEEDED, done.error
    assert done.result["data"]["losses"][:12] == unbroken.result["data"]["losses"]
    assert end_of(service, equal).status is JobStatus.SUCCEEDED


def test_class_pictures_samples_and_the_loss_curve(service, images):
    wish = {**WISH, "images": images, "captions": ["a cat", "", "style car"], "class_prompt": "a cat"}
    wish |= {"num_class_images": 2, "max_train_steps": 4, "validation_steps": 2, "model": "tiny-sdxl"}
    wish |= {"validation_prompts": ["a style cat", "a cat"], "train_text_encoder": True}
    job = service.submit("lora-training", wish)
    previews = [
        event.data["image"] for event in service.watch_blocking(job.id, preview=True) if event.kind == "preview"
    ]
    done = service.get(job.id)
    assert done.status is JobStatus.SUCCEEDED, done.error
    assert previews and all(text.startswith("data:image/jpeg") for text in previews)
    samples = done.result["data"]["samples"]
    assert [(sample["step"], sample["prompt"]) for sample in samples] == [(2, 0), (2, 1), (4, 0), (4, 1)]
    assert len(done.result["images"]) == 5
    folder = service.options.home / "training" / job.id
    assert len(list((folder / "class").glob("*.png"))) == 2
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-000004"]


def bad(service, images, changes):
    return service.submit("lora-training", {**WISH, "images": images} | changes)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"images": []}, "images"),
        ({"captions": ["one"]}, "captions"),
        ({"instance_prompt": " ", "trigger_word": None}, "captions"),
        ({"rank": 0}, "rank"),
        ({"name": "!?"}, "name"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"optimizer": "adamw-8bit"}, "optimizer"),
        ({"max_train_steps": 0}, "max_train_steps"),
        ({"resolution": 8}, "resolution"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"captions": ["x" * 2001, "", ""]}, "captions"),
        ({"resume_from": "../../etc"}, "resume_from"),
    ],
)
def test_bad_wishes_are_refused_at_the_door(service, images, changes, field):
    before = service.list_jobs()[1]
    with pytest.raises(InvalidRequest) as refusal:
        bad(service, images, changes)
    assert field in str(refusal.value.details) + refusal.value.message
    assert service.list_jobs()[1] == before


def test_what_an_optimiser_lacks_is_said_in_the_form_and_at_the_door(service, images, monkeypatch):
    with pytest.raises(InvalidRequest, match=r"adamw-8bit needs a CUDA device, .* and the package bitsandbytes"):
        bad(service, images, {"optimizer": "adamw-8bit"})
    assert LORA_TRAINING.unserved(None) == {"optimizer": {}}, "other servers may have what this one lacks"
    choices = ModelChoices(service.models, LORA_TRAINING.needs)
    with gr.Blocks():
        form = Form(LORA_TRAINING, choices, service.devices.known_names())
        form.build("advanced")
    widget = form.widget("optimizer")
    assert [text for text, _ in widget.choices] == ["adamw", "adamw-8bit · not here", "prodigy"]
    assert "adamw-8bit needs a CUDA device" in widget.info and "bitsandbytes" in widget.info
    for name, package in (("prodigy", "prodigyopt"), ("adamw-8bit", "bitsandbytes")):
        monkeypatch.setitem(machine.PACKAGES, name, ("no_such_module", package, "train"))
    on_cuda = LORA_TRAINING.unserved(("cuda:0", "cpu"))["optimizer"]
    assert set(on_cuda) == {"adamw-8bit", "prodigy"} and "edit-image-service[train]" in on_cuda["adamw-8bit"]
    with pytest.raises(InvalidRequest, match="prodigy needs the package prodigyopt"):
        bad(service, images, {"optimizer": "prodigy"})


def test_prodigy_learns_as_a_job_by_its_own_rates(service, images):
    wish = {**WISH, "images": images, "optimizer": "prodigy", "learning_rate": None, "max_train_steps": 3}
    done = end_of(service, service.submit("lora-training", wish))
    assert done.status is JobStatus.SUCCEEDED, done.error
    assert done.request["learning_rate"] == 1.0 and len(done.result["data"]["losses"]) == 3


@pytest.mark.parametrize("paired", [False, True])
def test_an_editing_model_learns_and_its_lora_edits_at_once(service, images, paired):
    wish = {**WISH, "images": images[:2], "model": "tiny-qwen", "max_train_steps": 2, "instance_prompt": "make it blue"}
    # A source is shown at a million pixels, whatever the resolution: one step of a pair is enough here.
    wish |= {"source_images": images[1:], "max_train_steps": 1} if paired else {"validation_prompts": ["make it blue"]}
    done = end_of(service, service.submit("lora-training", wish))
    assert done.status is JobStatus.SUCCEEDED, done.error
    row = service.models.get(done.result["data"]["lora"])
    assert (row.spec.kind, row.spec.family, row.spec.options["trigger"]) == ("lora", "qwen-image", "style")
    assert len(done.result["images"]) == (1 if paired else 2)
    if not paired:
        edit = {"prompt": "make it blue", "image": images[0], "model": "tiny-qwen", "num_inference_steps": 1, "seed": 3}
        edit |= {"true_cfg_scale": 1.0, "width": 64, "height": 64, "loras": [{"model": row.spec.id}]}
        edited = end_of(service, service.submit("qwen-edit", edit))
        assert edited.status is JobStatus.SUCCEEDED, edited.error


def test_a_killed_training_on_step1x_ends_with_the_same_losses_and_its_lora_edits(service, images):
    wish = {**WISH, "images": images[:2], "source_images": images[1:], "model": "tiny-step1x", "max_train_steps": 6}
    wish |= {"instance_prompt": "make it blue", "validation_prompts": ["make it blue"], "validation_steps": 6}
    whole = end_of(service, service.submit("lora-training", wish))
    assert whole.status is JobStatus.SUCCEEDED, whole.error
    assert len(set(whole.result["data"]["losses"])) == 6 and len(whole.result["images"]) == 2
    job = service.submit("lora-training", wish)
    until(lambda: service.get(job.id).step >= 4, SECONDS)
    os.kill(service.readiness()["workers"][0]["pid"], signal.SIGKILL)
    done = end_of(service, job)
    assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 2), done.error
    assert done.result["data"]["losses"] == whole.result["data"]["losses"]
    row = service.models.get(done.result["data"]["lora"])
    assert (row.spec.kind, row.spec.family, row.spec.options["trigger"]) == ("lora", "flux", "style")
    edit = {"prompt": "make it blue", "image": images[0], "model": "tiny-step1x", "num_inference_steps": 1, "seed": 3}
    edit |= {"size_level": 256, "align": False}
    drawn_with = [
        end_of(service, service.submit("step1x-edit", edit | {"loras": put_on}))
        for put_on in ([{"model": row.spec.id}], [])
    ]
    assert all(job.status is JobStatus.SUCCEEDED for job in drawn_with), [job.error for job in drawn_with]
    one, other = (np.asarray(service.storage.open(job.result["images"][0]["id"]), int) for job in drawn_with)
    assert np.abs(one - other).max() > 8


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": "tiny-sd15", "count": 3}, "source_images"),
        ({"count": 2}, "source_images"),
        ({"model": "tiny-step1x"}, "source_images"),
        ({"model": "tiny-step1x", "count": 3, "class_prompt": "a cat"}, "class_prompt"),
        ({"class_prompt": "a cat"}, "class_prompt"),
        ({"train_text_encoder": True}, "train_text_encoder"),
        ({"snr_gamma": 5.0}, "snr_gamma"),
        ({"scheduler": "DDIM"}, "scheduler"),
    ],
)
def test_what_an_editing_model_has_not_is_refused(service, images, changes, field):
    wish = {"model": "tiny-qwen"} | changes
    wish["source_images"] = images[: wish.pop("count", 0)]
    with pytest.raises(InvalidRequest) as refusal:
        bad(service, images, wish)
    assert refusal.value.details["field"] == field


def test_auto_trains_on_what_draws_from_words(service, images):
    service.pause_queue(True)
    job = service.submit("lora-training", {**WISH, "images": images, "model": "auto"})
    service.cancel(job.id)
    service.pause_queue(False)
    assert "text-to-image" in service.models.get(job.model).spec.tasks


def test_going_on_asks_for_the_same_training_of_the_same_owner(service, images, unbroken):
    with pytest.raises(InvalidRequest, match="rank"):
        bad(service, images, {"rank": 3, "lora_alpha": 2.0, "resume_from": unbroken.id})
    with pytest.raises(UnknownJob):
        bad(service, images, {"resume_from": "a" * 26})
    other = end_of(
        service, service.submit("text-to-image", {"prompt": "a", "model": "tiny-sd15", "num_inference_steps": 1})
    )
    with pytest.raises(InvalidRequest, match="no training"):
        bad(service, images, {"resume_from": other.id})
    mine = service.upload(drawn(0), owner="bob").id
    with pytest.raises(UnknownJob):
        service.submit("lora-training", {**WISH, "images": [mine], "resume_from": unbroken.id}, owner="bob")
    service.pause_queue(True)
    waiting = service.submit("text-to-image", {"prompt": "a", "model": "tiny-sd15"})
    with pytest.raises(Conflict):
        bad(service, images, {"resume_from": waiting.id})
    service.cancel(waiting.id)
    service.pause_queue(False)


def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path):
    class Half:
        def save(self, folder):
            folder.mkdir()
            (folder / "lora.safetensors").write_bytes(b"whole")
            if notebook.step == 2:
                raise KeyboardInterrupt

    notebook = Notebook(tmp_path, 3, [0.5])
    notebook.save(Half())
    notebook.losses.append(0.25)
    with pytest.raises(KeyboardInterrupt):
        notebook.save(Half())
    after = Notebook(tmp_path, 0)
    after.read(newest_checkpoint(tmp_path))
    assert (after.step, after.losses, after.seed) == (1, [0.5], 3)


def test_what_nobody_touched_for_long_is_tidied_away(tmp_path):
    from app.core.belongings import Belongings

    belongings = Belongings(tmp_path, keep_days=1)
    old, new = belongings.of("old", make=True), belongings.of("new", make=True)
    (old / "file").write_text("x")
    for path in (old, old / "file"):
        os.utime(path, (time.time() - 2 * 86400,) * 2)
    belongings.of("newest", make=True)
    assert not old.exists() and new.exists()
    for name in ("old", "..", "../training/new"):
        with pytest.raises(InvalidRequest):
            belongings.of(name, make=False)


def test_near_duplicates_are_found_and_others_are_not():
    pictures = [Image.open(io.BytesIO(drawn(number)), formats=["PNG"]) for number in range(12)]
    small, bright = pictures[3].resize((40, 40)), pictures[5].point(lambda value: min(255, value + 12))
    assert near_duplicates([picture_hash(image) for image in [*pictures, small, bright]]) == [[3, 12], [5, 13]]
    chance = random.Random(1)
    plain = [world.draw(world.random_scene(chance)) for _ in range(60)]
    assert near_duplicates([picture_hash(image) for image in plain]) == []
    for image in plain:
        buffer = io.BytesIO()
        image.resize((100, 100)).save(buffer, "WEBP", quality=70)
        again = Image.open(buffer, formats=["WEBP"])
        assert near_duplicates([picture_hash(image), picture_hash(again)]) == [[0, 1]]


def test_the_curve_is_drawn_and_the_samples_stand_below_it():
    curve = loss_curve([1.0 / (1 + number) for number in range(50)], 100)
    assert curve.size == (640, 280)
    colours = curve.getcolors(640 * 280)
    assert sum(count for count, (red, green, blue) in colours if blue > 200 and red < 170) > 100
    assert loss_curve([], 10).size == curve.size
    assert training_picture(curve, [Image.new("RGB", (64, 64))] * 2).size == (640, 280 + 320)
