"""What a run tells of its stages: watchers read it as it happens, and it stays, however the job ends."""

import threading
from collections.abc import Callable

import pytest

from app.core.capability import Capability, Context, Request, Result
from app.core.fields import Prompt
from app.core.jobs import JobStatus
from app.core.service import Service
from app.errors import InvalidRequest
from tests.engine.conftest import end_of, until

GO = threading.Event()


class ThinkRequest(Request):
    """How the thinking ends."""

    prompt: Prompt = "well"


def think(request: ThinkRequest, context: Context) -> Result:
    """Two stages; between them the run waits."""
    context.tell_stage("first", "a thought", attempt=1)
    while not GO.wait(0.01):
        context.progress(1, 2)
    if request.prompt == "badly":
        raise InvalidRequest("It cannot be thought to its end.")
    context.tell_stage("second", "another", skipped=True)
    return Result(data={"stages": list(context.stages)})


CATALOG = (Capability("test/think", "Think", "Tells its stages.", ThinkRequest, think),)
FIRST = {"stage": "first", "text": "a thought", "attempt": 1}
SECOND = {"stage": "second", "text": "another", "skipped": True}


@pytest.fixture
def thinking(make_service: Callable[..., Service]) -> Service:
    GO.clear()
    return make_service(catalog="tests.engine.test_stages:CATALOG")


def test_watchers_read_them_as_they_happen_late_ones_too(thinking: Service) -> None:
    job = thinking.submit("test/think", {})
    early = []
    for event in thinking.watch_blocking(job.id, seconds=30):
        if event.kind == "stages":
            early.append(event.data["stages"])
            if not GO.is_set():
                late = (one for one in thinking.watch_blocking(job.id, seconds=30) if one.kind == "stages")
                assert next(late).data["stages"] == [FIRST]
                GO.set()
    assert early[0] == [FIRST] and early[-1] == [FIRST, SECOND]
    assert thinking.get(job.id).result["data"]["stages"] == [FIRST, SECOND]


def test_a_cancelled_job_keeps_them_and_a_retry_begins_anew(thinking: Service) -> None:
    job = thinking.submit("test/think", {})
    until(lambda: thinking.stages_of(job.id))
    thinking.cancel(job.id)
    ended = end_of(thinking, job.id)
    assert ended.status is JobStatus.CANCELLED
    assert ended.result == {"images": [], "data": {"stages": [FIRST]}, "notes": [], "model": None}
    assert thinking.retry(job.id).result is None
    GO.set()
    assert end_of(thinking, job.id).result["data"]["stages"] == [FIRST, SECOND]


def test_a_failed_job_keeps_them_beside_its_error(thinking: Service) -> None:
    GO.set()
    ended = end_of(thinking, thinking.submit("test/think", {"prompt": "badly"}).id)
    assert ended.status is JobStatus.FAILED and ended.error["code"] == "invalid_request"
    assert ended.result["data"]["stages"] == [FIRST]
