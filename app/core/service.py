"""The one door for every face: submit, get, list, cancel, retry, wait and watch; pictures by owner; how the house is.

Every method may be called from any thread. `wait` and `watch` are for an event loop and hold no thread while they wait.
An owner meets only its own jobs and pictures: those of others are answered as if they did not exist.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Literal

from app.core.batch_store import BatchStore
from app.core.batching import Batching
from app.core.callbacks import CallbackSender, CheckedUrl, Signer, check_callback_url, secret_of
from app.core.datasets import Dataset, DatasetLimits, entries_of_archive, entries_of_folder, read_dataset
from app.core.dispatcher import Dispatcher
from app.core.engine_options import EngineOptions, load_catalog
from app.core.fleet import Fleet
from app.core.found_pictures import FoundPictures
from app.core.job_store import JobStore
from app.core.jobs import Batch, ImageRecord, Job, JobStatus, new_id
from app.core.memory_report import ANSWER_SECONDS, tell_memory
from app.core.peers import Ears, Peers
from app.core.storage import StoredImage, open_storage
from app.core.submission import Submission
from app.core.sweeping import Sweeper
from app.core.watchers import Watchers
from app.core.watching import Watching, end_event
from app.errors import InvalidRequest, QueueFull, Unavailable, UnknownCapability, UnknownImage, UnknownJob
from app.guarded_http import GuardedClient
from app.models.library import ModelLibrary
from app.search_providers import SearchProvider

KEY_LIMIT = 255
FOUND_LIMIT = 64 * 2**20
"""Bytes of a picture that a web search found."""

STOP_SECONDS = 5.0
ABLE = frozenset({"idle", "busy", "elsewhere"})
"""States of workers that jobs can count on: one that another server of this job store has serves its jobs there."""


class Service(Watching, Batching):
    """The engine behind one method call each; `start` before the first submit, `stop` at the end."""

    def __init__(self, options: EngineOptions) -> None:
        options.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.options = options
        self.catalog = load_catalog(options.catalog)
        self.storage = open_storage(options)
        if self.storage.shared is not None:
            self.storage.shared.check()
        self.models = ModelLibrary(
            options.home,
            hub_url=options.hub_url,
            hub_token=options.hub_token,
            trusted_hosts=options.trusted_hosts,
        )
        self._by_name = {capability.name: capability for capability in self.catalog}
        self._client = GuardedClient(options.trusted_hosts)
        SearchProvider(options.search_provider, options.search_url, options.search_key, self._client)
        self.found = FoundPictures(self.get, self.upload, limit=FOUND_LIMIT)
        signer = Signer(secret_of(options.home, options.callback_secret))
        self.devices = Fleet(options, self.models)
        # The store holds the home's lock: nothing that may refuse comes after it.
        self._store = JobStore(options.store_url, lease_seconds=options.server_lost_seconds)
        if self.storage.shared is not None:
            self.storage.shared.claim(self._store.id)
        self._batches = BatchStore(self._store)
        self.devices.others_serve |= self._store.database.is_shared
        devices = self.devices.known_names
        self._submission = Submission(self.storage, self.models, self._store.images, self._store.get, devices)
        self._watchers = Watchers(lambda job_id, on: self._dispatcher.set_preview(job_id, on))
        giving_way = [capability.name for capability in self.catalog if capability.gives_way]
        self._dispatcher = Dispatcher(
            self._store, self.storage, self._watchers, options, self.devices, self._ended, giving_way
        )
        self._callbacks = CallbackSender(self._store.outbox, signer, self._client, clock=self._store.now)
        self._peers = self._meet_peers() if self._store.database.is_shared else None
        self._accepting = threading.Lock()
        self._being_accepted = 0
        self._open = False
        self._closing = threading.Event()
        self._submitted = 0
        self._began = time.time()
        sweeper = Sweeper(self._store, self.storage, options)
        self._sweeping = threading.Thread(target=sweeper.run, args=(self._closing,), name="sweep", daemon=True)
        self.on_end: list[Callable[[Job], None]] = []
        """Called, in an engine's thread, with each job that has ended."""

    # Life

    def start(self) -> None:
        """Take up what was left by the process before, start the workers and accept jobs."""
        self._dispatcher.pause(self._batches.paused_since() is not None)
        self._dispatcher.start()
        self._callbacks.start()
        if self._peers is not None:
            self._peers.start()
        self._sweeping.start()
        self._open = True

    def stop(self, drain_seconds: float) -> None:
        """Accept nothing more, let what runs end within the time, and close; the rest waits for the next start."""
        was_open, self._open = self._open, False
        self._closing.set()
        if was_open:
            self._dispatcher.stop(drain_seconds)
            self._callbacks.stop()
            if self._peers is not None:
                self._peers.stop()
            self._sweeping.join(STOP_SECONDS)
        self.devices.close()
        self._store.close()

    def hurry(self) -> None:
        """A `stop` that waits for running jobs waits no longer: they run again after the next start."""
        self._dispatcher.hurry()

    @property
    def is_open(self) -> bool:
        """Whether jobs are accepted: between `start` and `stop`."""
        return self._open

    # Jobs

    def submit(
        self,
        capability: str,
        payload: Mapping[str, Any],
        *,
        owner: str = "",
        priority: int = 5,
        idempotency_key: str | None = None,
        callback_url: str | CheckedUrl | None = None,
        then: Any = None,
    ) -> Job:
        """Check and resolve the wish, and what is to follow, and accept it: when this returns, it is on the disk."""
        if not self._open:
            raise Unavailable("The service is not accepting jobs just now.")
        if not 0 <= priority <= 10:
            raise InvalidRequest("The priority must be between 0 and 10.", field="priority")
        if idempotency_key is not None and not 1 <= len(idempotency_key) <= KEY_LIMIT:
            raise InvalidRequest(f"An Idempotency-Key has 1 to {KEY_LIMIT} characters.", field="idempotency_key")
        known = self._by_name.get(capability)
        if known is None:
            raise UnknownCapability("There is no capability of this name.")
        wish = self._submission.read(known, payload)
        chain = self._submission.read_chain(self.follow_ups(known, then))
        address = callback_url.url if isinstance(callback_url, CheckedUrl) else callback_url
        body = f"{self._submission.fingerprint(known, wish, owner)}:{priority}:{address or ''}"
        body += self._submission.chain_fingerprint(chain, owner)
        if idempotency_key is not None:
            earlier = self._store.find_idempotent(owner, idempotency_key, body)
            if earlier is not None:
                return self._dispatcher.with_progress(earlier)
        # What the key's job needed may be gone by now: only a new job has its pictures and model looked up.
        prepared = self._submission.prepare(known, wish, owner)
        following = self._submission.prepare_chain(chain, owner, self.options.max_attempts)
        if callback_url is not None:
            checked = self.check_callback(callback_url) if isinstance(callback_url, str) else callback_url
            if checked.refusal is not None:
                raise checked.refusal
        self.storage.check_room()
        batch = Batch(new_id(), owner, time.time(), 1) if following else None
        job = Job(
            id=new_id(),
            capability=known.name,
            request=prepared.request,
            status=JobStatus.QUEUED,
            priority=priority,
            created=time.time(),
            max_attempts=self.options.max_attempts,
            owner=owner,
            model=prepared.model,
            callback_url=address,
            idempotency_key=idempotency_key,
            batch_id=batch and batch.id,
            then=following,
        )
        return self._accept(lambda: self._store.insert(job, body=body, batch=batch), job.id)

    def check_callback(self, url: str) -> CheckedUrl:
        """Look at a callback's address ahead of `submit`, in a thread that may wait for a slow resolver."""
        return check_callback_url(self._client, url)

    def get(self, job_id: str, owner: str = "") -> Job:
        """The job as it is now; `UnknownJob` also when it is another owner's."""
        job = self._store.get(job_id)
        if job.owner != owner:
            raise UnknownJob("There is no such job.")
        return self._dispatcher.with_progress(job) if job.status is JobStatus.RUNNING else job

    def list_jobs(
        self,
        *,
        owner: str = "",
        status: JobStatus | str | None = None,
        capability: str | None = None,
        limit: int = 50,
        offset: int = 0,
    ) -> tuple[list[Job], int]:
        """The owner's jobs, newest first, and how many there are in all."""
        if status is not None and status not in set(JobStatus):
            raise InvalidRequest(f"A status is one of {', '.join(JobStatus)}.", field="status")
        wanted = JobStatus(status) if status is not None else None
        found, total = self._store.list_jobs(
            owner=owner, status=wanted, capability=capability, limit=limit, offset=offset
        )
        return [self._dispatcher.with_progress(job) for job in found], total

    def cancel(self, job_id: str, owner: str = "") -> Job:
        """End a waiting job now, a running one at its next step; `Conflict` if it succeeded or failed."""
        self.get(job_id, owner)
        before = self._store.get(job_id).status
        job = self._store.cancel(job_id)
        if job.status is JobStatus.RUNNING:
            self._dispatcher.cancel(job_id)
        else:
            self._dispatcher.remove([job_id])
            if before is not JobStatus.CANCELLED:
                self._dispatcher.ended[job.status.value] += 1
                self._ended(job)
        return self._dispatcher.with_progress(job)

    def retry(self, job_id: str, owner: str = "") -> Job:
        """Queue a failed or cancelled job again under the same id; `Conflict` in any other state."""
        self.get(job_id, owner)
        return self._accept(lambda: self._store.retry(job_id, attempts=self.options.max_attempts), job_id)

    def position(self, job_id: str) -> int | None:
        """How many jobs stand before this one (0: next); None if it does not wait."""
        return self._dispatcher.position(job_id)

    def stages_of(self, job_id: str) -> list[dict[str, Any]]:
        """What a job that runs here told of its stages so far."""
        return self._dispatcher.stages_of(job_id)

    def history(self, job_id: str, owner: str = "") -> list[dict[str, Any]]:
        """The job's transitions, oldest first."""
        self.get(job_id, owner)
        return self._store.history(job_id)

    def callbacks_of(self, job_id: str, owner: str = "") -> list[dict[str, Any]]:
        """The job's callbacks, with what became of each."""
        self.get(job_id, owner)
        return self._store.outbox.of_job(job_id)

    # Pictures

    def upload(self, data: bytes, *, kind: Literal["image", "mask"] = "image", owner: str = "") -> StoredImage:
        """Store a caller's picture and remember whose it is."""
        stored = self.storage.put(data, kind=kind)
        self.record_upload(stored, owner=owner, kind=kind)
        return stored

    def take_in_dataset(self, source: bytes | str, *, owner: str = "") -> Dataset:
        """Store the pictures of an archive's bytes, or of the operator's folder of this name: all of them or none."""
        options = self.options
        limits = DatasetLimits(options.dataset_pictures, options.dataset_bytes, options.dataset_folder)
        entries = entries_of_archive(source, limits) if isinstance(source, bytes) else entries_of_folder(source, limits)
        return read_dataset(entries, self, self.storage.open, owner=owner, limits=limits)

    def record_upload(self, stored: StoredImage, *, owner: str = "", kind: str = "image") -> None:
        """Remember whose a stored picture is."""
        self._store.images.add(ImageRecord(kind=kind, owner=owner, **vars(stored)))

    def image_owner(self, image_id: str) -> str:
        """Whose picture this is; `UnknownImage` if there is none."""
        return self._submission.owner_of(image_id)

    def get_image(self, image_id: str, owner: str = "") -> ImageRecord:
        """What is known of a picture; `UnknownImage` also when it is another owner's."""
        record = self._store.images.get(image_id)
        if record is None or record.owner != owner:
            raise UnknownImage("There is no picture with this id.")
        return record

    def search_images(
        self,
        *,
        owner: str = "",
        prompt: str | None = None,
        model: str | None = None,
        seed: int | None = None,
        capability: str | None = None,
        kind: str | None = "result",
        limit: int = 50,
        offset: int = 0,
    ) -> tuple[list[ImageRecord], int]:
        """The owner's pictures by words of the prompt, model, seed and capability: newest first, and how many."""
        return self._store.images.search(
            owner=owner,
            prompt=prompt,
            model=model,
            seed=seed,
            capability=capability,
            kind=kind,
            limit=limit,
            offset=offset,
        )

    def delete_image(self, image_id: str, owner: str = "") -> None:
        """Forget a picture and remove its file; `Conflict` while a job that has not ended needs it."""
        if self.image_owner(image_id) != owner:
            raise UnknownImage("There is no picture with this id.")
        self._store.images.remove(image_id, owner=owner, sha256=self._submission.digest_of(image_id, owner))
        with suppress(UnknownImage):
            self.storage.delete(image_id)

    # How the house is

    def readiness(self) -> dict[str, Any]:
        """Whether a job would be served now, and who would serve it."""
        workers = self._dispatcher.workers()
        return {
            "ready": self._open and any(worker["state"] in ABLE for worker in workers),
            "workers": workers,
            "queued": self._dispatcher.waiting_count(),
            "running": self._dispatcher.running_count(),
            "paused": self._dispatcher.paused,
        }

    def memory_status(self, *, cleanup: bool = False, seconds: float = ANSWER_SECONDS) -> dict[str, Any]:
        """The memory of every worker as it is told in time; with `cleanup`, what dropping unused models has freed."""
        return tell_memory(self.devices, cleanup=cleanup, seconds=seconds)

    def device_status(self, owner: str = "") -> dict[str, Any]:
        """Every device: its figures, its worker, what it holds and what it did."""
        return self.devices.status(self._dispatcher.running_jobs(), owner)

    def statistics(self) -> dict[str, Any]:
        """Counts since the start, and the jobs by state in all."""
        return {
            **self.readiness(),
            "since": self._began,
            "submitted": self._submitted,
            "ended": dict(self._dispatcher.ended),
            "run_seconds": self._dispatcher.run_seconds,
            "wait_seconds": self._dispatcher.wait_seconds,
            "jobs": self._store.counts(),
        }

    # What the methods share

    def _accept(self, write: Callable[[], Job], job_id: str) -> Job:
        """Write a job that is to wait, unless too many do, and hand it to the dispatcher."""
        with self._places(1):
            job = write()
            if job.id == job_id:
                self._wait_from_now(job)
            return job

    @contextmanager
    def _places(self, count: int) -> Iterator[None]:
        """Places in the queue while jobs for them are written; `QueueFull` when so many are not free."""
        with self._accepting:
            taken, limit = self._dispatcher.waiting_count() + self._being_accepted, self.options.queue_limit
            if taken >= limit:
                raise QueueFull(f"{limit} jobs wait already; try again later.")
            if taken + count > limit:
                raise QueueFull(f"{count} jobs are too many just now: {taken} wait already, {limit} may.")
            self._being_accepted += count
        try:
            yield
        finally:
            with self._accepting:
                self._being_accepted -= count

    def _wait_from_now(self, *jobs: Job) -> None:
        """Hand written jobs to the dispatcher."""
        self._dispatcher.add(*jobs)
        with self._accepting:
            self._submitted += len(jobs)

    def _meet_peers(self) -> Peers:
        def ended(job: Job) -> None:
            self._dispatcher.ended[job.status.value] += 1
            self._ended(job)

        ears = Ears(ended, self._callbacks.wake)
        return Peers(self._store, self._batches, self._dispatcher, self._watchers, self._dispatcher.pause_after, ears)

    def _ended(self, job: Job) -> None:
        self._watchers.publish(end_event(job))
        for observe in self.on_end:
            observe(job)
        if job.callback_url:
            self._callbacks.wake()
