"""The proof of the queue's promise: kill -9 in the middle of work, again and again, and nothing is lost or done twice.

The server is the real one, driven over REST by clients that only know what they were acknowledged. What holds at the
end is read from the home's files and the store by `ledger.audit`, not asked of the service.
"""

import math
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from app.core.engine_options import EngineOptions
from app.core.service import Service
from app.models.library import ModelLibrary
from tests.engine.conftest import CATALOG, until
from tests.engine.front import age_unfinished_files
from tests.engine.ledger import audit, files_of, processes_of, tell
from tests.engine.server import Load, Server

CYCLES = int(os.environ.get("EIS_PROVE_CYCLES", "3"))
SERVER_KILLS, WORKER_KILLS, KILLS_OF_BOTH = (math.ceil(whole * CYCLES / 30) for whole in (75, 75, 50))
"""Two hundred in all for each database where the proofs are run whole, a tenth of them in the suite."""
PAINT = {"num_inference_steps": 6, "step_seconds": 0.02}
POCKET = {"prompt": "a red car, blue background", "num_inference_steps": 6}

pytestmark = [pytest.mark.prove, pytest.mark.timeout(7200)]


def finish(server: Server, load: Load, cycles: int, began: float) -> dict[str, Any]:
    """Let everything end, stop the server, and audit what it left."""
    load.stop()
    accepted = set(load.accepted.values())
    server.wait_until(lambda: remaining(server) == 0, "finish what it had accepted")
    age_unfinished_files(server.home)
    assert server.stop() == 0
    assert processes_of(server.home) == [], "a process outlived the server"
    assert len(accepted) == len(load.accepted), "two keys were given one job"
    sweep_up(server)
    return {"cycles": cycles, **audit(server.home, accepted, server.url), "seconds": round(time.monotonic() - began, 1)}


def sweep_up(server: Server) -> None:
    """What killed processes left is swept by whoever serves the home next, once it is old enough."""
    service = Service(
        EngineOptions(
            home=server.home,
            catalog=CATALOG,
            devices=("inline",),
            database_url=server.url,
            min_free_bytes=0,
            orphan_seconds=0.05,
        )
    )
    service.start()
    until(lambda: not list(server.home.glob("images/*/*.part")))
    until(lambda: len(files_of(server.home)) == service.search_images(kind=None, limit=1)[1])
    service.stop(5.0)


def remaining(server: Server) -> int:
    """How many jobs have not ended."""
    return sum(server.request(f"/api/v1/jobs?status={status}&limit=1")["total"] for status in ("queued", "running"))


def kill_server(server: Server) -> None:
    """Kill the server's process; its worker must go with it."""
    server.kill()
    deadline = time.monotonic() + 10
    while left := processes_of(server.home):
        assert time.monotonic() < deadline, f"the server's worker lives on: {left}"
        time.sleep(0.02)


def kill_worker(server: Server) -> int:
    """Kill the worker's process while it is at work."""
    pid = server.wait_until(
        lambda: (worker := server.worker())["state"] == "busy" and worker["pid"], "keep its worker busy"
    )
    time.sleep(random.uniform(0, 0.5))
    os.kill(pid, signal.SIGKILL)
    return pid


def wait_for_another_worker(server: Server, pid: int) -> None:
    server.wait_until(lambda: server.worker()["pid"] not in {None, pid}, "start another worker")


@pytest.fixture
def server(tmp_path: Path, database_url: str) -> Server:
    """A server that runs, over a database of each kind."""
    server = Server(tmp_path, catalog=CATALOG, database_url=database_url)
    server.start()
    return server


def test_killing_the_server_loses_nothing(server: Server) -> None:
    began = time.monotonic()
    load = Load(server, "test/paint", PAINT, clients=3, ahead=20)
    for _ in range(SERVER_KILLS):
        server.wait_until(lambda: server.worker()["state"] == "busy", "get to work")
        time.sleep(random.uniform(0, 0.5))
        kill_server(server)
        server.start()
    figures = finish(server, load, SERVER_KILLS, began)
    assert figures["accepted"] >= SERVER_KILLS
    tell("server killed", figures)


def test_killing_the_worker_loses_nothing(server: Server) -> None:
    began = time.monotonic()
    load = Load(server, "test/paint", PAINT, clients=2, ahead=20)
    for _ in range(WORKER_KILLS):
        wait_for_another_worker(server, kill_worker(server))
    figures = finish(server, load, WORKER_KILLS, began)
    assert figures["run_again"] >= 1
    tell("worker killed", figures)


def test_with_the_default_settings_no_job_is_given_up(tmp_path: Path, database_url: str) -> None:
    """Server and worker are killed in turn; what was struck ends before the next blow, as it would between crashes."""
    began = time.monotonic()
    server = Server(tmp_path, catalog=CATALOG, max_attempts=None, database_url=database_url)
    server.start()
    load = Load(server, "test/paint", PAINT, clients=2, ahead=10)
    for cycle in range(KILLS_OF_BOTH):
        struck = server.wait_until(lambda: running_job(server), "keep its worker busy")
        if cycle % 2:
            wait_for_another_worker(server, kill_worker(server))
        else:
            kill_server(server)
            server.start()
        server.wait_until(lambda job=struck: is_done(server, job), "finish what was struck")
    tell("server and worker killed with the default settings", finish(server, load, KILLS_OF_BOTH, began))


def running_job(server: Server) -> str | None:
    """The job that the worker holds."""
    jobs = server.request("/api/v1/jobs?status=running&limit=1")["jobs"]
    return jobs[0]["id"] if jobs else None


def is_done(server: Server, job: str) -> bool:
    """Whether it has ended well; that it failed is an error of its own."""
    status = server.request(f"/api/v1/jobs/{job}")["status"]
    assert status != "failed", f"{job} was given up"
    return status == "succeeded"


def test_killing_server_and_worker_while_the_embedded_model_draws(tmp_path: Path) -> None:
    if not ModelLibrary(tmp_path / "look").get("pocket").installed:
        pytest.skip("the embedded model's weights are not there: `eis pocket train` makes them")
    began = time.monotonic()
    cycles = max(1, CYCLES // 10)
    server = Server(tmp_path)
    server.start()
    load = Load(server, "text-to-image", POCKET, clients=1, ahead=2)
    for cycle in range(cycles):
        if cycle % 2:
            wait_for_another_worker(server, kill_worker(server))
        else:
            server.wait_until(lambda: server.worker()["state"] == "busy", "get to work")
            time.sleep(random.uniform(0, 0.5))
            kill_server(server)
            server.start()
    figures = finish(server, load, cycles, began)
    tell("server and worker killed with pocket", figures)
