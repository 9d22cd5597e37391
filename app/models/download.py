"""Files from a model hub over its public HTTP protocol: resumed, retried, checked against the hub's own SHA-256.

A file bears its name only once its size and hash were right; until then it is `<name>.part`, which the next attempt, or
the next process, goes on with. The token is sent to the hub's own origin and to no host that the hub redirects to. A
transfer that is asked to stop does so between two blocks, in a wait, and in the middle of a silent read.
"""

import json
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

import httpx

from app.errors import InvalidRequest, NotFound, TransferFailed, UrlNotAllowed
from app.guarded_http import GuardedClient
from app.models.checksums import Sums

WEIGHTS, GGUF = ".safetensors", ".gguf"
STORED = frozenset({WEIGHTS, GGUF, ".json", ".txt"})
PICKLES = frozenset({".bin", ".pt", ".pth"})
BY_NAME = PICKLES | {".onnx", ".csv"}
"""Kinds that are fetched only where a row names the whole path: no pattern takes them."""
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
REDIRECTS = 5
MAX_LISTING = 32 * 2**20
PART = ".part"


@dataclass(frozen=True)
class Patience:
    """How long a transfer is tried: waits double from `first_wait`; every byte received resets the count."""

    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    read_seconds: float = 30.0


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: LFS files state a SHA-256, small ones the SHA-1 of their git blob.

    `url` is the address of one that lies in no repository.
    """

    path: str
    size: int
    sha256: str | None
    git_sha1: str | None
    url: str | None = None


@dataclass(frozen=True)
class Listing:
    """A repository at one commit."""

    commit: str
    files: tuple[RemoteFile, ...]

    def select(self, patterns: tuple[str, ...]) -> tuple[RemoteFile, ...]:
        """The files that match, each pattern at least one; `*` stops at a slash, takes no pickle and no ONNX."""
        chosen: dict[str, RemoteFile] = {}
        for pattern in patterns:
            matching = [file for file in self.files if _matches(file.path, pattern)]
            if not matching:
                raise NotFound(f"The repository has no file {pattern!r} at commit {self.commit[:12]}.")
            chosen |= {file.path: file for file in matching}
        return tuple(chosen.values())


class Stop:
    """The wish that a transfer end, made in one thread and heeded in another with `TransferFailed`."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    @property
    def asked(self) -> bool:
        """Whether the transfer is to end."""
        return self._asked.is_set()

    def ask(self) -> None:
        """Let it end, now: what it waits for is hung up."""
        with self._lock:
            self._asked.set()
            if self._socket is not None:
                with suppress(OSError):
                    # The plain socket's own method: under TLS the other one takes away what the reader holds.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def check(self) -> None:
        """Raise where it was asked for."""
        if self._asked.is_set():
            raise TransferFailed("The pull was stopped; what has arrived is kept.", final=True)

    def wait(self, seconds: float) -> None:
        """Sleep, unless it is asked for."""
        self._asked.wait(seconds)
        self.check()

    @contextmanager
    def hanging_up(self, response: httpx.Response) -> Iterator[None]:
        """While the block reads this answer, `ask` closes its line: a peer that is silent would hold the reader."""
        with self._lock:
            self._socket = response.extensions["network_stream"].get_extra_info("socket")
        try:
            self.check()
            yield
        finally:
            with self._lock:
                self._socket = None


class Hub:
    """One hub, spoken to through the guarded client."""

    def __init__(
        self,
        url: str,
        token: str | None,
        client: GuardedClient,
        patience: Patience = Patience(),
    ) -> None:
        try:
            self._url = httpx.URL(url.rstrip("/"))
        except httpx.InvalidURL:
            raise InvalidRequest(f"The hub's URL {url[:200]!r} cannot be read.") from None
        self._token = token
        self._client = client
        self._patience = patience

    def listing(self, repo: str, revision: str, stop: Stop) -> Listing:
        """What the repository holds at the commit that `revision` now means."""
        address = f"{self._url}/api/models/{quote(repo)}/revision/{quote(revision, safe='')}?blobs=true"
        tries = _Tries(self._patience, min(self._patience.attempts, 3), stop)
        while True:
            try:
                with self._open(address, {}) as response, stop.hanging_up(response):
                    self._expect(response, (200,), repo)
                    body = bytearray()
                    for chunk in response.iter_raw():
                        body += chunk
                        if len(body) > MAX_LISTING:
                            raise _Broken("the hub's answer is too large")
                return _listing(json.loads(body))
            except (_Broken, TransferFailed, ValueError, KeyError, TypeError) as error:
                tries.wait_or_give_up(error, repo)

    def fetch(
        self,
        repo: str,
        commit: str,
        file: RemoteFile,
        target: Path,
        on_bytes: Callable[[int], None],
        stop: Stop,
    ) -> str:
        """Bring one file to `target`; answers its SHA-256. `on_bytes` hears how many bytes of it are there.

        `TransferFailed` when the hub gives up or the bytes are not those that the hub stated; those are deleted.
        """
        address = file.url or f"{self._url}/{quote(repo)}/resolve/{quote(commit, safe='')}/{quote(file.path)}"
        part = target.with_name(target.name + PART)
        part.parent.mkdir(parents=True, exist_ok=True)
        tries = _Tries(self._patience, self._patience.attempts, stop)
        with part.open("ab+") as out:
            sums = Sums(file.size, file.sha256, file.git_sha1)
            sums.read_from(out, stop.check)
            if sums.count > file.size:
                sums.restart(out)
            on_bytes(sums.count)
            while sums.count < file.size:
                before = sums.count
                try:
                    self._continue(address, file, out, sums, on_bytes, stop)
                except (_Broken, TransferFailed) as error:
                    if sums.count > before:
                        tries.progressed()
                    tries.wait_or_give_up(error, file.path)
            out.flush()
            os.fsync(out.fileno())
        if not sums.agree():
            part.unlink()
            raise TransferFailed(
                f"{file.path} arrived with another hash than the hub states; it was deleted. Pull again.",
                file=file.path,
                expected=file.sha256 or file.git_sha1,
            )
        part.replace(target)
        return sums.sha256

    def _continue(
        self, address: str, file: RemoteFile, out: Any, sums: Sums, on_bytes: Callable[[int], None], stop: Stop
    ) -> None:
        headers = {"range": f"bytes={sums.count}-"} if sums.count else {}
        with self._open(address, headers) as response, stop.hanging_up(response):
            if response.status_code == 416:
                sums.restart(out)
                raise _Broken("the hub refused the range")
            self._expect(response, (200, 206), file.path)
            if response.status_code == 206:
                if _range_start(response) != sums.count:
                    raise _Broken("the hub sent another range")
            elif sums.count:
                sums.restart(out)
            for chunk in response.iter_raw():
                stop.check()
                if sums.count + len(chunk) > file.size:
                    sums.restart(out)
                    raise _Broken("the hub sent more bytes than it stated")
                out.write(chunk)
                sums.add(chunk)
                on_bytes(sums.count)
        if sums.count < file.size:
            raise _Broken("the connection ended early")

    @contextmanager
    def _open(self, address: str, headers: dict[str, str]) -> Iterator[httpx.Response]:
        """GET with the hub's redirects followed by hand: what the operator trusts is judged anew at every hop."""
        url = httpx.URL(address)
        for _ in range(REDIRECTS + 1):
            sent = dict(headers)
            if self._token and _origin(url) == _origin(self._url):
                sent["authorization"] = f"Bearer {self._token}"
            schemes = ("https",) if self._url.scheme == "https" else ("https", "http")
            try:
                with self._client.stream(
                    str(url), headers=sent, read_seconds=self._patience.read_seconds, schemes=schemes
                ) as response:
                    if not response.has_redirect_location:
                        yield response
                        return
                    url = url.join(response.headers["location"])
            except UrlNotAllowed:
                raise UrlNotAllowed(
                    f"The hub sends to {url.host[:200]}, which is no public address; EIS_TRUSTED_HOSTS may name it."
                ) from None
        raise _Broken("the hub redirects too often")

    @staticmethod
    def _expect(response: httpx.Response, statuses: tuple[int, ...], what: str) -> None:
        status = response.status_code
        if status in statuses:
            return
        if status in RETRIED:
            raise _Broken(f"the hub answered with status {status}", _retry_after(response))
        if status in (401, 403):
            raise InvalidRequest(
                f"The hub does not hand out {what}: accept its terms on the hub's page and set EIS_HUB_TOKEN.",
                status=status,
            )
        if status == 404:
            raise NotFound(f"The hub has no {what}.")
        raise TransferFailed(f"The hub answered with status {status} for {what}.", status=status, final=True)


class _Broken(Exception):
    """A fault that another attempt may mend."""

    def __init__(self, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.wait = wait


class _Tries:
    """Counts attempts without progress and sleeps between them."""

    def __init__(self, patience: Patience, attempts: int, stop: Stop) -> None:
        self._patience = patience
        self._attempts = attempts
        self._stop = stop
        self._failed = 0

    def progressed(self) -> None:
        self._failed = 0

    def wait_or_give_up(self, error: Exception, what: str) -> None:
        self._stop.check()
        if isinstance(error, TransferFailed) and error.details.get("final"):
            raise error
        self._failed += 1
        if self._failed >= self._attempts:
            reason = error.message if isinstance(error, TransferFailed) else f"{error}."
            raise TransferFailed(
                f"{what} could not be pulled after {self._failed} attempts: {reason} What has arrived is kept."
            ) from error
        wait = self._patience.first_wait * 2 ** (self._failed - 1) * random.uniform(0.75, 1.25)
        wanted = error.wait if isinstance(error, _Broken) else None
        self._stop.wait(min(self._patience.longest_wait, max(wait, wanted or 0.0)))


def _listing(data: dict[str, Any]) -> Listing:
    commit = str(data["sha"])
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise ValueError("no commit")
    files = []
    for entry in data["siblings"]:
        path, lfs = str(entry["rfilename"]), entry.get("lfs")
        if not _is_safe(path):
            continue
        sha256 = lfs.get("sha256") if lfs else None
        size = int(lfs["size"] if lfs else entry["size"])
        files.append(RemoteFile(path, size, sha256, None if lfs else entry.get("blobId")))
    return Listing(commit, tuple(files))


def _is_safe(path: str) -> bool:
    """Whether a repository's path is a plain relative one of a kind that is fetched."""
    pure = PurePosixPath(path)
    plain = all(part not in ("", ".", "..") and not part.startswith(".") for part in path.split("/"))
    return plain and "\\" not in path and "\0" not in path and pure.suffix in STORED | BY_NAME


def _matches(path: str, pattern: str) -> bool:
    if path != pattern and PurePosixPath(path).suffix in BY_NAME:
        return False
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _range_start(response: httpx.Response) -> int | None:
    found = re.match(r"bytes (\d+)-", response.headers.get("content-range", ""))
    return int(found[1]) if found else None


def _retry_after(response: httpx.Response) -> float | None:
    stated = response.headers.get("retry-after", "").strip()
    if stated.isdigit():
        return float(stated)
    try:
        return max(0.0, parsedate_to_datetime(stated).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
