"""Where the browser page hangs: behind all routes, from the first moment, filled in when its library is imported.

Importing that library takes seconds and nothing else needs it, so the server answers first and a thread imports
then. Until the page stands a small one says so and looks again by itself.
"""

import asyncio
import logging
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse
from starlette.routing import Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import HTTP_EXCEPTIONS, error_answer

log = logging.getLogger(__name__)

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="{seconds}">
<link rel="icon" href="data:,"><title>Edit Image Service</title>
<style>body{{font:16px system-ui,sans-serif;display:grid;place-items:center;
min-height:90vh;margin:0;background:Canvas;color:CanvasText;color-scheme:light dark}}</style>
<main><h1>Edit Image Service</h1><p>{text} The API is described at <a href="/docs">/docs</a>.</p></main></html>"""
STARTING = "The page is starting and will appear here in a moment."
FAILED = "The page could not start; the server's log says why."
OWN = "/gradio_api/"
"""Below it the page's script speaks to its library; those two understand each other's errors."""


class BrowserPage:
    """ASGI application that hands over to the page once it stands."""

    def __init__(self, build: Callable[[], ASGIApp]) -> None:
        self.build = build
        self.page: ASGIApp | None = None
        self.failed = False
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/api/"):
            await self.not_found(scope, receive, send)
        elif self.page is not None:
            await self.page(scope, receive, send if scope["path"].startswith(OWN) else unified(scope, receive, send))
        elif scope["path"] == "/" and scope["method"] in {"GET", "HEAD"}:
            text, seconds, status = (FAILED, 60, 503) if self.failed else (STARTING, 1, 200)
            headers = {"Cache-Control": "no-store"}
            await HTMLResponse(PAGE.format(text=text, seconds=seconds), status, headers)(scope, receive, send)
        else:
            await self.not_found(scope, receive, send)

    async def not_found(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What every other address without a route answers."""
        await error_answer(404, *HTTP_EXCEPTIONS[404])(scope, receive, send)

    async def start(self) -> None:
        """Begin to build the page beside the event loop."""
        self._task = asyncio.ensure_future(self._run())
        await asyncio.sleep(0)

    async def stop(self) -> None:
        """End the page's own tasks."""
        self._stop.set()
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=5)

    async def _run(self) -> None:
        try:
            page = await asyncio.to_thread(self.build)
        except Exception:
            self.failed = True
            log.exception("the browser page could not start")
            return
        router = getattr(page, "router", None)
        if isinstance(router, Router):
            async with router.lifespan_context(page):
                self.page = page
                await self._stop.wait()
        else:
            self.page = page
            await self._stop.wait()


def unified(scope: Scope, receive: Receive, send: Send) -> Send:
    """Tell that there is no such address or method as every other answer does, not as the page's library would."""
    replaced = False

    async def told(message: Message) -> None:
        nonlocal replaced
        if message["type"] == "http.response.start" and message["status"] in {404, 405}:
            replaced = True
            status, given = message["status"], Headers(raw=message["headers"])
            allowed = {"Allow": given["allow"]} if "allow" in given else {}
            await error_answer(status, *HTTP_EXCEPTIONS[status], headers=allowed)(scope, receive, send)
        elif not replaced:
            await send(message)

    return told
