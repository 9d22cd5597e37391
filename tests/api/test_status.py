"""`/health`, `/ready`, `/metrics` and `/docs`."""

import re

from prometheus_client.parser import text_string_to_metric_families

from tests.api.serving import Running, serving
from tests.api.test_capabilities import PAINT


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
    assert server.client.head("/health").status_code in {200, 405}


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
