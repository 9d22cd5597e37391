"""A process that serves jobs and tells how its memory grew, and its worker's: for the proof that neither keeps any.

Run as `python -m tests.engine.keeping HOME WARM_UP JOBS LEAK`; it prints the figures as JSON. LEAK is `none`, or where
a leak is built in on purpose, to show that the measurement sees one: `worker` or `front`.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import Field

from app.core.capability import Capability, Context, Request, Result
from app.core.engine_options import EngineOptions
from app.core.fields import Seed
from app.core.service import Service
from tests.engine.capabilities import squares

LEAK_BYTES = 8 * 1024
AHEAD = 32
"""Jobs that wait at once: some of what a busy service holds, and bounded, so that it does not grow with the run."""
LOOK_EVERY = 100
KEPT: list[bytes] = []


class KeepRequest(Request):
    """A picture from a seed, and how many bytes to keep for ever."""

    seed: Seed = None
    kept_bytes: Annotated[int, Field(ge=0, le=2**20, description="Bytes that the process never gives back.")] = 0


def keep(request: KeepRequest, context: Context) -> Result:
    """Draw, and leak what was wished."""
    context.progress(1, 1)
    leak(request.kept_bytes)
    return Result(images=[squares(request.seed)], seeds=[request.seed])


def leak(size: int) -> None:
    """Keep so many bytes that were really written."""
    if size:
        KEPT.append(os.urandom(size))


CATALOG = (Capability("test/keep", "Keep", "Draw, and keep bytes.", KeepRequest, keep),)


class Run:
    """Jobs through a service, submit to done, a few ahead; after each what a person would look at is read."""

    def __init__(self, service: Service, kept_bytes: int) -> None:
        self.service = service
        self.kept_bytes = kept_bytes
        self.free = threading.Semaphore(AHEAD)
        self.ended: list[str] = []
        service.on_end.append(self._note)

    def _note(self, job: object) -> None:
        self.ended.append(job.status.value)
        self.free.release()

    def serve(self, count: int) -> None:
        """So many jobs, all of them to a good end."""
        for number in range(count):
            assert self.free.acquire(timeout=60), "no job ends any more"
            job = self.service.submit("test/keep", {"seed": number, "kept_bytes": self.kept_bytes})
            self.service.get(job.id)
            if number % LOOK_EVERY == 0:
                for _ in self.service.watch_blocking(job.id):
                    pass
                self.service.history(job.id)
                self.service.list_jobs(limit=10)
                self.service.search_images(limit=10)
                self.service.device_status()
                self.service.memory_status()
        deadline = time.monotonic() + 60
        while len(self.ended) < count:
            assert time.monotonic() < deadline, f"{len(self.ended)} of {count} jobs ended"
            time.sleep(0.01)
        assert set(self.ended) == {"succeeded"}
        self.ended.clear()

    def resident_bytes(self) -> tuple[int, int]:
        """Of this process and of its worker's."""
        (worker,) = self.service.readiness()["workers"]
        return psutil.Process().memory_info().rss, psutil.Process(worker["pid"]).memory_info().rss


def main(home: str, warm_up: int, jobs: int, where: str) -> None:
    """Warm up, measure, serve, measure again, and tell."""
    service = Service(
        EngineOptions(home=Path(home), catalog="tests.engine.keeping:CATALOG", devices=("cpu",), min_free_bytes=0)
    )
    if where == "front":
        service.on_end.append(lambda job: leak(LEAK_BYTES))
    service.start()
    run = Run(service, LEAK_BYTES if where == "worker" else 0)
    run.serve(warm_up)
    before, began = run.resident_bytes(), time.monotonic()
    run.serve(jobs)
    after, seconds = run.resident_bytes(), time.monotonic() - began
    rows = {"jobs_rows": service.list_jobs(limit=1)[1], "images_rows": service.search_images(limit=1)[1]}
    service.stop(5.0)
    grown = [later - earlier for earlier, later in zip(before, after, strict=True)]
    told = {"front_before": before[0], "worker_before": before[1], "front_grew": grown[0], "worker_grew": grown[1]}
    print(json.dumps({**told, **rows, "seconds": round(seconds, 1)}))


if __name__ == "__main__":
    # The worker imports its catalog by name: this module as `__main__` would be another one.
    from tests.engine import keeping

    keeping.main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
