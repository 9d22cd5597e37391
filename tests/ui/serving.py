"""A real server in a process of its own, for tests that look at it through a browser."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests import as_a_user

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = re.compile(r"page\s+(http://127\.0\.0\.1:\d+)")
SECONDS_TO_START = 2 * int(os.environ.get("EIS_TEST_PATIENCE", "90"))


@contextmanager
def server(home: Path, **settings: str) -> Iterator[str]:
    """The address of `eis serve` with these EIS_ settings, once its page stands."""
    with server_process(home, **settings) as (address, _):
        yield address


@contextmanager
def server_process(home: Path, **settings: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The same with its process, which leads a group of its own; `port` asks for a certain port."""
    port = settings.pop("port", "0")
    environment = {
        **{name: value for name, value in as_a_user.environment().items() if not name.startswith("EIS_")},
        **{f"EIS_{name.upper()}": value for name, value in settings.items()},
        "EIS_HOME": str(home),
        "EIS_MIN_FREE_BYTES": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "app.cli", "serve", "--port", port],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(process.stdout), daemon=True)
    reader.start()
    try:
        address = wait_for_address(process, lines)
        wait_for_page(address, process, lines, settings.get("api_keys", "").split(",")[0])
        yield address, process
    finally:
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)
        reader.join(5)


def wait_for_address(process: subprocess.Popen[str], lines: list[str]) -> str:
    """The address that the server prints."""
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end and process.poll() is None:
        for line in list(lines):
            if found := ADDRESS.search(line):
                return found.group(1)
        time.sleep(0.05)
    raise AssertionError("the server did not start:\n" + "".join(lines))


def wait_for_page(address: str, process: subprocess.Popen[str], lines: list[str], key: str) -> None:
    """Until the page, which is built behind the answering server, stands and a worker is ready."""
    end = time.monotonic() + SECONDS_TO_START
    while time.monotonic() < end and process.poll() is None:
        if answers(f"{address}/config", key) and answers(f"{address}/ready", key):
            return
        time.sleep(0.2)
    raise AssertionError("the page did not come up:\n" + "".join(lines))


def answers(address: str, key: str) -> bool:
    """Whether a GET is answered with 200."""
    headers = {"X-API-Key": key} if key else {}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False
