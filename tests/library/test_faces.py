"""A pull through the two faces, over HTTP from a hub to the disk: `eis models` and the REST routes."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.models.catalog import CATALOG
from tests.api.serving import serving
from tests.library.conftest import weights
from tests.library.hub_server import Fault, HubServer, hub_server

SD15 = next(spec for spec in CATALOG if spec.id == "sd15")


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A hub with files of random numbers under the names and at the commit of the catalog's row."""
    with hub_server() as server:
        names = [name.replace("/*", "/vocab.json") for name in SD15.files]
        files = {name: weights(seed) if name.endswith(".safetensors") else b"{}" for seed, name in enumerate(names)}
        server.put(SD15.repo, files, commit=SD15.revision)
        server.faults["unet/diffusion_pytorch_model.fp16.safetensors"] = [Fault(status=503), Fault(after=100_000)]
        yield server


def test_eis_models_pulls_lists_and_removes(hub: HubServer, tmp_path: Path):
    settings = {"EIS_HOME": str(tmp_path), "EIS_HUB_URL": hub.url, "EIS_TRUSTED_HOSTS": ", ".join(hub.hosts)}

    def eis(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "app.cli", "models", *arguments]
        return subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, timeout=120)

    refused = eis("pull", "sd15")
    assert refused.returncode == 2 and SD15.licence.name in refused.stderr and hub.seen == []
    pulled = eis("pull", "sd15", "--accept-licence", "--quiet")
    assert pulled.returncode == 0, pulled.stderr
    assert "sd15" in eis("list", "--installed").stdout
    folder = tmp_path / "models" / "sd15" / "files"
    for name, data in hub.repos[SD15.repo].items():
        assert (folder / name).read_bytes() == data
    assert eis("rm", "sd15").returncode == 0
    assert not folder.exists() and "sd15" not in eis("list", "--installed").stdout


def test_a_pull_over_rest_runs_to_its_end(hub: HubServer, tmp_path: Path):
    with serving(tmp_path, hub_url=hub.url, trusted_hosts=hub.hosts) as running:
        assert running.client.post("/api/v1/models/sd15/pull").status_code == 409
        assert hub.seen == []
        assert running.client.post("/api/v1/models/sd15/pull?accept_licence=true").status_code == 202
        until = time.monotonic() + 60
        while (row := running.client.get("/api/v1/models/sd15").json())["pull"]["status"] != "succeeded":
            assert row["pull"]["status"] in ("waiting", "running"), row["pull"]
            assert time.monotonic() < until
            time.sleep(0.02)
        total = sum(map(len, hub.repos[SD15.repo].values()))
        assert row["installed"] and row["bytes_on_disk"] == row["pull"]["bytes_done"] == total
        assert running.client.delete("/api/v1/models/sd15").status_code == 204
        assert not running.client.get("/api/v1/models/sd15").json()["installed"]
