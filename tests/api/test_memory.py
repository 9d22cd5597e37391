"""`/api/v1/memory`: through a server in a process of its own, with the embedded model in its worker."""

from pathlib import Path

from app.api.schemas import CleanupAnswer, MemoryAnswer
from tests.engine.server import Server

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
        assert worker["used_bytes"] > pocket["bytes"] and worker["total_bytes"] > worker["free_bytes"] > 0
        assert worker["forwards"] == {"forwards": 2, "calls": 2, "rows": 4, "largest": 1}
        assert told["process"]["rss_bytes"] < worker["used_bytes"], "the front holds no torch"

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
