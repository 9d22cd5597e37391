"""A job that a worker holds: where it is, how long it will take, and when patience with it ends."""

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from app.core.jobs import Job
from app.core.worker_handle import WorkerHandle


@dataclass
class Running:
    """A job that a worker holds."""

    job: Job
    worker: WorkerHandle
    step: int = 0
    steps: int = 0
    first_step: int = 0
    first_step_at: float = 0.0
    stages: list[dict[str, Any]] = field(default_factory=list)
    sent: bool = False
    kill_at: float | None = None
    ending: bool = False

    def note_step(self, step: int, steps: int) -> float | None:
        """Remember where it is; answers the seconds that the rest will take, by the pace since its first step."""
        now = time.monotonic()
        if not self.first_step:
            self.first_step, self.first_step_at = step, now
        self.step, self.steps = step, steps
        done = step - self.first_step
        return None if done < 1 else round((now - self.first_step_at) / done * max(0, steps - step), 2)


def overdue_workers(runs: Iterable[Running]) -> list[WorkerHandle]:
    """The workers whose job should have heeded a cancel by now; each is named once."""
    now, late = time.monotonic(), []
    for run in runs:
        if run.kill_at is not None and run.kill_at <= now:
            run.kill_at = None
            if not run.ending:
                run.worker.ended_for |= {run.job.id}
                late.append(run.worker)
    return list(dict.fromkeys(late))


def seconds_until(due: float | None, now: float, runs: Iterable[Running]) -> float | None:
    """Seconds until something is due that no notification announces: a pause's end (by `now`'s clock) or a kill."""
    waits = [] if due is None else [due - now]
    waits += [run.kill_at - time.monotonic() for run in runs if run.kill_at is not None]
    return max(0.0, min(waits)) if waits else None
