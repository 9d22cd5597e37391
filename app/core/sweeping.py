"""Picture files that belong to nobody: unfinished ones, finished ones without a row, and what a command left in trust.

What must never happen: a file goes that a row names or will name. It cannot, because only the one store that has ever
served a home judges its finished files (several servers of one store are one store), only those written since it came,
and only while no command works there whose rows are elsewhere; only files that are older than `orphan_seconds` (an
upload gets its row in the request that brings it) and older than the oldest attempt that still runs (its pictures get
their rows when it ends). The price is that what a crash left lies there for that long, and that a home which two stores
have served is never cleared.

Under a home that has a shared store lie copies: one without a row goes from here alone. In the shared store itself only
the one job store that has ever served it judges, whichever of its servers looks, by the same rules; its pictures bear
another machine's clock, so they are left a while longer.
"""

import logging
import threading
import time

from app.core.engine_options import EngineOptions
from app.core.job_store import JobStore
from app.core.jobs import ImageRecord
from app.core.storage import Storage

logger = logging.getLogger(__name__)

CLOCK_SECONDS = 1.0
"""What two looks at two clocks may differ by."""
SHARED_CLOCK_SECONDS = 300.0
"""The clocks of a shared store, of the workers and of this machine may be this far apart."""


class Sweeper:
    """Looks over the pictures of one home, again and again until it closes."""

    def __init__(self, store: JobStore, storage: Storage, options: EngineOptions) -> None:
        self._store = store
        self._storage = storage
        self._options = options
        self._next_orphans = 0.0

    def run(self, closing: threading.Event) -> None:
        """Sweep until `closing` is set; a trouble is logged and tried again."""
        pause = min(self._options.sweep_seconds, self._options.orphan_seconds or self._options.sweep_seconds)
        while not closing.is_set():
            try:
                self._storage.sweep(self._options.sweep_seconds)
                if self._options.orphan_seconds is not None:
                    self._sweep_finished(self._options.orphan_seconds)
            except Exception:
                # A full disk, a busy store: this thread must live.
                logger.exception("files that belong to nobody could not be removed")
            closing.wait(pause)

    def _sweep_finished(self, orphan_seconds: float) -> None:
        self._storage.claim(self._store.id)
        with self._storage.undisturbed() as undisturbed:
            if not undisturbed:
                return
            for stored, kind in self._storage.in_trust():
                self._storage.share(stored.id)
                self._store.images.add(ImageRecord(kind=kind, **vars(stored)))
                self._storage.end_trust(stored.id)
            if time.monotonic() >= self._next_orphans:
                self._remove_orphans(orphan_seconds)
                self._look_over_shared(orphan_seconds)
                self._next_orphans = time.monotonic() + orphan_seconds

    def _remove_orphans(self, orphan_seconds: float) -> None:
        since = self._storage.claimed_since(self._store.id)
        if since is None:
            return
        # The files are dated by one clock and the attempts by another: an age is the same on both.
        age, oldest = orphan_seconds, self._store.oldest_attempt()
        if oldest is not None:
            age = max(age, self._store.now() - oldest + CLOCK_SECONDS)
        limit = self._storage.clock() - age
        # Rows are asked for after the limit is fixed: what ended before has them, what ends later is younger.
        for reference in self._store.images.without_row(self._storage.finished(since, limit)):
            self._storage.remove_copy(reference)
            logger.warning("picture %s had no row and was removed", reference)

    def _look_over_shared(self, orphan_seconds: float) -> None:
        """Remove pictures without a row from the shared store; bring there what lies only here and has one."""
        shared = self._storage.shared
        if shared is None:
            return
        now, since = time.time(), shared.claimed_since(self._store.id)
        age, oldest = orphan_seconds, self._store.oldest_attempt()
        if oldest is not None:
            age = max(age, self._store.now() - oldest)
        limit = now - age - SHARED_CLOCK_SECONDS
        only_here = set(self._storage.finished(0.0, now))
        for written in shared.pictures():
            only_here -= written.keys()
            judged = [] if since is None else [name for name, at in written.items() if since <= at <= limit]
            for reference in self._store.images.without_row(judged):
                shared.drop(reference)
                logger.warning("picture %s in the shared store had no row and was removed", reference)
        for reference in sorted(only_here - set(self._store.images.without_row(sorted(only_here)))):
            self._storage.share(reference)
