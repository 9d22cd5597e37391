"""What holds for every capability of the catalog, whatever it does: about ten checks derived from its declaration."""

import argparse
import io
import random
import re
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageDraw
from pydantic import ValidationError

from app.cli_fields import add_flags
from app.core.capability import Capability, image_fields
from app.core.catalog import CATALOG, find
from app.core.jobs import JobStatus
from app.errors import InvalidRequest, UnknownCapability, WeightsMissing
from app.main import build
from app.models.catalog import CATALOG as MODELS
from app.pocket import world
from app.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = "a" * 26

each = pytest.mark.parametrize("capability", CATALOG, ids=lambda capability: capability.name)


@pytest.fixture(scope="module")
def application(tmp_path_factory):
    """The whole application in this process, with one inline worker and pocket."""
    home = tmp_path_factory.mktemp("home")
    settings = Settings(_env_file=None, home=home, devices=("inline",), ui=False, min_free_bytes=0)
    return build(settings)


@pytest.fixture(scope="module")
def client(application):
    with TestClient(application.api, base_url="http://127.0.0.1:7860") as running:
        yield running


PEOPLE = {"pulid", "ecomid", "instantid", "faces", "face-parts"}
"""Tasks of what goes on a model to keep a face."""


def portrait() -> bytes:
    """A person of pocket's world who looks at us."""
    scene = world.random_portrait(random.Random(3))
    scene = replace(scene, person=replace(scene.person, pose="front", glasses="none"))
    buffer = io.BytesIO()
    world.draw(scene, 256).save(buffer, "PNG")
    return buffer.getvalue()


WITHOUT_MINIATURE = {"qwen-edit", "step1x-edit"}
"""Tasks that no embedded model serves: their capabilities say what fetches one."""


UNCONFIGURED = {"web-search": "EIS_SEARCH_PROVIDER"}
"""Capabilities that are off until the operator sets something, and what its refusal names."""


def additions_of(capability: Capability) -> tuple[str, ...]:
    """The tasks of what the example puts on the model."""
    listed = [
        start + what for of, start in capability.listed_additions.values() for what in capability.example.get(of, ())
    ]
    return (*capability.additions.values(), *listed)


def lack(capability: Capability, application) -> WeightsMissing | None:
    """What this copy of the service has no weights for, where the capability needs more than a base."""
    if not capability.needs:
        try:
            for task in capability.additions.values():
                application.service.models.choose((task,))
        except WeightsMissing as error:
            return error
        return None
    try:
        application.service.models.choose(capability.needs, additions_of(capability))
    except WeightsMissing as error:
        return error
    return None


def picture(kind: str) -> bytes:
    """A picture, or a mask with a white middle."""
    image = Image.new("L" if kind == "mask" else "RGB", (128, 128), 0 if kind == "mask" else (45, 110, 220))
    ImageDraw.Draw(image).ellipse((36, 36, 92, 92), fill=255 if kind == "mask" else (220, 50, 47))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def wish(capability: Capability, application=None) -> dict:
    """The capability's example with its required picture fields filled."""
    filled = dict(capability.example)
    for name, kind in image_fields(capability.request).items():
        if capability.request.model_fields[name].is_required():
            stored = REFERENCE
            if application is not None:
                shows_people = PEOPLE & {*capability.additions.values()} and name in {"face_image", "image"}
                content = portrait() if shows_people else picture(kind)
                record = application.service.storage.put(content, kind="mask" if kind == "mask" else "image")
                application.service.record_upload(record, owner="", kind="mask" if kind == "mask" else "image")
                stored = record.id
            filled[name] = [stored] if kind == "images" else stored
    return filled


def test_the_catalog_is_in_order_and_names_are_unique():
    names = [capability.name for capability in CATALOG]
    assert len(names) == len(set(names)) >= 4
    assert find("inpaint").name == "inpaint"
    with pytest.raises(UnknownCapability):
        find("no-such-thing")


@each
def test_declaration_is_whole(capability):
    assert re.fullmatch(r"[a-z0-9-]+(/[a-z0-9-]+)?", capability.name)
    assert capability.title and capability.summary.endswith(".") and capability.summary.count(".") == 1
    for name, info in capability.request.model_fields.items():
        assert info.description, f"{name} has no description"


@each
def test_example_validates(capability):
    request = capability.request.model_validate(wish(capability))
    with pytest.raises(ValidationError):
        request.__setattr__(next(iter(capability.request.model_fields)), None)


@each
def test_unknown_field_is_refused(capability):
    with pytest.raises(ValidationError, match="no_such_field"):
        capability.request.model_validate({**wish(capability), "no_such_field": 1})


@each
def test_route_stands_literally_in_the_schema(capability, client):
    document = client.get("/openapi.json").json()
    route = document["paths"][f"/api/v1/{capability.name}"]["post"]
    content = route["requestBody"]["content"]
    assert {"application/json", "multipart/form-data"} <= set(content)
    assert capability.summary in (route.get("description", "") + route.get("summary", ""))
    text = str(document["components"]["schemas"]) + str(content)
    for name in capability.request.model_fields:
        assert f"'{name}'" in text


@each
def test_shell_has_a_flag_for_each_field(capability):
    parser = argparse.ArgumentParser()
    add_flags(parser, capability.request)
    flags = {option for action in parser._actions for option in action.option_strings}
    for name in capability.request.model_fields:
        assert "--" + name.replace("_", "-") in flags


@each
def test_docs_row_exists(capability):
    page = (ROOT / "docs" / "capabilities.md").read_text()
    assert f"\n## {capability.name}\n" in page
    for name in capability.request.model_fields:
        assert f"`{name}`" in page


@each
def test_models_it_needs_are_in_the_catalog(capability):
    for task in capability.needs:
        serving = [row for row in MODELS if task in row.tasks]
        assert serving, f"no model serves {task}"
        if task not in WITHOUT_MINIATURE:
            assert any(row.embedded for row in serving), f"nothing serves {task} without a download"
        assert all(row.recommended for row in serving if row.kind == "checkpoint")


@each
def test_example_runs_and_states_what_it_used(capability, application, client):
    missing = lack(capability, application)
    if missing is not None:
        refusal = client.post(f"/api/v1/{capability.name}", json=wish(capability, application), params={"wait": 60})
        assert refusal.status_code == 409 and "eis models pull" in refusal.json()["error"]["message"]
        return
    answer = client.post(f"/api/v1/{capability.name}", json=wish(capability, application), params={"wait": 600})
    if capability.name in UNCONFIGURED:
        assert answer.status_code == 503 and UNCONFIGURED[capability.name] in answer.json()["error"]["message"]
        return
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert job["status"] == "succeeded"
    assert job["result"]["images"] or job["result"]["data"]
    if capability.needs:
        assert job["model"] in {"pocket", f"pocket-{capability.name}"}
    for name in ("seed", "num_inference_steps", "guidance_scale", "scheduler", "model"):
        if name in capability.request.model_fields:
            assert job["request"][name] is not None, f"the answer does not state {name}"
    for image in job["result"]["images"]:
        file = client.get(image["url"])
        assert Image.open(io.BytesIO(file.content), formats=["PNG"]).size == (image["width"], image["height"])


@each
def test_cancel_at_the_first_step_ends_within_one(capability, application, client):
    if "num_inference_steps" not in capability.request.model_fields:
        pytest.skip("it has no steps")
    if lack(capability, application) is not None:
        pytest.skip("its weights are no part of this copy")
    service = application.service
    job = service.submit(capability.name, {**wish(capability, application), "num_inference_steps": 50})
    steps = []
    ended = threading.Event()
    for event in service.watch_blocking(job.id):
        if event.kind == "step":
            steps.append(event.data["step"])
            if not ended.is_set():
                service.cancel(job.id)
                ended.set()
    final = service.get(job.id)
    assert final.status is JobStatus.CANCELLED
    assert ended.is_set() and len(steps) <= 2, steps
    assert not (final.result or {}).get("images")


@each
def test_a_bad_value_names_its_field_and_stores_nothing(capability, application, client):
    field = next(
        (name for name in ("num_inference_steps", "strength") if name in capability.request.model_fields), None
    )
    if field is None:
        pytest.skip("it has no bounded field that this test knows")
    before = application.service.list_jobs()[1]
    with pytest.raises(InvalidRequest) as refusal:
        application.service.submit(capability.name, {**wish(capability, application), field: -1})
    assert field in str(refusal.value.details) + refusal.value.message
    assert application.service.list_jobs()[1] == before


def test_every_capability_has_a_tab(application, client):
    gradio_app = pytest.importorskip("app.ui.app")
    labels = set()
    for component in gradio_app.build_ui(application.service).get_config_file()["components"]:
        labels.add(component.get("props", {}).get("label"))
    for capability in CATALOG:
        assert capability.title in labels
