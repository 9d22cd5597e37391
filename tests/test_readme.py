"""The README's commands do what it says: each block is run as a newcomer would, against a real server."""

import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy
import pytest
from PIL import Image

from benchmarks.server import free_port

ROOT = Path(__file__).resolve().parent.parent
NOT_HERE = ("make run", "make test", ".venv/bin/eis models pull")
"""What a test must not start inside itself, or what needs a hub."""


def blocks() -> list[str]:
    """The shell blocks of the README."""
    return re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def commands(block: str) -> list[str]:
    """The commands of a block, continued lines joined."""
    joined = block.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip() and not line.strip().startswith("#")]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server as `make run` starts it, on another port."""
    folder, port = tmp_path_factory.mktemp("newcomer"), free_port()
    environment = {**os.environ, "EIS_HOME": str(folder / "home")}
    command = [sys.executable, "-m", "app.cli", "serve", "--port", str(port)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, cwd=ROOT)
    try:
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=2)
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None and time.monotonic() < end, "the server did not start"
                time.sleep(0.2)
        yield folder, port, environment
    finally:
        process.terminate()
        process.wait(timeout=60)


def test_readme_commands_work(served):
    folder, port, environment = served
    run = 0
    for command in [command for block in blocks() for command in commands(block)]:
        if command.startswith(NOT_HERE):
            continue
        eis = f"{sys.executable} -m app.cli"
        text = command.replace(".venv/bin/eis", eis).replace(":7860", f":{port}")
        answer = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {text}"],
            cwd=folder, env={**environment, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert answer.returncode == 0, f"{command}\n{answer.stdout}{answer.stderr}"
        run += 1
    assert run >= 4
    pictures = {name: numpy.asarray(Image.open(folder / name, formats=["PNG"])) for name in ("car.png", "again.png")}
    assert (pictures["car.png"] == pictures["again.png"]).all(), "the recipe did not repeat the picture"


def test_readme_names_real_models():
    from app.models.catalog import CATALOG

    named = re.findall(r"eis models pull ([\w-]+)", (ROOT / "README.md").read_text())
    assert named
    assert set(named) <= {row.id for row in CATALOG}
