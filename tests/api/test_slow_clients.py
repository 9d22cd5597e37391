"""Clients that drip, stay silent or send rubbish lose their connection; honest ones beside them notice nothing."""

import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.api.serving import Running, serving
from tests.api.test_capabilities import PAINT

SECONDS = 0.6
pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("impatient"), receive_seconds=SECONDS) as running:
        yield running


def connect(server: Running) -> socket.socket:
    client = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def read_all(client: socket.socket) -> bytes:
    received = b""
    try:
        while chunk := client.recv(65536):
            received += chunk
    except ConnectionError:
        pass
    return received


def drip(client: socket.socket, data: bytes, pause: float = 0.05) -> float:
    """Send a byte at a time until the server has closed; answers the seconds that it took."""
    began = time.monotonic()
    client.settimeout(pause)
    for index in range(len(data)):
        try:
            client.sendall(data[index : index + 1])
            if client.recv(1) == b"":
                break
        except TimeoutError:
            continue
        except ConnectionError:
            break
        else:
            break
    return time.monotonic() - began


HEADERS = "Host: localhost\r\nContent-Type: application/json\r\nContent-Length: 400\r\n"
HEAD = f"POST {PAINT} HTTP/1.1\r\n{HEADERS}\r\n".encode()
SLOW = {
    "headers": b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"a" * 400,
    "body": HEAD + b'{"prompt": "' + b"a" * 400,
    "first line": b"GET /" + b"a" * 400,
}


@pytest.mark.parametrize("name", SLOW)
def test_a_dripping_client_is_closed(impatient: Running, name: str) -> None:
    before = impatient.stored()
    with connect(impatient) as client:
        data = SLOW[name]
        if name == "body":
            client.sendall(HEAD)
            data = data[len(HEAD) :]
        assert SECONDS * 0.8 < drip(client, data) < SECONDS + 2
    assert impatient.stored() == before


def test_a_silent_client_is_closed_with_a_word(impatient: Running) -> None:
    with connect(impatient) as client:
        began = time.monotonic()
        received = read_all(client)
        assert SECONDS * 0.8 < time.monotonic() - began < SECONDS + 2
        assert received.startswith(b"HTTP/1.1 408 ") and b"request_timeout" in received


def test_a_second_request_on_a_connection_has_its_own_clock(impatient: Running) -> None:
    ask = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connect(impatient) as client:
        for _ in range(3):
            client.sendall(ask)
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
            time.sleep(SECONDS * 0.7)
        client.sendall(ask[:20])
        began = time.monotonic()
        assert b"408" in read_all(client)[:20]
        assert time.monotonic() - began < SECONDS + 2


def test_a_long_answer_is_not_cut_off(impatient: Running) -> None:
    steps = int(SECONDS / 0.05) + 14
    answer = impatient.client.post(PAINT, json={"num_inference_steps": steps, "step_seconds": 0.05})
    assert answer.status_code == 200 and answer.elapsed.total_seconds() > SECONDS
    job = impatient.client.post(f"{PAINT}?wait=0", json={"num_inference_steps": steps, "step_seconds": 0.05}).json()
    with impatient.client.stream("GET", job["links"]["events"]) as stream:
        assert "event: succeeded" in list(stream.iter_lines())


def test_honest_clients_are_served_beside_many_slow_ones(impatient: Running) -> None:
    slow = [connect(impatient) for _ in range(200)]
    try:
        for client in slow:
            client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        times = []
        for _ in range(20):
            answer = impatient.client.get("/health")
            assert answer.status_code == 200
            times.append(answer.elapsed.total_seconds())
        assert sorted(times)[10] < 0.25
        time.sleep(SECONDS + 0.3)
        for client in slow:
            client.settimeout(2)
            assert read_all(client) is not None
    finally:
        for client in slow:
            client.close()
    assert impatient.client.post(PAINT, json={}).status_code == 200


@pytest.mark.parametrize(
    "head", [b"GET /" + b"a" * 2**21, b"GET / HTTP/1.1\r\nX: " + b"a" * 2**21], ids=["url", "header"]
)
def test_an_endless_head_is_cut_off(impatient: Running, head: bytes) -> None:
    with connect(impatient) as client:
        began = time.monotonic()
        with suppress(ConnectionError):
            client.sendall(head)
        received = read_all(client)
        assert received == b"" or (b"431" in received[:20] and b"head_too_large" in received)
        assert time.monotonic() - began < SECONDS
    with connect(impatient) as client:
        client.sendall(
            b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: " + b"a" * 2**15 + b"\r\n\r\n"
        )
        assert read_all(client).startswith(b"HTTP/1.1 200")


RUBBISH = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GARBAGE\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 100,
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    b"GET /none-such HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n\r\n",
    b"GET http://evil.example/ HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\nConnection: close\r\n\r\n",
]  # fmt: skip


@pytest.mark.parametrize("data", RUBBISH, ids=range(len(RUBBISH)))
def test_rubbish_is_a_4xx_and_the_server_lives(impatient: Running, data: bytes) -> None:
    with connect(impatient) as client:
        client.sendall(data)
        received = read_all(client)
        assert received == b"" or received[9:10] in {b"4"}, received[:100]
    assert impatient.client.get("/health").status_code == 200
