"""The proof that jobs leave nothing behind in memory, in the front's process or in the worker's; and that a leak of
eight kilobytes a job would be seen.

Result files, history and rows of pictures are all kept, on the disk. The processes are real ones; the capability draws
without torch, so that what grows is the service's own.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from app.core.memory_report import tell_memory
from app.core.service import Service
from tests import as_a_user
from tests.engine.conftest import until
from tests.engine.keeping import LEAK_BYTES
from tests.engine.ledger import tell

WHOLE = int(os.environ.get("EIS_PROVE_CYCLES", "3")) >= 30
WARM_UP, JOBS = (1000, 10_000) if WHOLE else (500, 1000)
MOST_BYTES = JOBS * 50_000_000 // 10_000
PROCESSES = ("front", "worker")


def growth(home: Path, leak: str = "none") -> dict[str, int]:
    """What a process of its own measured of itself and its worker."""
    command = [sys.executable, "-m", "tests.engine.keeping", str(home), str(WARM_UP), str(JOBS), leak]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=3000, env=as_a_user.environment())
    assert finished.returncode == 0, finished.stderr[-3000:]
    figures = json.loads(finished.stdout.splitlines()[-1])
    assert figures["jobs_rows"] == figures["images_rows"] == WARM_UP + JOBS
    return figures


def megabytes(count: int) -> str:
    """For a person."""
    return f"{count / 1e6:.1f} MB"


def told(figures: dict[str, int]) -> dict[str, object]:
    """The figures of a run for a person and the page of proofs."""
    sizes = {name: megabytes(figures[name]) for name in ("front_before", "front_grew", "worker_before", "worker_grew")}
    return {"warm_up": WARM_UP, "jobs": JOBS, **sizes, "allowed": megabytes(MOST_BYTES), "seconds": figures["seconds"]}


@pytest.mark.prove
@pytest.mark.timeout(3600)
def test_memory_does_not_grow_with_the_jobs(tmp_path: Path) -> None:
    figures = growth(tmp_path)
    tell("memory", told(figures))
    for process in PROCESSES:
        assert figures[f"{process}_grew"] <= MOST_BYTES, f"{process}: {figures}"


@pytest.mark.prove
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("leak", PROCESSES)
def test_a_leak_on_purpose_is_seen_where_it_is(leak: str, tmp_path: Path) -> None:
    figures = growth(tmp_path, leak)
    tell(f"memory with {LEAK_BYTES} bytes a job leaked by the {leak}", told(figures))
    (sound,) = set(PROCESSES) - {leak}
    assert figures[f"{leak}_grew"] > MOST_BYTES, f"the leak was not seen: {figures}"
    assert figures[f"{sound}_grew"] <= MOST_BYTES, f"{sound}: {figures}"


def test_an_answer_that_comes_too_late_is_not_kept(process_service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that stands still answers a question about its memory when nobody waits for it any more."""
    (worker,) = process_service.devices.workers.values()
    until(lambda: worker.is_up)
    answers: list[str] = []
    take: Callable[[dict], bool] = worker.take

    def noted(message: dict) -> bool:
        taken = take(message)
        if message["type"] == "memory":
            answers.append(message["question"])
        return taken

    monkeypatch.setattr(worker, "take", noted)
    os.kill(worker.pid, signal.SIGSTOP)
    until(lambda: psutil.Process(worker.pid).status() == psutil.STATUS_STOPPED)
    (late,) = tell_memory(process_service.devices, seconds=0.05)["devices"]
    os.kill(worker.pid, signal.SIGCONT)
    assert not late["is_live"]
    until(lambda: len(answers) == 1)
    assert worker.answers == {} and worker.questions == set()
    (now,) = tell_memory(process_service.devices)["devices"]
    assert now["is_live"] and worker.answers == {}
