"""The nine endpoints of batch, devices and memory, as a user meets them: over HTTP, from a server in a process of its
own with the embedded model in its worker; and each described in `/openapi.json`, which `/docs` shows."""

import io
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.engine.server import PATIENCE_SECONDS, Server

BATCH, GPU, MEMORY = "/api/v1/batch", "/api/v1/gpu", "/api/v1/memory"
NINE = (
    ("post", f"{BATCH}/submit"),
    ("post", f"{BATCH}/submit-batch"),
    ("get", f"{BATCH}/status/{{id}}"),
    ("delete", f"{BATCH}/cancel/{{id}}"),
    ("get", f"{GPU}/status"),
    ("post", f"{GPU}/configure"),
    ("get", f"{MEMORY}/status"),
    ("post", f"{MEMORY}/configure"),
    ("post", f"{MEMORY}/cleanup"),
)
BODIES = {f"{BATCH}/submit", f"{BATCH}/submit-batch", f"{GPU}/configure", f"{MEMORY}/configure"}
"""Those that take a body; the others take none."""

WISH = {"prompt": "a red car, blue background", "model": "pocket", "num_inference_steps": 2, "seed": 1}
JOB = {"handler": "text-to-image", "request": WISH}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A client of a real server that is ready."""
    server = Server(tmp_path_factory.mktemp("nine"))
    server.start()
    try:
        server.wait_until(lambda: server.request("/ready"), "be ready")
        with httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=60, trust_env=False) as client:
            yield client
    finally:
        assert server.stop() == 0


def until(client: httpx.Client, path: str, *statuses: str) -> dict[str, Any]:
    """The job or batch of this address once it is in one of these states."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (told := client.get(path).json())["status"] not in statuses:
        assert time.monotonic() < deadline, told
        time.sleep(0.05)
    return told


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The error of an answer in the documented shape."""
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert set(answer.json()) == {"error"} and set(answer.json()["error"]) == {"code", "message", "details"}
    return answer.json()["error"]


def test_submit_and_status(client: httpx.Client) -> None:
    accepted = client.post(f"{BATCH}/submit", json={**JOB, "priority": 7}, headers={"idempotency-key": "one"})
    assert accepted.status_code == 202
    job = accepted.json()
    assert accepted.headers["location"] == f"{BATCH}/status/{job['id']}"
    assert (job["priority"], job["capability"], job["status"]) == (7, "text-to-image", "queued")
    done = until(client, accepted.headers["location"], "succeeded", "failed")
    assert done["status"] == "succeeded", done["error"]
    (picture,) = done["result"]["images"]
    with Image.open(io.BytesIO(client.get(picture["url"]).content), formats=("PNG",)) as image:
        assert image.size == (picture["width"], picture["height"])
    again = client.post(f"{BATCH}/submit", json={**JOB, "priority": 7}, headers={"idempotency-key": "one"})
    assert again.json()["id"] == job["id"]
    refused(client.post(f"{BATCH}/submit", json={"handler": "none", "request": {}}), 404, "unknown_capability")
    refused(client.post(f"{BATCH}/submit", json={**JOB, "priority": 11}), 422, "invalid_request")
    refused(
        client.post(f"{BATCH}/submit", content=b"{", headers={"content-type": "application/json"}), 400, "invalid_json"
    )
    refused(client.get(f"{BATCH}/status/{'0' * 26}"), 404, "unknown_batch")


def test_submit_batch_and_status(client: httpx.Client) -> None:
    same = {"model": "pocket", "num_inference_steps": 2}
    values = {"prompt": ["a red car", "a blue house"], "seed": [1, 2]}
    wish = {"handler": "text-to-image", "request": same, "values": values, "combine": "product"}
    accepted = client.post(f"{BATCH}/submit-batch", json=wish)
    assert accepted.status_code == 202 and accepted.json()["total"] == 4
    where = accepted.headers["location"]
    done = until(client, where, "succeeded", "failed")
    assert done["counts"] == {"queued": 0, "running": 0, "succeeded": 4, "failed": 0, "cancelled": 0}
    assert done["progress"] == 1
    asked = [(job["request"]["prompt"], job["request"]["seed"]) for job in done["jobs"]]
    assert asked == [(prompt, seed) for prompt in ("a red car", "a blue house") for seed in (1, 2)]
    assert len({job["result"]["images"][0]["sha256"] for job in done["jobs"]}) == 4
    page = client.get(where, params={"limit": 1, "offset": 3}).json()
    assert [job["id"] for job in page["jobs"]] == [done["jobs"][3]["id"]]
    error = refused(
        client.post(f"{BATCH}/submit-batch", json={"jobs": [JOB, {**JOB, "handler": "none"}]}),
        404,
        "unknown_capability",
    )
    assert error["details"]["index"] == 1
    before = client.get("/api/v1/jobs").json()["total"]
    refused(client.post(f"{BATCH}/submit-batch", json={"jobs": []}), 422, "invalid_request")
    assert client.get("/api/v1/jobs").json()["total"] == before


def test_cancel(client: httpx.Client) -> None:
    long = {**JOB, "request": {**WISH, "num_inference_steps": 150}}
    running = client.post(f"{BATCH}/submit", json=long).json()["id"]
    waiting = client.post(f"{BATCH}/submit-batch", json={"jobs": [long, long]}).json()
    until(client, f"{BATCH}/status/{running}", "running")
    batch = client.delete(f"{BATCH}/cancel/{waiting['id']}")
    assert batch.status_code == 200 and batch.json()["counts"]["cancelled"] == 2
    assert client.delete(f"{BATCH}/cancel/{running}").status_code == 200
    assert until(client, f"{BATCH}/status/{running}", "cancelled", "succeeded")["status"] == "cancelled"
    done = client.post(f"{BATCH}/submit", json=JOB).json()["id"]
    until(client, f"{BATCH}/status/{done}", "succeeded")
    refused(client.delete(f"{BATCH}/cancel/{done}"), 409, "conflict")
    refused(client.delete(f"{BATCH}/cancel/{'0' * 26}"), 404, "unknown_batch")


def test_gpu_status_and_configure(client: httpx.Client) -> None:
    (cpu,) = client.get(f"{GPU}/status").json()["devices"]
    assert (cpu["device"], cpu["kind"], cpu["enabled"]) == ("cpu", "cpu", True)
    assert cpu["total_bytes"] > 0 and cpu["state"] in {"idle", "busy"}
    assert cpu["last_operations"][0]["capability"] == "text-to-image"
    change = {"strategy": "least_loaded", "devices": {"cpu": {"memory_limit_bytes": 2**30, "jobs_at_once": 2}}}
    changed = client.post(f"{GPU}/configure", json=change)
    assert changed.status_code == 200
    for told in (changed.json(), client.get(f"{GPU}/status").json()):
        (cpu,) = told["devices"]
        assert (told["strategy"], cpu["memory_limit_bytes"], cpu["jobs_at_once"]) == ("least_loaded", 2**30, 2)
    back = {"strategy": "auto", "devices": {"cpu": {"memory_limit_bytes": None, "jobs_at_once": None}}}
    (cpu,) = client.post(f"{GPU}/configure", json=back).json()["devices"]
    assert cpu["memory_limit_bytes"] is None
    refused(client.post(f"{GPU}/configure", json={"devices": {"cpu": {"enabled": False}}}), 422, "invalid_request")
    refused(client.post(f"{GPU}/configure", json={"devices": {"cuda:9": {}}}), 422, "invalid_request")
    refused(client.post(f"{GPU}/configure", content=b"{}"), 415, "unsupported_media_type")


def test_memory_status_and_cleanup(client: httpx.Client) -> None:
    job = client.post(f"{BATCH}/submit", json=JOB).json()["id"]
    until(client, f"{BATCH}/status/{job}", "succeeded")
    told = client.get(f"{MEMORY}/status").json()
    (worker,) = told["devices"]
    assert worker["is_live"] and [model["model"] for model in worker["models"]] == ["pocket"]
    assert worker["total_bytes"] > worker["placed_bytes"] > 50_000_000 and told["process"]["rss_bytes"] > 0
    (cleaned,) = client.post(f"{MEMORY}/cleanup").json()["devices"]
    assert cleaned["dropped_models"] == ["pocket"] and cleaned["freed_bytes"] > 0 and cleaned["placed_bytes"] == 0
    (after,) = client.get(f"{MEMORY}/status").json()["devices"]
    assert after["models"] == [] and after["pid"] == worker["pid"]


def in_force(device: dict[str, Any]) -> tuple[str, str]:
    """Strategy and precision of a device, where its answer holds them."""
    assert device["device"] == "cpu"
    return device["settings"]["offload"], device["settings"]["precision"]


def test_memory_configure(client: httpx.Client) -> None:
    """What is asked is in force, is told for each device, and a picture is drawn under it."""
    change = {"device": "cpu", "strategy": "attention", "precision": "float32"}
    configured = client.post(f"{MEMORY}/configure", json=change)
    assert configured.status_code == 200, configured.text
    (cpu,) = configured.json()["devices"]
    assert in_force(cpu) == ("attention", "float32")
    assert in_force(client.get(f"{MEMORY}/status").json()["devices"][0]) == ("attention", "float32")
    job = client.post(f"{BATCH}/submit", json=JOB).json()["id"]
    assert until(client, f"{BATCH}/status/{job}", "succeeded", "failed")["status"] == "succeeded"
    back = client.post(f"{MEMORY}/configure", json={"device": None, "strategy": None, "precision": None})
    assert back.status_code == 200 and in_force(back.json()["devices"][0]) == ("auto", "auto")
    for wrong in ({"device": "cuda:9"}, {"strategy": "none-such"}, {"precision": 7}, {"unknown": 1}):
        refused(client.post(f"{MEMORY}/configure", json=wrong), 422, "invalid_request")


@pytest.mark.parametrize(("method", "path"), NINE, ids=" ".join)
def test_it_is_described(client: httpx.Client, method: str, path: str) -> None:
    document = client.get("/openapi.json").json()
    operation = document["paths"][path][method]
    assert operation["summary"] and operation["description"] and operation["tags"]
    body = operation.get("requestBody")
    assert (body is not None) == (path in BODIES)
    if body is not None:
        assert schemas_of(document, body), "the body's schema is empty"
    answers = operation["responses"]
    (success,) = [status for status in answers if status.startswith("2")]
    assert schemas_of(document, answers[success]), "the answer's schema is empty"
    refusals = {status: answer for status, answer in answers.items() if status[0] in "45"}
    assert {"401", "403"} <= refusals.keys()
    assert path not in BODIES or "422" in refusals
    assert "{id}" not in path or "404" in refusals
    for answer in refusals.values():
        assert answer["description"]
        (schema,) = schemas_of(document, answer)
        assert set(schema["properties"]) == {"error"}


def schemas_of(document: dict[str, Any], part: dict[str, Any]) -> list[dict[str, Any]]:
    """The schemas with fields that a body or an answer refers to."""
    schema = part["content"]["application/json"]["schema"]
    known = document["components"]["schemas"]
    found = [known[one["$ref"].rsplit("/", 1)[-1]] if "$ref" in one else one for one in schema.get("oneOf", [schema])]
    assert all(one["properties"] for one in found)
    return found


def test_the_docs_page_reads_the_document_and_needs_no_other_host(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200 and "url: '/openapi.json'" in page.text
    script = client.get("/docs/assets/swagger-ui-bundle.js")
    assert script.status_code == 200 and len(script.content) > 100_000
    assert '"/docs/assets/swagger-ui-bundle.js"' in page.text
