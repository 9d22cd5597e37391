"""`/api/v1/gpu`: through a server in a process of its own, across its restart; and what it refuses."""

import json
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.api.serving import Running, serving
from tests.engine.server import Server

GIB = 2**30
FAKES = "cuda:0=RTX 4090:24:5:50,cuda:1=RTX 3060:12:10"
CATALOG = "tests.engine.capabilities:CATALOG"


@contextmanager
def started(home: Path, **settings: str) -> Iterator[Server]:
    """A real server with two described devices, both ready."""
    server = Server(home, catalog=CATALOG, fake_devices=FAKES, devices="auto", **settings)
    server.start()
    try:
        server.wait_until(lambda: server.request("/api/v1/gpu/status"), "tell its devices")
        yield server
    finally:
        assert server.stop() == 0


def told(server: Server) -> dict[str, dict[str, Any]]:
    """The devices by name."""
    return {device["device"]: device for device in server.request("/api/v1/gpu/status")["devices"]}


def in_state(server: Server, **states: str) -> None:
    wanted = {name.replace("_", ":"): state for name, state in states.items()}
    server.wait_until(
        lambda: {name: device["state"] for name, device in told(server).items()} == wanted, f"become {wanted}"
    )


def paint(server: Server, **wish: Any) -> dict[str, Any]:
    return server.request("/api/v1/test/paint?wait=60", wish)


def configure(server: Server, **change: Any) -> dict[str, Any]:
    return server.request("/api/v1/gpu/configure", change)


def refusal(server: Server, **change: Any) -> tuple[int, dict[str, Any]]:
    with pytest.raises(urllib.error.HTTPError) as refused:
        configure(server, **change)
    return refused.value.code, json.load(refused.value)["error"]


def test_status_and_changes_without_a_restart_and_after_one(tmp_path: Path) -> None:
    with started(tmp_path) as server:
        in_state(server, cuda_0="idle", cuda_1="idle")
        first, second = told(server).values()
        assert (first["name"], first["kind"], first["tier"], first["simulated"], first["runs_on"]) == (
            "RTX 4090", "cuda", "HIGH", True, "cpu",
        )  # fmt: skip
        assert (first["total_bytes"], first["free_bytes"]) == (24 * GIB, 24 * GIB)
        assert (first["load_percent"], first["temperature_celsius"]) == (5.0, 50.0)
        assert (second["load_percent"], second["temperature_celsius"]) == (10.0, None)
        assert server.request("/api/v1/gpu/status")["strategy"] == "auto"

        job = paint(server, seed=1)
        assert job["placement"] == {"device": "cuda:0", "reason": "it needs no model, the best of what is idle"}
        answered = configure(server, strategy="round_robin")
        assert answered["strategy"] == "round_robin"
        placements = [paint(server, seed=seed)["placement"] for seed in range(4)]
        assert [place["device"] for place in placements] == ["cuda:1", "cuda:0"] * 2
        assert all("turn" in place["reason"] for place in placements)
        operations = told(server)["cuda:0"]["last_operations"]
        assert operations[-1]["job"] == job["id"] and operations[-1]["outcome"] == "succeeded"

        configure(server, devices={"cuda:0": {"enabled": False}, "cuda:1": {"jobs_at_once": 3}})
        in_state(server, cuda_0="disabled", cuda_1="idle")
        assert {paint(server, seed=seed)["device"] for seed in range(3)} == {"cuda:1"}
        assert configure(server, devices={"cuda:1": {"memory_limit_bytes": 4 * GIB}})["strategy"] == "round_robin"

    with started(tmp_path) as server:
        in_state(server, cuda_0="disabled", cuda_1="idle")
        kept = told(server)["cuda:1"]
        assert (kept["jobs_at_once"], kept["memory_limit_bytes"], kept["models_may_take_bytes"]) == (
            3, 4 * GIB, 4 * GIB,
        )  # fmt: skip
        assert server.request("/api/v1/gpu/status")["strategy"] == "round_robin"
        assert server.request(f"/api/v1/jobs/{job['id']}")["placement"]["reason"] == job["placement"]["reason"]
        configure(server, devices={"cuda:0": {"enabled": True}, "cuda:1": {"enabled": False}})
        in_state(server, cuda_0="idle", cuda_1="disabled")
        assert paint(server, seed=9)["device"] == "cuda:0"

        status, error = refusal(server, devices={"cuda:0": {"enabled": False}})
        assert status == 422 and "must stay enabled" in error["message"]
        status, error = refusal(server, devices={"cuda:7": {}})
        assert status == 422 and "the devices are cuda:0, cuda:1" in error["message"]
        status, error = refusal(server, devices={"cuda:1": {"memory_limit_bytes": 13 * GIB}})
        assert status == 422 and "more than the device has" in error["message"]
        assert error["details"]["field"] == "devices.cuda:1.memory_limit_bytes"
        in_state(server, cuda_0="idle", cuda_1="disabled")


@pytest.mark.parametrize(
    "change",
    [{"strategy": "best"}, {"strategy": None}, {"devices": []}, {"devices": {"inline": {"jobs_at_once": 0}}},
     {"devices": {"inline": {"enabled": 1}}}, {"devices": {"inline": {"enabled": False}}}, {"unknown": 1}],
)  # fmt: skip
def test_bad_values_are_422_and_change_nothing(server: Running, change: dict[str, Any]) -> None:
    before = server.client.get("/api/v1/gpu/status").json()
    answer = server.client.post("/api/v1/gpu/configure", json=change)
    assert answer.status_code == 422 and answer.json()["error"]["code"] == "invalid_request", answer.text
    assert answer.json()["error"]["details"]["field"].split(".")[0] in {"strategy", "devices", "unknown"}
    after = server.client.get("/api/v1/gpu/status").json()
    assert after["strategy"] == before["strategy"] and after["devices"][0]["enabled"]
    assert not (server.home / "devices.json").exists()


def test_other_bodies_are_refused(server: Running) -> None:
    post = server.client.post
    assert post("/api/v1/gpu/configure", json=[]).status_code == 422
    assert post("/api/v1/gpu/configure", content="{", headers={"content-type": "application/json"}).status_code == 400
    assert post("/api/v1/gpu/configure", data={"strategy": "auto"}).status_code == 415


def test_a_key_is_asked_for_and_jobs_of_other_keys_have_no_name(tmp_path: Path) -> None:
    with serving(tmp_path, api_keys=("first-key", "other-key")) as server:
        assert server.client.get("/api/v1/gpu/status").status_code == 401
        assert server.client.post("/api/v1/gpu/configure", json={"strategy": "auto"}).status_code == 401
        mine, others = {"X-API-Key": "first-key"}, {"X-API-Key": "other-key"}
        job = server.client.post("/api/v1/test/paint?wait=30", json={"seed": 1}, headers=mine).json()
        seen = [
            server.client.get("/api/v1/gpu/status", headers=key).json()["devices"][0]["last_operations"][0]
            for key in (mine, others)
        ]
        assert (seen[0]["job"], seen[1]["job"]) == (job["id"], None)
        assert seen[0]["capability"] == seen[1]["capability"] == "test/paint"


def test_a_model_says_which_tier_it_needs(server: Running) -> None:
    model = server.client.get("/api/v1/models/sdxl").json()
    half, spared = {"float16": "MEDIUM", "bfloat16": "MEDIUM"}, {"float8": "LOW", "int8": "LOW", "int4": "LOW"}
    assert model["tiers"] == {"float32": "HIGH", **half, **spared}
    assert model["bytes"] < model["needed_bytes"]["float16"] < model["needed_bytes"]["float32"]
    assert server.client.get("/api/v1/models/lcm-lora-sdxl").json()["tiers"] == {}


def test_the_document_knows_the_change_and_the_answer(server: Running) -> None:
    document = server.client.get("/openapi.json").json()
    operation = document["paths"]["/api/v1/gpu/configure"]["post"]
    reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rsplit("/", 1)[-1]
    schema = document["components"]["schemas"][reference]
    assert set(schema["properties"]) == {"strategy", "devices"}
    assert "DeviceAnswer" in document["components"]["schemas"] and "DeviceChoice" in document["components"]["schemas"]
