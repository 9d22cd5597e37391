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

from app.api.few_at_once import FewAtOnce
from app.api.pictures import FETCHED_AT_ONCE, FETCHES_WAITING
from app.errors import Unavailable
from tests.api.conftest import picture
from tests.api.serving import serving
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


def until(condition, seconds: float = 10.0) -> None:
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


def test_a_place_is_for_a_whole_request_and_comes_free() -> None:
    few = FewAtOnce(1, 1, "Come back later.")
    order: list[str] = []

    async def ask(name: str) -> None:
        async with few.place():
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
