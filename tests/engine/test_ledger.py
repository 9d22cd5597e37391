"""The audit that the proofs rely on must itself notice every kind of broken promise."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from app.core.jobs import new_id
from app.core.service import Service
from tests.engine.conftest import end_of
from tests.engine.ledger import audit


def edit(home: Path, statement: str) -> None:
    """Change the stopped store behind its back."""
    with sqlite3.connect(home / "jobs.sqlite") as connection:
        connection.execute(statement)
    connection.close()


def files(home: Path) -> list[Path]:
    return sorted(home.glob("images/*/*.png"))


FORGERIES: dict[str, Callable[[Path], None]] = {
    "a job is gone": lambda home: edit(home, "DELETE FROM jobs WHERE number = 1"),
    "a job hangs": lambda home: edit(home, "UPDATE jobs SET status = 'running' WHERE number = 1"),
    "a job failed": lambda home: edit(home, "UPDATE jobs SET status = 'failed' WHERE number = 1"),
    "too many attempts": lambda home: edit(home, "UPDATE jobs SET attempt = 9 WHERE number = 1"),
    "an attempt without its token": lambda home: edit(home, "UPDATE jobs SET attempt = 2 WHERE number = 1"),
    "another step in a history": lambda home: edit(
        home,
        "INSERT INTO transitions (job_id, attempt, before, after, at, reason)"
        " SELECT job_id, attempt, 'succeeded', 'queued', at, '' FROM transitions WHERE after = 'succeeded' LIMIT 1",
    ),
    "another hash": lambda home: edit(home, "UPDATE images SET sha256 = 'x' WHERE number = 1"),
    "a picture of nobody": lambda home: edit(
        home,
        "INSERT INTO images (id, owner, kind, width, height, bytes, sha256, media_type, created, position)"
        " VALUES ('x', '', 'result', 1, 1, 1, '', '', 0, 0)",
    ),
    "a file of nobody": lambda home: shutil.copy(files(home)[0], files(home)[0].with_stem(new_id())),
    "a file is gone": lambda home: files(home)[0].unlink(),
    "a file is cut": lambda home: files(home)[0].write_bytes(files(home)[0].read_bytes()[:-40]),
}


@pytest.fixture
def home(make_service: Callable[..., Service], tmp_path: Path) -> tuple[Path, list[str]]:
    service = make_service()
    ids = [end_of(service, service.submit("test/paint", {"seed": seed}).id).id for seed in range(2)]
    service.stop(5.0)
    return tmp_path, ids


def test_a_sound_home_passes(home: tuple[Path, list[str]]) -> None:
    assert audit(*home)["files"] == 2
    with pytest.raises(AssertionError, match="1 accepted jobs are lost"):
        audit(home[0], [*home[1], new_id()])


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_forgery_is_noticed(home: tuple[Path, list[str]], forgery: str) -> None:
    FORGERIES[forgery](home[0])
    with pytest.raises((AssertionError, OSError)):
        audit(*home)
