"""The page hangs behind all routes, comes when it is built, and goes through the same checks as everything else."""

import threading
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from starlette.responses import PlainTextResponse

from app import main
from tests.api.serving import Running, serving
from tests.api.test_capabilities import PAINT


class Page:
    """A page whose building waits until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.fail = False
        self.events: list[str] = []

    def build(self, *_: object) -> FastAPI:
        self.go.wait(20)
        if self.fail:
            raise RuntimeError("the page's library is broken")

        @asynccontextmanager
        async def lifespan(_: FastAPI):
            self.events.append("start")
            yield
            self.events.append("stop")

        page = FastAPI(lifespan=lifespan)

        @page.get("/")
        def root(request: Request) -> PlainTextResponse:
            return PlainTextResponse(f"the page of {request.state.owner or 'anybody'}")

        @page.post("/gradio_api/upload")
        def upload() -> PlainTextResponse:
            return PlainTextResponse("uploaded")

        return page


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    page = Page()
    monkeypatch.setattr(main, "browser_page", page.build)
    return page


@pytest.fixture
def server(page: Page, tmp_path: Path) -> Iterator[Running]:
    with serving(tmp_path, ui=True) as running:
        yield running
        page.go.set()


def shown(server: Running, text: str) -> bool:
    deadline = time.monotonic() + 10
    while text not in server.client.get("/").text:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return True


def test_everything_is_served_before_the_page_stands(server: Running, page: Page) -> None:
    starting = server.client.get("/")
    assert starting.status_code == 200 and "starting" in starting.text and "refresh" in starting.text
    assert server.client.get("/health").status_code == 200
    assert server.client.post(PAINT, json={}).status_code == 200
    assert server.client.get("/assets/a.js").status_code == 404
    page.go.set()
    assert shown(server, "the page of anybody") and page.events == ["start"]


def test_the_page_takes_nothing_from_the_routes(server: Running, page: Page) -> None:
    page.go.set()
    assert shown(server, "the page of")
    assert server.client.put(PAINT, json={}).status_code == 405
    missing = server.client.get("/api/v1/none-such")
    assert missing.status_code == 404 and missing.json()["error"]["code"] == "not_found"
    assert server.client.post("/gradio_api/upload").text == "uploaded"


def test_the_page_stands_behind_the_checks(server: Running, page: Page) -> None:
    page.go.set()
    assert shown(server, "the page of")
    foreign = {"origin": "https://evil.example"}
    assert server.client.post("/gradio_api/upload", headers=foreign).status_code == 403
    assert server.client.get("/", headers={"host": "evil.example"}).status_code == 403
    endless = (b" " * 2**16 for _ in range(2**14))
    large = server.client.post("/gradio_api/upload", headers={"content-length": str(2**31)}, content=endless)
    assert large.status_code == 413
    assert "frame-ancestors" in server.client.get("/").headers["content-security-policy"]


def test_the_page_knows_whose_it_is(page: Page, tmp_path: Path) -> None:
    page.go.set()
    with serving(tmp_path, ui=True, api_keys=("a key",)) as server:
        assert server.client.get("/").status_code == 401
        cookie = server.client.post("/login", data={"key": "a key"}).headers["set-cookie"].split(";")[0]
        server.client.cookies.clear()
        deadline = time.monotonic() + 10
        while "the page of" not in (text := server.client.get("/", headers={"cookie": cookie}).text):
            assert time.monotonic() < deadline
        assert "anybody" not in text and "a key" not in text
    assert page.events == ["start", "stop"]


def test_a_page_that_cannot_start_says_so_and_the_api_lives(server: Running, page: Page) -> None:
    page.fail = True
    page.go.set()
    assert shown(server, "could not start")
    assert server.client.get("/").status_code == 503 and "library" not in server.client.get("/").text
    assert server.client.post(PAINT, json={}).status_code == 200


def test_the_real_page_s_unknown_addresses_answer_in_the_documented_shape(tmp_path: Path) -> None:
    """With the page's library behind the routes; what its script asks below /gradio_api/ is its own."""
    with serving(tmp_path, ui=True, catalog="tests.engine.capabilities:CATALOG") as server:
        deadline = time.monotonic() + 60
        while "gradio" not in server.client.get("/").text:
            assert time.monotonic() < deadline, "the page never stood"
            time.sleep(0.1)
        unknown = ("/nope", "/nope/deeper", "/api", "/api/", "/api/nope", "/api/v1", "/api/v1/nope")
        for method in ("GET", "POST", "DELETE"):
            for path in unknown:
                answer = server.client.request(method, path)
                assert answer.status_code == 404, (method, path)
                told = {"code": "not_found", "message": "There is nothing at this address.", "details": {}}
                assert answer.json() == {"error": told}, (method, path)
        assert server.client.get("/assets/nope.js").json() == {"error": told}
        wrong = server.client.put("/")
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
        assert "GET" in wrong.headers["allow"]
        head = server.client.head("/nope")
        assert (head.status_code, head.content) == (404, b"")
        assert server.client.get("/theme.css").status_code == 200
        assert server.client.get("/gradio_api/nope").json() == {"detail": "Not Found"}
