"""Hosts that never answer cost those who named them, and nobody else."""

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from anyio import create_task_group, run, sleep

from app.api.capabilities import CHECKED_AT_ONCE, CHECKS_WAITING
from app.api.few_at_once import FewAtOnce
from app.api.pictures import FETCHED_AT_ONCE, FETCHES_WAITING
from app.errors import Unavailable, UrlNotAllowed
from tests.api.conftest import picture
from tests.api.serving import Running, serving
from tests.api.test_capabilities import COPY, PAINT


class SilentHost:
    """Takes connections and says nothing until it is closed."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = self.listener.getsockname()[1]
        self.taken: list[socket.socket] = []
        threading.Thread(target=self.take, daemon=True).start()

    def take(self) -> None:
        with suppress(OSError):
            while True:
                self.taken.append(self.listener.accept()[0])

    def close(self) -> None:
        self.listener.close()
        for connection in self.taken:
            connection.close()


@contextmanager
def silent_host() -> Iterator[SilentHost]:
    host = SilentHost()
    try:
        yield host
    finally:
        host.close()


def until(condition, seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_slow_picture_hosts_hold_up_no_other_wish(tmp_path: Path) -> None:
    with (
        silent_host() as host,
        serving(tmp_path, trusted_hosts=(f"127.0.0.1:{host.port}",)) as server,
        ThreadPoolExecutor(FETCHED_AT_ONCE + FETCHES_WAITING) as threads,
        httpx.Client(base_url=server.address, timeout=60, limits=httpx.Limits(max_connections=100)) as patient,
    ):
        url = f"http://127.0.0.1:{host.port}/a.png"
        before = server.stored()

        def ask() -> httpx.Response:
            return patient.post(COPY, json={"image": url})

        slow: list[Future] = [threads.submit(ask) for _ in range(FETCHED_AT_ONCE + FETCHES_WAITING)]
        until(lambda: len(host.taken) == FETCHED_AT_ONCE)
        began = time.monotonic()
        assert server.client.post(PAINT, json={}).status_code == 200
        assert server.client.post(COPY, files={"image": ("a.png", picture())}).status_code == 200
        assert server.client.post("/api/v1/images", files={"image": ("a.png", picture())}).status_code == 201
        assert time.monotonic() - began < 10, "other wishes waited for the slow hosts"
        refused = ask()
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "unavailable"
        assert int(refused.headers["retry-after"]) > 0
        upload = server.client.post("/api/v1/images", json={"image": url})
        assert upload.status_code == 503 and len(host.taken) == FETCHED_AT_ONCE
        host.close()
        assert {one.result().status_code for one in slow} == {503}
        files = server.stored()[2]
        assert files == before[2] + 4, "a fetch that failed left a file behind"


def test_slow_resolvers_hold_up_no_other_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answered, real = threading.Event(), socket.getaddrinfo
    asked: list[str] = []

    def resolver(host: str, *arguments: object, **options: object) -> list:
        if not str(host).endswith("example.org"):
            return real(host, *arguments, **options)
        asked.append(host)
        answered.wait(20)
        raise socket.gaierror(socket.EAI_AGAIN, "later")

    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    with (
        serving(tmp_path) as server,
        ThreadPoolExecutor(CHECKED_AT_ONCE + CHECKS_WAITING) as threads,
        httpx.Client(base_url=server.address, timeout=60, limits=httpx.Limits(max_connections=100)) as patient,
    ):

        def ask() -> httpx.Response:
            return patient.post(PAINT, params={"callback_url": "https://hooks.example.org/"}, json={})

        slow: list[Future] = [threads.submit(ask) for _ in range(CHECKED_AT_ONCE + CHECKS_WAITING)]
        until(lambda: len(asked) == CHECKED_AT_ONCE)
        for method, path in (("GET", "/health"), ("GET", "/ready"), ("GET", "/api/v1/jobs"), ("POST", PAINT)):
            answer = server.client.request(method, path, json={} if method == "POST" else None)
            assert answer.status_code == 200 and answer.elapsed.total_seconds() < 3, path
        refused = ask()
        assert refused.status_code == 503 and refused.json()["error"]["code"] == "unavailable"
        answered.set()
        assert not [one for one in slow if one.result().status_code not in {422, 503}]
        assert server.stored()[0] == 1


def test_health_needs_no_thread(server: Running) -> None:
    """With every thread of the shared pool taken, the process still says that it lives."""
    held, taken = threading.Event(), threading.Semaphore(0)
    real = server.service.readiness

    def slow() -> dict:
        taken.release()
        held.wait(20)
        return real()

    server.service.readiness = slow  # type: ignore[method-assign]
    try:
        with ThreadPoolExecutor(40) as threads, httpx.Client(base_url=server.address, timeout=60) as patient:
            asked = [threads.submit(patient.get, "/ready") for _ in range(40)]
            for _ in asked:
                assert taken.acquire(timeout=10)
            answer = server.client.get("/health", timeout=5)
            held.set()
            assert answer.status_code == 200 and {one.result().status_code for one in asked} == {200}
    finally:
        held.set()
        server.service.readiness = real  # type: ignore[method-assign]


def test_a_callback_s_address_is_looked_at_once(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def refuse(url: str) -> None:
        seen.append(url)
        raise UrlNotAllowed("Not this one.")

    monkeypatch.setattr(server.service._client, "check_url", refuse)
    before = server.stored()
    answer = server.client.post(
        COPY, params={"callback_url": "https://hooks.example.org/"}, files={"image": ("a.png", picture())}
    )
    assert answer.status_code == 422 and answer.json()["error"]["code"] == "url_not_allowed"
    assert len(seen) == 1 and server.stored() == before


def test_a_place_is_for_a_whole_request_and_comes_free() -> None:
    few = FewAtOnce(1, 1, "Come back later.")
    order: list[str] = []

    async def ask(name: str) -> None:
        with few.place():
            for _ in range(2):
                await few.run(time.sleep, 0.05)
            order.append(name)

    async def scene() -> None:
        async with create_task_group() as tasks:
            tasks.start_soon(ask, "first")
            tasks.start_soon(ask, "second")
            await sleep(0.02)
            with pytest.raises(Unavailable, match="later"):
                await ask("third")
        await ask("fourth")

    run(scene)
    assert sorted(order) == ["first", "fourth", "second"] and few.taken == 0
