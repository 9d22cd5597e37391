"""Who is watching which job, and how an event reaches them without a thread for each.

Every watcher has a mailbox. An event that only replaces its forerunner (position, step, stages, preview) takes its
place there, so a slow watcher costs no memory and always reads the newest; starts and ends are kept. Putting an event
never blocks.
"""

import threading
from collections.abc import Callable
from contextlib import suppress

from app.core.jobs import JobEvent

REPLACEABLE = frozenset({"queued", "step", "stages", "preview"})


class Mailbox:
    """The events that one watcher has not read yet. `wake` is called, from any thread, when there is something."""

    def __init__(self, wake: Callable[[], None], *, preview: bool, ends_only: bool) -> None:
        self.preview = preview
        self.ends_only = ends_only
        self._wake = wake
        self._lock = threading.Lock()
        self._events: list[JobEvent] = []

    def put(self, event: JobEvent) -> None:
        """Leave an event; one of a replaceable kind replaces the unread one of that kind."""
        with self._lock:
            if event.kind in REPLACEABLE:
                self._events = [known for known in self._events if known.kind != event.kind]
            self._events.append(event)
        # A loop that closed while its watcher was still registered has nobody left to wake.
        with suppress(RuntimeError):
            self._wake()

    def take(self) -> list[JobEvent]:
        """What came since the last call, in order."""
        with self._lock:
            events, self._events = self._events, []
        return events


class Watchers:
    """The mailboxes of every watched job. `on_preview` hears when the first asks for previews and the last leaves."""

    def __init__(self, on_preview: Callable[[str, bool], None]) -> None:
        self.forward: Callable[[JobEvent], None] | None = None
        """Called with what happened here, for those who watch on other servers."""
        self._on_preview = on_preview
        self._lock = threading.Lock()
        self._mailboxes: dict[str, list[Mailbox]] = {}

    def subscribe(
        self, job_id: str, wake: Callable[[], None], *, preview: bool = False, ends_only: bool = False
    ) -> Mailbox:
        """A mailbox that receives what happens to this job from now on."""
        mailbox = Mailbox(wake, preview=preview, ends_only=ends_only)
        with self._lock:
            first = preview and not self._wants(job_id)
            self._mailboxes.setdefault(job_id, []).append(mailbox)
        if first:
            self._on_preview(job_id, True)
        return mailbox

    def unsubscribe(self, job_id: str, mailbox: Mailbox) -> None:
        """Stop receiving."""
        with self._lock:
            boxes = self._mailboxes.get(job_id, [])
            boxes.remove(mailbox)
            if not boxes:
                del self._mailboxes[job_id]
            last = mailbox.preview and not self._wants(job_id)
        if last:
            self._on_preview(job_id, False)

    def publish(self, event: JobEvent) -> None:
        """Hand an event to everybody who watches its job."""
        self.deliver(event)
        if self.forward is not None:
            self.forward(event)

    def deliver(self, event: JobEvent) -> None:
        """Hand an event to those who watch its job on this server."""
        with self._lock:
            boxes = list(self._mailboxes.get(event.job_id, ()))
        for box in boxes:
            if box.ends_only and event.kind not in {"succeeded", "failed", "cancelled"}:
                continue
            if event.kind != "preview" or box.preview:
                box.put(event)

    def wants_preview(self, job_id: str) -> bool:
        """Whether somebody watches this job's previews."""
        with self._lock:
            return self._wants(job_id)

    def watched(self) -> list[str]:
        """The jobs that somebody watches."""
        with self._lock:
            return list(self._mailboxes)

    def _wants(self, job_id: str) -> bool:
        return any(box.preview for box in self._mailboxes.get(job_id, ()))
