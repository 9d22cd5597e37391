"""Jobs over HTTP: list, ask, cancel, retry, watch."""

import json
import time

import httpx
import pytest

from app import cli
from app.api import events
from tests.api.serving import Running
from tests.api.test_capabilities import PAINT, until_ended


def submit(server: Running, **fields: object) -> dict:
    answer = server.client.post(f"{PAINT}?wait=0", json=fields)
    assert answer.status_code == 202
    return answer.json()


def test_the_list_is_filtered_paged_and_counted(server: Running) -> None:
    made = [server.client.post(PAINT, json={"prompt": f"list {index}"}).json()["id"] for index in range(3)]
    page = server.client.get("/api/v1/jobs?limit=2&capability=test/paint&status=succeeded").json()
    assert [job["id"] for job in page["jobs"]] == [made[2], made[1]]
    following = server.client.get("/api/v1/jobs?limit=2&offset=2&capability=test/paint&status=succeeded").json()
    assert following["jobs"][0]["id"] == made[0] and following["total"] == page["total"] >= 3
    assert server.client.get("/api/v1/jobs?capability=none").json()["total"] == 0
    for wrong in ("status=done", "limit=0", "limit=501", "offset=-1", "limit=x", "state=queued"):
        assert server.client.get(f"/api/v1/jobs?{wrong}").status_code == 422


@pytest.mark.alone
@pytest.mark.parametrize("method", ["DELETE", "POST"])
def test_a_running_job_ends_within_a_step(server: Running, method: str) -> None:
    job = submit(server, num_inference_steps=50, step_seconds=0.1)
    while server.client.get(job["links"]["self"]).json()["step"] < 1:
        time.sleep(0.01)
    began = time.monotonic()
    server.client.request(method, job["links"]["cancel" if method == "POST" else "self"])
    ended = until_ended(server, job["id"])
    assert ended["status"] == "cancelled" and ended["step"] < 5 and time.monotonic() - began < 1


def test_a_cancelled_job_is_retried_under_its_id(server: Running) -> None:
    blocker = submit(server, num_inference_steps=5, step_seconds=0.1)
    job = submit(server, prompt="again")
    assert server.client.delete(job["links"]["self"]).json()["status"] == "cancelled"
    retried = server.client.post(f"{job['links']['self']}/retry")
    assert retried.status_code == 200 and retried.json()["id"] == job["id"]
    assert until_ended(server, job["id"])["status"] == "succeeded"
    until_ended(server, blocker["id"])
    for path in ("cancel", "retry"):
        answer = server.client.post(f"{job['links']['self']}/{path}")
        assert answer.status_code == 409 and answer.json()["error"]["code"] == "conflict"


def test_a_waiter_learns_that_its_job_was_cancelled(server: Running) -> None:
    blocker = submit(server, num_inference_steps=10, step_seconds=0.1)
    with httpx.Client(base_url=server.address, timeout=10) as other:
        import threading

        answers: list[httpx.Response] = []
        waiter = threading.Thread(target=lambda: answers.append(other.post(PAINT, json={"prompt": "waiting"})))
        waiter.start()
        found: list[dict] = []
        while not found:
            found = [
                job
                for job in server.client.get("/api/v1/jobs?status=queued").json()["jobs"]
                if job["request"]["prompt"] == "waiting"
            ]
        server.client.post(found[0]["links"]["cancel"])
        waiter.join(5)
        assert answers[0].status_code == 409 and answers[0].json()["error"]["details"]["job"] == found[0]["id"]
    server.client.post(blocker["links"]["cancel"])
    until_ended(server, blocker["id"])


def read_events(server: Running, path: str) -> list[tuple[str, dict]]:
    """Every event of a stream, to its end."""
    found = []
    with server.client.stream("GET", path) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        kind = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append((kind, json.loads(line.removeprefix("data: "))))
    return found


def test_events_tell_place_steps_and_end(server: Running) -> None:
    blocker = submit(server, num_inference_steps=4, step_seconds=0.1)
    job = submit(server, num_inference_steps=5, step_seconds=0.05)
    found = read_events(server, job["links"]["events"])
    kinds = [kind for kind, _ in found]
    assert kinds[0] == "queued" and found[0][1]["position"] == 0
    assert "started" in kinds and kinds[-1] == "succeeded"
    steps = [data for kind, data in found if kind == "step"]
    assert [data["step"] for data in steps] == sorted({data["step"] for data in steps}) and steps[-1]["steps"] == 5
    assert any(data["seconds_left"] is not None for data in steps)
    assert found[-1][1]["job"] == server.client.get(job["links"]["self"]).json()
    until_ended(server, blocker["id"])


def test_events_of_an_ended_job_are_its_end(server: Running) -> None:
    job = server.client.post("/api/v1/test/fail", json={}).json()["error"]["details"]["job"]
    found = read_events(server, f"/api/v1/jobs/{job}/events")
    assert [kind for kind, _ in found] == ["failed"]
    assert found[0][1]["job"]["error"]["code"] == "invalid_request"


def test_a_preview_comes_when_it_is_asked_for(server: Running) -> None:
    blocker = submit(server, num_inference_steps=4, step_seconds=0.1)
    body = {"prompt": "a", "num_inference_steps": 100}
    for wish, expected in (("true", True), ("false", False)):
        job = server.client.post("/api/v1/test/draw?wait=0", json=body).json()
        found = read_events(server, f"{job['links']['events']}?preview={wish}")
        previews = [data for kind, data in found if kind == "preview"]
        assert bool(previews) == expected
        assert all(data["image"].startswith("data:image/jpeg;base64,") for data in previews)
    until_ended(server, blocker["id"])


def test_a_silent_stream_is_kept_open_by_comments(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "HEARTBEAT_SECONDS", 0.05)
    job = submit(server, num_inference_steps=1, step_seconds=0.5)
    with server.client.stream("GET", job["links"]["events"]) as answer:
        lines = list(answer.iter_lines())
    assert sum(line.startswith(":") for line in lines) >= 3


def test_many_streams_watch_one_job(server: Running) -> None:
    from concurrent.futures import ThreadPoolExecutor

    job = submit(server, num_inference_steps=10, step_seconds=0.05)
    with ThreadPoolExecutor(20) as threads:
        ends = list(threads.map(lambda _: read_events(server, job["links"]["events"])[-1][0], range(20)))
    assert ends == ["succeeded"] * 20


def test_the_shell_reads_a_long_answer_whole(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    words = {"prompt": "🙂" * 10_000, "negative_prompt": "🙃" * 10_000}
    job = submit(server, num_inference_steps=200, step_seconds=0.05, **words)
    for command, status in (("cancel", "cancelled"), ("retry", "queued"), ("cancel", "cancelled")):
        assert cli.main(["jobs", command, job["id"], "--json", "--url", server.address]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["request"]["prompt"] == words["prompt"] and told["id"] == job["id"]
        if command == "cancel":
            assert until_ended(server, job["id"])["status"] == status
