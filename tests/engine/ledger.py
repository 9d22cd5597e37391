"""What must be true of a home after any number of deaths, checked from its files and its store alone."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from app.core.job_store import JobStore
from app.core.jobs import TRANSITIONS, JobStatus


def processes_of(home: Path) -> list[int]:
    """The processes that were started for this home and still run."""
    found, mark = [], str(home).encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            told = (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if mark in told and state != "Z":
            found.append(int(entry.name))
    return found


def files_of(home: Path) -> set[str]:
    """The ids of all finished picture files."""
    return {path.stem for path in home.glob("images/*/*.png")}


def audit(home: Path, accepted: Iterable[str], url: str | None = None) -> dict[str, int]:
    """The figures of a home, and of its store, whose processes have ended; each broken promise is an AssertionError."""
    store = JobStore(url or f"sqlite:///{home / 'jobs.sqlite'}")
    try:
        return _audit(store, home, set(accepted))
    finally:
        store.close()


def tell(name: str, figures: dict[str, Any]) -> None:
    """One line for a person, and the figures for the page of proofs."""
    print(f"\n{name}: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in figures.items()))
    out = os.environ.get("EIS_PROVE_OUT")
    if out:
        Path(out).write_text(json.dumps(figures))


def _audit(store: JobStore, home: Path, accepted: set[str]) -> dict[str, int]:
    assert store.is_sound(), "the database's own check fails"
    jobs, total = store.list_jobs(limit=1_000_000)
    assert len(jobs) == total
    stored = {job.id for job in jobs}
    assert not accepted - stored, f"{len(accepted - stored)} accepted jobs are lost"
    figures = {"accepted": len(accepted), "lost": 0, "completed_twice": 0, "run_again": 0, "files": 0, "undecodable": 0}
    for job in jobs:
        history = store.history(job.id)
        assert job.status is JobStatus.SUCCEEDED, f"{job.id} is {job.status}: {job.error}"
        assert sum(entry["after"] == "succeeded" for entry in history) == 1, "a job was completed twice"
        assert [entry["before"] for entry in history] == [None, *(entry["after"] for entry in history[:-1])]
        assert all(
            JobStatus(entry["after"]) in TRANSITIONS[JobStatus(entry["before"])] for entry in history if entry["before"]
        )
        assert job.attempt <= job.max_attempts
        assert job.attempt == sum(entry["after"] == "running" for entry in history)
        figures["run_again"] += job.attempt > 1
        assert job.result["images"], "a job that succeeded has no picture"
        for image in job.result["images"]:
            path = home / "images" / image["id"][:2] / f"{image['id']}.png"
            data = path.read_bytes()
            assert hashlib.sha256(data).hexdigest() == image["sha256"], "a file is not the one of its row"
            with Image.open(path, formats=("PNG",)) as picture:
                picture.load()
                assert picture.size == (image["width"], image["height"])
            record = store.images.get(image["id"])
            assert (record.job_id, record.sha256) == (job.id, image["sha256"])
            figures["files"] += 1
    assert store.images.search(limit=1)[1] == figures["files"], "a picture's row has no job that says it made it"
    rows, _ = store.images.search(kind=None, limit=1_000_000)
    assert files_of(home) == {row.id for row in rows}, "a file has no row, or a row no file"
    return figures
