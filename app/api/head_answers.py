"""HEAD is GET whose body stays here: same route, same checks, same headers.

The routes know GET alone, and so does the document; a stream that would go on is ended at its first piece.
"""

from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Answered(Exception):
    """What HEAD asks for has been sent; the rest of the body need not be made."""


class HeadAnswers:
    """ASGI middleware, innermost: what stands before it sees the method that was asked with."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        asked = {**scope, "method": "GET"}
        started = False

        async def without_body(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                scope["route"] = asked.get("route")
                await send(message)
            elif message.get("more_body", False):
                raise Answered

        with suppress(Answered):
            await self.app(asked, receive, without_body)
        if started:
            await send({"type": "http.response.body", "body": b"", "more_body": False})
