"""What a run with a model sees and tells: nulls filled, steps counted over passes, previews only while watched."""

import base64
import io
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from app.core.jobs import Job, JobStatus
from app.core.service import Service
from app.errors import InvalidRequest, UnknownModel, WeightsMissing
from app.models.library import ModelLibrary, ModelRow
from tests.engine.conftest import end_of

MODELLED = {"catalog": "tests.engine.modelled:CATALOG", "runtime": "tests.engine.modelled:open_runtime"}


@pytest.fixture
def drawing(make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch) -> Service:
    """A service over a runtime without torch; the embedded model counts as installed also before it is trained."""
    row = ModelLibrary._row

    def stands(library: ModelLibrary, spec: object) -> ModelRow:
        found = row(library, spec)
        return found if not spec.embedded else ModelRow(spec, True, library.folder, 0)

    monkeypatch.setattr(ModelLibrary, "_row", stands)
    return make_service(**MODELLED)


def pocket(service: Service) -> ModelRow:
    return service.models.get("pocket")


def test_nulls_become_what_the_model_recommends(drawing: Service) -> None:
    job = drawing.submit("test/draw", {"prompt": "a car"})
    advice = pocket(drawing).spec.recommended
    assert job.model == job.request["model"] == drawing.models.choose(("text-to-image",)).spec.id
    for name in ("num_inference_steps", "guidance_scale", "scheduler", "width", "height"):
        assert job.request[name] == getattr(advice, name)
    assert isinstance(job.request["seed"], int)
    given = {"num_inference_steps": 3, "guidance_scale": 0.0, "scheduler": "DDIM", "width": 64, "height": 72, "seed": 0}
    job = drawing.submit("test/draw", {"prompt": "a car", "model": "pocket", **given})
    assert given.items() <= job.request.items()
    done = end_of(drawing, job.id)
    assert done.result["model"] == "pocket"
    assert drawing.storage.metadata(done.result["images"][0]["id"])["recipe"]["request"] == job.request


def test_models_that_are_unknown_missing_or_wrong(drawing: Service) -> None:
    with pytest.raises(UnknownModel):
        drawing.submit("test/draw", {"prompt": "x", "model": "nothing"})
    missing = next(row.spec for row in drawing.models.rows() if not row.installed and "text-to-image" in row.spec.tasks)
    with pytest.raises(WeightsMissing, match=f"eis models pull {missing.id}"):
        drawing.submit("test/draw", {"prompt": "x", "model": missing.id})
    wrong = next(row.spec for row in drawing.models.rows() if "text-to-image" not in row.spec.tasks)
    with pytest.raises((InvalidRequest, WeightsMissing)):
        drawing.submit("test/draw", {"prompt": "x", "model": wrong.id})
    with pytest.raises(UnknownModel):
        drawing.submit("test/draw", {"prompt": "x", "loras": [{"model": "nothing"}]})


def test_steps_are_counted_over_all_passes(drawing: Service) -> None:
    job = drawing.submit("test/draw", {"prompt": "x", "num_inference_steps": 3})
    done = end_of(drawing, job.id)
    assert (done.step, done.steps) == (6, 6)
    assert drawing.readiness()["workers"][0]["resident_models"] == [job.model]


def test_previews_are_drawn_for_those_who_watch(drawing: Service) -> None:
    unseen = end_of(drawing, drawing.submit("test/draw", {"prompt": "x", "num_inference_steps": 50}).id)
    assert unseen.status is JobStatus.SUCCEEDED
    blocker = drawing.submit("test/draw", {"prompt": "x", "num_inference_steps": 100})
    job = drawing.submit("test/draw", {"prompt": "x", "num_inference_steps": 100})
    events = list(drawing.watch_blocking(job.id, preview=True, seconds=10))
    previews = [event.data["image"] for event in events if event.kind == "preview"]
    assert previews
    head, _, data = previews[0].partition(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data)), formats=("JPEG",)).size == (512, 512)
    assert not [event for event in drawing.watch_blocking(blocker.id) if event.kind == "preview"]


def test_an_inline_worker_without_its_device_fails_its_jobs(
    make_service: Callable[..., Service], drawing: Service, tmp_path: Path
) -> None:
    service = make_service(home=tmp_path / "other", **MODELLED | {"runtime": "tests.engine.modelled:refuse"})
    failed = end_of(service, service.submit("test/draw", {"prompt": "x"}).id)
    assert failed.error == {"code": "no_device", "message": "There is no such device."}


def test_a_job_that_is_older_than_the_catalog_fails_clearly(
    make_service: Callable[..., Service], drawing: Service, tmp_path: Path
) -> None:
    """The next version of the program meets jobs of the one before."""
    home = tmp_path / "other"
    before = make_service(home=home, **MODELLED)
    blocker = before.submit("test/draw", {"prompt": "x", "num_inference_steps": 150})
    old = before.submit("test/draw", {"prompt": "x"})
    before.stop(0.0)
    after = make_service(home=home)
    assert end_of(after, old.id).error["code"] == "unknown_capability"
    assert end_of(after, blocker.id).status is not JobStatus.RUNNING


def test_the_runtime_says_what_an_error_means(drawing: Service) -> None:
    failed: Job = end_of(drawing, drawing.submit("test/draw", {"prompt": "too large"}).id)
    assert failed.error["code"] == "out_of_memory" and failed.error["message"].startswith("Make the picture smaller. ")
    began = time.monotonic()
    assert end_of(drawing, drawing.submit("test/draw", {"prompt": "x"}).id).status is JobStatus.SUCCEEDED
    assert time.monotonic() - began < 5
