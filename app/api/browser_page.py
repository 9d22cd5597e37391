"""Where the browser page hangs: behind all routes, from the first moment, filled in when its library is imported.

Importing that library takes seconds and nothing else needs it, so the server answers first and a thread imports
then. Until the page stands a small one says so and looks again by itself.
"""

import asyncio
import logging
from collections.abc import Callable

from starlette.responses import HTMLResponse
from starlette.routing import Router
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api.errors import error_answer

log = logging.getLogger(__name__)

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="{seconds}">
<link rel="icon" href="data:,"><title>Edit Image Service</title>
<style>body{{font:16px system-ui,sans-serif;display:grid;place-items:center;
min-height:90vh;margin:0;background:Canvas;color:CanvasText;color-scheme:light dark}}</style>
<main><h1>Edit Image Service</h1><p>{text} The API is described at <a href="/docs">/docs</a>.</p></main></html>"""
STARTING = "The page is starting and will appear here in a moment."
FAILED = "The page could not start; the server's log says why."


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
            await self.page(scope, receive, send)
        elif scope["path"] == "/" and scope["method"] in {"GET", "HEAD"}:
            text, seconds, status = (FAILED, 60, 503) if self.failed else (STARTING, 1, 200)
            headers = {"Cache-Control": "no-store"}
            await HTMLResponse(PAGE.format(text=text, seconds=seconds), status, headers)(scope, receive, send)
        else:
            await self.not_found(scope, receive, send)

    async def not_found(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What every other address without a route answers."""
        await error_answer(404, "not_found", "There is nothing at this address.")(scope, receive, send)

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
