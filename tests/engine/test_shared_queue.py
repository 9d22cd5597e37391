"""The proof of the shared queue: two servers over one PostgreSQL store take thousands of jobs, each claimed once.

Then one of the two is killed with jobs in its hands, and the other brings them to their end without being told.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import func, select

from app.core.job_store import JobStore
from app.core.job_tables import jobs, transitions
from tests.engine.conftest import CATALOG
from tests.engine.ledger import audit, processes_of, tell
from tests.engine.server import Server
from tests.engine.test_kill_cycles import age_unfinished_files, remaining, sweep_up
from tests.postgres import Cluster

JOBS = 4000 if int(os.environ.get("EIS_PROVE_CYCLES", "3")) >= 30 else 400
BATCH = 200
SEATS = 4

pytestmark = [pytest.mark.prove, pytest.mark.timeout(7200)]


@pytest.fixture(scope="module")
def pair(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    """Two servers of one store and one home, each with four seats."""
    home, url = tmp_path_factory.mktemp("home"), cluster.url()
    found = tuple(
        Server(home, catalog=CATALOG, database_url=url, jobs_at_once=str(SEATS), max_attempts=None) for _ in range(2)
    )
    for server in found:
        server.start()
    for server in found:
        server.wait_until(lambda server=server: server.worker()["state"] == "idle", "have its worker ready")
    yield found
    for server in found:
        if server.process.poll() is None:
            assert server.stop() == 0
    assert processes_of(home) == []
    cluster.drop(url)


def submit(server: Server, count: int, **wish: Any) -> list[str]:
    """A batch of so many jobs; answers their ids."""
    asked = {"handler": "test/paint", "request": wish, "values": {"seed": list(range(count))}}
    return [job["id"] for job in server.request("/api/v1/batch/submit-batch", asked)["jobs"]]


def claims(url: str, ids: list[str]) -> tuple[Counter[int], list[int]]:
    """How many of these jobs were claimed how often, and how many were last claimed by each server."""
    store = JobStore(url)
    claimed = (transitions.c.after == "running", transitions.c.job_id.in_(ids))
    by_job = select(func.count()).where(*claimed).group_by(transitions.c.job_id)
    by_server = select(func.count()).select_from(jobs).where(jobs.c.id.in_(ids)).group_by(jobs.c.server)
    with store.reader.connect() as connection:
        times = Counter(connection.execute(by_job).scalars())
        shares = sorted(connection.execute(by_server).scalars())
    store.close()
    return times, shares


def test_each_job_is_claimed_once_by_one_of_eight(pair: tuple[Server, Server]) -> None:
    began = time.monotonic()
    accepted: list[str] = []
    pair[0].request("/api/v1/batch/pause", {})
    for number in range(JOBS // BATCH):
        accepted += submit(pair[number % 2], BATCH, num_inference_steps=1)
    pair[1].wait_until(lambda: pair[1].request("/ready")["queued"] == JOBS, "hear of what the other accepted")
    released = time.monotonic()
    pair[1].request("/api/v1/batch/resume", {})
    pair[0].wait_until(lambda: remaining(pair[0]) == 0, "see the end of every job")
    seconds = time.monotonic() - released
    figures = audit(pair[0].home, accepted, pair[0].url)
    times, shares = claims(pair[0].url, accepted)
    assert times == {1: JOBS}, "a job was claimed more than once"
    assert figures["accepted"] == JOBS and figures["run_again"] == 0
    assert len(shares) == 2 and shares[0] >= JOBS // 10, f"one server did nearly all: {shares}"
    tell(
        "two servers, eight claimers",
        {
            "servers": 2, "claimers": 2 * SEATS, "jobs": JOBS, "claimed_once": times[1], "claimed_twice": 0,
            "by_one_server": shares[0], "by_the_other": shares[1], **figures,
            "jobs_per_second": round(JOBS / seconds, 1), "seconds": round(time.monotonic() - began, 1),
        },
    )  # fmt: skip


def test_a_killed_server_s_jobs_are_run_by_the_other(pair: tuple[Server, Server]) -> None:
    began = time.monotonic()
    dies, lives = pair
    accepted = submit(dies, 24, num_inference_steps=10, step_seconds=0.1)
    dies.wait_until(lambda: len(dies.worker()["jobs"]) == SEATS, "have its hands full")
    dies.process.kill()
    dies.process.wait()
    killed = time.monotonic()
    lives.wait_until(lambda: remaining(lives) == 0, "finish what both had accepted")
    seconds = time.monotonic() - killed
    assert lives.stop() == 0
    assert processes_of(lives.home) == []
    age_unfinished_files(lives.home)
    sweep_up(lives)
    audit(lives.home, accepted, lives.url)
    times, _ = claims(lives.url, accepted)
    assert times[2] >= SEATS - 1 and set(times) <= {1, 2}, times
    assert times.total() == len(accepted)
    tell(
        "one of two servers killed",
        {
            "accepted": len(accepted), "lost": 0, "completed_twice": 0, "run_again": times[2],
            "seconds_until_all_was_done": round(seconds, 1), "seconds": round(time.monotonic() - began, 1),
        },
    )  # fmt: skip
