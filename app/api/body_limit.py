"""The size of a body is counted as it arrives, so that no framework buffers what nobody will accept.

A declared length above the limit is answered at once; a chunked body is cut off at the first byte too many. After
the refusal a little more is read and thrown away, because closing a socket with unread bytes in it would make the
client's system drop the answer.
"""

import asyncio
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import error_answer
from app.errors import TooLarge

LINGER_SECONDS = 1.0
LINGER_BYTES = 8 * 2**20


class BodyLimit:
    """ASGI middleware that counts request bodies."""

    def __init__(self, app: ASGIApp, *, limit: int) -> None:
        self.app = app
        self.limit = limit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        declared = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
        if declared.isdigit() and int(declared) > self.limit:
            await self.refuse(scope, receive, send)
            return
        count = 0
        started = False
        exceeded = False

        async def counted() -> Message:
            nonlocal count, exceeded
            message = await receive()
            if message["type"] == "http.request":
                count += len(message.get("body", b""))
                if count > self.limit:
                    exceeded = True
                    raise TooLarge("The request body is too large.")
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            if exceeded and not started:
                return
            started = started or message["type"] == "http.response.start"
            await send(message)

        with suppress(TooLarge):
            await self.app(scope, counted, watched)
        if exceeded and not started:
            await self.refuse(scope, receive, send)

    async def refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 413, then linger until the client has had time to read it."""
        response = error_answer(
            413,
            "too_large",
            f"The request body is larger than {self.limit} bytes.",
            {"limit": self.limit},
            {"Connection": "close"},
        )
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": True})
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
