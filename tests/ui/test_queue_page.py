"""What a line of the Jobs tab says of a job's starts, and that the API says the same."""

from pathlib import Path

import pytest

from app.api.schemas import JobAnswer, job_view
from app.core.job_store import JobStore
from app.core.jobs import Job
from app.ui.queue_page import job_row
from tests.engine.conftest import new_job

NO_PAUSE = {"pause": lambda attempt: 0.0}
STEPS = {"step": 0, "steps": 0}


@pytest.fixture
def store(tmp_path: Path):
    store = JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    yield store
    store.close()


def told(job: Job) -> tuple[str, int]:
    """The part of the line about starts, and the figure of the API."""
    view = job_view(job, None)
    JobAnswer.model_validate(view)
    hint = job_row(job, "Paint", None, "").partition('class="eis-hint">')[2].partition("</div>")[0]
    return next((part for part in hint.split(" · ") if part.startswith("started")), ""), view["starts_left"]


def test_an_orderly_stop_takes_no_start(store: JobStore) -> None:
    job = store.insert(new_job())
    assert told(job) == ("", 3)
    assert told(store.claim(job.id, device="cpu")) == ("", 2), "the first start is nothing to speak of"
    for attempt in (1, 2, 3):
        store.lose(job.id, attempt, **NO_PAUSE, reason="the service was stopped", counts=False)
        job = store.claim(job.id, device="cpu")
    assert told(job) == ("started 4 times, at most 2 more", 2)


def test_a_loss_takes_one_and_the_last_is_told(store: JobStore) -> None:
    job = store.insert(new_job())
    for attempt in (1, 2):
        store.claim(job.id, device="cpu")
        waits = store.lose(job.id, attempt, **NO_PAUSE, reason="killed")
    assert told(waits) == ("started 2 times, at most 1 more", 1)
    assert told(store.claim(job.id, device="cpu")) == ("started 3 times, not again by itself", 0)
    assert told(store.lose(job.id, 3, **NO_PAUSE, reason="killed")) == ("started 3 times", 0)
    assert told(store.retry(job.id, attempts=3)) == ("started 3 times, at most 3 more", 3), (
        "a retry by hand gives new ones"
    )


def test_an_end_leaves_none(store: JobStore) -> None:
    job = store.insert(new_job())
    store.claim(job.id, device="cpu")
    assert told(store.succeed(job.id, 1, {"images": []}, **STEPS)) == ("", 0)
