"""`/health`, `/ready`, `/metrics` and `/docs`."""

import re

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.api.conftest import picture
from tests.api.serving import Running, serving
from tests.api.test_capabilities import PAINT, until_ended


def samples(server: Running) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of `/metrics` by name and labels."""
    answer = server.client.get("/metrics")
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_health_says_little(server: Running) -> None:
    answer = server.client.get("/health")
    assert answer.status_code == 200 and set(answer.json()) == {"status", "version"}
    assert answer.json()["status"] == "ok"


def test_ready_tells_of_the_workers(server: Running) -> None:
    state = server.client.get("/ready").json()
    assert state["ready"] and [worker["device"] for worker in state["workers"]] == ["inline"]


def test_ready_is_503_with_a_code_until_a_worker_is(tmp_path) -> None:
    with serving(tmp_path) as server:
        monkey = server.service.readiness
        server.service.readiness = lambda: {**monkey(), "ready": False}  # type: ignore[method-assign]
        answer = server.client.get("/ready")
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "no_device"
        assert int(answer.headers["retry-after"]) > 0


def test_metrics_count_what_happened(server: Running) -> None:
    before = samples(server)
    for _ in range(3):
        assert server.client.post(PAINT, json={}).status_code == 200
    server.client.post("/api/v1/test/fail", json={})
    server.client.get("/api/v1/jobs/none-such")
    server.client.get("/none-such/whatever")
    after = samples(server)

    def grown(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after.get(key, 0) - before.get(key, 0)

    assert grown("eis_jobs", status="succeeded") == 3 and grown("eis_jobs", status="failed") == 1
    assert grown("eis_jobs_submitted_total") == 4 and grown("eis_jobs_ended_total", status="succeeded") == 3
    assert grown("eis_run_seconds_count", capability="test/paint", status="succeeded") == 3
    assert grown("eis_http_requests_total", method="POST", route="/api/v1/test/paint", status="200") == 3
    assert grown("eis_http_requests_total", method="GET", route="/api/v1/jobs/{id}", status="404") == 1
    assert grown("eis_http_requests_total", method="GET", route="other", status="404") == 1
    assert after["eis_queue_depth", ()] == 0
    assert after["eis_worker_state", (("device", "inline"), ("state", "idle"))] == 1


def test_metrics_count_what_was_refused_and_what_failed(tmp_path) -> None:
    with serving(tmp_path, api_keys=("a long key",), max_body_bytes=1024) as server:
        server.client.headers["x-api-key"] = "a long key"
        server.client.get("/api/v1/jobs", headers={"x-api-key": "wrong"})
        server.client.get("/api/v1/jobs", headers={"host": "evil.example"})
        server.client.post(PAINT, headers={"origin": "https://evil.example"})
        server.client.post(PAINT, content=b" " * 2000)

        def fail(**_: object) -> None:
            raise RuntimeError("a fault")

        server.service.list_jobs = fail  # type: ignore[method-assign]
        # A connection of its own: the server closes it after a fault.
        assert httpx.get(f"{server.address}/api/v1/jobs", headers=server.client.headers).status_code == 500
        seen = samples(server)

    def count(method: str, route: str, status: str) -> float:
        labels = (("method", method), ("route", route), ("status", status))
        return seen.get(("eis_http_requests_total", labels), 0)

    assert count("GET", "other", "401") == 1 and count("GET", "other", "403") == 1
    assert count("POST", "other", "403") == 1 and count("POST", "other", "413") == 1
    assert count("GET", "/api/v1/jobs", "500") == 1


def test_head_is_get_without_the_body(server: Running) -> None:
    image = server.client.post(PAINT, json={}).json()["result"]["images"][0]
    upload = server.upload(picture((700, 700), "navy"))
    paths = [
        "/health", "/ready", "/metrics", "/docs", "/docs/assets/swagger-ui.css", "/openapi.json", "/api/v1/jobs",
        "/api/v1/capabilities", "/api/v1/models", image["url"], f"{image['url']}?format=webp",
        f"/api/v1/images/{upload}", f"{image['url']}/thumbnail", f"{image['url']}/metadata", "/api/v1/jobs/none-such",
        "/none-such", PAINT,
    ]  # fmt: skip
    before = samples(server)
    for path in paths:
        asked, got = server.client.head(path), server.client.get(path)
        assert asked.status_code == got.status_code and asked.content == b"", path
        volatile = {"date", "content-length"} if path in {"/metrics", "/ready", "/api/v1/jobs"} else {"date"}
        for name in (asked.headers.keys() | got.headers.keys()) - volatile:
            assert asked.headers.get(name) == got.headers.get(name), (path, name)
    assert server.client.head("/health").status_code == 200
    assert server.client.head(PAINT).status_code == 405
    key = ("eis_http_requests_total", (("method", "HEAD"), ("route", "/health"), ("status", "200")))
    assert samples(server)[key] - before.get(key, 0) == 2
    document = server.client.get("/openapi.json").json()
    assert not [path for path, operations in document["paths"].items() if "head" in operations]


def test_head_of_a_stream_ends(server: Running) -> None:
    job = server.client.post(f"{PAINT}?wait=0", json={"num_inference_steps": 200, "step_seconds": 0.05}).json()
    answer = server.client.head(job["links"]["events"], timeout=5)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith("text/event-stream")
    assert server.client.post(job["links"]["cancel"]).status_code == 200
    assert until_ended(server, job["id"])["status"] == "cancelled"


def test_a_stranger_adds_no_series(server: Running) -> None:
    before = len(samples(server))
    for index in range(20):
        server.client.get(f"/api/v1/images/stranger{index}")
        server.client.get(f"/stranger/{index}")
        server.client.request(f"STRANGE{index}", "/health")
    assert len(samples(server)) - before < 12


def test_the_docs_need_no_other_host(server: Running) -> None:
    page = server.client.get("/docs")
    assert page.status_code == 200
    addresses = re.findall(r"(?:src|href|url)[\"']?\s*[:=]\s*[\"']([^\"']+)", page.text)
    assert len(addresses) >= 4 and all(address.startswith("/") for address in addresses), addresses
    for address in addresses:
        answer = server.client.get(address)
        assert answer.status_code == 200 and len(answer.content) > 500, address
