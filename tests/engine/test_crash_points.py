"""Every named point of a job's life is made the moment of death, the first time it is met, the second, ... until a run
passes it; after each death the next process must bring everything to its end. On SQLite and on PostgreSQL."""

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from app.core import crash_points
from tests.engine.conftest import DATABASES
from tests.engine.front import run_front
from tests.engine.ledger import audit, processes_of, tell
from tests.engine.test_callbacks import Receiver, is_signed, receiver  # noqa: F401

JOBS = 3 if int(os.environ.get("EIS_PROVE_CYCLES", "3")) >= 30 else 1
IN_THE_WORKER = ("heartbeat", "temp_write", "fsync", "rename")
CRASHED = 137

pytestmark = [pytest.mark.prove, pytest.mark.timeout(600)]


def accepted_by(told: str) -> set[str]:
    """The ids that a front said; a line that another one tore apart is no loss of a job and is told as what it is."""
    lines = [line for line in told.splitlines() if "accepted" in line]
    assert all(re.fullmatch(r"accepted [0-9a-z]{26}", line) for line in lines), f"a torn line:\n{told}"
    return {line.split()[1] for line in lines}


def check(home: Path, accepted: set[str], receiver: Receiver, url: str | None) -> None:  # noqa: F811
    figures = audit(home, accepted, url)
    assert figures["accepted"] == figures["files"] == JOBS
    told: dict[str, set[str]] = {}
    for headers, body in receiver.seen:
        assert is_signed(headers, body)
        told.setdefault(json.loads(body)["data"]["id"], set()).add(headers["webhook-id"])
    assert told.keys() == accepted
    assert all(len(ids) == 1 for ids in told.values()), "a repeat came under another id"
    assert processes_of(home) == []


@pytest.fixture(params=DATABASES)
def new_url(request: pytest.FixtureRequest) -> Iterator[Callable[[], str | None]]:
    """Gives the URL of another empty database of one kind; None is SQLite in the home."""
    if request.param == "sqlite":
        yield lambda: None
        return
    cluster, made = request.getfixturevalue("cluster"), []
    yield lambda: made.append(cluster.url()) or made[-1]
    for url in made:
        cluster.drop(url)


@pytest.mark.parametrize("point", [point for point in crash_points.POINTS if point != "heartbeat"])
def test_the_front_dies_at_each_point(
    point: str,
    tmp_path: Path,
    receiver: Receiver,  # noqa: F811
    new_url: Callable[[], str | None],
) -> None:
    deaths = 0
    for count in range(1, 20 * JOBS):
        home, url = tmp_path / str(count), new_url()
        receiver.seen.clear()
        status, told = run_front(home, "inline", JOBS, receiver.address, f"{point}:{count}", url)
        if status == 0:
            check(home, accepted_by(told), receiver, url)
            break
        assert status == CRASHED, told
        deaths += 1
        status, told_later = run_front(home, "inline", JOBS, receiver.address, url=url)
        assert status == 0, told_later
        assert accepted_by(told) <= accepted_by(told_later), f"the first run said:\n{told}\nthe next one:\n{told_later}"
        check(home, accepted_by(told_later), receiver, url)
    else:
        pytest.fail("no run passed the point")
    assert deaths >= JOBS
    tell(f"front killed at {point}", {"jobs": JOBS, "deaths": deaths, "lost": 0, "completed_twice": 0})


@pytest.mark.parametrize("point", IN_THE_WORKER)
def test_the_worker_dies_at_each_point(
    point: str,
    tmp_path: Path,
    receiver: Receiver,  # noqa: F811
    new_url: Callable[[], str | None],
) -> None:
    """The front lives on and brings the job to its end with the next worker."""
    url = new_url()
    status, told = run_front(tmp_path, "cpu", JOBS, receiver.address, f"{point}:1", url)
    assert status == 0, told
    assert f"ended with status {CRASHED}" in told
    check(tmp_path, accepted_by(told), receiver, url)
    tell(f"worker killed at {point}", {"jobs": JOBS, "deaths": 1, "lost": 0, "completed_twice": 0})
