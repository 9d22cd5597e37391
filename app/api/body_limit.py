"""The size of a body is counted as it arrives, so that no framework buffers what nobody will accept.

A declared length above the limit is answered at once; a chunked body is cut off at the first byte too many. After
the refusal a little more is read and thrown away, because closing a socket with unread bytes in it would make the
client's system drop the answer.

One route is a wide door: it has a limit of its own, asks for room on the disk before it reads, and its body may take
longer than others'. Who may not come in has been turned away before.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import error_answer, service_error_answer
from app.api.protocol import RECEIVE_AT_RATE
from app.errors import ServiceError, TooLarge

LINGER_SECONDS = 1.0
LINGER_BYTES = 8 * 2**20


@dataclass(frozen=True)
class WideDoor:
    """A route that takes more than the others; `check_room` raises where so many bytes do not fit on the disk."""

    method: str
    path: str
    limit: int
    check_room: Callable[[int], None]

    def is_at(self, scope: Scope) -> bool:
        """Whether the request is for this route."""
        return (scope["method"], scope["path"]) == (self.method, self.path)


class BodyLimit:
    """ASGI middleware that counts request bodies."""

    def __init__(self, app: ASGIApp, *, limit: int, wide: WideDoor | None = None) -> None:
        self.app = app
        self.limit = limit
        self.wide = wide

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        wide = self.wide if self.wide and self.wide.is_at(scope) else None
        limit = wide.limit if wide else self.limit
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        length = int(declared) if declared.isdigit() else 0
        if length > limit:
            await self.refuse(receive, send, too_large(limit))
            return
        if wide:
            try:
                await asyncio.to_thread(wide.check_room, length)
            except ServiceError as error:
                await self.refuse(receive, send, service_error_answer(error))
                return
            scope.get("extensions", {}).get(RECEIVE_AT_RATE, lambda: None)()
        await self.count(scope, receive, send, limit, lingers=wide is not None)

    async def count(self, scope: Scope, receive: Receive, send: Send, limit: int, *, lingers: bool) -> None:
        """Let the application read up to the limit. `lingers`: what it answers before the body's end is a refusal."""
        count = 0
        started = exceeded = whole = False

        async def counted() -> Message:
            nonlocal count, exceeded, whole
            message = await receive()
            if message["type"] == "http.request":
                count += len(message.get("body", b""))
                whole = not message.get("more_body", False)
                if count > limit:
                    exceeded = True
                    raise TooLarge("The request body is too large.")
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            if exceeded and not started:
                return
            if lingers and not whole:
                await self.linger(receive, send, message)
                started = True
                return
            started = started or message["type"] == "http.response.start"
            await send(message)

        with suppress(TooLarge):
            await self.app(scope, counted, watched)
        if exceeded and not started:
            await self.refuse(receive, send, too_large(limit))

    async def refuse(self, receive: Receive, send: Send, response: Response) -> None:
        """Answer before the body was read."""
        start = {"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers}
        await self.linger(receive, send, start)
        await self.linger(receive, send, {"type": "http.response.body", "body": response.body, "more_body": False})

    async def linger(self, receive: Receive, send: Send, message: Message) -> None:
        """Send a part of an early answer; after the last one wait until the client has had time to read it."""
        if message["type"] == "http.response.start":
            headers = [*message["headers"], (b"connection", b"close")]
            await send({**message, "headers": headers})
            return
        await send({**message, "more_body": True})
        if not message.get("more_body", False):
            with suppress(TimeoutError):
                await asyncio.wait_for(self.discard(receive), LINGER_SECONDS)
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def discard(self, receive: Receive) -> None:
        count = 0
        while count < LINGER_BYTES:
            message = await receive()
            if message["type"] != "http.request" or not message.get("more_body", False):
                return
            count += len(message.get("body", b""))


def too_large(limit: int) -> Response:
    """The answer to a body above its limit."""
    return error_answer(413, "too_large", f"The request body is larger than {limit} bytes.", {"limit": limit})
