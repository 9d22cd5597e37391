"""Real worker processes: what happens when they die, hang, are silent, or lose their front."""

import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.core.jobs import JobStatus
from app.core.service import Service
from tests.engine.conftest import CATALOG, end_of, until
from tests.engine.ledger import processes_of


def worker_pid(service: Service) -> int:
    until(lambda: service.readiness()["ready"])
    return service.readiness()["workers"][0]["pid"]


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_job_runs_in_another_process(process_service: Service) -> None:
    done = end_of(process_service, process_service.submit("test/paint", {"seed": 5}).id)
    assert (done.status, done.device) == (JobStatus.SUCCEEDED, "cpu")
    assert worker_pid(process_service) != os.getpid()


def test_collections_in_a_worker_process_pass_over_what_was_imported(
    make_service: Callable[..., Service], tmp_path: Path
) -> None:
    modelled = {"catalog": "tests.engine.modelled:CATALOG", "runtime": "tests.engine.modelled:open_runtime"}

    def frozen(service: Service) -> int:
        until(lambda: service.readiness()["ready"])
        return service.readiness()["workers"][0]["memory"]["frozen"]

    before = gc.get_freeze_count()
    assert frozen(make_service(devices=("cpu",), **modelled)) > 10_000
    inside = frozen(make_service(home=tmp_path / "other", **modelled))
    assert inside == gc.get_freeze_count() == before, "the caller froze"


def test_every_kind_of_failure_leaves_the_worker_at_work(process_service: Service) -> None:
    pid = worker_pid(process_service)
    for way in ("refusal", "bug", "memory", "not_json", "exit"):
        attempts = 2 if way == "memory" else 1
        assert end_of(process_service, process_service.submit("test/fail", {"way": way}).id).attempt == attempts
    assert worker_pid(process_service) == pid


def test_a_killed_worker_costs_an_attempt_and_no_job(process_service: Service) -> None:
    pid = worker_pid(process_service)
    jobs = [process_service.submit("test/paint", {"step_seconds": 0.05, "seed": index}) for index in range(3)]
    until(lambda: process_service.get(jobs[0].id).step)
    os.kill(pid, signal.SIGKILL)
    ends = [end_of(process_service, job.id) for job in jobs]
    assert [job.status for job in ends] == [JobStatus.SUCCEEDED] * 3
    assert sorted(job.attempt for job in ends) == [1, 1, 2]
    reasons = [entry["reason"] for entry in process_service.history(jobs[0].id)]
    assert "the worker ended by SIGKILL" in reasons
    assert worker_pid(process_service) != pid


def test_a_job_that_kills_its_worker_fails_after_three_attempts(process_service: Service) -> None:
    job = process_service.submit("test/kill", {})
    other = process_service.submit("test/paint", {})
    lost = end_of(process_service, job.id)
    assert (lost.status, lost.attempt, lost.error["code"]) == (JobStatus.FAILED, 3, "worker_lost")
    assert end_of(process_service, other.id).status is JobStatus.SUCCEEDED
    waits = [entry["at"] for entry in process_service.history(job.id) if entry["after"] == "running"]
    assert waits[2] - waits[1] > 0.05


def test_a_job_survives_two_lost_workers(process_service: Service, tmp_path: Path) -> None:
    counter = tmp_path / "attempts"
    done = end_of(process_service, process_service.submit("test/kill", {"lives": 2, "counter": str(counter)}).id)
    assert (done.status, done.attempt, done.result["data"]) == (JobStatus.SUCCEEDED, 3, {"lives": 2})


@pytest.mark.alone
def test_cancel_at_step_one_of_fifty_ends_within_one_step(process_service: Service) -> None:
    pid = worker_pid(process_service)
    job = process_service.submit("test/paint", {"num_inference_steps": 50, "step_seconds": 0.1})
    for event in process_service.watch_blocking(job.id, seconds=10):
        if event.kind == "step":
            break
    asked = time.monotonic()
    process_service.cancel(job.id)
    ended = end_of(process_service, job.id)
    assert ended.status is JobStatus.CANCELLED
    assert ended.step <= 2
    assert time.monotonic() - asked < 2.5, "it ran on"
    assert worker_pid(process_service) == pid


def test_a_worker_that_does_not_heed_a_cancel_is_replaced(process_service: Service) -> None:
    pid = worker_pid(process_service)
    job = process_service.submit("test/stubborn", {"seconds": 30})
    waits = process_service.submit("test/paint", {})
    until(lambda: process_service.get(job.id).step == 1)  # a running job may not have come to its capability yet
    process_service.cancel(job.id)
    ended = end_of(process_service, job.id)
    assert (ended.status, ended.attempt) == (JobStatus.CANCELLED, 1)
    assert end_of(process_service, waits.id).status is JobStatus.SUCCEEDED
    assert worker_pid(process_service) != pid
    assert not is_alive(pid)


def test_a_worker_holds_as_many_jobs_as_it_has_seats(make_service: Callable[..., Service]) -> None:
    service = make_service(devices=("cpu",), jobs_at_once=3)
    long = {"num_inference_steps": 400, "step_seconds": 0.05}
    jobs = [service.submit("test/paint", {**long, "seed": index}) for index in range(5)]
    until(lambda: sum(service.get(job.id).step > 0 for job in jobs) == 3)
    (worker,) = service.readiness()["workers"]
    assert (worker["seats"], worker["jobs"]) == (3, sorted(job.id for job in jobs[:3]))
    assert [service.get(job.id).status for job in jobs[3:]] == [JobStatus.QUEUED] * 2
    service.cancel(jobs[1].id)
    until(lambda: service.get(jobs[3].id).step > 0)
    for job in jobs:
        if not service.get(job.id).status.is_terminal:
            service.cancel(job.id)
    assert {end_of(service, job.id).status for job in jobs} == {JobStatus.CANCELLED}


def test_a_job_that_ends_workers_takes_its_neighbours_along_only_once(make_service: Callable[..., Service]) -> None:
    service = make_service(devices=("cpu",), jobs_at_once=4, max_attempts=2)
    until(lambda: service.readiness()["ready"])
    long = {"num_inference_steps": 40, "step_seconds": 0.05}
    neighbours = [service.submit("test/paint", {**long, "seed": index}) for index in range(3)]
    until(lambda: all(service.get(job.id).step for job in neighbours))
    poison = service.submit("test/kill", {})
    assert end_of(service, poison.id, 60).error["code"] == "worker_lost"
    ends = [end_of(service, job.id, 60) for job in neighbours]
    assert [(job.status, job.attempt) for job in ends] == [(JobStatus.SUCCEEDED, 2)] * 3


def test_the_neighbours_of_a_stubborn_job_lose_nothing(make_service: Callable[..., Service]) -> None:
    service = make_service(devices=("cpu",), jobs_at_once=2, max_attempts=1)
    stubborn = service.submit("test/stubborn", {"seconds": 60})
    neighbour = service.submit("test/paint", {"num_inference_steps": 40, "step_seconds": 0.05})
    until(lambda: service.get(stubborn.id).step and service.get(neighbour.id).step)
    service.cancel(stubborn.id)
    assert end_of(service, stubborn.id, 60).status is JobStatus.CANCELLED
    assert end_of(service, neighbour.id, 60).status is JobStatus.SUCCEEDED
    reasons = [entry["reason"] for entry in service.history(neighbour.id)]
    assert "its worker was ended for another job's sake" in reasons


def test_a_silent_worker_is_ended_and_its_job_runs_again(make_service: Callable[..., Service]) -> None:
    service = make_service(devices=("cpu",), worker_lost_seconds=2.5)
    pid = worker_pid(service)
    job = service.submit("test/paint", {"step_seconds": 0.05})
    until(lambda: service.get(job.id).status is JobStatus.RUNNING)
    os.kill(pid, signal.SIGSTOP)
    done = end_of(service, job.id)
    assert (done.status, done.attempt) == (JobStatus.SUCCEEDED, 2)
    assert "the worker was silent" in [entry["reason"] for entry in service.history(job.id)]
    assert not is_alive(pid)


def test_a_stop_lets_the_running_job_end_and_keeps_the_rest(make_service: Callable[..., Service]) -> None:
    service = make_service(devices=("cpu",))
    pid = worker_pid(service)
    running = service.submit("test/paint", {"step_seconds": 0.1})
    waiting = service.submit("test/paint", {})
    until(lambda: service.get(running.id).step)
    service.stop(10.0)
    assert not is_alive(pid)
    second = make_service(devices=("cpu",))
    assert second.get(running.id).status is JobStatus.SUCCEEDED
    assert end_of(second, waiting.id).attempt == 1


def test_a_stop_that_cannot_wait_gives_the_job_back(make_service: Callable[..., Service]) -> None:
    service = make_service(devices=("cpu",), max_attempts=1)
    job = service.submit("test/paint", {"step_seconds": 0.2, "num_inference_steps": 10})
    until(lambda: service.get(job.id).step)
    service.stop(0.0)
    second = make_service(devices=("cpu",), max_attempts=1)
    assert end_of(second, job.id).status is JobStatus.SUCCEEDED


FRONT = """
import sys, time
from pathlib import Path
from app.core.engine_options import EngineOptions
from app.core.service import Service
service = Service(EngineOptions(home=Path(sys.argv[1]), catalog=sys.argv[2], devices=("cpu",), min_free_bytes=0))
service.start()
job = service.submit("test/stubborn", {"seconds": 60})
while service.get(job.id).status != "running":
    time.sleep(0.01)
print(service.readiness()["workers"][0]["pid"], flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_its_front(tmp_path: Path, ending: signal.Signals) -> None:
    """Not even one that is busy and looks at no message."""
    front = subprocess.Popen(
        [sys.executable, "-c", FRONT, str(tmp_path), CATALOG],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "EIS_HOME": str(tmp_path)},
    )
    with front:
        pid = int(front.stdout.readline())
        assert is_alive(pid)
        assert pid in processes_of(tmp_path), "the audit's eye for orphans is blind"
        front.send_signal(ending)
        front.wait()
    until(lambda: not is_alive(pid), 5.0)


def test_a_worker_that_cannot_be_opened_is_said_to_be_broken(make_service: Callable[..., Service]) -> None:
    refusing = {"catalog": "tests.engine.modelled:CATALOG", "runtime": "tests.engine.modelled:refuse"}
    service = make_service(devices=("cpu",), **refusing)
    until(lambda: service.readiness()["workers"][0]["state"] == "broken")
    readiness = service.readiness()
    assert not readiness["ready"]
    assert readiness["workers"][0]["trouble"] == "There is no such device."
