"""A front process for proofs, forked from one that has imported everything, so that a death costs no second.

Submits so many jobs under fixed idempotency keys, says each id that was accepted, waits until everything in the store
has ended and every callback is delivered, and ends with status 0.
"""

import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

from app.core import crash_points
from app.core.engine_options import EngineOptions
from app.core.service import Service
from tests.engine.ledger import files_of

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def main(home: str, device: str, jobs: int, receiver: str, url: str | None) -> None:
    """Run to the end of all work."""
    age_unfinished_files(Path(home))
    service = Service(
        EngineOptions(
            home=Path(home),
            catalog="tests.engine.capabilities:CATALOG",
            devices=(device,),
            database_url=url,
            min_free_bytes=0,
            retry_seconds=0.05,
            # Longer than a picture takes to be written also on a busy machine; what a death left is aged instead.
            sweep_seconds=60.0,
            orphan_seconds=0.2,
            heartbeat_seconds=0.2,
            trusted_hosts=(receiver,),
            callback_secret=SECRET,
        )
    )
    service.start()
    for index in range(jobs):
        job = service.submit(
            "test/paint", {"seed": index}, idempotency_key=f"key-{index}", callback_url=f"http://{receiver}/hook"
        )
        # One write: `print` writes its words apart, and a line of the log from another thread came between them.
        os.write(1, f"accepted {job.id}\n".encode())
    found, _ = service.list_jobs()
    for job in found:
        for _ in service.watch_blocking(job.id):
            pass
        while any(row["state"] != "delivered" for row in service.callbacks_of(job.id)):
            time.sleep(0.01)
    age_unfinished_files(Path(home))
    while any(Path(home).glob("images/*/*.part")) or len(files_of(Path(home))) > service.search_images(limit=1)[1]:
        time.sleep(0.02)
    service.stop(5.0)


def age_unfinished_files(home: Path) -> None:
    """Make unfinished files look old, which the sweep then takes at once; nobody may be writing one."""
    for part in home.glob("images/*/*.part"):
        os.utime(part, (0, 0))


def run_front(
    home: Path, device: str, jobs: int, receiver: str, crash_at: str | None = None, url: str | None = None
) -> tuple[int, str]:
    """Run `main` in a process of its own; answers its status and what it wrote."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    home.mkdir(exist_ok=True)
    log = home / f"front-{time.monotonic_ns()}.log"
    process = context.Process(target=_logged, args=(log, crash_at, str(home), device, jobs, receiver, url))
    process.start()
    process.join(60)
    if process.exitcode is None:
        process.kill()
        raise AssertionError(f"the front did not end: {log.read_text()}")
    return process.exitcode, log.read_text()


def _logged(log: Path, crash_at: str | None, *arguments: Any) -> None:
    handle = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.environ.pop(crash_points.VARIABLE, None)
    if crash_at:
        os.environ[crash_points.VARIABLE] = crash_at
    # Its workers inherit this, so that `ledger.processes_of` would find one that outlived it.
    os.environ["EIS_HOME"] = arguments[0]
    main(*arguments)
