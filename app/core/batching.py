"""The part of the Service that takes many wishes at once and governs the queue: all or nothing, one transaction each.

A batch is many jobs submitted through the same door: each wish is checked as a lone one is, before any is accepted, and
a refusal names the wish that it is about.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from app.core import chains, handlers
from app.core.batch_store import BatchStore, job_alone, jobs_in
from app.core.callbacks import CheckedUrl
from app.core.capability import Capability
from app.core.dispatcher import Dispatcher
from app.core.engine_options import EngineOptions
from app.core.jobs import Batch, Job, JobStatus, new_id
from app.core.storage import Storage
from app.core.submission import Submission
from app.errors import InvalidRequest, ServiceError, TooLarge, Unavailable, UnknownBatch, UnknownJob
from app.models.library import ModelLibrary

KEY_LIMIT = 255


@dataclass(frozen=True)
class Wish:
    """One of the wishes of a batch: by which capability, what, how urgent, who is told of its end, what follows it."""

    capability: str
    payload: Mapping[str, Any]
    priority: int = 5
    callback_url: str | CheckedUrl | None = None
    then: Any = None


@dataclass(frozen=True)
class BatchView:
    """A batch as it stands: how many of its jobs are in each state, and the share that is done (0 to 1).

    Jobs that follow others are counted from the moment on at which they are made; the share knows of them before.
    """

    batch: Batch
    counts: Mapping[str, int]
    progress: float
    priority: int | None
    """The highest among what waits; None when nothing does."""

    @property
    def total(self) -> int:
        """How many jobs it has so far."""
        return sum(self.counts.values())

    @property
    def status(self) -> JobStatus:
        """One word: what any job still is, else the worst end; `queued` until one has begun."""
        counts = self.counts
        if counts["queued"] == self.total:
            return JobStatus.QUEUED
        if counts["queued"] or counts["running"]:
            return JobStatus.RUNNING
        ends = (JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.SUCCEEDED)
        return next(status for status in ends if counts[status.value])


class Batching:
    """Batches, the order of the queue and its pause."""

    options: EngineOptions
    catalog: tuple[Capability, ...]
    models: ModelLibrary
    storage: Storage
    is_open: bool
    _batches: BatchStore
    _dispatcher: Dispatcher
    _submission: Submission
    _places: Callable[[int], AbstractContextManager[None]]
    _wait_from_now: Callable[..., None]
    _ended: Callable[[Job], None]
    check_callback: Callable[[str], CheckedUrl]
    get: Callable[..., Job]

    # Batches

    def handler(self, name: str) -> Capability:
        """The capability that a name or a short name means; `UnknownCapability`."""
        return handlers.resolve(name, self.catalog, self.models)

    def follow_ups(self, capability: Capability, then: Any) -> list[tuple[Capability, dict[str, Any]]]:
        """Capability and fields of each follow-up that a job of this capability names; `InvalidRequest`."""
        return chains.follow_ups(capability, then, self.handler)

    def submit_batch(
        self, wishes: Sequence[Wish], *, owner: str = "", idempotency_key: str | None = None
    ) -> tuple[Batch, bool]:
        """Accept every wish or none; answers the batch and whether it is new."""
        if not self.is_open:
            raise Unavailable("The service is not accepting jobs just now.")
        self.check_batch_size(len(wishes))
        if idempotency_key is not None and not 1 <= len(idempotency_key) <= KEY_LIMIT:
            raise InvalidRequest(f"An Idempotency-Key has 1 to {KEY_LIMIT} characters.", field="idempotency_key")
        read, follow_ups, bodies = [], [], []
        for index, wish in enumerate(wishes):
            with named(index):
                capability = self.handler(wish.capability)
                if not 0 <= wish.priority <= 10:
                    raise InvalidRequest("The priority must be between 0 and 10.", field="priority")
                read.append((capability, self._submission.read(capability, wish.payload)))
                follow_ups.append(self._submission.read_chain(self.follow_ups(capability, wish.then)))
                asked = self._submission.fingerprint(*read[-1], owner)
                asked += self._submission.chain_fingerprint(follow_ups[-1], owner)
                bodies.append((asked, wish.priority, address_of(wish)))
        body = hashlib.sha256(json.dumps(["batch", bodies]).encode()).hexdigest()
        if idempotency_key is not None:
            earlier = self._batches.find_idempotent(owner, idempotency_key, body)
            if earlier is not None:
                return earlier, False
        now, checked = time.time(), dict[str, CheckedUrl]()
        batch = Batch(new_id(), owner, now, len(wishes))
        jobs = []
        for index, (wish, (capability, asked), chain) in enumerate(zip(wishes, read, follow_ups, strict=True)):
            with named(index):
                prepared = self._submission.prepare(capability, asked, owner)
                following = self._submission.prepare_chain(chain, owner, self.options.max_attempts)
                self._require_callback(wish.callback_url, checked)
            jobs.append(
                Job(
                    id=new_id(),
                    capability=capability.name,
                    request=prepared.request,
                    status=JobStatus.QUEUED,
                    priority=wish.priority,
                    created=now,
                    max_attempts=self.options.max_attempts,
                    owner=owner,
                    model=prepared.model,
                    callback_url=address_of(wish),
                    batch_id=batch.id,
                    then=following,
                )
            )
        self.storage.check_room()
        with self._places(len(jobs)):
            accepted, born = self._batches.insert(batch, jobs, key=idempotency_key, body=body)
            if born:
                self._wait_from_now(*born)
        return accepted, bool(born)

    def check_batch_size(self, count: int) -> None:
        """`InvalidRequest` for an empty batch, `TooLarge` for one beyond the limit."""
        if not count:
            raise InvalidRequest("A batch needs at least one job.", field="jobs")
        if count > self.options.batch_limit:
            raise TooLarge(f"A batch may hold {self.options.batch_limit} jobs; these are {count}.", field="jobs")

    def batch(self, batch_id: str, owner: str = "") -> BatchView:
        """The batch as it is now; `UnknownBatch` also when it is another owner's."""
        return self._views([self._own_batch(batch_id, owner)])[0]

    def list_batches(self, *, owner: str = "", limit: int = 50, offset: int = 0) -> tuple[list[BatchView], int]:
        """The owner's batches, newest first, and how many there are in all."""
        found, total = self._batches.page(owner=owner, limit=limit, offset=offset)
        return self._views(found), total

    def jobs_of_batch(self, batch_id: str, owner: str = "", *, limit: int = 100, offset: int = 0) -> list[Job]:
        """The batch's jobs in the order in which they were asked for."""
        self._own_batch(batch_id, owner)
        jobs = self._batches.jobs_of(batch_id, limit=limit, offset=offset)
        return [self._dispatcher.with_progress(job) for job in jobs]

    def cancel_batch(self, batch_id: str, owner: str = "") -> BatchView:
        """End what waits now and what runs at its next step; `Conflict` if every job has ended."""
        batch = self._own_batch(batch_id, owner)
        ended, running = self._batches.cancel(batch.id)
        self._dispatcher.remove([job.id for job in ended])
        for job in running:
            self._dispatcher.cancel(job.id)
        for job in ended:
            self._dispatcher.ended[job.status.value] += 1
            self._ended(job)
        return self._views([batch])[0]

    def retry_batch(self, batch_id: str, owner: str = "") -> BatchView:
        """Queue the failed jobs again under the same ids; `Conflict` if none has failed."""
        batch = self._own_batch(batch_id, owner)
        failed = self._batches.counts([batch.id])[batch.id]["failed"]
        with self._places(failed):
            self._wait_from_now(*self._batches.retry(batch.id, attempts=self.options.max_attempts))
        return self._views([batch])[0]

    def find(self, id: str, owner: str = "") -> Job | BatchView:
        """The owner's job or batch of this id; `UnknownBatch` if it is neither."""
        try:
            return self.get(id, owner)
        except UnknownJob:
            try:
                return self.batch(id, owner)
            except UnknownBatch:
                raise UnknownBatch("There is no job or batch with this id.") from None

    # The queue

    def reprioritise(self, id: str, priority: int, owner: str = "") -> Job | BatchView:
        """Give a waiting job, or what still waits of a batch, another priority; `Conflict` if nothing waits."""
        if not 0 <= priority <= 10:
            raise InvalidRequest("The priority must be between 0 and 10.", field="priority")
        wanted = job_alone(id) if isinstance(self.find(id, owner), Job) else jobs_in(id)
        moved = self._batches.reprioritise(wanted, priority)
        self._dispatcher.reprioritise(dict.fromkeys(moved, priority))
        return self.find(id, owner)

    def next_jobs(self, owner: str = "", limit: int = 50) -> list[tuple[Job, int | None]]:
        """The owner's waiting jobs in the order in which they will begin, with how many stand before each."""
        places = self._dispatcher.next_of(owner, limit)
        jobs = self._batches.by_ids(list(places))
        return [(jobs[job_id], position) for job_id, position in places.items() if job_id in jobs]

    def pause_queue(self, paused: bool) -> dict[str, Any]:
        """Start nothing new, for whomever, until it is resumed; what runs goes on. Holds over a restart."""
        self._batches.pause(paused)
        self._dispatcher.pause(paused)
        return self.queue_state()

    def queue_state(self) -> dict[str, Any]:
        """Whether the queue is paused and since when, and how many jobs wait and run."""
        return {
            "paused": self._dispatcher.paused,
            "paused_since": self._batches.paused_since(),
            "queued": self._dispatcher.waiting_count(),
            "running": self._dispatcher.running_count(),
        }

    # What the methods share

    def _own_batch(self, batch_id: str, owner: str) -> Batch:
        batch = self._batches.get(batch_id)
        if batch.owner != owner:
            raise UnknownBatch("There is no such batch.")
        return batch

    def _views(self, found: Sequence[Batch]) -> list[BatchView]:
        ids = [batch.id for batch in found]
        counts, priorities = self._batches.counts(ids), self._batches.waiting_priorities(ids)
        ended = self._batches.ended_shares(ids)
        views = []
        for batch in found:
            done = ended.get(batch.id, 0.0)
            if counts[batch.id]["running"]:
                for job in self._batches.jobs_of(batch.id, status=JobStatus.RUNNING):
                    job = self._dispatcher.with_progress(job)
                    done += chains.own_share(job) * job.step / job.steps if job.steps else 0.0
            share = min(1.0, round(done / batch.size, 6))
            views.append(BatchView(batch, counts[batch.id], share, priorities.get(batch.id)))
        return views

    def _require_callback(self, url: str | CheckedUrl | None, checked: dict[str, CheckedUrl]) -> None:
        """Each address is looked up once for the whole batch."""
        if url is None:
            return
        if isinstance(url, str):
            if url not in checked:
                checked[url] = self.check_callback(url)
            url = checked[url]
        if url.refusal is not None:
            raise url.refusal


@contextmanager
def named(index: int) -> Iterator[None]:
    """Whatever is refused inside says which wish of the batch it is about, counted from 0."""
    try:
        yield
    except ServiceError as error:
        raise type(error)(f"Job {index}: {error.message}", **{**error.details, "index": index}) from None


def address_of(wish: Wish) -> str | None:
    """The callback's address in plain words."""
    return wish.callback_url.url if isinstance(wish.callback_url, CheckedUrl) else wish.callback_url
