"""The proof of the training's promise: kill -9 at any moment, again and again, and the weights are the same bits."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from app.pocket import checkpoints, train  # noqa: E402
from tests.engine.ledger import tell  # noqa: E402

KILLS = max(2, int(os.environ.get("EIS_PROVE_CYCLES", "3")) // 3)

pytestmark = [pytest.mark.prove, pytest.mark.timeout(7200)]


def run(folder: str) -> None:
    """The tiny preset from wherever it stands; it saves after every step, so that a kill falls between any two."""
    torch.set_num_threads(1)
    checkpoints.SAVE_EVERY_SECONDS = 0
    words = ["--preset", "tiny", "--work", f"{folder}/work", "--out", f"{folder}/out", "--device", "cpu", "--seed", "3"]
    raise SystemExit(train.main(words))


def start(target: Callable[..., None], *arguments: str) -> multiprocessing.Process:
    """A process of its own, forked from one that has imported everything."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    process = context.Process(target=target, args=arguments)
    process.start()
    return process


def weights(folder: Path) -> dict[str, bytes]:
    """Every file of trained numbers; what a tokenizer's file holds beside its words depends on its last call."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))}


def test_a_training_that_is_killed_ends_in_the_same_bits(tmp_path: Path) -> None:
    # The first one waits for the imports, which the length of a run must not count.
    start(print).join()
    began = time.monotonic()
    whole = start(run, str(tmp_path / "whole"))
    whole.join()
    assert whole.exitcode == 0
    seconds = time.monotonic() - began
    kills = 0
    while kills < KILLS:
        process = start(run, str(tmp_path / "killed"))
        process.join(random.uniform(0.2, 1.2) * seconds / KILLS)
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    last = start(run, str(tmp_path / "killed"))
    last.join()
    assert last.exitcode == 0 and kills
    found = weights(tmp_path / "killed" / "out")
    assert len(found) >= 4
    assert found == weights(tmp_path / "whole" / "out")
    tell("training killed", {"kills": kills, "seconds": round(time.monotonic() - began, 1)})
