"""The one HTTP client: public peers only, with size and time limits and no ambient proxies.

No byte is sent to a peer whose address is not public, however the host was spelled and whatever the resolver said a
moment earlier: the name is resolved once, only public addresses of it are dialled, and the connected socket's own peer
address is checked again before the connection is used. A caller learns that a URL is refused, never which address it
led to. What the operator names in EIS_TRUSTED_HOSTS (host:port) is exempt, except as the target of a redirect.
Everything else is spoken to over https, unless a caller names other schemes.
"""

import functools
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpcore
import httpx

from app.errors import InvalidRequest, TooLarge, TransferFailed
from app.public_addresses import UNKNOWN_HOST, is_public, resolve
from app.public_urls import host_of, parse, port_of, refuse_obvious, refused

USER_AGENT = "edit-image-service"
REDIRECTS = 4
MAX_ADDRESSES = 4
ANSWER_LIMIT = 64 * 1024
CHUNK = 64 * 1024

Schemes = tuple[str, ...] | None
"""What a URL may begin with; None: https, and http too where the host is trusted."""

_BROKEN = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
    httpcore.UnsupportedProtocol,
    httpx.HTTPError,
    httpx.InvalidURL,
)


@dataclass(frozen=True)
class Answer:
    """What a POST was answered: the status, the headers (names in lower case) and the first bytes of the body."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class GuardedClient:
    """GET, POST and streaming GET under the guard; holds no connection between calls and may be shared by threads.

    `trusted_hosts` are `host:port` pairs that may be private.
    """

    def __init__(self, trusted_hosts: Iterable[str] = ()) -> None:
        self._trusted = frozenset(_host_and_port(pair) for pair in trusted_hosts)

    def check_url(self, url: str, *, schemes: Schemes = None, seconds: float = 5.0) -> None:
        """Refuse a URL at the door: `UrlNotAllowed` where its spelling or every address of its host is not public.

        It saves a job that could never deliver. The guard itself stands at the connection. `TransferFailed` where the
        resolver cannot say now.
        """
        target = self._target(url, schemes)
        if target.trusted:
            return
        with _unknown_hosts_refused():
            addresses = resolve(target.host, target.port, time.monotonic() + seconds)
        if not any(is_public(address) for address in addresses):
            raise refused()

    def get_bytes(
        self,
        url: str,
        *,
        limit: int,
        seconds: float = 30.0,
        schemes: Schemes = None,
        headers: Mapping[str, str] | None = None,
    ) -> bytes:
        """The body of a 200 answer, at most `limit` bytes, whole within `seconds`; each redirect is checked anew."""
        deadline = time.monotonic() + seconds
        target = self._target(url, schemes)
        for _ in range(REDIRECTS + 1):
            with _unknown_hosts_refused(), self._open("GET", target, headers or {}, deadline, seconds) as response:
                if not response.has_redirect_location:
                    return _body(response, limit)
                target = self._redirect_target(target, response.headers["location"], schemes)
        raise TransferFailed("The host redirects too often.")

    def post(
        self,
        url: str,
        *,
        content: bytes,
        headers: Mapping[str, str],
        limit: int = ANSWER_LIMIT,
        seconds: float = 15.0,
        schemes: Schemes = None,
    ) -> Answer:
        """Send a body once; redirects are not followed and of the answer only the first `limit` bytes are read."""
        target = self._target(url, schemes)
        deadline = time.monotonic() + seconds
        with self._open("POST", target, headers, deadline, seconds, content) as response:
            received = bytearray()
            for chunk in response.iter_raw():
                received += chunk
                if len(received) >= limit:
                    break
            return Answer(response.status_code, dict(response.headers), bytes(received[:limit]))

    @contextmanager
    def stream(
        self,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        read_seconds: float = 30.0,
        schemes: Schemes = None,
    ) -> Iterator[httpx.Response]:
        """A GET whose body the caller reads with `iter_raw()`, for files without a size limit.

        A peer that is silent for `read_seconds` is given up. Redirects are answered as they are: the caller decides.
        """
        with self._open("GET", self._target(url, schemes), headers or {}, None, read_seconds) as response:
            yield response

    def _target(self, url: str, schemes: Schemes) -> "_Target":
        parsed = parse(url)
        host, port = host_of(parsed), port_of(parsed)
        trusted = (host, port) in self._trusted
        if parsed.scheme not in (schemes or (("https", "http") if trusted else ("https",))):
            raise refused()
        if not trusted:
            refuse_obvious(host, port)
        return _Target(parsed, host, port, trusted)

    def _redirect_target(self, source: "_Target", location: str, schemes: Schemes) -> "_Target":
        if schemes is None or source.url.scheme == "https":
            schemes = ("https",)
        try:
            joined = str(source.url.join(location))
        except (httpx.InvalidURL, ValueError):
            raise refused() from None
        parsed = parse(joined)
        if parsed.scheme not in schemes:
            raise refused()
        host, port = host_of(parsed), port_of(parsed)
        refuse_obvious(host, port)
        return _Target(parsed, host, port, trusted=False)

    @contextmanager
    def _open(
        self,
        method: str,
        target: "_Target",
        headers: Mapping[str, str],
        deadline: float | None,
        read_seconds: float,
        content: bytes | None = None,
    ) -> Iterator[httpx.Response]:
        transport = _GuardedTransport(_GuardedBackend(target.trusted, deadline))
        # Compressed bodies would let a small answer grow past the limit, and a resumed file would not add up.
        sent = {"user-agent": USER_AGENT, "accept": "*/*", **headers, "accept-encoding": "identity"}
        timeout = httpx.Timeout(read_seconds, connect=min(read_seconds, 15.0))
        try:
            with (
                httpx.Client(transport=transport, trust_env=False, follow_redirects=False, timeout=timeout) as client,
                client.stream(method, target.url, headers=sent, content=content) as response,
            ):
                if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
                    raise TransferFailed("The host compresses its answer although it was asked not to.")
                yield response
        except _BROKEN as error:
            raise TransferFailed("The host cannot be reached or stopped answering.") from error


@dataclass(frozen=True)
class _Target:
    url: httpx.URL
    host: str
    port: int
    trusted: bool


class _GuardedBackend(httpcore.NetworkBackend):
    """Dials only public addresses of a name, and checks the peer of the connected socket before handing it out."""

    def __init__(self, trusted: bool, deadline: float | None) -> None:
        self._trusted = trusted
        self._deadline = deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """A stream to one of the host's addresses; `UrlNotAllowed` where none is public."""
        until = time.monotonic() + (timeout or 15.0)
        addresses = resolve(host, port, min(until, self._deadline or until))
        allowed = [address for address in addresses if self._trusted or is_public(address)]
        if not allowed:
            raise refused()
        failure: Exception | None = None
        for address in allowed[:MAX_ADDRESSES]:
            try:
                stream = _dial(address, port, _remaining(self._deadline, timeout), local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
                continue
            peer = stream.get_extra_info("socket").getpeername()[0]
            if not self._trusted and not is_public(peer):
                stream.close()
                raise refused()
            return _DeadlineStream(stream, self._deadline)
        raise failure or httpcore.ConnectError("no address")

    def connect_unix_socket(self, path: str, *arguments: Any, **options: Any) -> httpcore.NetworkStream:
        """Refused: a URL never names a socket of this machine."""
        raise refused()

    def sleep(self, seconds: float) -> None:
        """As the interface asks."""
        time.sleep(seconds)


class _DeadlineStream(httpcore.NetworkStream):
    """A stream whose every wait also ends at one common deadline, so that a dripping peer cannot hold it open."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float | None) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read at most `max_bytes`."""
        return self._stream.read(max_bytes, _remaining(self._deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Write all of it."""
        self._stream.write(buffer, _remaining(self._deadline, timeout))

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """The same stream under TLS."""
        inner = self._stream.start_tls(ssl_context, server_hostname, _remaining(self._deadline, timeout))
        return _DeadlineStream(inner, self._deadline)

    def close(self) -> None:
        """Close the socket."""
        self._stream.close()

    def get_extra_info(self, info: str) -> Any:
        """What httpcore asks of the socket."""
        return self._stream.get_extra_info(info)


class _GuardedTransport(httpx.BaseTransport):
    """httpx over an httpcore pool with the guarded backend."""

    def __init__(self, backend: _GuardedBackend) -> None:
        self._pool = httpcore.ConnectionPool(
            ssl_context=_ssl_context(), max_connections=1, max_keepalive_connections=0, network_backend=backend
        )

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request."""
        url = httpcore.URL(
            scheme=request.url.raw_scheme, host=request.url.raw_host, port=request.url.port, target=request.url.raw_path
        )
        answer = self._pool.handle_request(
            httpcore.Request(
                request.method,
                url,
                headers=request.headers.raw,
                content=request.stream,
                extensions=request.extensions,
            )
        )
        return httpx.Response(answer.status, headers=answer.headers, stream=_Body(answer), extensions=answer.extensions)

    def close(self) -> None:
        """Close the connection."""
        self._pool.close()


class _Body(httpx.SyncByteStream):
    def __init__(self, answer: httpcore.Response) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[bytes]:
        yield from self._answer.iter_stream()

    def close(self) -> None:
        self._answer.close()


@contextmanager
def _unknown_hosts_refused() -> Iterator[None]:
    """A host that does not exist is the caller's mistake, and told like one that is private."""
    try:
        yield
    except TransferFailed as error:
        if error.details.get("reason") == UNKNOWN_HOST:
            raise refused() from None
        raise


def _host_and_port(pair: str) -> tuple[str, int]:
    host, _, port = pair.strip().rpartition(":")
    if not host or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise InvalidRequest(f"A trusted host is written host:port, not {pair[:80]!r}.")
    return host.strip("[]").lower(), int(port)


def _dial(
    address: str, port: int, timeout: float | None, local_address: str | None, options: Iterable[Any] | None
) -> httpcore.NetworkStream:
    return httpcore.SyncBackend().connect_tcp(address, port, timeout, local_address, options)


def _remaining(deadline: float | None, timeout: float | None) -> float | None:
    if deadline is None:
        return timeout
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the deadline has passed")
    return left if timeout is None else min(left, timeout)


def _body(response: httpx.Response, limit: int) -> bytes:
    if response.status_code >= 500:
        raise TransferFailed(f"The host answered with status {response.status_code}.")
    if response.status_code != 200:
        raise InvalidRequest(f"The host answered with status {response.status_code}.")
    stated = response.headers.get("content-length", "")
    too_large = TooLarge(f"The answer is larger than {limit} bytes.", limit=limit)
    if stated.isdigit() and int(stated) > limit:
        raise too_large
    received = bytearray()
    for chunk in response.iter_raw():
        received += chunk
        if len(received) > limit:
            raise too_large
    return bytes(received)


@functools.cache
def _ssl_context() -> ssl.SSLContext:
    return httpx.create_ssl_context()
