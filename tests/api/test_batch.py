"""Batches over HTTP: many jobs through one door, all or none; asked about, cancelled, retried, moved; the pause."""

import base64
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.api.conftest import picture
from tests.api.serving import Running, serving
from tests.engine.server import Server

BATCH = "/api/v1/batch"
PAINT = {"handler": "test/paint", "request": {"seed": 1}}
LISTS = {"handler": "test/paint", "request": {}}


def until(condition: object, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never became so"
        time.sleep(0.01)


@pytest.fixture
def paused(server: Running) -> Iterator[Running]:
    """The package's server while its queue is paused; what waits then is cancelled at the end."""
    assert server.client.post(f"{BATCH}/pause").status_code == 200
    yield server
    for job in server.client.get("/api/v1/jobs?status=queued&limit=500").json()["jobs"]:
        server.client.delete(f"{BATCH}/cancel/{job['id']}")
    assert server.client.post(f"{BATCH}/resume").status_code == 200


def submit(server: Running, body: object, **headers: str) -> dict:
    answer = server.client.post(f"{BATCH}/submit-batch", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.json()


def refused(server: Running, body: object, status: int, path: str = "submit-batch") -> dict:
    """The error's body; nothing was stored."""
    before = server.stored()
    answer = server.client.post(f"{BATCH}/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert server.stored() == before, "a refused batch left something behind"
    return answer.json()["error"]


# ---- through a real server process, as the brief names them


def ask(server: Server, method: str, path: str, body: object = None, **headers: str) -> tuple[int, dict]:
    """Status and JSON of any method."""
    asked = urllib.request.Request(
        f"http://127.0.0.1:{server.port}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **headers},
        method=method,
    )
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_the_four_endpoints_and_a_kill(tmp_path: Path) -> None:
    server = Server(tmp_path, catalog="tests.engine.capabilities:CATALOG")
    server.start()
    try:
        status, job = ask(server, "POST", f"{BATCH}/submit", {**PAINT, "priority": 7})
        assert (status, job["priority"], job["capability"], job["batch"]) == (202, 7, "test/paint", None)
        server.wait_until(
            lambda: ask(server, "GET", f"{BATCH}/status/{job['id']}")[1]["status"] == "succeeded", "finish the job"
        )
        status, long = ask(
            server,
            "POST",
            f"{BATCH}/submit-batch",
            {
                "handler": "test/paint",
                "request": {"num_inference_steps": 4, "step_seconds": 0.02},
                "values": {"seed": list(range(20)), "num_images_per_prompt": [1, 2]},
            },
        )
        assert (status, long["total"], len(long["jobs"])) == (202, 40, 40)
        status, doomed = ask(server, "POST", f"{BATCH}/submit-batch", {"jobs": [{**PAINT, "priority": 0}] * 3})
        status, cancelled = ask(server, "DELETE", f"{BATCH}/cancel/{doomed['id']}")
        assert (status, cancelled["status"], cancelled["counts"]["cancelled"]) == (200, "cancelled", 3)
        status, error = ask(server, "DELETE", f"{BATCH}/cancel/{job['id']}")
        assert (status, error["error"]["code"]) == (409, "conflict")

        server.wait_until(
            lambda: ask(server, "GET", f"{BATCH}/status/{long['id']}")[1]["counts"]["succeeded"] >= 3, "begin"
        )
        status, state = ask(server, "POST", f"{BATCH}/pause")
        assert (status, state["paused"]) == (200, True)
        server.kill()
        server.start()
        status, after = ask(server, "GET", f"{BATCH}/status/{long['id']}")
        assert after["paused"] and after["counts"]["succeeded"] >= 3
        assert sum(after["counts"].values()) == 40 and after["counts"]["running"] == 0
        assert ask(server, "POST", f"{BATCH}/resume")[1]["paused"] is False
        done = server.wait_until(
            lambda: (found := ask(server, "GET", f"{BATCH}/status/{long['id']}")[1])["status"] == "succeeded" and found,
            "finish the batch",
        )
        assert done["progress"] == 1 and [len(job["result"]["images"]) for job in done["jobs"]] == [1, 2] * 20
        assert ask(server, "GET", f"{BATCH}/status/{doomed['id']}")[1]["status"] == "cancelled"
    finally:
        server.stop()


# ---- submit


def test_short_names_and_what_is_not_there(server: Running) -> None:
    answer = server.client.post(f"{BATCH}/submit", json={"handler": "generate", "request": {"prompt": "a red car"}})
    assert (answer.status_code, answer.json()["capability"]) == (202, "text-to-image")
    assert answer.headers["location"] == f"{BATCH}/status/{answer.json()['id']}"
    for name in ("upscale", "face_swap"):
        wanting = refused(server, {"handler": name, "request": {}}, 422, "submit")
        assert "image" in wanting["message"], f"{name} is a capability, and says what it wants"
    error = refused(server, {"handler": "none", "request": {}}, 404, "submit")
    assert error["code"] == "unknown_capability" and "generate" in error["message"]


def test_zip_and_product(paused: Running) -> None:
    values = {"prompt": ["a", "b"], "seed": [1, 2]}
    product = submit(paused, {"handler": "test/paint", "request": {"num_inference_steps": 2}, "values": values})
    told = [(job["request"]["prompt"], job["request"]["seed"]) for job in product["jobs"]]
    assert told == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert {job["request"]["num_inference_steps"] for job in product["jobs"]} == {2}
    lines = submit(paused, {"handler": "test/paint", "request": {}, "values": values, "combine": "zip", "priority": 8})
    told = [(job["request"]["prompt"], job["request"]["seed"], job["priority"]) for job in lines["jobs"]]
    assert told == [("a", 1, 8), ("b", 2, 8)]
    assert [job["position"] for job in lines["jobs"]] == [0, 1]
    assert lines["status"] == "queued" and lines["progress"] == 0 and lines["paused"] is True


@pytest.mark.parametrize(
    ("body", "status", "index"),
    [
        ({"jobs": [PAINT, {**PAINT, "request": {"seed": "x"}}]}, 422, 1),
        ({"jobs": [PAINT, PAINT, {**PAINT, "priority": 11}]}, 422, 2),
        ({"jobs": [PAINT, {**PAINT, "handler": "none"}]}, 404, 1),
        ({"jobs": [{**PAINT, "nonsense": 1}]}, 422, 0),
        ({"jobs": [PAINT, {"handler": "test/copy", "request": {"image": "0" * 26}}]}, 404, 1),
        ({"jobs": [PAINT, {**PAINT, "callback_url": "http://127.0.0.1/"}]}, 422, 1),
        ({**LISTS, "values": {"seed": [1, -1]}}, 422, 1),
        ({**LISTS, "values": {"seed": [1], "prompt": ["a", "b"]}, "combine": "zip"}, 422, None),
        ({"handler": "test/paint", "request": {"seed": 1}, "values": {"seed": [1]}}, 422, None),
        ({**LISTS, "values": {"seed": []}}, 422, None),
        ({"request": {}}, 422, None),
        ({}, 422, None),
        ({"jobs": []}, 422, None),
        ({"jobs": [PAINT], "request": {}}, 422, None),
        ({"jobs": [PAINT], "values": {"seed": [1]}}, 422, None),
        ([], 422, None),
    ],
)
def test_one_bad_item_and_nothing_is_accepted(server: Running, body: object, status: int, index: int | None) -> None:
    assert refused(server, body, status)["details"].get("index") == index


def test_a_batch_has_an_upper_limit_also_as_a_product(server: Running) -> None:
    values = {"seed": list(range(100)), "num_inference_steps": list(range(1, 101)), "prompt": ["a"] * 1000}
    error = refused(server, {"handler": "test/paint", "request": {}, "values": values}, 413)
    assert error["code"] == "too_large" and "1000" in error["message"]
    refused(server, {"jobs": [PAINT] * 1001}, 413)


def test_a_body_is_read_strictly(server: Running) -> None:
    def post(body: bytes, kind: str = "application/json") -> int:
        return server.client.post(f"{BATCH}/submit", content=body, headers={"content-type": kind}).status_code

    assert post(b'{"handler": "test/paint", "request": {}, "request": {}}') == 400
    assert post(b"{") == 400
    assert post(b"x", "text/plain") == 415
    assert post(b'{"handler": "test/paint", "request": {"seed": 99999999999999999999999}}') == 400
    assert post(b'{"handler": "test/paint", "request": {}, "priority": true}') == 422
    assert post(b'{"handler": "test/paint", "request": {}, "priority": "5"}') == 422


def test_a_picture_that_many_share_is_stored_once(server: Running) -> None:
    given = base64.b64encode(picture(colour="blue")).decode()
    jobs = [{"handler": "test/copy", "request": {"image": given}} for _ in range(5)]
    _, rows, files = server.stored()
    batch = submit(server, {"jobs": jobs})
    assert len({job["request"]["image"] for job in batch["jobs"]}) == 1
    until(lambda: server.client.get(f"{BATCH}/status/{batch['id']}").json()["status"] == "succeeded")
    assert server.stored()[1:] == (rows + 6, files + 6), "one upload and five results"
    bad = [*jobs[:1], {"handler": "test/copy", "request": {"image": base64.b64encode(b"no picture").decode()}}]
    assert refused(server, {"jobs": bad}, 415)["details"]["index"] == 1


def test_the_same_key_answers_the_same_batch(paused: Running) -> None:
    given = base64.b64encode(picture(colour="green")).decode()
    body = {"jobs": [{"handler": "test/copy", "request": {"image": given}}, PAINT]}
    first = submit(paused, body, **{"Idempotency-Key": "batch-key"})
    before = paused.stored()
    again = submit(paused, body, **{"Idempotency-Key": "batch-key"})
    assert (again["id"], [job["id"] for job in again["jobs"]]) == (first["id"], [job["id"] for job in first["jobs"]])
    assert paused.stored() == before, "the repeat's picture was taken away again"
    key = {"Idempotency-Key": "batch-key"}
    other = paused.client.post(f"{BATCH}/submit-batch", json={"jobs": [PAINT]}, headers=key)
    assert other.status_code == 409


# ---- afterwards


def test_list_priority_cancel_and_their_refusals(paused: Running) -> None:
    first, second = submit(paused, {"jobs": [PAINT] * 3}), submit(paused, {"jobs": [PAINT] * 2})
    listed = paused.client.get(f"{BATCH}?limit=2").json()
    assert [batch["id"] for batch in listed["batches"]] == [second["id"], first["id"]]
    assert listed["queue"]["paused"] and listed["queue"]["queued"] == 5 and "jobs" not in listed["batches"][0]
    assert paused.client.get("/ready").json()["paused"] is True

    moved = paused.client.post(f"{BATCH}/priority/{second['id']}", json={"priority": 10})
    assert [(job["priority"], job["position"]) for job in moved.json()["jobs"]] == [(10, 0), (10, 1)]
    lone = first["jobs"][2]["id"]
    moved = paused.client.post(f"{BATCH}/priority/{lone}", json={"priority": 9}).json()
    assert (moved["id"], moved["priority"], moved["position"]) == (lone, 9, 2)
    for wrong in ({"priority": 11}, {"priority": None}, {}):
        assert paused.client.post(f"{BATCH}/priority/{lone}", json=wrong).status_code == 422

    page = paused.client.get(f"{BATCH}/status/{first['id']}?limit=1&offset=1").json()
    assert page["total"] == 3 and [job["id"] for job in page["jobs"]] == [first["jobs"][1]["id"]]
    assert paused.client.delete(f"{BATCH}/cancel/{lone}").json()["status"] == "cancelled"
    after = paused.client.post(f"{BATCH}/cancel/{first['id']}").json()
    assert after["status"] == "cancelled" and after["progress"] == 1
    for act in ("cancel", "retry", "priority"):
        body = {"priority": 1} if act == "priority" else None
        assert paused.client.post(f"{BATCH}/{act}/{first['id']}", json=body).status_code == 409
    for path in ("status/none", "status/" + "0" * 26):
        error = paused.client.get(f"{BATCH}/{path}")
        assert (error.status_code, error.json()["error"]["code"]) == (404, "unknown_batch")


def test_retry_and_the_history_of_attempts(server: Running) -> None:
    # With another model on the device something could have been freed: every attempt is made.
    drawn = server.client.post("/api/v1/test/draw", json={"prompt": "x", "num_inference_steps": 1})
    assert drawn.json()["status"] == "succeeded"
    jobs = [{"handler": "test/fail", "request": {"way": "memory"}}, PAINT]
    batch = submit(server, {"jobs": jobs})

    def status() -> dict:
        return server.client.get(f"{BATCH}/status/{batch['id']}").json()

    until(lambda: status()["status"] == "failed")
    job = status()["jobs"][0]
    assert (job["attempt"], job["max_attempts"], job["error"]["code"]) == (3, 3, "out_of_memory")
    told = server.client.get(f"/api/v1/jobs/{job['id']}/history").json()["transitions"]
    assert [entry["reason"] for entry in told if entry["after"] == "queued"] == ["submitted", *["out_of_memory"] * 2]
    assert server.client.post(f"{BATCH}/retry/{batch['id']}").json()["counts"]["succeeded"] == 1
    until(lambda: status()["status"] == "failed" and status()["jobs"][0]["attempt"] == 6)
    again = server.client.post(f"{BATCH}/retry/{job['id']}")
    assert (again.status_code, again.json()["id"]) == (200, job["id"])
    until(lambda: status()["jobs"][0]["attempt"] == 9)
    assert status()["jobs"][1]["attempt"] == 1


def test_keys_see_only_their_own(tmp_path: Path) -> None:
    with serving(tmp_path, api_keys="first-key-000001,second-key-00002") as running:
        own, other = {"X-API-Key": "first-key-000001"}, {"X-API-Key": "second-key-00002"}
        assert running.client.post(f"{BATCH}/pause", headers=own).json()["paused"]
        batch = running.client.post(f"{BATCH}/submit-batch", json={"jobs": [PAINT] * 2}, headers=own).json()
        job = batch["jobs"][0]["id"]
        assert running.client.get(f"{BATCH}/status/{batch['id']}").status_code == 401
        for id in (batch["id"], job):
            assert running.client.get(f"{BATCH}/status/{id}", headers=own).status_code == 200
            for method, path in (("GET", "status"), ("DELETE", "cancel"), ("POST", "retry"), ("POST", "priority")):
                body = {"priority": 1} if path == "priority" else None
                answer = running.client.request(method, f"{BATCH}/{path}/{id}", json=body, headers=other)
                assert answer.status_code == 404, (method, path)
        for record in ("history", "callbacks"):
            assert running.client.get(f"/api/v1/jobs/{job}/{record}", headers=other).status_code == 404
            assert running.client.get(f"/api/v1/jobs/{job}/{record}", headers=own).status_code == 200
        assert running.client.get(BATCH, headers=other).json()["batches"] == []
        assert len(running.client.get(BATCH, headers=own).json()["batches"]) == 1


class Receiver(BaseHTTPRequestHandler):
    """Answers 503 with a Retry-After, then 410."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.calls.append(self.headers["webhook-id"])
        self.send_response(503 if len(self.server.calls) == 1 else 410)
        if len(self.server.calls) == 1:
            self.send_header("Retry-After", "3600")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_the_delivery_log_tells_what_became_of_a_callback(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as receiver:
        receiver.calls = []
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{receiver.server_port}"
        with serving(tmp_path, trusted_hosts=host) as running:
            batch = submit(running, {"jobs": [PAINT] * 2, "callback_url": f"http://{host}/hook"})

            def log() -> list[dict]:
                return [
                    entry
                    for job in batch["jobs"]
                    for entry in running.client.get(f"/api/v1/jobs/{job['id']}/callbacks").json()["callbacks"]
                ]

            until(lambda: sorted(entry["attempts"] for entry in log()) == [1, 1])
            pending, gone = sorted(log(), key=lambda entry: entry["state"], reverse=True)
            assert (pending["state"], pending["last_status"], pending["finished"]) == ("pending", 503, None)
            assert pending["next_attempt"] > time.time() + 3000, "Retry-After is heeded"
            assert (gone["state"], gone["last_status"], gone["next_attempt"]) == ("gone", 410, None)
            assert {pending["id"], gone["id"]} == set(receiver.calls)
        receiver.shutdown()


def test_everything_is_in_the_document(server: Running) -> None:
    document = server.client.get("/openapi.json").json()
    found = {(method, path) for path, methods in document["paths"].items() if "/batch" in path for method in methods}
    assert found == {
        ("post", f"{BATCH}/submit"),
        ("post", f"{BATCH}/submit-batch"),
        ("get", BATCH),
        ("get", f"{BATCH}/status/{{id}}"),
        ("delete", f"{BATCH}/cancel/{{id}}"),
        ("post", f"{BATCH}/cancel/{{id}}"),
        ("post", f"{BATCH}/retry/{{id}}"),
        ("post", f"{BATCH}/priority/{{id}}"),
        ("post", f"{BATCH}/pause"),
        ("post", f"{BATCH}/resume"),
    }
    text = json.dumps(document)
    names = {name.split('"')[0] for name in text.split("#/components/schemas/")[1:]}
    assert names <= set(document["components"]["schemas"])
    assert {"BatchWish", "JobWish", "BatchAnswer", "QueueAnswer", "JobHistory", "CallbackLog"} <= names
    example = document["components"]["schemas"]["BatchWish"]["example"]
    batch = submit(server, example)
    assert batch["total"] == 6
    assert server.client.delete(f"{BATCH}/cancel/{batch['id']}").status_code in {200, 409}
