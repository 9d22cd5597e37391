"""How a face waits for a job and follows it: on an event loop without a thread, or blocking."""

import asyncio
import queue
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

from app.core.jobs import Job, JobEvent, JobStatus
from app.core.watchers import Watchers

ENDS = frozenset({"succeeded", "failed", "cancelled"})


class Watching:
    """The part of the Service that waits and watches; `get` and `position` are the Service's own."""

    _watchers: Watchers

    def get(self, job_id: str, owner: str = "") -> Job:
        """The job as it is now."""
        raise NotImplementedError

    def stages_of(self, job_id: str) -> list[dict[str, Any]]:
        """What a running job told of its stages so far."""
        raise NotImplementedError

    def position(self, job_id: str) -> int | None:
        """How many jobs stand before this one."""
        raise NotImplementedError

    async def wait(self, job_id: str, seconds: float, owner: str = "") -> Job:
        """The job at its end, or as it is when the time is over."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        mailbox = self._watchers.subscribe(job_id, lambda: loop.call_soon_threadsafe(arrived.set), ends_only=True)
        try:
            job = self.get(job_id, owner)
            if not job.status.is_terminal and seconds > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(arrived.wait(), seconds)
                job = self.get(job_id, owner)
            return job
        finally:
            self._watchers.unsubscribe(job_id, mailbox)

    async def watch(self, job_id: str, owner: str = "", preview: bool = False) -> AsyncIterator[JobEvent]:
        """What happens to the job: first its present state, last its end."""
        self.get(job_id, owner)
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        mailbox = self._watchers.subscribe(job_id, lambda: loop.call_soon_threadsafe(arrived.set), preview=preview)
        try:
            event = self._present(job_id, owner)
            yield event
            if told := self._stages_now(event):
                yield told
            while event.kind not in ENDS:
                await arrived.wait()
                arrived.clear()
                for event in mailbox.take():
                    yield event
                    if event.kind in ENDS:
                        break
        finally:
            self._watchers.unsubscribe(job_id, mailbox)

    def watch_blocking(
        self, job_id: str, owner: str = "", preview: bool = False, seconds: float | None = None
    ) -> Iterator[JobEvent]:
        """`watch` for a caller without an event loop; ends after `seconds` of silence if they are given."""
        self.get(job_id, owner)
        arrived: queue.SimpleQueue[None] = queue.SimpleQueue()
        mailbox = self._watchers.subscribe(job_id, lambda: arrived.put(None), preview=preview)
        try:
            event = self._present(job_id, owner)
            yield event
            if told := self._stages_now(event):
                yield told
            while event.kind not in ENDS:
                try:
                    arrived.get(timeout=seconds)
                except queue.Empty:
                    return
                for event in mailbox.take():
                    yield event
                    if event.kind in ENDS:
                        break
        finally:
            self._watchers.unsubscribe(job_id, mailbox)

    def _stages_now(self, present: JobEvent) -> JobEvent | None:
        """The stages so far for who comes late; an end carries them itself."""
        stages = [] if present.kind in ENDS else self.stages_of(present.job_id)
        return JobEvent(present.job_id, "stages", {"stages": stages}) if stages else None

    def _present(self, job_id: str, owner: str) -> JobEvent:
        job = self.get(job_id, owner)
        if job.status.is_terminal:
            return end_event(job)
        if job.status is JobStatus.QUEUED:
            return JobEvent(job.id, "queued", {"position": self.position(job.id)})
        if job.step:
            return JobEvent(job.id, "step", {"step": job.step, "steps": job.steps, "seconds_left": None})
        return JobEvent(job.id, "started", {"device": job.device, "model": job.model, "attempt": job.attempt})


def end_event(job: Job) -> JobEvent:
    """What watchers read of a job that has ended."""
    data: dict[str, Any] = {"step": job.step, "steps": job.steps}
    if job.result is not None:
        data["result"] = job.result
    if job.error is not None:
        data["error"] = job.error
    return JobEvent(job.id, job.status.value, data)
