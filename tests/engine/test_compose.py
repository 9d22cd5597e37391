"""What deploy/compose.yaml starts, without Docker: its commands and environments on this machine, over PostgreSQL.

Only what an image or Compose's network would bring is put in by hand: host names, ports, folders, the secrets of
`.env`, and the database itself, which is the suite's own.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.engine.server import free_port
from tests.postgres import Cluster

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 240.0
MARK = "EIS_TEST_OF_COMPOSE"
KEY = "the key of the test"
SECRETS = {"EIS_DATABASE_PASSWORD": "none", "EIS_RAY_TOKEN": "e" * 64, "EIS_API_KEYS": KEY}
WISH = b'{"prompt": "a red car, blue background", "model": "pocket", "num_inference_steps": 2, "seed": 1}'


class Composed:
    """The services of the compose file as processes of this machine."""

    def __init__(self, folder: Path, database_url: str) -> None:
        self.services = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]
        self.folder, self.mark = folder, uuid.uuid4().hex
        self.head = f"127.0.0.1:{free_port()}"
        self.database_url = database_url
        for name in ("data", "pictures"):
            (folder / name).mkdir()

    def here(self, text: str) -> str:
        """A value of the file with the names of this machine in it."""
        text = re.sub(r"\$\{([A-Z_]+):\?[^}]*\}", lambda found: SECRETS[found[1]], text)
        text = text.replace("ray-head:6379", self.head).replace("--port=6379", f"--port={self.head.split(':')[1]}")
        text = re.sub(r"^postgresql.*@database/eis$", self.database_url, text)
        return re.sub(r"(?<![\w/])/(data|pictures)\b", lambda found: str(self.folder / found[1]), text).replace(
            "file:///pictures", f"file://{self.folder}/pictures"
        )

    def start(self, name: str, label: str = "", port: int | None = None) -> subprocess.Popen[bytes]:
        """Start one service; its words go into a file."""
        service = self.services[name]
        given = {key: value for key, value in os.environ.items() if not key.startswith(("EIS_", "RAY_"))}
        given |= {key: self.here(str(value)) for key, value in service["environment"].items()}
        given |= {MARK: self.mark, "EIS_MIN_FREE_BYTES": "0", "PYTHONPATH": str(ROOT)}
        given["PATH"] = f"{Path(sys.executable).parent}:{given['PATH']}"
        command = self.here(service["command"])
        if port is not None:
            assert "--host 0.0.0.0" in command
            command = command.replace("--host 0.0.0.0", f"--host 127.0.0.1 --port {port}")
        with (self.folder / f"{label or name}.log").open("ab") as log:
            return subprocess.Popen(shlex.split(command), env=given, cwd=self.folder, stdout=log, stderr=log)

    def end(self) -> None:
        """Kill whatever was started, wherever it went."""
        end = time.monotonic() + 30
        while (left := self.processes()) and time.monotonic() < end:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)

    def processes(self, *, holding: str = "") -> list[int]:
        """The living processes of this composition, whose command holds this text."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                ours = f"{MARK}={self.mark}".encode() in (path / "environ").read_bytes()
                if ours and holding.encode() in (path / "cmdline").read_bytes() and int(path.name) != os.getpid():
                    found.append(int(path.name))
        return found


@pytest.fixture
def composed(cluster: Cluster, tmp_path: Path) -> Iterator[Composed]:
    url = cluster.url()
    composed = Composed(tmp_path, url)
    try:
        yield composed
    finally:
        composed.end()
        cluster.drop(url)


def ask(port: int, path: str, body: bytes | None = None) -> bytes:
    headers = {"Content-Type": "application/json", "X-API-Key": KEY}
    asked = urllib.request.Request(f"http://127.0.0.1:{port}{path}", data=body, headers=headers)
    with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:
        return answer.read()


def until(condition: Any, what: str, composed: Composed) -> None:
    end = time.monotonic() + PATIENCE
    while True:
        with suppress(OSError, urllib.error.HTTPError):
            if condition():
                return
        logs = {path.name: path.read_text()[-1500:] for path in composed.folder.glob("*.log")}
        assert time.monotonic() < end, (what, logs)
        time.sleep(0.2)


def devices(port: int) -> dict[str, str]:
    told = yaml.safe_load(ask(port, "/api/v1/gpu/status"))
    return {device["device"]: device["state"] for device in told["devices"]}


def test_two_servers_share_the_queue_the_worker_and_the_pictures(composed: Composed) -> None:
    composed.start("ray-head")
    health = [str(Path(sys.executable).parent / "ray"), "health-check", f"--address={composed.head}"]
    token = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": SECRETS["EIS_RAY_TOKEN"]}
    until(lambda: subprocess.run(health, env=token, capture_output=True).returncode == 0, "head", composed)
    # One after the other: nodes of one machine that start at once stand in each other's way, those of several do not.
    composed.start("worker")
    until(lambda: "Ray runtime started" in (composed.folder / "worker.log").read_text(), "worker", composed)
    one, two = free_port(), free_port()
    servers = {}
    for port, label in ((one, "first"), (two, "second")):
        servers[port] = composed.start("server", label, port)
        until(lambda port=port: b'"ready":true' in ask(port, "/ready").replace(b" ", b""), label, composed)
    ports = (one, two)

    job = yaml.safe_load(ask(one, "/api/v1/text-to-image?wait=200", WISH))
    assert job["status"] == "succeeded", job
    (name,) = {name for port in ports for name in devices(port)}
    assert job["device"] == name and name.startswith("ray:") and name.endswith("/cpu")
    assert sorted(devices(port)[name] for port in ports) == ["elsewhere", "idle"], "one device serves one server"
    picture = job["result"]["images"][0]["url"]
    assert ask(one, picture) == ask(two, picture) and ask(one, picture).startswith(b"\x89PNG")
    assert yaml.safe_load(ask(two, f"/api/v1/jobs/{job['id']}"))["status"] == "succeeded"

    holder, other = (one, two) if devices(one)[name] == "idle" else (two, one)
    servers[holder].kill()
    again = yaml.safe_load(ask(other, "/api/v1/text-to-image?wait=200", WISH.replace(b'"seed": 1', b'"seed": 2')))
    assert (again["status"], again["device"]) == ("succeeded", name), "the other server took the device over"
