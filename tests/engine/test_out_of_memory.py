"""Memory that runs out may pass and is met again; where nothing was left to free, twice and not a third time."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.core.batch_processing import Waiting
from app.core.job_store import JobStore
from app.core.jobs import Job, JobStatus
from app.core.service import Service
from app.core.worker_handle import InlineWorker
from app.errors import OutOfMemory
from tests.engine.conftest import end_of, new_job, options

ERROR = {"code": "out_of_memory", "message": "Make the picture smaller."}
ALONE = "out_of_memory, with cpu to itself"
STEPS = {"step": 0, "steps": 4}


@pytest.fixture
def attempts(store: JobStore) -> Iterator[Callable[..., Job]]:
    """Runs a job's next attempt into the end of memory; the reason is `ALONE` or None."""

    def fail(job: Job, reason: str | None) -> Job:
        claimed = store.claim(job.id, device="cpu")
        return store.fail(job.id, claimed.attempt, ERROR, pause=lambda attempt: 0.0, at_most_twice=reason, **STEPS)

    yield fail


def reasons(service: Service, job: Job) -> list[str]:
    """Why each of its attempts ended."""
    return [entry["reason"] for entry in service.history(job.id) if entry["before"] == "running"]


def test_a_job_that_had_everything_runs_twice_and_says_why_no_more(service: Service) -> None:
    failed = end_of(service, service.submit("test/fail", {"way": "memory"}).id)
    assert (failed.status, failed.attempt, failed.max_attempts) == (JobStatus.FAILED, 2, 3)
    assert failed.error["code"] == OutOfMemory.code
    assert "twice" in failed.error["message"] and "retry" in failed.error["message"]
    assert reasons(service, failed) == ["out_of_memory, with inline to itself"] * 2
    service.retry(failed.id)
    assert end_of(service, failed.id).attempt == 4, "a retry by hand begins anew"


def test_beside_another_model_it_runs_as_often_as_the_setting_says(make_service: Callable[..., Service]) -> None:
    service = make_service(catalog="tests.api.serving:CATALOG", runtime="tests.engine.modelled:open_runtime")
    drawn = end_of(service, service.submit("test/draw", {"prompt": "x", "num_inference_steps": 1}).id)
    assert drawn.status is JobStatus.SUCCEEDED and drawn.model is not None
    failed = end_of(service, service.submit("test/fail", {"way": "memory"}).id)
    assert (failed.status, failed.attempt) == (JobStatus.FAILED, 3)
    assert reasons(service, failed) == ["out_of_memory"] * 3
    own = end_of(service, service.submit("test/draw", {"prompt": "too large", "num_inference_steps": 1}).id)
    assert (own.status, own.attempt) == (JobStatus.FAILED, 2), "its own model is no other"


def test_only_two_in_a_row_end_it(store: JobStore, attempts: Callable[..., Job]) -> None:
    once = store.insert(new_job(max_attempts=9))
    for reason in (ALONE, None, ALONE):
        assert attempts(once, reason).status is JobStatus.QUEUED
    store.claim(once.id, device="cpu")
    assert store.lose(once.id, 4, lambda attempt: 0.0, reason="killed").status is JobStatus.QUEUED
    assert attempts(once, ALONE).status is JobStatus.QUEUED
    assert attempts(once, "out_of_memory, with cuda:0 to itself").status is JobStatus.QUEUED, "another device"
    assert attempts(once, ALONE).status is JobStatus.QUEUED
    ended = attempts(once, ALONE)
    assert (ended.status, ended.attempt) == (JobStatus.FAILED, 8)


def test_a_cancel_that_comes_meanwhile_wins(store: JobStore, attempts: Callable[..., Job]) -> None:
    job = store.insert(new_job())
    attempts(job, ALONE)
    claimed = store.claim(job.id, device="cpu")
    store.cancel(job.id)
    ended = store.fail(job.id, claimed.attempt, ERROR, pause=lambda attempt: 0.0, at_most_twice=ALONE, **STEPS)
    assert ended.status is JobStatus.CANCELLED
    assert store.fail(job.id, 1, ERROR, pause=lambda attempt: 0.0, at_most_twice=ALONE, **STEPS) is None, "an old token"


def test_a_worker_knows_who_had_it_to_itself(tmp_path: Path) -> None:
    worker = InlineWorker("inline", options(tmp_path), lambda *_: None, lambda *_: None)
    first, second, third = (Waiting(name, priority=5, turn=0) for name in "abc")
    worker.hold(first)
    assert worker.let_go("a")
    worker.hold(first)
    worker.hold(second)
    assert not worker.let_go("b") and not worker.let_go("a"), "one that shared it for a while did not have it alone"
    worker.hold(third)
    assert worker.let_go("c")
    assert not worker.let_go("c"), "it is not held any more"
