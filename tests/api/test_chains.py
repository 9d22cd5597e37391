"""Chains over HTTP: `then` beside a wish's fields, in a form, and in batches; its refusals; one progress over all."""

import base64
import io
import json

import pytest
from PIL import Image

from tests.api.conftest import picture
from tests.api.serving import Running
from tests.api.test_batch import until

API = "/api/v1"
PAINT = f"{API}/test/paint"
COPY = {"capability": "test/copy"}


def data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def batch_of(server: Running, job: dict) -> dict:
    """The batch of a job once all of it has ended."""

    def ended() -> dict | None:
        found = server.client.get(f"{API}/batch/status/{job['batch']}").json()
        return found if found["status"] in {"succeeded", "failed", "cancelled"} else None

    until(ended)
    return ended()


def refused(server: Running, path: str, body: dict, status: int = 422) -> dict:
    """The error's body; nothing was stored and no job made."""
    before, jobs = server.stored(), server.client.get(f"{API}/jobs?limit=1").json()["total"]
    answer = server.client.post(path, json=body)
    assert answer.status_code == status, answer.text
    assert server.stored() == before, "a refused chain left something behind"
    assert server.client.get(f"{API}/jobs?limit=1").json()["total"] == jobs
    return answer.json()["error"]


def test_the_answer_is_the_last_links(server: Running) -> None:
    answer = server.client.post(f"{PAINT}?priority=7", json={"seed": 5, "then": [COPY, COPY]})
    assert answer.status_code == 200, answer.text
    last = answer.json()
    assert (last["capability"], last["priority"], last["then"], last["nothing_follows"]) == ("test/copy", 7, [], None)
    batch = batch_of(server, last)
    first, second, third = batch["jobs"]
    assert third["id"] == last["id"]
    assert (batch["total"], batch["progress"], batch["status"]) == (3, 1.0, "succeeded")
    assert first["then"] == [{"capability": "test/copy", "model": None, "request": {"mask_image": None}}] * 2
    assert first["followed_by"] == [second["id"]] and second["follows"] == first["id"]
    assert second["request"]["image"] == first["result"]["images"][0]["id"]
    assert third["request"]["image"] == second["result"]["images"][0]["id"]


def test_the_picture_is_the_last_links(server: Running) -> None:
    wish = {"seed": 5, "then": [COPY]}
    answer = server.client.post(PAINT, json=wish, headers={"Accept": "image/png"})
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png"
    job = server.client.get(f"{API}/jobs/{answer.headers['x-job-id']}").json()
    assert job["follows"] is not None
    with Image.open(io.BytesIO(answer.content), formats=("PNG",)) as made:
        assert made.size == (64, 64)


def test_a_form_sends_its_follow_ups_as_json(server: Running) -> None:
    files = {"seed": (None, "5"), "then": (None, json.dumps([COPY]))}
    answer = server.client.post(PAINT, files=files)
    assert answer.status_code == 200, answer.text
    assert answer.json()["capability"] == "test/copy"


def test_a_follow_up_brings_a_picture_of_its_own(server: Running) -> None:
    mask = data_uri(picture((64, 64), "white"))
    body = {"seed": 5, "then": [{**COPY, "mask_image": mask}]}
    headers = {"Idempotency-Key": "chain-with-a-mask"}
    answer = server.client.post(PAINT, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    reference = answer.json()["request"]["mask_image"]
    assert server.client.get(f"{API}/images/{reference}").status_code == 200
    before = server.stored()
    again = server.client.post(PAINT, json=body, headers=headers)
    assert again.status_code == 200 and again.json()["batch"] == answer.json()["batch"]
    assert server.stored() == before, "a repeat left its pictures behind"
    assert server.client.post(PAINT, json={"seed": 5}, headers=headers).status_code == 409


def test_a_link_that_fails_is_the_answer(server: Running) -> None:
    mask = data_uri(picture((40, 30), "white"))
    answer = server.client.post(PAINT, json={"seed": 5, "then": [{**COPY, "mask_image": mask}, COPY]})
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["code"] == "mask_mismatch"
    job = server.client.get(f"{API}/jobs/{error['details']['job']}").json()
    assert "failed" in job["nothing_follows"] and len(job["then"]) == 1
    batch = server.client.get(f"{API}/batch/status/{job['batch']}").json()
    assert (batch["status"], batch["total"], batch["progress"]) == ("failed", 2, 1.0)


def test_events_name_the_jobs_that_follow(server: Running) -> None:
    job = server.client.post(f"{PAINT}?wait=0", json={"seed": 5, "then": [COPY]}).json()
    assert job["batch"] is not None
    batch_of(server, job)
    told = server.client.get(f"{API}/jobs/{job['id']}/events").text
    end = json.loads(told.split("event: succeeded\ndata: ")[1].split("\n")[0])
    (follower,) = end["job"]["followed_by"]
    assert f'"id":"{follower}"' in server.client.get(f"{API}/jobs/{follower}/events").text


def test_one_job_and_many_are_submitted_with_follow_ups(server: Running) -> None:
    wish = {"handler": "test/paint", "request": {"seed": 5, "num_images_per_prompt": 2}, "then": [COPY]}
    answer = server.client.post(f"{API}/batch/submit", json=wish)
    assert answer.status_code == 202, answer.text
    assert batch_of(server, answer.json())["total"] == 3
    lists = {"handler": "test/paint", "request": {}, "values": {"seed": [1, 2]}, "then": [COPY]}
    many = server.client.post(f"{API}/batch/submit-batch", json=lists)
    assert many.status_code == 202, many.text
    assert batch_of(server, {"batch": many.json()["id"]})["total"] == 4
    mixed = {"jobs": [{**wish, "then": [COPY, COPY]}, {"handler": "test/paint", "request": {"seed": 1}, "then": []}]}
    many = server.client.post(f"{API}/batch/submit-batch", json={**mixed, "then": [COPY]})
    assert batch_of(server, {"batch": many.json()["id"]})["total"] == 6


def test_a_cancelled_batch_ends_its_chain(server: Running) -> None:
    slow = {"seed": 5, "num_inference_steps": 1000, "step_seconds": 0.05, "then": [COPY]}
    job = server.client.post(f"{PAINT}?wait=0", json=slow).json()
    until(lambda: server.client.get(f"{API}/jobs/{job['id']}").json()["status"] == "running")
    assert server.client.delete(f"{API}/batch/cancel/{job['batch']}").status_code == 200
    batch = batch_of(server, job)
    assert (batch["status"], batch["total"]) == ("cancelled", 1)
    assert "cancelled" in batch["jobs"][0]["nothing_follows"]


@pytest.mark.parametrize(
    ("then", "field"),
    [
        ([{**COPY, "colour": "red"}], "then.0.colour"),
        ([COPY, {**COPY, "mask_image": 3}], "then.1.mask_image"),
        ([{"capability": "test/paint"}], "then.0.capability"),
        ([{"capability": "test/nothing"}], "then.0.capability"),
        ([{**COPY, "image": "0" * 26}], "then.0.image"),
        ([{}], "then.0.capability"),
        ({}, "then"),
        ("upscale", "then"),
        ([{**COPY, "mask_image": data_uri(picture()), "x": 1}], "then.0.x"),
    ],
)
def test_a_bad_follow_up_is_refused_whole(server: Running, then: object, field: str) -> None:
    error = refused(server, PAINT, {"seed": 1, "then": then})
    named = {one["field"] for one in error["details"].get("errors", ())} | {error["details"].get("field")}
    assert field in named, error
    assert error["message"].startswith("then")
    wish = {"handler": "test/paint", "request": {"seed": 1}, "then": then}
    assert refused(server, f"{API}/batch/submit", wish)["message"].startswith("then")
    assert "then" in refused(server, f"{API}/batch/submit-batch", {"jobs": [wish]})["message"]


def test_a_picture_of_a_refused_chain_is_taken_away_again(server: Running) -> None:
    stored = {**COPY, "mask_image": data_uri(picture((64, 64)))}
    broken = {**COPY, "mask_image": data_uri(b"no picture")}
    body = {"seed": 1, "then": [stored, broken]}
    assert refused(server, PAINT, body, 415)["message"].startswith("then.1: ")
    wrong = {"seed": "many", "then": [stored]}
    assert "seed" in refused(server, PAINT, wrong)["message"]


def test_the_document_says_which_take_follow_ups(server: Running) -> None:
    document = server.client.get("/openapi.json").json()
    bodies = document["paths"][PAINT]["post"]["requestBody"]["content"]
    name = bodies["application/json"]["schema"]["$ref"].rsplit("/", 1)[1]
    assert "then" in document["components"]["schemas"][name]["properties"]
    assert "then" in bodies["multipart/form-data"]["schema"]["properties"]
