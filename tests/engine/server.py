"""The real server as a child process, and a load on it that survives its deaths: for the proofs."""

import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests import as_a_user

PATIENCE_SECONDS = 180.0
TROUBLE = (OSError, ValueError, http.client.HTTPException)
"""What a client meets when the server dies: a refused or cut connection, half an answer."""


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`eis serve` on a home folder; started, killed and started again."""

    def __init__(self, home: Path, **settings: str | None) -> None:
        self.home = home
        self.port = free_port()
        self.log = home / f"server-{self.port}.log"
        names = {"home": str(home), "port": str(self.port), "ui": "false", "devices": "cpu", "min_free_bytes": "0"}
        # So many kills in a row may strike one job more often than a server's jobs are given up; None: the default.
        wanted = {**names, "max_attempts": "20", **settings}
        given = {f"EIS_{name.upper()}": value for name, value in wanted.items() if value is not None}
        self.url = settings.get("database_url")
        self.environment = {**as_a_user.environment(), **given}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "serve"], env=self.environment, stdout=log, stderr=log
            )
        self.wait_until(lambda: self.request("/health"), "answer /health")

    def kill(self) -> None:
        """As the kernel would: no chance to say goodbye."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> int:
        """As a supervisor would."""
        self.process.terminate()
        return self.process.wait(60)

    def request(self, path: str, body: Any = None, **headers: str) -> Any:
        """GET, or POST of a JSON body; raises OSError while nobody answers."""
        data = None if body is None else json.dumps(body).encode()
        asked = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data=data, headers={"Content-Type": "application/json", **headers}
        )
        with urllib.request.urlopen(asked, timeout=PATIENCE_SECONDS) as answer:
            return json.load(answer)

    def worker(self) -> dict[str, Any]:
        """The state of its one worker."""
        try:
            return self.request("/ready")["workers"][0]
        except urllib.error.HTTPError as error:
            return json.load(error)["error"]["details"]["workers"][0]

    def wait_until(self, condition: Any, what: str) -> Any:
        """Ask until it is so; a server that ended meanwhile is a failure."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"the server ended:\n{self.log.read_text()[-3000:]}"
            try:
                found = condition()
            except TROUBLE:
                found = None
            if found:
                return found
            time.sleep(0.02)
        raise AssertionError(f"the server did not {what} in {PATIENCE_SECONDS:g} s\n{self.log.read_text()[-3000:]}")


class Load:
    """Clients that submit one job after the other; each repeats a submit, under its key, until it is acknowledged."""

    def __init__(self, server: Server, capability: str, wish: dict[str, Any], *, clients: int, ahead: int) -> None:
        self.accepted: dict[str, str] = {}
        self.failures: list[Exception] = []
        self._server = server
        self._capability = capability
        self._wish = wish
        self._ahead = ahead
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(index,), daemon=True) for index in range(clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Submit nothing more; what was asked is still brought to its acknowledgement."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)
            assert not thread.is_alive(), "a client never got its answer"
        assert not self.failures, self.failures

    def _run(self, client: int) -> None:
        number = 0
        try:
            while not self._stopping.is_set():
                number += 1
                self._submit(f"{client}-{number}")
                while self._waiting() > self._ahead and not self._stopping.is_set():
                    time.sleep(0.05)
        except Exception as error:
            self.failures.append(error)

    def _submit(self, key: str) -> None:
        wish = {**self._wish, "seed": random.randrange(2**31)}
        path = f"/api/v1/{self._capability}?wait=0&priority={random.randrange(11)}"
        while True:
            try:
                job = self._server.request(path, wish, **{"Idempotency-Key": key})
            except TROUBLE:
                time.sleep(0.05)
                continue
            self.accepted[key] = job["id"]
            return

    def _waiting(self) -> int:
        try:
            return self._server.request("/api/v1/jobs?status=queued&limit=1")["total"]
        except TROUBLE:
            return 0
