"""Blocking work that waits for strangers gets a few threads of its own, and only so many requests may wait for them.

The pool that every other request shares is never taken by it: a slow host costs those who named it, nobody else. Who
comes when all places are taken is told so at once, for a wait without an end is worse than a refusal.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

from anyio import CapacityLimiter, to_thread

from app.errors import Unavailable

Given = ParamSpec("Given")
Made = TypeVar("Made")


class FewAtOnce:
    """At most `at_once` threads at work and `waiting` more requests in line; beyond them `Unavailable`."""

    def __init__(self, at_once: int, waiting: int, refusal: str) -> None:
        self.limiter = CapacityLimiter(at_once)
        self.places = at_once + waiting
        self.taken = 0
        self.refusal = refusal

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place for one request, however often it then calls `run`: it is not refused halfway."""
        if self.taken >= self.places:
            raise Unavailable(self.refusal)
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1

    async def run(self, work: Callable[Given, Made], *arguments: Given.args) -> Made:
        """Do it in a thread as soon as one is free."""
        return await to_thread.run_sync(work, *arguments, limiter=self.limiter)
