"""Long jobs that give way: who may join their worker, and that the others run whole."""

import threading
from dataclasses import replace

import pytest

from app.core.batch_processing import JobQueue, Waiting
from app.core.capability import Capability, Request, Result
from app.core.jobs import JobStatus
from app.core.multi_gpu import OpenWorker, choose
from tests.engine.capabilities import CATALOG as PAINTING
from tests.engine.conftest import end_of, until

TRAINING = Waiting("training", 5, 0, "large", gives_way=True)


def holding(*held):
    return [OpenWorker("cuda:0", frozenset({"large"}), held, seats=8)]


@pytest.mark.parametrize(
    ("job", "held", "joins"),
    [
        (Waiting("urgent", 6, 1, "another"), (TRAINING,), True),
        (Waiting("urgent", 6, 1, None), (TRAINING,), True),
        (Waiting("equal", 5, 1, "large"), (TRAINING,), False),
        (Waiting("lesser", 4, 1, "large"), (TRAINING,), False),
        (Waiting("second", 10, 1, "large", gives_way=True), (TRAINING,), False),
        (Waiting("again", 10, 1, "large", attempt=1), (TRAINING,), False),
        (Waiting("urgent", 6, 1, "large"), (replace(TRAINING, attempt=1),), True),
        (Waiting("urgent", 6, 1, "another"), (TRAINING, Waiting("other", 6, 2, "third")), False),
        (Waiting("urgent", 6, 1, "third"), (TRAINING, Waiting("other", 6, 2, "third")), True),
        (TRAINING, (Waiting("picture", 1, 1, "large"),), False),
        (TRAINING, (), True),
    ],
)
def test_who_joins_a_worker_that_trains(job, held, joins):
    choice = choose([job], holding(*held))
    assert (choice is not None and choice.job is job) is joins


def test_the_queue_knows_who_gives_way_by_the_capability():
    queue = JobQueue(giving_way={"train"})
    for name in ("train", "draw"):
        queue.add(Waiting(name, 5, 0 if name == "train" else 1, capability=name))
    assert [entry.gives_way for entry in queue.first(2)] == [True, False]


class LongRequest(Request):
    """Nothing to say."""

    seed: int = 0


GATE = threading.Event()


def long(request, context):
    """A hundred steps or more, until the test has seen enough, which give way to others."""
    step = 0
    while not GATE.is_set() or step < 3:
        context.give_way()
        step += 1
        context.progress(step, 10_000_000)
        GATE.wait(0.005)
    return Result(data={"steps": step})


CATALOG = (*PAINTING, Capability("test/long", "Long", "Work for long.", LongRequest, long, gives_way=True))


def test_an_urgent_job_runs_whole_and_the_long_one_goes_on(make_service):
    GATE.clear()
    service = make_service(catalog="tests.engine.test_giving_way:CATALOG")
    job = service.submit("test/long", {})
    until(lambda: service.get(job.id).step > 3)
    equal = service.submit("test/paint", {"seed": 1})
    urgent = service.submit("test/paint", {"seed": 2, "step_seconds": 0.05}, priority=6)
    steps = []
    for event in service.watch_blocking(urgent.id, seconds=20):
        if event.kind == "step":
            steps.append(service.get(job.id).step)
    assert len(steps) > 2 and steps[-1] - steps[0] <= 1, steps
    assert service.get(urgent.id).status is JobStatus.SUCCEEDED
    assert service.get(equal.id).status is JobStatus.QUEUED
    until(lambda: service.get(job.id).step > steps[-1] + 3)
    GATE.set()
    assert end_of(service, job.id).status is JobStatus.SUCCEEDED
    assert end_of(service, equal.id).status is JobStatus.SUCCEEDED


def test_a_cancel_reaches_who_gives_way(make_service):
    GATE.clear()
    service = make_service(catalog="tests.engine.test_giving_way:CATALOG")
    job = service.submit("test/long", {})
    until(lambda: service.get(job.id).step > 3)
    urgent = service.submit("test/paint", {"seed": 2, "num_inference_steps": 40, "step_seconds": 0.05}, priority=6)
    until(lambda: service.get(urgent.id).step)
    service.cancel(job.id)
    assert end_of(service, job.id).status is JobStatus.CANCELLED
    assert service.get(urgent.id).status is JobStatus.RUNNING
    assert end_of(service, urgent.id).status is JobStatus.SUCCEEDED
    GATE.set()
