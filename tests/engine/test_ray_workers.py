"""Workers on the nodes of a real Ray cluster: three nodes of this machine, a token, pictures in an S3 bucket."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app import __version__
from app.core.jobs import Job, JobStatus
from app.core.service import Service
from tests.engine.capabilities import squares
from tests.engine.cluster import Nodes, cluster
from tests.engine.conftest import CATALOG, end_of, options, until
from tests.engine.test_worker_process import is_alive
from tests.shared_stores import environment, make_bucket, s3_server

PATIENCE = 90.0
LONG = {"num_inference_steps": 30, "step_seconds": 0.05}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("nodes")
    with s3_server() as values, environment(values), cluster(folder, "a", "b", "c") as started:
        make_bucket("pictures")
        yield started


def service_on(nodes: Nodes, home: Path, **changes: object) -> Service:
    values = {
        "devices": ("auto",),
        "executor": "ray",
        "ray_address": nodes.address,
        "pictures_url": f"s3://pictures/{uuid.uuid4().hex}",
    }
    service = Service(options(home, **{**values, **changes}))
    service.start()
    return service


@pytest.fixture(scope="module")
def service(nodes: Nodes) -> Iterator[Service]:
    """One that several tests use, the tests that ask for `start` after them."""
    service = service_on(nodes, nodes.folder / "server")
    wait_until_up(service, "a", "b", "c")
    yield service
    service.stop(0.0)


@pytest.fixture
def start(service: Service, nodes: Nodes, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Services of one test. A process is a driver of one cluster at a time, so the shared one stops first."""
    service.stop(0.0)
    started: list[Service] = []

    def make(**changes: object) -> Service:
        started.append(service_on(nodes, tmp_path / "server", **changes))
        return started[-1]

    yield make
    for one in started:
        one.stop(0.0)


def workers(service: Service) -> dict[str, dict]:
    return {worker["device"]: worker for worker in service.readiness()["workers"]}


def wait_until_up(service: Service, *names: str) -> None:
    wanted = {f"ray:{name}/cpu" for name in names}
    until(lambda: wanted <= {n for n, w in workers(service).items() if w["state"] in {"idle", "busy"}}, PATIENCE)


def submit(service: Service, count: int, **wish: object) -> list[Job]:
    return [service.submit("test/paint", {"seed": seed, **wish}) for seed in range(count)]


def check(service: Service, jobs: list[Job]) -> list[Job]:
    """Every job succeeded, once, with its picture, and nothing else was made."""
    ends = [end_of(service, job.id, PATIENCE) for job in jobs]
    for seed, job in enumerate(ends):
        assert job.status is JobStatus.SUCCEEDED, job.error
        assert job.request["seed"] == seed
        (image,) = job.result["images"]
        assert service.storage.open(image["id"]).tobytes() == squares(seed).tobytes()
        assert [entry["after"] for entry in service.history(job.id)].count("succeeded") == 1
        assert service.storage.shared is not None and service.storage.shared.holds(image["id"])
    made = [entry for entry in service.search_images(limit=1000)[0] if entry.job_id in {job.id for job in jobs}]
    assert len(made) == len(jobs)
    return ends


def reasons(service: Service, job: Job) -> set[str | None]:
    return {entry["reason"] for entry in service.history(job.id)}


def test_jobs_run_on_all_nodes_and_their_pictures_arrive(service: Service, nodes: Nodes) -> None:
    assert set(workers(service)) == {"ray:a/cpu", "ray:b/cpu", "ray:c/cpu"}, "the head offers nothing"
    ends = check(service, submit(service, 9, step_seconds=0.05))
    assert {job.device for job in ends} == set(workers(service))
    assert all((nodes.home(name) / "images").is_dir() for name in "abc"), "each node keeps copies under its own home"
    until(lambda: all(device["total_bytes"] for device in service.device_status()["devices"]))
    told = {device["device"]: device for device in service.device_status()["devices"]}
    assert {(device["kind"], device["tier"], device["runs_on"]) for device in told.values()} == {("cpu", "CPU", "cpu")}
    assert told["ray:a/cpu"]["last_operations"]


def test_a_picture_of_one_node_is_read_on_others(service: Service) -> None:
    made = end_of(service, submit(service, 1)[0].id, PATIENCE).result["images"][0]["id"]
    copies = [service.submit("test/copy", {"image": made}) for _ in range(6)]
    for again in [end_of(service, job.id, PATIENCE) for job in copies]:
        assert service.storage.open(again.result["images"][0]["id"]).tobytes() == squares(0).tobytes()


def test_a_killed_actor_costs_an_attempt_and_no_job(service: Service) -> None:
    wait_until_up(service, "a", "b", "c")
    jobs = submit(service, 3, **LONG)
    until(lambda: all(service.get(job.id).step for job in jobs), PATIENCE)
    victim = service.get(jobs[1].id)
    pid = workers(service)[victim.device]["pid"]
    os.kill(pid, signal.SIGKILL)
    ends = check(service, jobs)
    assert [job.attempt for job in ends] == [1, 2, 1]
    assert "the worker's process ended" in reasons(service, victim)
    wait_until_up(service, "a", "b", "c")
    assert workers(service)[victim.device]["pid"] != pid


def test_a_job_that_kills_its_worker_fails_after_its_attempts(service: Service) -> None:
    lost = end_of(service, service.submit("test/kill", {}).id, PATIENCE)
    assert (lost.status, lost.attempt, lost.error["code"]) == (JobStatus.FAILED, 3, "worker_lost")


def test_cancel_ends_a_job_within_a_step_and_a_stubborn_one_with_its_actor(service: Service) -> None:
    wait_until_up(service, "a", "b", "c")
    before = {name: worker["pid"] for name, worker in workers(service).items()}
    willing = service.submit("test/paint", {"num_inference_steps": 1000, "step_seconds": 0.05})
    stubborn = service.submit("test/stubborn", {"seconds": 60})
    until(lambda: service.get(willing.id).step and service.get(stubborn.id).step, PATIENCE)
    asked = time.monotonic()
    service.cancel(willing.id)
    service.cancel(stubborn.id)
    ends = [end_of(service, job.id, PATIENCE) for job in (willing, stubborn)]
    assert [job.status for job in ends] == [JobStatus.CANCELLED] * 2
    assert time.monotonic() - asked < 30.0
    until(lambda: not is_alive(before[ends[1].device]), PATIENCE)
    assert is_alive(before[ends[0].device]), "the willing one's worker lives on"


# Services of one test


def test_cancel_right_after_the_claim_is_not_overtaken_by_it(start: Callable[..., Service]) -> None:
    service = start(cancel_grace_seconds=60.0)
    wait_until_up(service, "a", "b", "c")
    for job in submit(service, 12, num_inference_steps=1000, step_seconds=0.05):
        service.cancel(job.id)
        assert end_of(service, job.id, 30.0).status is JobStatus.CANCELLED


@pytest.mark.parametrize("suddenly", [False, True])
def test_the_jobs_of_a_node_that_leaves_run_again_elsewhere(
    start: Callable[..., Service], nodes: Nodes, suddenly: bool
) -> None:
    service = start()
    wait_until_up(service, "a", "b", "c")
    jobs = submit(service, 5, **LONG)
    until(lambda: sum(service.get(job.id).step > 0 for job in jobs) == 3, PATIENCE)
    (victim,) = [job for job in jobs if service.get(job.id).device == "ray:b/cpu"]
    nodes.remove("b", suddenly=suddenly)
    ends = check(service, jobs)
    assert {job.id: job.attempt for job in ends} == {job.id: 2 if job.id == victim.id else 1 for job in jobs}
    assert service.get(victim.id).device != "ray:b/cpu"
    assert reasons(service, victim) & {"the worker's node left the cluster", "the worker's node cannot be reached"}
    until(lambda: "ray:b/cpu" not in workers(service), PATIENCE)
    assert "ray:b/cpu" not in {device["device"] for device in service.device_status()["devices"]}
    # One that joins is given jobs, while those that are disabled are not.
    service.devices.configure({"devices": {"ray:a/cpu": {"enabled": False}}})
    nodes.add("b")
    wait_until_up(service, "b")
    assert {job.device for job in check(service, submit(service, 6, step_seconds=0.05))} == {"ray:b/cpu", "ray:c/cpu"}


def test_a_silent_actor_is_ended_and_its_job_runs_again(start: Callable[..., Service]) -> None:
    service = start(worker_lost_seconds=5.0)
    (job,) = submit(service, 1, **LONG)
    until(lambda: service.get(job.id).step, PATIENCE)
    pid = workers(service)[service.get(job.id).device]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        (done,) = check(service, [job])
        assert done.attempt == 2
        assert "the worker was silent" in reasons(service, job)
        until(lambda: not is_alive(pid), PATIENCE)
    finally:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


def test_a_service_that_stops_takes_its_actors_along(start: Callable[..., Service]) -> None:
    service = start()
    wait_until_up(service, "a", "b", "c")
    pids = [worker["pid"] for worker in workers(service).values()]
    (job,) = submit(service, 1, **LONG)
    until(lambda: service.get(job.id).step, PATIENCE)
    service.stop(60.0)
    until(lambda: not any(is_alive(pid) for pid in pids), PATIENCE)
    second = start(pictures_url=service.options.pictures_url)
    assert (second.get(job.id).status, second.get(job.id).attempt) == (JobStatus.SUCCEEDED, 1)


def test_other_code_on_a_node_is_refused_with_both_versions(
    start: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.core.ray_worker.__version__", "9.9.9")
    service = start()
    until(lambda: all(worker["state"] == "broken" for worker in workers(service).values()), PATIENCE)
    trouble = workers(service)["ray:a/cpu"]["trouble"]
    assert f"its node has version {__version__}, the server 9.9.9" in trouble
    assert not service.readiness()["ready"]


OTHER_SERVER = """
import sys, time, ray
ray.init(address=sys.argv[1], namespace=sys.argv[2], log_to_driver=False)
class Held:
    def here(self):
        return True
held = [ray.remote(Held).options(name=name, num_cpus=0).remote() for name in sys.argv[3:]]
ray.get([actor.here.remote() for actor in held])
print("held", flush=True)
time.sleep(600)
"""


def test_a_device_of_another_server_is_waited_for_and_taken_over(
    start: Callable[..., Service], nodes: Nodes, tmp_path: Path
) -> None:
    from app.core.ray_cluster import _namespace

    namespace = _namespace(options(tmp_path / "server", devices=("auto",)))
    command = [sys.executable, "-c", OTHER_SERVER, nodes.address, namespace, "ray:a/cpu", "ray:b/cpu", "ray:c/cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "held\n"
            service = start()
            until(lambda: all(worker["state"] == "elsewhere" for worker in workers(service).values()), PATIENCE)
            assert service.readiness()["ready"], "the other server of the store serves the jobs"
            (job,) = submit(service, 1)
            time.sleep(1.0)
            assert service.get(job.id).status is JobStatus.QUEUED
        finally:
            other.kill()
    check(service, [job])
    wait_until_up(service, "a", "b", "c")


FRONT = """
import sys, time
from pathlib import Path
from app.core.engine_options import EngineOptions
from app.core.service import Service
service = Service(EngineOptions(
    home=Path(sys.argv[1]), catalog=sys.argv[2], executor="ray", ray_address=sys.argv[3], min_free_bytes=0,
    pictures_url=sys.argv[4] or None,
))
service.start()
job = service.submit("test/stubborn", {"seconds": 60})
while not service.get(job.id).step:
    time.sleep(0.01)
print(*(worker["pid"] for worker in service.readiness()["workers"] if worker["pid"]), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("where", ["cluster", "local"])
def test_no_actor_outlives_its_server(nodes: Nodes, tmp_path: Path, where: str) -> None:
    """Not even one that is busy; and a cluster of the service's own, with a token of its own, ends as well."""
    where_to = (nodes.address, "s3://pictures/front") if where == "cluster" else ("local", "")
    given = dict(os.environ)
    if where == "local":
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            given.pop(name)
    command = [sys.executable, "-c", FRONT, str(tmp_path), CATALOG, *where_to]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=given) as front:
        try:
            pids = [int(pid) for pid in next(line for line in front.stdout if line[0].isdigit()).split()]
            assert pids and all(is_alive(pid) for pid in pids)
            if where == "local":
                token = tmp_path / "ray.token"
                assert len(token.read_text()) == 64 and token.stat().st_mode & 0o777 == 0o600
        finally:
            front.kill()
    until(lambda: not any(is_alive(pid) for pid in pids), PATIENCE)
