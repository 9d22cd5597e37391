"""What the servers that share one job store tell each other, and how each keeps what it knows in step with the store.

Three threads: one listens, one renews this server's leases and takes up what dead servers left, one passes on the steps
of running jobs. A notification is a hint: what it is about is read from the store, or decided by the next claim. What
was missed, because the connection broke or a server died between two words, is found by the look over everything that
follows each new connection and each `LOOK_SECONDS`.
"""

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby

from app.core.batch_processing import Waiting
from app.core.batch_store import BatchStore
from app.core.database import Message
from app.core.job_store import JobStore, Pause
from app.core.jobs import Job, JobEvent, JobStatus
from app.core.postgres_database import PostgresDatabase
from app.core.queue_view import QueueView
from app.core.watchers import Watchers
from app.core.watching import end_event
from app.errors import ServiceError

logger = logging.getLogger(__name__)

LOOK_SECONDS = 15.0
TROUBLE_SECONDS = 1.0
HEAR_SECONDS = 5.0
EVENT_SECONDS = 0.2
"""How often the steps of running jobs are passed on, the newest of each."""
FORWARDED = frozenset({"started", "step", "stages"})
BEATS_IN_A_LEASE = 4
CALM_BEATS = 2
"""So many beats in a row must have come through before silence is held against anybody: the database may be back only
now, and the others' words are on their way."""


@dataclass(frozen=True)
class Ears:
    """What the service wants to hear: a job that ended here although another server ran it, and of callbacks."""

    ended: Callable[[Job], None]
    callbacks_may_be_due: Callable[[], None]


class Peers:
    """This server among those that share its store."""

    def __init__(
        self, store: JobStore, batches: BatchStore, queue: QueueView, watchers: Watchers, pause: Pause, ears: Ears
    ) -> None:
        self._store = store
        self._database: PostgresDatabase = store.database
        self._batches = batches
        self._queue = queue
        self._watchers = watchers
        self._pause = pause
        self._ears = ears
        self._closing = threading.Event()
        self._events: dict[tuple[str, str], JobEvent] = {}
        self._told = threading.Condition()
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True)
            for name, run in (("peers", self._listen), ("leases", self._renew), ("peers-events", self._pass_on))
        ]

    def start(self) -> None:
        """Listen, and say that this server lives."""
        self._watchers.forward = self._forward
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; the store is told that this server is gone."""
        self._watchers.forward = None
        self._closing.set()
        with self._told:
            self._told.notify()
        with suppress(ServiceError):
            self._database.tell_leaving()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        try:
            self._store.leases.leave()
        except ServiceError as error:
            logger.error("the other servers could not be told of the end: %s", error.message)

    # Hearing

    def _listen(self) -> None:
        while not self._closing.is_set():
            try:
                with self._database.listen() as listener:
                    look = 0.0
                    while not self._closing.is_set():
                        if time.monotonic() >= look:
                            self._look()
                            look = time.monotonic() + LOOK_SECONDS
                        self._take(listener.hear(min(HEAR_SECONDS, max(0.0, look - time.monotonic()))))
            except ServiceError as error:
                logger.error("the other servers cannot be heard just now: %s", error.message)
                self._closing.wait(TROUBLE_SECONDS)
            except Exception:
                logger.exception("the other servers cannot be heard just now")
                self._closing.wait(TROUBLE_SECONDS)

    def _look(self) -> None:
        """Bring the queue, its pause, and whoever watches into step with the store."""
        before = self._queue.waiting_ids()
        waiting = self._store.waiting()
        there = {entry.id for entry in waiting}
        self._queue.adopt(waiting, gone=[job_id for job_id in before if job_id not in there])
        self._queue.forget_elsewhere()
        self._queue.pause(self._batches.paused_since() is not None)
        self._tell_ends(self._watchers.watched())
        self._ears.callbacks_may_be_due()

    def _take(self, messages: Sequence[Message]) -> None:
        for kind, same in groupby(messages, lambda message: message["kind"]):
            if kind == "events":
                for message in same:
                    self._take_events(message)
                continue
            ids = [job_id for message in same for job_id in message.get("jobs", ())]
            match kind:
                case "waits":
                    self._take_waiting(ids)
                case "claimed":
                    self._queue.taken(ids)
                case "ended":
                    self._queue.remove(ids)
                    self._queue.forget_elsewhere(ids)
                    self._tell_ends(ids)
                case "cancel":
                    for job_id in ids:
                        self._queue.cancel(job_id)
                case "paused":
                    self._queue.pause(self._batches.paused_since() is not None)

    def _take_waiting(self, ids: Sequence[str]) -> None:
        entries = self._store.waiting(ids)
        self._queue.adopt(entries)
        self._queue.forget_elsewhere(ids)
        self._tell_requeued([entry for entry in entries if entry.attempt])

    def _take_events(self, message: Message) -> None:
        for job_id, attempt, kind, data in message["events"]:
            if kind == "step":
                self._queue.note_elsewhere((job_id, attempt), data["step"], data["steps"])
            self._watchers.deliver(JobEvent(job_id, kind, data))

    def _tell_ends(self, ids: Sequence[str]) -> None:
        watched = set(self._watchers.watched()).intersection(ids)
        if watched:
            for job in self._batches.by_ids(sorted(watched)).values():
                if job.status.is_terminal:
                    self._watchers.deliver(end_event(job))

    def _tell_requeued(self, entries: Sequence[Waiting]) -> None:
        for entry in entries:
            told = {
                "position": self._queue.position(entry.id),
                "attempt": entry.attempt,
                "not_before": entry.not_before,
            }
            self._watchers.deliver(JobEvent(entry.id, "requeued", told))

    # Living

    def _renew(self) -> None:
        calm = 0
        while not self._closing.wait(self._store.leases.seconds / BEATS_IN_A_LEASE):
            calm, before = 0, calm
            try:
                renewal = self._store.leases.renew(self._queue.held())
                for job_id, attempt in renewal.lost:
                    logger.debug("job %s is no longer held in attempt %d", job_id, attempt)
                self._queue.give_up(renewal.lost)
                for job_id in renewal.cancelled:
                    self._queue.cancel(job_id)
                self._take_up(self._store.recover(self._pause, silent=before >= CALM_BEATS))
                calm = before + 1
            except ServiceError as error:
                logger.error("the leases of this server cannot be renewed: %s", error.message)
            except Exception:
                logger.exception("the leases of this server cannot be renewed")

    def _take_up(self, jobs: Sequence[Job]) -> None:
        """Jobs that a server left when it died: they wait again, or have ended."""
        waiting = [Waiting.of(job) for job in jobs if job.status is JobStatus.QUEUED]
        for job in jobs:
            logger.warning("job %s was left by a server that is gone; it is %s now", job.id, job.status.value)
        self._queue.adopt(waiting)
        self._tell_requeued(waiting)
        for job in jobs:
            if job.status.is_terminal:
                self._ears.ended(job)

    # Telling

    def _forward(self, event: JobEvent) -> None:
        if event.kind in FORWARDED:
            with self._told:
                self._events[event.job_id, event.kind] = event
                self._told.notify()

    def _pass_on(self) -> None:
        while not self._closing.is_set():
            with self._told:
                self._told.wait_for(lambda: self._events or self._closing.is_set())
                events, self._events = self._events, {}
            attempts = dict(self._queue.held())
            told = [
                (event.job_id, attempts[event.job_id], event.kind, event.data)
                for event in events.values()
                if event.job_id in attempts
            ]
            try:
                self._database.tell_events(told)
            except ServiceError as error:
                # Only who watches on another server misses a step; the next one is told again.
                logger.debug("steps were not passed on: %s", error.message)
            self._closing.wait(EVENT_SECONDS)
