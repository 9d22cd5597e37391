"""A real server process for a benchmark, and the clock of its start."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Running:
    """A server that answers: its address and the seconds from its start to the first `/health`."""

    address: str
    seconds_to_health: float
    begun: float


def free_port() -> int:
    """A port that is free now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def answers(url: str) -> bool:
    """Whether a GET gives 200."""
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


@contextlib.contextmanager
def serving(
    home: Path, *, catalog: str = "app.core.catalog:CATALOG", ui: bool = True, **environment: str
) -> Iterator[Running]:
    """Start the server as a user would; stop it on leaving."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    settings = {"EIS_HOME": str(home), "EIS_CATALOG": catalog, "EIS_UI": str(ui).lower(), "EIS_LOG_LEVEL": "warning"}
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port)]
    begun = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, **settings, **environment}, stdout=subprocess.DEVNULL)
    try:
        while not answers(f"{address}/health"):
            if process.poll() is not None or time.perf_counter() - begun > 120:
                raise RuntimeError("the server did not start")
            time.sleep(0.005)
        yield Running(address, time.perf_counter() - begun, begun)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def wait_ready(address: str, seconds: float = 120) -> None:
    """Return once a worker takes jobs."""
    end = time.perf_counter() + seconds
    while not answers(f"{address}/ready"):
        if time.perf_counter() > end:
            raise RuntimeError("no worker became ready")
        time.sleep(0.05)
