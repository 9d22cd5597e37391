"""A SearXNG-shaped server on loopback, and a canary beside it that nobody may reach."""

import io
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from PIL import Image

PAGE = "https://commons.example.org/wiki/File:Chair.jpg"
TEXTS = [
    {
        "title": "Mid-century <b>armchair</b>",
        "url": "https://design.example.org/armchairs",
        "content": "A mid-century armchair has tapered teak legs and low, wide cushions. Buy now! It was common.",
        "engine": "one",
    },
    {
        "title": "Armchairs",
        "url": "https://other.example.org/a",
        "content": "The mid-century armchair has low wide cushions and tapered teak legs (see [1]).",
        "engine": "two",
    },
    {
        "title": "no page",
        "url": "javascript:alert(1)",
        "content": "A mid-century armchair that leads to no page at all.",
    },
]
PICTURES = [
    {
        "title": "A chair",
        "url": PAGE,
        "img_src": "https://upload.example.org/chair.jpg",
        "thumbnail_src": "https://upload.example.org/thumb/chair.jpg",
        "source": "Wikimedia",
        "license": "CC BY-SA 4.0",
        "resolution": "1920 x 1080",
    },
    {"title": "no picture", "url": "https://x.example.org/"},
]


@dataclass
class Searxng:
    """Where it listens, what it answers, and who came."""

    address: str
    canary: str
    answers: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {"general": TEXTS, "images": PICTURES})
    status: int = 200
    body: bytes | None = None
    redirect: str | None = None
    asked: list[dict[str, str]] = field(default_factory=list)
    hits: Counter[str] = field(default_factory=Counter)
    canary_hits: Counter[str] = field(default_factory=Counter)

    @property
    def trusted(self) -> str:
        """As EIS_TRUSTED_HOSTS names it."""
        return self.address.removeprefix("http://")


def png(side: int = 64, colour: str = "teal") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def searxng() -> Iterator[Searxng]:
    """Both servers for the block."""
    known = Searxng("", "")

    class Quiet(BaseHTTPRequestHandler):
        def log_message(self, *told: Any) -> None:
            """Say nothing."""

        def reply(self, status: int, kind: str, data: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

    class Search(Quiet):
        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            known.hits[parts.path] += 1
            if parts.path == "/search" and known.redirect:
                self.reply(302, "text/plain", b"", Location=known.redirect)
            elif parts.path == "/search":
                asked = {name: values[0] for name, values in parse_qs(parts.query).items()}
                known.asked.append(asked)
                told = {"query": asked["q"], "results": known.answers[asked["categories"]]}
                self.reply(known.status, "application/json", known.body or json.dumps(told).encode())
            elif parts.path.startswith("/to-canary"):
                self.reply(302, "text/plain", b"", Location=f"{known.canary}/inside.png")
            else:
                self.reply(200, "image/png", png())

    class Canary(Quiet):
        def do_GET(self) -> None:
            known.canary_hits[self.path] += 1
            self.reply(200, "image/png", png())

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (Search, Canary)]
    known.address, known.canary = (f"http://127.0.0.1:{server.server_address[1]}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield known
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()
