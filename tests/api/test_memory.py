"""`/api/v1/memory`: through a server in a process of its own, with the embedded model in its worker."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from app.api.schemas import CleanupAnswer, MemoryAnswer
from tests.engine.server import Server

CONFIGURE = "/api/v1/memory/configure"
WISH = {"prompt": "a red car, blue background", "model": "pocket", "num_inference_steps": 2, "seed": 1}


def test_status_and_cleanup_tell_what_a_worker_holds(tmp_path: Path) -> None:
    server = Server(tmp_path, catalog="app.core.catalog:CATALOG", devices="cpu")
    server.start()
    try:
        server.wait_until(lambda: server.request("/ready"), "be ready")
        assert server.request("/api/v1/text-to-image?wait=120", WISH)["status"] == "succeeded"
        told = server.request("/api/v1/memory/status")
        MemoryAnswer.model_validate(told)
        (worker,) = told["devices"]
        assert worker["is_live"] and worker["device"] == "cpu" and worker["precision"] == "float32"
        (pocket,) = worker["models"]
        assert (pocket["model"], pocket["state"], pocket["borrowed"]) == ("pocket", "placed", False)
        assert worker["placed_bytes"] == pocket["bytes"] > 50_000_000, "39 MB of float16 stand in float32"
        assert worker["reserved_bytes"] > pocket["bytes"] and worker["total_bytes"] > worker["free_bytes"] > 0
        assert worker["forwards"] == {"forwards": 2, "calls": 2, "rows": 4, "largest": 1}
        assert told["process"]["rss_bytes"] < worker["reserved_bytes"], "the front holds no torch"

        cleaned = server.request("/api/v1/memory/cleanup", {})
        CleanupAnswer.model_validate(cleaned)
        (after,) = cleaned["devices"]
        assert after["dropped_models"] == ["pocket"] and after["models"] == [] and after["placed_bytes"] == 0
        assert after["freed_bytes"] > pocket["bytes"] / 2, "the weights went back to the machine"
        (again,) = server.request("/api/v1/memory/status")["devices"]
        assert again["models"] == [] and again["pid"] == worker["pid"]
        (nothing,) = server.request("/api/v1/memory/cleanup", {})["devices"]
        assert nothing["dropped_models"] == []
        assert server.request("/api/v1/text-to-image?wait=120", WISH)["status"] == "succeeded", "it is loaded anew"
    finally:
        assert server.stop() == 0


def test_a_model_in_use_is_kept_and_a_busy_worker_answers(tmp_path: Path) -> None:
    server = Server(tmp_path, catalog="app.core.catalog:CATALOG", devices="cpu")
    server.start()
    try:
        server.wait_until(lambda: server.request("/ready"), "be ready")
        job = server.request("/api/v1/text-to-image?wait=0", {**WISH, "num_inference_steps": 150})["id"]
        server.wait_until(lambda: server.request(f"/api/v1/jobs/{job}")["step"], "draw")
        (worker,) = server.request("/api/v1/memory/cleanup", {})["devices"]
        assert worker["is_live"] and worker["state"] == "busy" and worker["dropped_models"] == []
        assert [(model["model"], model["borrowed"]) for model in worker["models"]] == [("pocket", True)]
        server.wait_until(lambda: server.request(f"/api/v1/jobs/{job}")["status"] == "succeeded", "finish")
    finally:
        assert server.stop() == 0


@pytest.fixture(scope="module")
def working(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("home"), catalog="app.core.catalog:CATALOG", devices="cpu")
    server.start()
    server.wait_until(lambda: server.request("/ready"), "be ready")
    yield server
    assert server.stop() == 0


def sha256(server: Server) -> str:
    return server.request("/api/v1/text-to-image?wait=120", WISH)["result"]["images"][0]["sha256"]


def test_settings_take_effect_without_a_restart_and_outlive_one(working: Server) -> None:
    first = sha256(working)
    (before,) = working.request("/api/v1/memory/status")["devices"]
    assert before["settings"] == {
        "offload": "auto", "precision": "auto", "model_memory_bytes": None, "parked_memory_bytes": None,
    }  # fmt: skip
    assert [model["strategy"] for model in before["models"]] == ["none"]
    told = working.request(CONFIGURE, {"strategy": "attention", "precision": "bfloat16", "model_memory_bytes": 10**9})
    MemoryAnswer.model_validate(told)
    (now,) = told["devices"]
    assert (now["pid"], now["precision"], now["models"]) == (before["pid"], "bfloat16", [])
    assert (now["settings"]["offload"], now["settings"]["model_memory_bytes"]) == ("attention", 10**9)
    assert sha256(working) != first
    (model,) = working.request("/api/v1/memory/status")["devices"][0]["models"]
    assert model["strategy"] == "attention"
    # A field that is left out stays; null is the setting again; the decision outlives a restart.
    (now,) = working.request(CONFIGURE, {"device": "cpu", "model_memory_bytes": None})["devices"]
    assert (now["settings"]["offload"], now["settings"]["model_memory_bytes"]) == ("attention", None)
    assert working.stop() == 0
    working.start()
    working.wait_until(lambda: working.request("/ready"), "be ready again")
    (again,) = working.request("/api/v1/memory/status")["devices"]
    assert (again["settings"]["offload"], again["precision"]) == ("attention", "bfloat16")
    working.request(CONFIGURE, {"strategy": None, "precision": None})
    assert sha256(working) == first


@pytest.mark.parametrize("precision", ["float8", "int8", "int4"])
def test_the_embedded_model_draws_in_fewer_bits(working: Server, precision: str) -> None:
    plain = sha256(working)
    (whole,) = working.request("/api/v1/memory/status")["devices"][0]["models"]
    try:
        working.request(CONFIGURE, {"precision": precision})
        assert sha256(working) != plain
        (model,) = working.request("/api/v1/memory/status")["devices"][0]["models"]
        assert model["bytes"] < whole["bytes"]
    finally:
        working.request(CONFIGURE, {"precision": None})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"strategy": "streamed"}, "needs a GPU"),
        ({"strategy": "model_cpu"}, "needs a GPU"),
        ({"strategy": "sequential_cpu"}, "needs a GPU"),
        ({"strategy": "fast"}, "strategy"),
        ({"precision": "float64"}, "precision"),
        ({"model_memory_bytes": 0}, "model_memory_bytes"),
        ({"model_memory_bytes": 2**59}, "more than the device has"),
        ({"model_memory_bytes": 1e9}, "model_memory_bytes"),
        ({"model_memory_bytes": "many"}, "model_memory_bytes"),
        ({"parked_memory_bytes": -1}, "parked_memory_bytes"),
        ({"parked_memory_bytes": True}, "parked_memory_bytes"),
        ({"strategy": "vae", "threads": 2}, "no such field"),
        ({"device": "cuda:7", "strategy": "vae"}, "no device 'cuda:7'"),
        ({"device": "cpu"}, "at least one of strategy"),
        ({}, "at least one of strategy"),
        ([1], "JSON object"),
    ],
)
def test_nonsense_is_refused_and_changes_nothing(working: Server, change: Any, says: str) -> None:
    before = working.request("/api/v1/memory/status")["devices"][0]["settings"]
    with pytest.raises(HTTPError) as refused:
        working.request(CONFIGURE, change)
    error = json.load(refused.value)["error"]
    assert (refused.value.code, error["code"]) == (422, "invalid_request") and says in error["message"], error
    assert working.request("/api/v1/memory/status")["devices"][0]["settings"] == before
