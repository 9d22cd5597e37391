"""How a job's end is written: again and again until it is, and what becomes of pictures that belong to nobody."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from app.core.batch_processing import Waiting
from app.core.channel import Message
from app.core.job_store import JobStore, Pause
from app.core.jobs import Job
from app.core.storage import Storage
from app.errors import OutOfMemory, StorageFull, TransferFailed, Unavailable, UnknownImage

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

STORE_PAUSE_SECONDS = 1.0
PASSING = frozenset({OutOfMemory.code, StorageFull.code, TransferFailed.code})
"""Codes of errors that another attempt may not meet: memory or a disk has room again, the hub or the store answers."""


class Endings:
    """Writes ends into the store; gives up only when the service was stopped."""

    def __init__(self, store: JobStore, storage: Storage, pause: Pause, is_stopped: Callable[[], bool]) -> None:
        self._store = store
        self._storage = storage
        self._pause = pause
        self._is_stopped = is_stopped

    def write(
        self, job: Job, kind: str, message: Message, *, alone: bool, stages: Sequence[dict[str, Any]] = ()
    ) -> Job | None:
        """What a worker said of an attempt's end: done, failed or cancelled; None if the attempt was given up on.

        The job is queued again where it failed of what may pass and has attempts left. Memory that ran out although the
        job was `alone` and no other model stood on the device is met once more and not a third time. What `stages` were
        told stays with a job that does not succeed.
        """
        names = (job.id, job.attempt)
        told = {"images": [], "data": {"stages": list(stages)}, "notes": [], "model": job.model} if stages else None
        steps = {"step": message["step"], "steps": message["steps"]}
        if kind == "done":
            ended = self._persist(lambda: self._store.succeed(*names, message["result"], **steps))
            return ended or self._written_after_all(job, message["result"])
        if kind == "failed":
            error = message["error"]
            pause = self._pause if error["code"] in PASSING else None
            at_most_twice = None
            if error["code"] == OutOfMemory.code and alone and set(message["resident"]) <= {job.model}:
                at_most_twice = f"{error['code']}, with {job.device} to itself"
            return self._persist(
                lambda: self._store.fail(*names, error, pause=pause, at_most_twice=at_most_twice, result=told, **steps)
            )
        return self._persist(lambda: self._store.cancelled(*names, result=told, **steps))

    def lose(self, job: Job, reason: str, *, counts: bool) -> Job | None:
        """The job's worker is gone: it waits again or has ended."""
        return self._persist(lambda: self._store.lose(job.id, job.attempt, self._pause, reason=reason, counts=counts))

    def followers(self, job: Job) -> list[Waiting]:
        """The jobs that wait because this one has ended."""
        return self._persist(lambda: self._store.waiting(job.followed_by)) or [] if job.followed_by else []

    def _persist(self, write: Callable[[], Answer | None]) -> Answer | None:
        """Write an end until it is written: a full disk must not make a finished job run again."""
        while True:
            try:
                return write()
            except Unavailable as error:
                logger.error("the end of a job cannot be written: %s", error.message)
                if self._is_stopped():
                    return None
                time.sleep(STORE_PAUSE_SECONDS)

    def _written_after_all(self, job: Job, result: dict[str, Any]) -> Job | None:
        """The job, if the store holds this result though its write seemed to fail; else the result is forgotten."""
        try:
            stored = self._store.get(job.id)
        except Exception:
            # Whether the pictures belong to the job cannot be known; then they stay.
            return None
        if stored.result == result:
            return stored
        self.forget(result["images"])
        return None

    def forget(self, pictures: list[dict[str, Any]]) -> None:
        """Remove the files of pictures that belong to no job; what a silent store keeps, the sweeping removes."""
        for picture in pictures:
            try:
                self._storage.delete(picture["id"])
            except UnknownImage:
                continue
            except Unavailable as error:
                logger.warning("picture %s of no job could not be removed: %s", picture["id"], error.message)
