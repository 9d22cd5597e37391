"""What may follow a form's job: the ticks, what they ask for, and how the stage goes on from link to link."""

from typing import Any

import gradio as gr
import pytest

from app.core.catalog import CATALOG
from app.core.jobs import Job, JobStatus
from app.ui import stage
from app.ui.following import FOLLOWING, follow_ups, link_title, then_control
from app.ui.session import Session
from tests.engine.conftest import new_job

BY_NAME = {capability.name: capability for capability in CATALOG}


def labels(name: str, catalog: Any = CATALOG) -> list[str] | None:
    with gr.Blocks():
        control = then_control(BY_NAME[name], catalog)
    return None if control is None else [label for label, _ in control.choices]


def test_who_gives_pictures_offers_what_can_follow() -> None:
    assert labels("text-to-image") == list(FOLLOWING)
    assert labels("upscale") == ["Restore faces", "Tags"]
    assert labels("tag-image") is labels("web-search") is labels("lora-training") is labels("detect-faces") is None
    assert labels("text-to-image", [BY_NAME["text-to-image"], BY_NAME["upscale"]]) == ["Upscale ×2"]
    assert labels("text-to-image", [BY_NAME["text-to-image"]]) is None


def test_ticks_become_follow_ups_in_a_sensible_order() -> None:
    wanted = [{"capability": "restore-face"}, {"capability": "upscale", "scale": 2}, {"capability": "tag-image"}]
    assert follow_ups(["Tags", "Upscale ×2", "Restore faces"]) == wanted
    assert follow_ups(None) == follow_ups([]) == []
    for wish in wanted:
        fields = {name: value for name, value in wish.items() if name != "capability"}
        BY_NAME[wish["capability"]].request.model_validate({**fields, "image": "0" * 26})


def test_the_stage_names_the_link_that_runs() -> None:
    job = new_job(capability="upscale", follows="x" * 26)
    progress = stage.Progress(job.id, "running", step=2, steps=4, link=link_title(job, CATALOG))
    assert "Upscale · Step 2 of 4" in stage.working(progress)
    assert link_title(new_job(), CATALOG) == ""
    assert link_title(new_job(capability="gone", follows="x"), CATALOG) == "gone"


def test_a_link_that_failed_says_that_nothing_follows() -> None:
    error = {"code": "internal", "message": "It broke."}
    broken: Job = new_job(status=JobStatus.FAILED, error=error, then=[{"capability": "tag-image"}])
    assert "It broke. The job failed, so its follow-ups do not begin" in stage.ended_badly(broken)


@pytest.mark.parametrize("waiting", [["a"], ["a", "b"]])
def test_what_follows_is_shown_before_what_waits_behind(waiting: list[str]) -> None:
    session = Session()
    for job_id in waiting:
        session.expect("paint", job_id)
    session.expect_next("paint", ["c", "d"])
    session.shown("paint", "a")
    assert session.unshown["paint"] == ["c", "d", *waiting[1:]]
