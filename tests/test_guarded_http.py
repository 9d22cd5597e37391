"""The guarded client: which addresses, spellings, peers, redirects, sizes and times it refuses."""

# ruff: noqa: RUF001  (the look-alike digits are the point)

import ipaddress
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app import guarded_http, public_addresses
from app.errors import InvalidRequest, TooLarge, TransferFailed, UrlNotAllowed
from app.guarded_http import GuardedClient, is_public

PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "93.184.216.34",
    "172.15.255.255",
    "172.32.0.1",
    "192.0.1.1",
    "100.63.255.255",
    "100.128.0.1",
    "2606:4700:4700::1111",
    "2a00:1450:4001:82a::200e",
    "2001:4860:4860::8888",
]
PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.192",
    "192.0.0.10",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:8.8.8.8",
    "64:ff9b::7f00:1",
    "64:ff9b::808:808",
    "64:ff9b:1::7f00:1",
    "100::1",
    "2001::7f00:1",
    "2001:db8::1",
    "2001:10::1",
    "2002:7f00:1::",
    "2002:808:808::1",
    "3fff::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
    "2a00:1450::5efe:7f00:1",
    "2a00:1450::200:5efe:a00:1",
    "not an address",
    "",
]

BOTH = ("https", "http")
OBVIOUS = [
    "http://①②⑦.0.0.1/",
    "http://１２７.0.0.1/",
    "http://127。0。0。1/",
    "http://127．0．0．1/",
    "http://0x7f.1/",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://2130706433/",
    "http://127.1/",
    "http://127.0.1/",
    "http://0/",
    "http://[::]/",
    "http://[::1]:7860/",
    "http://[::ffff:127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::]/",
    "http://[fe80::1%25eth0]/",
    "http://[::127.0.0.1]/",
    "http://localhost/",
    "http://LOCALHOST/",
    "http://localhost./",
    "http://api.localhost/",
    "http://printer.local/",
    "http://metadata.google.internal/",
    "http://intranet/",
    "http://router.lan/",
    "http://127.0.0.1./",
    "http://127.0.0.1:80/",
    "https://127.0.0.1/",
    "http://169.254.169.254/latest/",
    "http://user@example.org/",
    "http://example.org@127.0.0.1/",
    "http://127.0.0.1#@example.org/",
    "http://@example.org/",
    "http://127.0.0.1%2f@example.org/",
    "http://example.org\\@127.0.0.1/",
    "http://127%2e0.0.1/",
    "http://127.0.0.1%00.example.org/",
    "http://exa mple.org/",
    "http://example.org/\n",
    "http://example..org/",
    "http://.example.org/",
    "http:///x",
    "http://",
    "",
    "//example.org/",
    "example.org",
    "file:///etc/passwd",
    "ftp://example.org/",
    "gopher://example.org/",
    "javascript:alert(1)",
    "data:,x",
    "http://example.org:22/",
    "http://example.org:25/",
    "http://example.org:99999/",
    "http://example.org:0/",
    "https://example.org:0/",
    "http://[::1/",
    "http://[v1.x]/",
    "http://" + "a" * 9000 + ".org/",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    assert not is_public(address)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_no_ipv4_address_that_python_calls_private_is_public(number: int) -> None:
    address = ipaddress.IPv4Address(number)
    if not address.is_global or address.is_multicast:
        assert not is_public(str(address))
    for carrier in (0, 0xFFFF << 32, 0x64FF9B << 96, 0xFE80 << 112):
        assert not is_public(str(ipaddress.IPv6Address(carrier | number)))
    assert not is_public(str(ipaddress.IPv6Address((0x2002 << 112) | (number << 80) | 1)))


@settings(deadline=None)
@given(st.integers(0, 2**24 - 1), st.sampled_from(["decimal", "hex", "octal", "short", "octets"]))
def test_every_spelling_of_loopback_is_refused_without_asking_the_resolver(low: int, spelling: str) -> None:
    number = 127 << 24 | low
    host = {
        "decimal": str(number),
        "hex": hex(number),
        "octal": "0" + oct(number)[2:],
        "short": f"127.{low}",
        "octets": ".".join(hex(part) for part in number.to_bytes(4, "big")),
    }[spelling]
    with pytest.raises(UrlNotAllowed):
        GuardedClient().check_url(f"http://{host}/", schemes=BOTH)


@pytest.mark.parametrize("url", OBVIOUS)
def test_obvious_urls_are_refused_without_asking_the_resolver(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def resolver(*arguments: object, **options: object) -> None:
        raise AssertionError("the resolver was asked")

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    client = GuardedClient()
    for attempt in (
        lambda: client.check_url(url, schemes=BOTH),
        lambda: client.get_bytes(url, limit=10, schemes=BOTH),
        lambda: client.post(url, content=b"", headers={}, schemes=BOTH),
    ):
        with pytest.raises(UrlNotAllowed) as caught:
            attempt()
        assert caught.value.message == "This URL is not allowed: it must be https and name a public host that exists."


class Peer:
    """A raw HTTP server on loopback that keeps what it received; `answer(path)` yields the bytes to send."""

    def __init__(self, answer: Callable[[str], Iterable[bytes]], tls: ssl.SSLContext | None = None) -> None:
        self._answer = answer
        self._tls = tls
        self.connections = 0
        self.received: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def authority(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        if self._tls:
            try:
                connection = self._tls.wrap_socket(connection, server_side=True)
            except OSError:
                connection.close()
                return
        with connection:
            data = b""
            while b"\r\n\r\n" not in data:
                try:
                    piece = connection.recv(65536)
                except OSError:
                    return
                if not piece:
                    break
                data += piece
            self.received.append(data)
            if not data:
                return
            try:
                for piece in self._answer(data.split(b" ", 2)[1].decode()):
                    connection.sendall(piece)
            except OSError:
                return

    def close(self) -> None:
        self._socket.close()


def plain(body: bytes, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


@pytest.fixture
def peers() -> Iterator[Callable[[Callable[[str], Iterable[bytes]]], Peer]]:
    made: list[Peer] = []

    def make(answer: Callable[[str], Iterable[bytes]], tls: ssl.SSLContext | None = None) -> Peer:
        made.append(Peer(answer, tls))
        return made[-1]

    yield make
    for peer in made:
        peer.close()


def resolve_to(monkeypatch: pytest.MonkeyPatch, *rounds: list[str]) -> list[str]:
    """Let the resolver answer these address lists, one a call, the last for ever; returns the asked hosts."""
    asked: list[str] = []

    def resolver(host: str, port: int, *arguments: object, **options: object) -> list[tuple]:
        answers = rounds[min(len(asked), len(rounds) - 1)]
        asked.append(host)
        return [
            (socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in answers
        ]

    real = socket.getaddrinfo

    def only_names(host: str, port: int, *arguments: object, **options: object) -> list[tuple]:
        if str(host).endswith("example.org"):
            return resolver(host, port)
        return real(host, port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", only_names)
    return asked


def test_a_name_that_leads_to_loopback_is_refused_and_nothing_is_dialled(peers, monkeypatch) -> None:
    peer = peers(lambda path: [plain(b"secret")])
    resolve_to(monkeypatch, ["127.0.0.1"])
    client = GuardedClient()
    with pytest.raises(UrlNotAllowed) as at_the_door:
        client.check_url(f"https://images.example.org:{peer.port}/")
    with pytest.raises(UrlNotAllowed) as at_the_wire:
        client.get_bytes(f"https://images.example.org:{peer.port}/", limit=100)
    assert at_the_door.value.message == at_the_wire.value.message
    assert "127" not in at_the_wire.value.message
    assert peer.connections == 0


def test_rebinding_between_check_and_fetch_is_refused(peers, monkeypatch) -> None:
    peer = peers(lambda path: [plain(b"secret")])
    asked = resolve_to(monkeypatch, ["93.184.216.34"], ["127.0.0.1"])
    client = GuardedClient()
    url = f"https://images.example.org:{peer.port}/"
    client.check_url(url)
    with pytest.raises(UrlNotAllowed):
        client.get_bytes(url, limit=100)
    with pytest.raises(UrlNotAllowed):
        client.post(url, content=b"{}", headers={})
    assert len(asked) == 3
    assert peer.connections == 0


def test_the_connected_peer_is_checked_whatever_the_resolver_said(peers, monkeypatch) -> None:
    """The resolver answers a public address, and the socket comes out at loopback all the same."""
    peer = peers(lambda path: [plain(b"secret")])
    resolve_to(monkeypatch, ["93.184.216.34"])
    dial = guarded_http._dial
    dialled: list[str] = []

    def elsewhere(address: str, port: int, *rest: object) -> object:
        dialled.append(address)
        return dial("127.0.0.1", port, *rest)

    monkeypatch.setattr(guarded_http, "_dial", elsewhere)
    client = GuardedClient()
    url = f"https://images.example.org:{peer.port}/"
    with pytest.raises(UrlNotAllowed):
        client.get_bytes(url, limit=100)
    with pytest.raises(UrlNotAllowed):
        client.post(url, content=b"{}", headers={"authorization": "Bearer token"})
    assert dialled == ["93.184.216.34", "93.184.216.34"]
    for _ in range(100):
        if len(peer.received) == 2:
            break
        time.sleep(0.02)
    assert peer.received == [b"", b""], "a byte left before the peer was known"


def test_only_the_public_addresses_of_a_mixed_answer_are_dialled(monkeypatch) -> None:
    resolve_to(monkeypatch, ["127.0.0.1", "10.0.0.1", "93.184.216.34", "::1", "2606:4700:4700::1111"])
    dialled: list[str] = []

    def refuse(address: str, *rest: object) -> None:
        dialled.append(address)
        raise guarded_http.httpcore.ConnectError("nobody")

    monkeypatch.setattr(guarded_http, "_dial", refuse)
    with pytest.raises(TransferFailed):
        GuardedClient().get_bytes("https://images.example.org/", limit=10)
    assert dialled == ["93.184.216.34", "2606:4700:4700::1111"]


def test_a_trusted_pair_is_reached_and_its_neighbour_is_not(peers) -> None:
    peer = peers(lambda path: [plain(b"picture")])
    other = peers(lambda path: [plain(b"secret")])
    client = GuardedClient([peer.authority])
    client.check_url(f"http://{peer.authority}/")
    assert client.get_bytes(f"http://{peer.authority}/a.png", limit=100) == b"picture"
    for url in (f"http://{other.authority}/", f"http://localhost:{peer.port}/", f"http://127.1:{peer.port}/"):
        with pytest.raises(UrlNotAllowed):
            client.get_bytes(url, limit=100)
    assert other.connections == 0


@pytest.mark.parametrize(
    "location",
    [
        "http://{other}/x",
        "http://{same}/x",
        "/x",
        "//{other}/x",
        "http://localhost/x",
        "file:///etc/passwd",
        "http://[::1]:80/",
    ],
)
def test_a_redirect_never_leads_inside_not_even_to_a_trusted_host(peers, location: str) -> None:
    other = peers(lambda path: [plain(b"secret")])
    targets = {"other": other.authority}
    peer = peers(
        lambda path: (
            [plain(b"", "302 Found", f"Location: {location.format(**targets)}\r\n")]
            if path == "/start"
            else [plain(b"secret")]
        )
    )
    targets["same"] = peer.authority
    client = GuardedClient([peer.authority, other.authority])
    with pytest.raises(UrlNotAllowed):
        client.get_bytes(f"http://{peer.authority}/start", limit=100)
    assert other.connections == 0
    assert peer.connections == 1


def test_a_public_host_cannot_redirect_to_a_trusted_one(peers, monkeypatch) -> None:
    inside = peers(lambda path: [plain(b"secret")])
    trusted = f"inside.example.org:{inside.port}"
    peer = peers(lambda path: [plain(b"", "302 Found", f"Location: http://{trusted}/x\r\n")])
    resolve_to(monkeypatch, ["127.0.0.1"])
    client = GuardedClient([trusted, peer.authority])
    assert client.get_bytes(f"http://{trusted}/x", limit=100) == b"secret"
    with pytest.raises(UrlNotAllowed):
        client.get_bytes(f"http://{peer.authority}/start", limit=100)
    assert inside.connections == 1


@pytest.fixture
def open_loopback(monkeypatch) -> None:
    """Let loopback stand for a public host named *.example.org."""
    real = guarded_http.is_public
    monkeypatch.setattr(guarded_http, "is_public", lambda address: address == "127.0.0.1" or real(address))
    resolve_to(monkeypatch, ["127.0.0.1"])


def test_public_redirects_are_followed_and_bounded(peers, open_loopback) -> None:
    peer = peers(
        lambda path: (
            [plain(b"picture")]
            if path == "/end"
            else [plain(b"", "302 Found", f"Location: {'/end' if path == '/start' else '/loop'}\r\n")]
        )
    )
    client = GuardedClient()
    base = f"http://images.example.org:{peer.port}"
    assert client.get_bytes(f"{base}/start", limit=100, schemes=BOTH) == b"picture"
    before = peer.connections
    with pytest.raises(TransferFailed, match="redirects"):
        client.get_bytes(f"{base}/loop", limit=100, schemes=BOTH)
    assert peer.connections - before == guarded_http.REDIRECTS + 1


def test_a_callback_is_sent_once_and_follows_no_redirect(peers) -> None:
    peer = peers(lambda path: [plain(b"moved", "307 Temporary Redirect", "Location: /elsewhere\r\nRetry-After: 7\r\n")])
    answer = GuardedClient([peer.authority]).post(
        f"http://{peer.authority}/hook",
        content=b'{"a": 1}',
        headers={"webhook-id": "m1", "content-type": "application/json"},
    )
    assert (answer.status, answer.headers["retry-after"], answer.content) == (307, "7", b"moved")
    assert peer.connections == 1
    assert b"POST /hook HTTP/1.1" in peer.received[0] and b"webhook-id: m1" in peer.received[0]


def test_only_the_first_bytes_of_a_callbacks_answer_are_read(peers) -> None:
    def endless(path: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        for _ in range(2000):
            yield b"10000\r\n" + b"x" * 65536 + b"\r\n"

    peer = peers(endless)
    answer = GuardedClient([peer.authority]).post(f"http://{peer.authority}/", content=b"", headers={})
    assert len(answer.content) == guarded_http.ANSWER_LIMIT
    answer = GuardedClient([peer.authority]).post(f"http://{peer.authority}/", content=b"", headers={}, limit=200_001)
    assert len(answer.content) == 200_001


@pytest.mark.parametrize("stated", [True, False])
def test_a_body_over_the_limit_is_refused(peers, stated: bool) -> None:
    sent: list[int] = []

    def large(path: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n" + (b"Content-Length: 100000000\r\n\r\n" if stated else b"\r\n")
        for _ in range(1000):
            sent.append(100_000)
            yield b"x" * 100_000

    peer = peers(large)
    with pytest.raises(TooLarge):
        GuardedClient([peer.authority]).get_bytes(f"http://{peer.authority}/", limit=1000)
    assert sum(sent) < 20_000_000


def test_a_body_of_exactly_the_limit_arrives(peers) -> None:
    peer = peers(lambda path: [plain(b"x" * 1000)])
    assert len(GuardedClient([peer.authority]).get_bytes(f"http://{peer.authority}/", limit=1000)) == 1000


@pytest.mark.parametrize("where", ["headers", "body", "silence"])
def test_the_whole_answer_has_one_deadline(peers, where: str) -> None:
    def drip(path: str) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n"
        if where == "body":
            yield b"Content-Length: 1000\r\n\r\n"
        for number in range(200):
            time.sleep(0.05)
            yield b"x" if where == "body" else b"X-%d: 1\r\n" % number if where == "headers" else b""

    peer = peers(drip)
    begun = time.monotonic()
    with pytest.raises(TransferFailed):
        GuardedClient([peer.authority]).get_bytes(f"http://{peer.authority}/", limit=10_000, seconds=0.6)
    assert 0.5 < time.monotonic() - begun < 6


def test_a_slow_resolver_does_not_hold_the_caller(monkeypatch) -> None:
    def slow(*arguments: object, **options: object) -> list[tuple]:
        time.sleep(6)
        raise OSError("nobody")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    begun = time.monotonic()
    with pytest.raises(TransferFailed):
        GuardedClient().get_bytes("https://images.example.org/", limit=10, seconds=0.3)
    with pytest.raises(TransferFailed):
        GuardedClient().check_url("https://images.example.org/", seconds=0.3)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (socket.gaierror(socket.EAI_NONAME, "none"), UrlNotAllowed),
        (socket.gaierror(socket.EAI_AGAIN, "later"), TransferFailed),
        (socket.gaierror(socket.EAI_FAIL, "broken"), TransferFailed),
        (UnicodeError("label too long"), UrlNotAllowed),
        (OSError("nobody"), TransferFailed),
    ],
    ids=str,
)
def test_a_host_that_does_not_exist_is_the_callers_mistake(
    monkeypatch, said: Exception, error: type[Exception]
) -> None:
    def resolver(*arguments: object, **options: object) -> list[tuple]:
        raise said

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    client, url = GuardedClient(), "https://images.example.org/a.png"
    for attempt in (lambda: client.check_url(url), lambda: client.get_bytes(url, limit=10)):
        with pytest.raises(error) as caught:
            attempt()
        assert type(caught.value) is error
    # A hub or a receiver may be known again tomorrow: what is repeated there stays a failed transfer.
    with pytest.raises(TransferFailed):
        client.post(url, content=b"", headers={})


def test_slow_names_gather_no_threads_without_end(monkeypatch) -> None:
    answered, waiting = threading.Event(), []

    def slow(host: str, *arguments: object, **options: object) -> list[tuple]:
        waiting.append(host)
        answered.wait(20)
        raise OSError("nobody")

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    monkeypatch.setattr(public_addresses, "_RESOLVING", threading.BoundedSemaphore(3))
    try:
        for number in range(6):
            with pytest.raises(TransferFailed):
                public_addresses.resolve(f"images{number}.example.org", 443, time.monotonic() + 0.1)
        assert len(waiting) == 3
    finally:
        answered.set()
    for _ in range(100):
        if public_addresses._RESOLVING._value == 3:
            break
        time.sleep(0.02)
    monkeypatch.undo()
    assert public_addresses.resolve("127.0.0.1", 443, time.monotonic() + 5) == ["127.0.0.1"]


@pytest.mark.parametrize(
    ("status", "error"),
    [("404 Not Found", InvalidRequest), ("500 Oops", TransferFailed), ("204 No Content", InvalidRequest)],
)
def test_an_answer_other_than_200_is_an_error(peers, status: str, error: type[Exception]) -> None:
    peer = peers(lambda path: [f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()])
    with pytest.raises(error, match=status[:3]):
        GuardedClient([peer.authority]).get_bytes(f"http://{peer.authority}/", limit=100)


def test_compressed_and_broken_answers_are_refused(peers) -> None:
    packed = peers(lambda path: [plain(b"\x1f\x8b", headers="Content-Encoding: gzip\r\n")])
    broken = peers(lambda path: [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf"])
    garbage = peers(lambda path: [b"SSH-2.0-OpenSSH_9.2\r\n\r\n"])
    for peer in (packed, broken, garbage):
        with pytest.raises(TransferFailed):
            GuardedClient([peer.authority]).get_bytes(f"http://{peer.authority}/", limit=10_000)
    assert b"accept-encoding: identity" in packed.received[0].lower()


def test_proxies_of_the_environment_are_ignored(peers, monkeypatch) -> None:
    proxy = peers(lambda path: [plain(b"through the proxy")])
    peer = peers(lambda path: [plain(b"direct")])
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://{proxy.authority}")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert GuardedClient([peer.authority]).get_bytes(f"http://{peer.authority}/", limit=100) == b"direct"
    assert proxy.connections == 0


def test_plain_http_is_for_trusted_hosts_alone(peers, open_loopback) -> None:
    """A public host must speak https, as the target of a redirect too; a caller may name other schemes."""
    peer = peers(lambda path: [plain(b"picture")])
    url = f"http://images.example.org:{peer.port}/"
    client = GuardedClient()
    for attempt in (
        lambda: client.check_url(url),
        lambda: client.get_bytes(url, limit=100),
        lambda: client.post(url, content=b"", headers={}),
    ):
        with pytest.raises(UrlNotAllowed):
            attempt()
    assert peer.connections == 0
    client.check_url("https://images.example.org/")
    assert client.get_bytes(url, limit=100, schemes=BOTH) == b"picture"
    trusting = GuardedClient([f"images.example.org:{peer.port}"])
    trusting.check_url(url)
    assert trusting.get_bytes(url, limit=100) == b"picture"
    with pytest.raises(UrlNotAllowed):
        trusting.get_bytes(url, limit=100, schemes=("https",))


@pytest.mark.parametrize("schemes", [None, BOTH])
def test_https_never_falls_back(open_loopback, schemes: tuple[str, ...] | None) -> None:
    client = GuardedClient()
    secure = client._target("https://images.example.org/", schemes)
    with pytest.raises(UrlNotAllowed):
        client._redirect_target(secure, "http://images.example.org/", schemes)
    assert client._redirect_target(secure, "https://images.example.org/x", schemes).url.path == "/x"


def test_a_trusted_host_cannot_lead_to_plain_http_elsewhere(peers, open_loopback) -> None:
    other = peers(lambda path: [plain(b"secret")])
    location = f"http://images.example.org:{other.port}/"
    peer = peers(lambda path: [plain(b"", "302 Found", f"Location: {location}\r\n")])
    with pytest.raises(UrlNotAllowed):
        GuardedClient([peer.authority]).get_bytes(f"http://{peer.authority}/", limit=100)
    assert other.connections == 0


def test_a_malformed_trusted_host_is_said_at_once() -> None:
    for pair in ("example.org", "example.org:", ":80", "example.org:http", "example.org:0", "example.org:65536"):
        with pytest.raises(InvalidRequest):
            GuardedClient([pair])
    GuardedClient(["[::1]:8080", "mirror.lan:443"])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody else vouches for, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=here -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [*command.split(), "-keyout", "key.pem", "-out", "cert.pem"], cwd=folder, check=True, capture_output=True
    )
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def fresh_tls_settings() -> Iterator[None]:
    guarded_http._ssl_context.cache_clear()
    yield
    guarded_http._ssl_context.cache_clear()


def test_certificates_are_checked(peers, certificate, fresh_tls_settings, monkeypatch) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    peer = peers(lambda path: [plain(b"picture")], context)
    client = GuardedClient([peer.authority, f"localhost:{peer.port}"])
    with pytest.raises(TransferFailed):
        client.get_bytes(f"https://{peer.authority}/", limit=100)
    assert peer.received == [], "a request left under a certificate that nobody vouches for"
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    guarded_http._ssl_context.cache_clear()
    assert client.get_bytes(f"https://{peer.authority}/", limit=100) == b"picture"
    with pytest.raises(TransferFailed):
        client.get_bytes(f"https://localhost:{peer.port}/", limit=100)
    assert len(peer.received) == 1
