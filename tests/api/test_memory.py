"""`/api/v1/memory`: over a real worker process with a tiny checkpoint, and over the torchless runtime."""

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.serving import Running, serving
from tests.engine.conftest import until
from tests.models.tiny_checkpoints import make_sd15

STATUS, CONFIGURE, CLEANUP = (f"/api/v1/memory/{name}" for name in ("status", "configure", "cleanup"))
WISH = {
    "prompt": "a red car", "model": "tiny-sd15", "width": 64, "height": 64, "num_inference_steps": 2, "seed": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def working(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server with a worker process on the CPU."""
    home = tmp_path_factory.mktemp("home")
    engine = {"runtime": "app.models.runtime:open_runtime"}
    # A neighbour that takes both cores must not make the worker look lost.
    patience = {"worker_lost_seconds": 60.0, "heartbeat_seconds": 1.0}
    with serving(home, engine=engine, ready_seconds=120, devices=("cpu",), **patience) as running:
        running.service.models.add(make_sd15(tmp_path_factory.mktemp("published") / "sd15"), id="tiny-sd15")
        yield running


def status(server: Running) -> dict[str, Any]:
    answer = server.client.get(STATUS)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()


def draw(server: Running, **changes: Any) -> dict[str, Any]:
    answer = server.client.post("/api/v1/text-to-image?wait=120", json=WISH | changes, timeout=130)
    assert answer.status_code == 200, answer.text
    return answer.json()


def configure(server: Running, **wish: Any) -> dict[str, Any]:
    answer = server.client.post(CONFIGURE, json=wish, timeout=70)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_status_tells_bytes_and_models_of_every_worker(working: Running) -> None:
    working.client.post(CLEANUP, timeout=70)
    assert status(working)["devices"][0]["models"] == []
    draw(working)
    told = status(working)
    assert (told["strategy"], told["precision"]) == ("auto", "auto")
    (device,) = told["devices"]
    assert (device["device"], device["worker"], device["answered"], device["reason"]) == ("cpu", "cpu", True, None)
    assert device["pid"] not in {None, os.getpid()}
    (model,) = device["models"]
    assert model["bytes"] == device["model_bytes"] > 100_000
    assert {name: model[name] for name in ("model", "state", "pinned", "strategy")} == {
        "model": "tiny-sd15", "state": "placed", "pinned": False, "strategy": "none",
    }  # fmt: skip
    assert device["model_bytes"] < device["allocated_bytes"] <= device["reserved_bytes"] < device["total_bytes"]
    assert 0 < device["free_bytes"] < device["total_bytes"] and device["parked_bytes"] == 0


def test_a_busy_worker_answers_and_keeps_what_its_job_uses(working: Running) -> None:
    job = working.client.post("/api/v1/text-to-image?wait=0", json=WISH | {"num_inference_steps": 150}).json()
    try:
        until(lambda: any(model["pinned"] for model in status(working)["devices"][0]["models"]))
        assert status(working)["devices"][0]["state"] == "busy"
        cleaned = working.client.post(CLEANUP, timeout=70).json()
        assert cleaned["devices"][0]["dropped_models"] == []
        models = status(working)["devices"][0]["models"]
        assert [model["model"] for model in models] == ["tiny-sd15"]
        assert working.client.get(job["links"]["self"]).json()["status"] == "running", "it was over too soon"
    finally:
        working.client.post(job["links"]["cancel"])
    until(lambda: working.client.get(job["links"]["self"]).json()["status"] == "cancelled")


def test_a_cleanup_drops_models_and_says_what_it_freed(working: Running) -> None:
    draw(working)
    cleaned = working.client.post(CLEANUP, timeout=70)
    assert cleaned.status_code == 200
    (device,) = cleaned.json()["devices"]
    assert (device["answered"], device["dropped_models"]) == (True, ["tiny-sd15"])
    assert device["freed_bytes"] == device["before_bytes"] - device["after_bytes"] == cleaned.json()["freed_bytes"]
    assert status(working)["devices"][0]["models"] == []


def test_settings_take_effect_without_a_restart_and_outlive_a_lost_worker(working: Running) -> None:
    first = draw(working)
    pid = status(working)["devices"][0]["pid"]
    told = configure(working, strategy="attention", precision="bfloat16", model_memory_bytes=10**9)
    try:
        assert (told["strategy"], told["precision"], told["model_memory_bytes"]) == ("attention", "bfloat16", 10**9)
        (device,) = told["devices"]
        assert (device["pid"], device["strategy"], device["precision"]) == (pid, "attention", "bfloat16")
        assert device["models"] == [], "what was opened under other settings is dropped"
        second = draw(working)
        assert second["result"]["images"][0]["sha256"] != first["result"]["images"][0]["sha256"]
        (device,) = status(working)["devices"]
        assert [model["strategy"] for model in device["models"]] == ["attention"]
        # A field that is left out stays; null is the default again.
        told = configure(working, model_memory_bytes=None)
        assert (told["strategy"], told["model_memory_bytes"]) == ("attention", None)
        os.kill(pid, signal.SIGKILL)
        until(lambda: status(working)["devices"][0]["pid"] not in {None, pid}, 120)
        (device,) = status(working)["devices"]
        assert (device["strategy"], device["precision"]) == ("attention", "bfloat16")
    finally:
        configure(working, strategy="auto", precision="auto", model_memory_bytes=None)
    assert draw(working)["result"]["images"][0]["sha256"] == first["result"]["images"][0]["sha256"]


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ({"strategy": "streamed"}, "needs a GPU"),
        ({"strategy": "model_cpu"}, "needs a GPU"),
        ({"strategy": "sequential_cpu"}, "needs a GPU"),
        ({"strategy": "fast"}, "strategy"),
        ({"strategy": None}, "strategy"),
        ({"precision": "float64"}, "precision"),
        ({"model_memory_bytes": 0}, "model_memory_bytes"),
        ({"model_memory_bytes": 1.5}, "model_memory_bytes"),
        ({"model_memory_bytes": "many"}, "model_memory_bytes"),
        ({"model_memory_bytes": 2**63}, "model_memory_bytes"),
        ({"parked_memory_bytes": -1}, "parked_memory_bytes"),
        ({"parked_memory_bytes": True}, "parked_memory_bytes"),
        ({"strategy": "vae", "threads": 2}, "no such field"),
        ({}, "at least one field"),
        ([1], "JSON object"),
    ],
)
def test_nonsense_is_refused_and_changes_nothing(working: Running, wish: Any, says: str) -> None:
    before = {name: value for name, value in status(working).items() if name != "devices"}
    answer = working.client.post(CONFIGURE, json=wish)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["code"] == "invalid_request" and says in answer.text
    assert {name: value for name, value in status(working).items() if name != "devices"} == before


def test_the_body_is_strict_json(server: Running) -> None:
    json = {"content-type": "application/json"}
    assert server.client.post(CONFIGURE, content=b'{"strategy": "vae"', headers=json).status_code == 400
    twice = server.client.post(CONFIGURE, content=b'{"strategy": "vae", "strategy": "none"}', headers=json)
    assert (twice.status_code, twice.json()["error"]["code"]) == (400, "invalid_json")
    text = {"content-type": "text/plain"}
    assert server.client.post(CONFIGURE, content=b"strategy=vae", headers=text).status_code == 415
    assert server.client.get(CONFIGURE).status_code == 405


def test_a_precision_whose_package_is_missing_is_told_and_changes_nothing(tmp_path) -> None:
    with serving(tmp_path) as server:
        answer = server.client.post(CONFIGURE, json={"precision": "int4"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "dependency_missing")
        assert "optimum-quanto" in answer.json()["error"]["message"]
        assert status(server)["precision"] == "auto"
        assert configure(server, precision="int8")["precision"] == "int8"
        assert configure(server, strategy="vae")["precision"] == "int8"


def test_a_worker_that_does_not_answer_is_told_as_such(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("app.core.device_memory.STATUS_SECONDS", 0.2)
    with serving(tmp_path) as server:
        late = threading.Event()
        monkeypatch.setattr("app.core.worker.ask_runtime", lambda *asked: {"late": late.wait(2)})
        (device,) = status(server)["devices"]
        assert device["answered"] is False and device["reason"] == "the worker did not answer in time"
        assert device["allocated_bytes"] is None
        late.set()


def test_the_document_knows_the_body(server: Running) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]
    body = paths[CONFIGURE]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == {"strategy", "precision", "model_memory_bytes", "parked_memory_bytes"}
    assert set(paths[STATUS]) == {"get"} and set(paths[CLEANUP]) == {"post"}
