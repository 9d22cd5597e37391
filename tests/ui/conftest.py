"""The browser for the page's tests: Debian's Chromium, a fresh profile each time, and what it must never do.

Without a browser the tests that need one are skipped and say so; EIS_REQUIRE_BROWSER=1 makes that a failure.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.ui.serving import server

PATIENCE = 1000 * int(os.environ.get("EIS_TEST_PATIENCE", "90"))
"""Milliseconds that a busy machine may take; every wait ends as soon as its condition holds."""

CHROMIUM = Path(os.environ.get("EIS_CHROMIUM", "/usr/bin/chromium"))
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


def no_browser(reason: str) -> None:
    """Skip aloud, or fail where a browser is required."""
    if os.environ.get("EIS_REQUIRE_BROWSER") == "1":
        pytest.fail(f"a browser is required: {reason}", pytrace=False)
    pytest.skip(f"no browser: {reason}")


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        no_browser("the package playwright is not installed (extra `test`)")
    if not CHROMIUM.is_file():
        no_browser(f"{CHROMIUM} does not exist; EIS_CHROMIUM names another one")
    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=str(CHROMIUM), headless=True, args=FLAGS)
        except Error as error:
            no_browser(f"{CHROMIUM} does not start: {error.message.splitlines()[0]}")
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def squares_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the torch-free capabilities."""
    home = tmp_path_factory.mktemp("squares")
    with server(home, catalog="tests.ui.capabilities:CATALOG", devices="cpu") as address:
        yield address


@pytest.fixture(scope="session")
def fresh_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The whole product as it is before anything was pulled, with a worker on the CPU; its gallery is everyone's."""
    with server(tmp_path_factory.mktemp("fresh"), devices="cpu") as address:
        yield address


@pytest.fixture
def open_page(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page in a fresh profile; at the end no error was logged and nothing left this machine."""
    contexts, complaints, outside = [], [], []
    seen = 0

    def note_request(request: Any) -> None:
        nonlocal seen
        seen += 1
        parts = urlsplit(request.url)
        if parts.scheme not in {"data", "blob"} and parts.hostname != "127.0.0.1":
            outside.append(request.url)

    def opened(address: str, *, wait: bool = True, **settings: Any) -> Any:
        settings.setdefault("viewport", {"width": 1360, "height": 900})
        context = chromium.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", note_request)
        page.goto(address)
        if wait:
            page.wait_for_selector(".eis-header")
        return page

    opened.complaints = complaints
    yield opened
    # A stream that ends with its page is noted as an error by the page that goes.
    found = list(complaints)
    for context in contexts:
        context.close()
    assert seen > 10, "the request log is empty: the check is blind"
    assert not outside, f"the page asked another machine: {outside}"
    assert not found, f"the browser complained: {found}"
