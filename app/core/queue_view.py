"""What is asked of the queue and told to it from outside the loop: by the service, and by the other servers of a store.

Each server keeps the waiting jobs of the whole store in its own memory, so that each can choose by model and order; the
claim in the store decides who gets a job. What another server has taken or ended is let go here, and an entry that came
too late costs one claim that fails.
"""

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from app.core.batch_processing import JobQueue, Waiting
from app.core.engine_options import EngineOptions
from app.core.fleet import Fleet
from app.core.job_store import JobStore
from app.core.jobs import Job, JobEvent, JobStatus
from app.core.leases import Token
from app.core.running import Running
from app.core.watchers import Watchers


class QueueView:
    """The part of the Dispatcher that others call; its lock guards what stands here."""

    paused: bool
    _store: JobStore
    _watchers: Watchers
    _options: EngineOptions
    _fleet: Fleet
    _changed: threading.Condition
    _queue: JobQueue
    _running: dict[str, Running]
    _claiming: dict[str, bool]
    _unsure: set[str]
    _elsewhere: dict[Token, tuple[int, int]]

    def add(self, *jobs: Job) -> None:
        """Jobs that were accepted wait from now on."""
        for job in jobs:
            self._fleet.learn(job.model)
        with self._changed:
            for job in jobs:
                self._queue.add(Waiting.of(job))
            pushes_back = len(jobs) > 1 or (self._queue.position(jobs[0].id) or 0) < len(self._queue) - 1
            self._changed.notify_all()
        if pushes_back:
            self._tell_positions()

    def remove(self, job_ids: Iterable[str]) -> None:
        """Jobs that were cancelled while they waited."""
        with self._changed:
            for job_id in job_ids:
                self._queue.remove(job_id)
        self._tell_positions()

    def reprioritise(self, priorities: Mapping[str, int]) -> None:
        """Jobs that wait at another priority from now on."""
        with self._changed:
            for job_id, priority in priorities.items():
                self._queue.reprioritise(job_id, priority, self._store.now())
            self._changed.notify_all()
        self._tell_positions()

    def pause(self, paused: bool) -> None:
        """Give out nothing new until it is resumed; what runs goes on."""
        with self._changed:
            self.paused = paused
            self._changed.notify_all()

    def cancel(self, job_id: str) -> None:
        """Ask the worker that holds this job to end it; it is killed when it does not heed."""
        with self._changed:
            run = self._running.get(job_id)
            if job_id in self._claiming:
                self._claiming[job_id] = True
            if run is None:
                return
            run.kill_at = time.monotonic() + self._options.cancel_grace_seconds
            self._changed.notify_all()
            if not run.sent:
                return
        run.worker.send({"type": "cancel", "job": job_id, "attempt": run.job.attempt})

    def set_preview(self, job_id: str, on: bool) -> None:
        """Say whether somebody watches the previews of this job."""
        with self._changed:
            run = self._running.get(job_id)
        if run is not None:
            run.worker.send({"type": "preview", "job": job_id, "on": on})

    def stages_of(self, job_id: str) -> list[dict[str, Any]]:
        """What a job that runs here told of its stages so far."""
        with self._changed:
            run = self._running.get(job_id)
            return list(run.stages) if run is not None else []

    def waiting_count(self) -> int:
        """How many jobs wait."""
        return len(self._queue)

    def running_count(self) -> int:
        """How many jobs workers hold."""
        return len(self._running)

    def position(self, job_id: str) -> int | None:
        """How many jobs stand before this one; None if it does not wait."""
        with self._changed:
            self._queue.age(self._store.now())
            return self._queue.position(job_id)

    def next_of(self, owner: str, count: int) -> dict[str, int | None]:
        """The owner's next jobs in their order, with how many jobs stand before each."""
        with self._changed:
            self._queue.age(self._store.now())
            return {job_id: self._queue.position(job_id) for job_id in self._queue.of_owner(owner, count)}

    def with_progress(self, job: Job) -> Job:
        """The stored job with the step that its worker last told, here or on another server."""
        with self._changed:
            run = self._running.get(job.id)
            if job.status is not JobStatus.RUNNING:
                return job
            if run is not None and run.job.attempt == job.attempt:
                return replace(job, step=run.step, steps=run.steps)
            step, steps = self._elsewhere.get((job.id, job.attempt), (job.step, job.steps))
            return replace(job, step=step, steps=steps)

    def workers(self) -> list[dict[str, Any]]:
        """Each worker's device, state, pid, models and memory."""
        with self._changed:
            return [worker.describe() for worker in self._fleet.workers.values()]

    def running_jobs(self) -> dict[str, Job]:
        """The jobs that workers hold, by id."""
        with self._changed:
            return {id: run.job for id, run in self._running.items()}

    # What other servers of the same store did

    def waiting_ids(self) -> list[str]:
        """Every job that waits here."""
        with self._changed:
            return self._queue.ids()

    def held(self) -> list[Token]:
        """The attempts that workers of this server hold."""
        with self._changed:
            return [(job_id, run.job.attempt) for job_id, run in self._running.items()]

    def adopt(self, entries: Iterable[Waiting], gone: Iterable[str] = ()) -> None:
        """These wait as the store has them, and those wait no more; what this server holds or claims is left alone."""
        wanted = list(entries)
        for entry in wanted:
            self._fleet.learn(entry.model)
        with self._changed:
            for job_id in gone:
                if job_id not in self._unsure:
                    self._queue.remove(job_id)
            for entry in wanted:
                if entry.id not in self._running and entry.id not in self._claiming:
                    self._queue.renew(entry)
            self._changed.notify_all()
        self._tell_positions()

    def taken(self, job_ids: Iterable[str]) -> None:
        """Another server runs these: their owners were served."""
        with self._changed:
            for job_id in job_ids:
                self._queue.take(job_id)
        self._tell_positions()

    def note_elsewhere(self, token: Token, step: int, steps: int) -> None:
        """How far a job is on another server."""
        with self._changed:
            self._elsewhere[token] = (step, steps)

    def forget_elsewhere(self, job_ids: Iterable[str] | None = None) -> None:
        """These jobs, or all, run on no other server that is known."""
        with self._changed:
            gone = None if job_ids is None else set(job_ids)
            self._elsewhere = {
                token: steps for token, steps in self._elsewhere.items() if gone is not None and token[0] not in gone
            }

    def give_up(self, lost: Iterable[Token]) -> None:
        """Other servers may run these attempts anew: end them here."""
        for job_id, attempt in lost:
            with self._changed:
                run = self._running.get(job_id)
                is_held = run is not None and run.job.attempt == attempt and not run.ending
            if is_held:
                self.cancel(job_id)

    def _tell_positions(self) -> None:
        """Tell those who watch a waiting job where it stands now."""
        for job_id in self._watchers.watched():
            position = self.position(job_id)
            if position is not None:
                self._watchers.publish(JobEvent(job_id, "queued", {"position": position}))
