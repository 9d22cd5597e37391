"""A small model hub on loopback: the public HTTP protocol, its big files on a second port, and faults on demand.

`/api/models/{repo}/revision/{revision}?blobs=true` states commit, sizes and hashes; `/{repo}/resolve/{commit}/{path}`
redirects: small files to a path of its own, LFS files to the other port, as the real one does. HEAD answers what the
public client library asks for, so that a test can hold the two against each other.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import quote, unquote, urlsplit


@dataclass
class Seen:
    """One request as it arrived."""

    server: str
    path: str
    headers: dict[str, str]
    method: str = "GET"
    sent: int = 0
    status: int = 0


@dataclass
class Fault:
    """What happens to a file's request instead of, or on the way to, its bytes.

    `status` answers with that status; `after` sends so many bytes of the body and then `ending`: `close`, or `stall`.
    """

    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    after: int | None = None
    ending: str = "close"


class HubServer:
    """Repositories by name; `faults` holds, by file path, what its next requests meet, first come first served."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        self.lfs_from = 1000
        self.faults: dict[str, list[Fault]] = {}
        self.seen: list[Seen] = []
        self.gated: dict[str, str] = {}
        self.ignore_range = False
        self.released = threading.Event()
        self.main = self._serve("hub")
        self.cdn = self._serve("cdn")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.main.server_port}"

    @property
    def hosts(self) -> tuple[str, ...]:
        """What EIS_TRUSTED_HOSTS would hold for this hub and its CDN."""
        return (f"127.0.0.1:{self.main.server_port}", f"127.0.0.1:{self.cdn.server_port}")

    def put(self, repo: str, files: dict[str, bytes], commit: str | None = None) -> str:
        """Publish a repository; answers its commit."""
        self.repos[repo] = files
        text = repr(sorted((name, hashlib.sha256(data).hexdigest()) for name, data in files.items()))
        self.commits[repo] = commit or hashlib.sha1(text.encode()).hexdigest()
        return self.commits[repo]

    def served(self, path: str) -> list[Seen]:
        """The requests for a file that met its bytes (on whichever server holds them)."""
        return [seen for seen in self.seen if seen.path.endswith(path) and seen.status in (200, 206)]

    def close(self) -> None:
        self.released.set()
        for server in (self.main, self.cdn):
            server.shutdown()
            server.server_close()

    def _serve(self, name: str) -> ThreadingHTTPServer:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                headers = {name.lower(): value for name, value in self.headers.items()}
                seen = Seen(name, unquote(urlsplit(self.path).path), headers, self.command)
                hub.seen.append(seen)
                self.close_connection = True
                with suppress(OSError):
                    hub._answer(self, seen)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server

    def _answer(self, handler: BaseHTTPRequestHandler, seen: Seen) -> None:
        repo = next((repo for repo in self.repos if f"/{repo}/" in seen.path), None)
        if repo is None:
            return _send(handler, seen, 404, b"no such repository")
        token = self.gated.get(repo)
        if seen.server == "hub" and token and seen.headers.get("authorization") != f"Bearer {token}":
            return _send(handler, seen, 401, b"gated")
        if seen.path.startswith("/api/models/") and seen.server == "hub":
            fault = self._next_fault("api")
            if fault and fault.status:
                return _send(handler, seen, fault.status, b"fault", fault.headers)
            return _send(handler, seen, 200, json.dumps(self._describe(repo)).encode())
        cached = seen.path.startswith("/api/resolve-cache/")
        commit, _, path = seen.path.split(f"/{repo}/", 1)[1].removeprefix("resolve/").partition("/")
        data = self.repos[repo].get(path)
        if data is None or commit not in (self.commits[repo], "main"):
            return _send(handler, seen, 404, b"no such file")
        described = self._entry(path, data)
        about = {"X-Repo-Commit": self.commits[repo], "ETag": f'"{described.get("blobId")}"', "Accept-Ranges": "bytes"}
        if "lfs" in described:
            about |= {"X-Linked-Etag": f'"{described["lfs"]["sha256"]}"', "X-Linked-Size": str(len(data))}
            if seen.server == "hub":
                about["Location"] = f"http://127.0.0.1:{self.cdn.server_port}{handler.path}?signature=abc"
                return _send(handler, seen, 302, b"", about)
        elif not cached:
            about["Location"] = f"/api/resolve-cache/models/{repo}/{self.commits[repo]}/{quote(path)}"
            return _send(handler, seen, 307, b"", about)
        return self._send_file(handler, seen, path, data, about)

    def _describe(self, repo: str) -> dict[str, object]:
        siblings = [{"rfilename": name} | self._entry(name, data) for name, data in self.repos[repo].items()]
        return {"id": repo, "sha": self.commits[repo], "siblings": siblings}

    def _entry(self, name: str, data: bytes) -> dict[str, Any]:
        entry = {"size": len(data), "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}
        if len(data) >= self.lfs_from:
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
        return entry

    def _next_fault(self, path: str) -> Fault | None:
        waiting = self.faults.get(path)
        return waiting.pop(0) if waiting else None

    def _send_file(
        self, handler: BaseHTTPRequestHandler, seen: Seen, path: str, data: bytes, about: dict[str, str]
    ) -> None:
        fault = self._next_fault(path)
        if fault and fault.status:
            return _send(handler, seen, fault.status, b"fault", fault.headers)
        start, status = 0, 200
        asked = seen.headers.get("range")
        if asked and not self.ignore_range:
            start, status = int(asked.removeprefix("bytes=").split("-")[0]), 206
        body = data[start:]
        handler.send_response(status)
        seen.status = status
        for name, value in about.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(body)))
        handler.send_header("Connection", "close")
        if status == 206:
            handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        handler.end_headers()
        if seen.method == "HEAD":
            return
        if fault and fault.after is not None:
            body = body[: fault.after]
        for at in range(0, len(body), 65536):
            seen.sent += len(body[at : at + 65536])  # before the write: who has read the bytes finds them counted
            handler.wfile.write(body[at : at + 65536])
        handler.wfile.flush()
        if fault and fault.ending == "stall":
            self.released.wait(30)


def _send(
    handler: BaseHTTPRequestHandler, seen: Seen, status: int, body: bytes, headers: dict[str, str] | None = None
) -> None:
    seen.status = status
    handler.send_response(status)
    for name, value in (headers or {}).items():
        handler.send_header(name, value)
    handler.send_header("Content-Length", str(len(body)))
    handler.send_header("Connection", "close")
    handler.end_headers()
    if seen.method != "HEAD":
        handler.wfile.write(body)


@contextmanager
def hub_server() -> Iterator[HubServer]:
    """A hub for the length of a `with` block."""
    hub = HubServer()
    try:
        yield hub
    finally:
        hub.close()


def wait_for(holds: Callable[[], bool], seconds: float = 90.0) -> None:
    """Wait until something holds; fails when it does not in time."""
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)
