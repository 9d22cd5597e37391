"""The end of the process, as long requests learn of it: they answer with what they have instead of holding it up."""

import asyncio
from collections.abc import Callable

from starlette.requests import Request


class Draining:
    """Begun once, from the event loop, when the server starts to stop; `stop` then runs beside the loop."""

    def __init__(self, stop: Callable[[float], None], seconds: float) -> None:
        self.begun = asyncio.Event()
        self.seconds = seconds
        self._stop = stop
        self._stopping: asyncio.Future[None] | None = None

    def begin(self) -> None:
        """Let the running jobs end and start no more."""
        if self._stopping is None:
            self.begun.set()
            self._stopping = asyncio.ensure_future(asyncio.to_thread(self._stop, self.seconds))

    async def finish(self) -> None:
        """Wait until the service has stopped."""
        self.begin()
        await self._stopping


async def until_gone(request: Request) -> None:
    """Return when the client has closed its connection; the body must have been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
