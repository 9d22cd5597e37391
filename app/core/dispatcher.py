"""The loop that gives waiting jobs to idle workers, and what becomes of a job while a worker holds it.

One lock guards the queue, the workers' states and the running jobs; the store is never written while it is held. A job
is claimed in the store before its worker hears of it, and leaves the table of running jobs after its end is committed,
so whoever asks meanwhile reads a true state. Everything waits on a condition; nothing polls.
"""

import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection
from functools import partial

from app.core.batch_processing import JobQueue, Waiting, pause_after_loss
from app.core.channel import Message
from app.core.endings import Endings
from app.core.engine_options import EngineOptions
from app.core.fleet import Fleet
from app.core.job_store import JobStore
from app.core.jobs import Job, JobEvent, JobStatus
from app.core.leases import Token
from app.core.multi_gpu import LOOK_AHEAD, choose
from app.core.queue_view import QueueView
from app.core.running import Running, overdue_workers, seconds_until
from app.core.storage import Storage
from app.core.watchers import Watchers
from app.core.worker_handle import WorkerHandle
from app.errors import ServiceError

logger = logging.getLogger(__name__)

STORE_PAUSE_SECONDS = 1.0
COLLISION_SECONDS = 0.2
STOP_SECONDS = 5.0


class Dispatcher(QueueView):
    """The waiting jobs, the workers, and the way between."""

    def __init__(
        self,
        store: JobStore,
        storage: Storage,
        watchers: Watchers,
        options: EngineOptions,
        fleet: Fleet,
        on_ended: Callable[[Job], None],
        giving_way: Collection[str] = (),
    ) -> None:
        self._store = store
        self.pause_after = partial(pause_after_loss, base_seconds=options.retry_seconds)
        self._endings = Endings(store, storage, self.pause_after, lambda: self._stopped)
        self._watchers = watchers
        self._options = options
        self._on_ended = on_ended
        self._fleet = fleet
        self._changed = fleet.changed
        self._queue = JobQueue(ageing_seconds=options.ageing_seconds, giving_way=giving_way)
        self._running: dict[str, Running] = {}
        self._claiming: dict[str, bool] = {}
        self._unsure: set[str] = set()  # whose claim failed, so that the store may hold it all the same
        self._elsewhere: dict[Token, tuple[int, int]] = {}
        self._draining = False
        self._hurried = False
        self.paused = False
        self._stopped = False
        self.ended: Counter[str] = Counter()
        self.run_seconds = self.wait_seconds = 0.0
        fleet.connect(self._on_message, self._on_lost)
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)

    # Life

    def start(self) -> None:
        """Take up what the store holds and start the workers."""
        self._store.recover(self.pause_after, silent=False)
        for entry in self._store.waiting():
            self._queue.add(entry)
            self._fleet.learn(entry.model)
        self._fleet.start()
        self._thread.start()

    def stop(self, drain_seconds: float) -> None:
        """Give out nothing more, wait for what runs, then end the workers; what is not done by then waits again."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._hurried or not (self._running or self._claiming), drain_seconds)
            self._stopped = True
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join()
        workers = self._fleet.leave()
        for worker in workers:
            worker.stop()
        for worker in workers:
            with self._changed:
                held = [run for run in self._running.values() if run.worker is worker and not run.ending]
            if held and not worker.kill():
                # A thread cannot be ended: its job goes back to the queue, and it is asked to stop for nothing.
                self._on_lost(worker, "the service was stopped")
                for run in held:
                    worker.send({"type": "cancel", "job": run.job.id, "attempt": run.job.attempt})
            worker.join(STOP_SECONDS)
            if worker.is_alive() and worker.kill():
                worker.join(STOP_SECONDS)

    def hurry(self) -> None:
        """Let a `stop` wait no longer; may be called before it."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    # The loop

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._stopped:
                    return
                due = self._queue.wake(self._store.now())
                choice = None
                if not (self._draining or self.paused):
                    self._fleet.settle()
                    first, workers = self._queue.first(LOOK_AHEAD), self._fleet.open_workers()
                    choice = choose(first, workers, self._fleet.strategy, self._fleet.needs)
                if choice is None:
                    overdue = overdue_workers(self._running.values())
                    if not overdue:
                        self._changed.wait(seconds_until(due, self._store.now(), self._running.values()))
                        continue
                else:
                    overdue = []
                    for passed in choice.passed_over:
                        passed.passed_over += 1
                    self._queue.take(choice.job.id)
                    worker = self._fleet.workers[choice.worker.name]
                    worker.hold(choice.job)
                    self._fleet.note_given(worker.name)
                    generation = worker.generation
                    self._claiming[choice.job.id] = False
            for late in overdue:
                logger.warning("the worker for %s did not heed a cancel in time", late.name)
                late.kill()
            if choice is not None:
                try:
                    self._claim(choice.job, worker, generation, choice.reason)
                finally:
                    with self._changed:
                        self._claiming.pop(choice.job.id, None)
                        self._changed.notify_all()

    def _claim(self, entry: Waiting, worker: WorkerHandle, generation: int, reason: str) -> None:
        try:
            queued = self._store.queued_at(entry.id)
            job = self._store.claim(entry.id, device=worker.name, reason=reason, again=entry.id in self._unsure)
            self._unsure.discard(entry.id)
        except Exception:  # a disk that is full, or whatever else: this thread must live, and the job keeps its place
            logger.exception("job %s could not be claimed", entry.id)
            self._unsure.add(entry.id)
            with self._changed:
                entry.not_before = self._store.now() + STORE_PAUSE_SECONDS
                self._queue.add(entry)
            self._let_go(worker, entry.id, generation)
            return
        if job is None:
            self._let_go(worker, entry.id, generation)
            self._look_again(entry)
            return
        run = Running(job, worker)
        with self._changed:
            alive = worker.generation == generation and job.id in worker.held
            if alive:
                self._running[job.id] = run
                self.wait_seconds += max(0.0, (job.started or 0.0) - queued)
        if not alive:
            self._lose(job, "the worker was lost before it could begin")
            return
        previewed = self._watchers.wants_preview(job.id)
        worker.send(
            {
                "type": "run",
                "job": job.id,
                "attempt": job.attempt,
                "capability": job.capability,
                "request": job.request,
                "model": job.model,
                # What it rose by waiting counts on the worker too: there a training gives way to it.
                "priority": max(job.priority, entry.priority),
                "preview": previewed,
                "follows": job.follows,
            },
            generation,
        )
        # A cancel or a watcher that came before the job was sent found nobody to tell; both are told now.
        with self._changed:
            run.sent = True
            cancelled = self._claiming.get(job.id, False) or job.cancel_requested
        if cancelled:
            self.cancel(job.id)
        if self._watchers.wants_preview(job.id) != previewed:
            self.set_preview(job.id, not previewed)
        self._tell_positions()

    def _look_again(self, entry: Waiting) -> None:
        """A claim that failed: another server has the job, or had its hand on it for a moment."""
        try:
            waiting = self._store.waiting([entry.id])
        except ServiceError as error:
            logger.error("job %s could not be looked up: %s", entry.id, error.message)
            waiting = [entry]
        with self._changed:
            for known in waiting:
                known.not_before = max(known.not_before or 0.0, self._store.now() + COLLISION_SECONDS)
                self._queue.add(known)

    def _let_go(self, worker: WorkerHandle, job_id: str, generation: int) -> None:
        with self._changed:
            if worker.generation == generation:
                worker.let_go(job_id)
                self._changed.notify_all()

    # What workers say

    def _on_message(self, worker: WorkerHandle, message: Message) -> None:
        try:
            self._take_message(worker, message)
        except Exception:
            logger.exception("a message of the worker for %s was not understood", worker.name)

    def _take_message(self, worker: WorkerHandle, message: Message) -> None:
        kind = message["type"]
        with self._changed:
            if worker.take(message):
                self._changed.notify_all()
                return
        job_id = message["job"]
        with self._changed:
            run = self._running.get(job_id)
            known = run is not None and run.worker is worker and run.job.attempt == message["attempt"]
        if not known:
            # An attempt that was given up on: what it made belongs to nobody.
            if kind == "done":
                self._endings.forget(message["result"]["images"])
            return
        if kind == "step":
            left = run.note_step(message["step"], message["steps"])
            data = {"step": message["step"], "steps": message["steps"], "seconds_left": left}
            self._watchers.publish(JobEvent(job_id, "step", data))
        elif kind == "started":
            data = {"device": worker.name, "model": run.job.model, "attempt": run.job.attempt}
            self._watchers.publish(JobEvent(job_id, "started", data))
        elif kind == "stages":
            run.stages = message["stages"]
            self._watchers.publish(JobEvent(job_id, "stages", {"stages": run.stages}))
        elif kind == "preview":
            self._watchers.publish(JobEvent(job_id, "preview", {"image": message["image"]}))
        else:
            self._finish(run, kind, message)

    def _finish(self, run: Running, kind: str, message: Message) -> None:
        with self._changed:
            run.ending = True
            run.worker.resident, run.worker.memory = frozenset(message["resident"]), message["memory"]
            alone = run.worker.let_go(run.job.id)
            self._changed.notify_all()
        ended = self._endings.write(run.job, kind, message, alone=alone, stages=run.stages)
        if ended is not None and ended.status is JobStatus.QUEUED:
            self._wait_again(ended)
        else:
            self._leave(run, ended)

    def _on_lost(self, worker: WorkerHandle, reason: str) -> None:
        with self._changed:
            worker.pid, worker.resident, worker.memory = None, frozenset(), {}
            worker.held.clear()
            ended_for, worker.ended_for = worker.ended_for, frozenset()
            if worker.state == "starting":
                worker.trouble = reason
            if worker.state != "broken":
                worker.state = "stopped" if self._stopped else "starting"
            lost = [run for run in self._running.values() if run.worker is worker and not run.ending]
            for run in lost:
                run.ending = True
            self._changed.notify_all()
        if not self._stopped and worker.enabled:
            logger.warning("%s (%s)", reason, worker.name)
        for run in lost:
            innocent = bool(ended_for) and run.job.id not in ended_for
            self._lose(run.job, "its worker was ended for another job's sake" if innocent else reason, run, innocent)

    def _lose(self, job: Job, reason: str, run: Running | None = None, innocent: bool = False) -> None:
        """Its worker is gone; that counts as an attempt unless the service itself ended it for other reasons."""
        stopped = self._stopped
        reason = "the service was stopped" if stopped else reason
        after = self._endings.lose(job, reason, counts=not (stopped or innocent))
        if after is not None and after.status is JobStatus.QUEUED:
            now = self._store.now()
            self._fleet.note_operation(job, "lost", now - (job.started or now))
            self._wait_again(after)
        else:
            self._leave(run, after)

    def _wait_again(self, job: Job) -> None:
        """A job whose attempt ended in a way that may pass is back in the queue: forget the attempt and tell."""
        with self._changed:
            self._running.pop(job.id, None)
            self._queue.add(Waiting.of(job))
            position = self._queue.position(job.id)
            self._changed.notify_all()
        data = {"position": position, "attempt": job.attempt, "not_before": job.not_before}
        self._watchers.publish(JobEvent(job.id, "requeued", data))

    def _leave(self, run: Running | None, ended: Job | None) -> None:
        """A job's end is committed (or was not its worker's to say): forget it and tell."""
        with self._changed:
            if run is not None and self._running.get(run.job.id) is run:
                del self._running[run.job.id]
            if ended is not None:
                self.ended[ended.status.value] += 1
                seconds = max(0.0, (ended.finished or 0.0) - (ended.started or ended.finished or 0.0))
                self.run_seconds += seconds
                self._fleet.note_operation(ended, ended.status.value, seconds)
            self._changed.notify_all()
        if ended is not None:
            if following := self._endings.followers(ended):
                self.adopt(following)
            self._on_ended(ended)
