"""One route for each capability: the ways in, the ways out, the same key twice."""

import base64
import io
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image
from pydantic import BaseModel

from app.api.schemas import JobAnswer, JobList
from app.core.capability import image_fields
from app.core.catalog import CATALOG as PRODUCT
from tests.api.conftest import picture
from tests.api.serving import CATALOG, PATIENCE_SECONDS, Running, serving
from tests.engine.capabilities import squares

PAINT = "/api/v1/test/paint"
COPY = "/api/v1/test/copy"


def fields_of(capability):
    """What a body may hold: the request's own fields, and `then` where there is a picture to go on with."""
    return {*capability.request.model_fields, *(["then"] if capability.gives_pictures else [])}


def test_every_capability_is_a_literal_route_with_its_own_schema(server: Running) -> None:
    document = server.client.get("/openapi.json").json()
    for capability in CATALOG:
        operation = document["paths"][f"/api/v1/{capability.name}"]["post"]
        content = operation["requestBody"]["content"]
        name = content["application/json"]["schema"]["$ref"].removeprefix("#/components/schemas/")
        schema = document["components"]["schemas"][name]
        assert set(schema["properties"]) == fields_of(capability)
        assert schema["additionalProperties"] is False
        form = content["multipart/form-data"]["schema"]["properties"]
        assert set(form) == fields_of(capability)
        for field, kind in image_fields(capability.request).items():
            one = form[field]["items"] if kind == "images" else form[field]
            assert {"type": "string", "format": "binary"} in one["anyOf"]
            assert "pattern" not in str(schema["properties"][field]), "a data URI would not fit the reference's pattern"
        assert {parameter["name"] for parameter in operation["parameters"]} == {
            "wait", "priority", "callback_url", "idempotency-key"
        }  # fmt: skip
    assert not [path for path in document["paths"] if "{path" in path or "{capability" in path or "*" in path]
    assert len(PRODUCT) >= 4


def test_every_reference_of_the_document_resolves(server: Running) -> None:
    document = server.client.get("/openapi.json").json()
    found = 0

    def walk(value: object) -> None:
        nonlocal found
        if isinstance(value, dict):
            if isinstance(reference := value.get("$ref"), str):
                found += 1
                target: object = document
                for part in reference.removeprefix("#/").split("/"):
                    target = target[part]  # type: ignore[index]
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(document)
    assert found > 50
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(ids) == len(set(ids))


def test_capabilities_are_listed_with_schema_group_and_example(server: Running) -> None:
    listed = {one["name"]: one for one in server.client.get("/api/v1/capabilities").json()["capabilities"]}
    assert list(listed) == [capability.name for capability in CATALOG]
    for capability in CATALOG:
        one = listed[capability.name]
        assert set(one["schema"]["properties"]) == fields_of(capability)
        assert one["group"] == capability.group and one["summary"] and one["url"].endswith(capability.name)
        assert one["example"] == dict(capability.example)


def test_the_answer_holds_the_result_when_it_is_done_in_time(server: Running) -> None:
    answer = server.client.post(PAINT, json={"prompt": "a", "seed": 5, "num_images_per_prompt": 2})
    assert answer.status_code == 200
    job = JobAnswer.model_validate(answer.json(), strict=True).model_dump()
    assert job["status"] == "succeeded" and job["request"]["seed"] == 5 and job["position"] is None
    assert [image["seed"] for image in job["result"]["images"]] == [5, 6]
    assert job["result"]["notes"] == ["Painted."] and job["result"]["data"] == {"squares": 64}
    assert answer.headers["x-job-id"] == job["id"] and answer.headers["location"] == job["links"]["self"]
    for image in job["result"]["images"]:
        shown = Image.open(io.BytesIO(server.client.get(image["url"]).content), formats=["PNG"])
        assert shown.tobytes() == squares(image["seed"]).tobytes()
    assert server.client.get(job["links"]["self"]).json() == answer.json()


def test_a_seed_that_is_null_is_drawn_and_told(server: Running) -> None:
    seeds = {server.client.post(PAINT, json={}).json()["request"]["seed"] for _ in range(3)}
    assert len(seeds) == 3 and all(isinstance(seed, int) for seed in seeds)


@pytest.mark.alone
def test_a_job_that_takes_longer_is_answered_202(server: Running) -> None:
    answer = server.client.post(f"{PAINT}?wait=0", json={"num_inference_steps": 3, "step_seconds": 0.1})
    assert answer.status_code == 202 and answer.headers["retry-after"]
    job = answer.json()
    assert job["status"] in {"queued", "running"} and answer.headers["location"] == job["links"]["self"]
    began = time.monotonic()
    slow = server.client.post(f"{PAINT}?wait=0.3", json={"num_inference_steps": 30, "step_seconds": 0.1})
    assert slow.status_code == 202 and 0.25 < time.monotonic() - began < 2
    server.client.post(slow.json()["links"]["cancel"])
    assert until_ended(server, job["id"])["status"] == "succeeded"


def until_ended(server: Running, id: str) -> dict:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (job := server.client.get(f"/api/v1/jobs/{id}").json())["status"] in {"queued", "running"}:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return job


@pytest.mark.parametrize(("accept", "kind"), [("image/png", "PNG"), ("image/jpeg", "JPEG"), ("image/webp", "WEBP")])
def test_accept_answers_with_the_first_picture(server: Running, accept: str, kind: str) -> None:
    answer = server.client.post(PAINT, json={"seed": 8}, headers={"accept": accept})
    assert answer.status_code == 200 and answer.headers["content-type"] == accept
    shown = Image.open(io.BytesIO(answer.content), formats=[kind])
    assert shown.size == (64, 64)
    assert answer.headers["x-seed"] == "8" and server.service.get(answer.headers["x-job-id"])
    if kind == "PNG":
        assert shown.tobytes() == squares(8).tobytes()


@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/html,*/*;q=0.8", "image/png;q=0.1, */*", ""])
def test_everything_else_is_answered_with_json(server: Running, accept: str) -> None:
    answer = server.client.post(PAINT, json={"seed": 8}, headers={"accept": accept})
    assert answer.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("way", "status", "code"),
    [("refusal", 422, "invalid_request"), ("bug", 500, "internal"), ("memory", 507, "out_of_memory")],
)
def test_a_failed_job_is_the_status_of_its_error(server: Running, way: str, status: int, code: str) -> None:
    answer = server.client.post("/api/v1/test/fail", json={"way": way})
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    job = server.client.get(f"/api/v1/jobs/{error['details']['job']}").json()
    assert job["status"] == "failed" and job["error"]["code"] == code
    assert "secret" not in answer.text and "secret" not in str(job)


def test_a_form_is_read_by_the_types_of_its_fields(server: Running) -> None:
    form = {"prompt": "123", "seed": "9", "step_seconds": "0", "num_images_per_prompt": "2"}
    job = server.client.post(PAINT, files={name: (None, value) for name, value in form.items()}).json()
    assert job["request"]["prompt"] == "123" and job["request"]["seed"] == 9
    assert len(job["result"]["images"]) == 2
    null = server.client.post(PAINT, files={"seed": (None, "null"), "prompt": (None, "null")}).json()
    assert isinstance(null["request"]["seed"], int) and null["request"]["prompt"] == "null"


def test_numbers_and_ticks_of_a_form_are_read_in_their_plain_spelling(server: Running) -> None:
    form = {"prompt": "é", "seed": "007", "guidance_scale": "2.50", "vae_tiling": "on", "num_inference_steps": "2"}
    answer = server.client.post("/api/v1/test/draw", files={name: (None, value) for name, value in form.items()})
    assert answer.status_code == 200, answer.text
    wish = answer.json()["request"]
    assert (wish["prompt"], wish["seed"], wish["guidance_scale"], wish["vae_tiling"]) == ("é", 7, 2.5, True)
    same = {**form, "seed": 7, "guidance_scale": 2.5, "vae_tiling": True, "num_inference_steps": 2}
    assert server.client.post("/api/v1/test/draw", json=same).json()["request"] == wish


def test_lists_in_a_form(server: Running) -> None:
    loras = '[{"model": "lcm-lora-sdxl", "weight": 0.5}]'
    for given in (loras, loras[1:-1]):
        answer = server.client.post("/api/v1/test/draw", files={"prompt": (None, "a"), "loras": (None, given)})
        assert answer.status_code == 409 and "eis models pull lcm-lora-sdxl" in answer.json()["error"]["message"]
    answer = server.client.post("/api/v1/test/draw", files={"prompt": (None, "a"), "loras": (None, "[]")})
    assert answer.status_code == 200


class PictureHost(BaseHTTPRequestHandler):
    """Serves one picture."""

    def do_GET(self) -> None:
        data = picture((40, 30), "green")
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def picture_host() -> Iterator[int]:
    host = ThreadingHTTPServer(("127.0.0.1", 0), PictureHost)
    threading.Thread(target=host.serve_forever, daemon=True).start()
    yield host.server_address[1]
    host.shutdown()
    host.server_close()


def test_a_picture_comes_in_every_way(server: Running) -> None:
    data = picture((40, 30), "blue")
    text = base64.b64encode(data).decode()
    ways = [
        server.client.post(COPY, json={"image": text}),
        server.client.post(COPY, json={"image": f"data:image/png;base64,{text}"}),
        server.client.post(COPY, json={"image": f"data:;base64,{text[:40]}\n{text[40:]}"}),
        server.client.post(COPY, json={"image": server.upload(data)}),
        server.client.post(COPY, files={"image": ("a.png", data, "image/png")}),
        server.client.post(COPY, files={"image": (None, text)}),
        server.client.post(COPY, files={"image": ("a.png", data), "mask_image": ("m.png", picture((40, 30), "white"))}),
    ]
    for answer in ways:
        assert answer.status_code == 200, answer.text
        shown = Image.open(io.BytesIO(server.client.get(answer.json()["result"]["images"][0]["url"]).content))
        assert shown.size == (40, 30) and shown.getpixel((5, 5)) == (0, 0, 255)


def test_a_picture_comes_by_url_from_a_host_that_may_be_asked(tmp_path, picture_host: int) -> None:
    with serving(tmp_path, trusted_hosts=(f"127.0.0.1:{picture_host}",)) as server:
        answer = server.client.post(COPY, json={"image": f"http://127.0.0.1:{picture_host}/a.png"})
        assert answer.status_code == 200, answer.text
        shown = Image.open(io.BytesIO(server.client.get(answer.json()["result"]["images"][0]["url"]).content))
        assert shown.getpixel((5, 5)) == (0, 128, 0)
        other = server.client.post(COPY, json={"image": f"http://127.0.0.1:{server.port}/health"})
        assert other.status_code == 422


def test_the_same_key_and_body_are_the_same_job(server: Running) -> None:
    headers = {"idempotency-key": f"key-{time.time_ns()}"}
    first = server.client.post(PAINT, json={"prompt": "a"}, headers=headers).json()
    again = server.client.post(PAINT, json={"prompt": "a"}, headers=headers)
    assert again.status_code == 200 and again.json() == first
    other = server.client.post(PAINT, json={"prompt": "b"}, headers=headers)
    assert other.status_code == 409 and other.json()["error"]["code"] == "conflict"


def test_the_same_key_and_picture_are_the_same_job_and_leave_no_second_picture(server: Running) -> None:
    headers = {"idempotency-key": f"key-{time.time_ns()}"}
    files = {"image": ("a.png", picture((24, 24), "pink"))}
    first = server.client.post(COPY, files=files, headers=headers).json()
    before = server.stored()
    again = server.client.post(COPY, files=files, headers=headers)
    assert again.json()["id"] == first["id"] and server.stored() == before
    other = server.client.post(COPY, files={"image": ("a.png", picture((24, 24), "gray"))}, headers=headers)
    assert other.status_code == 409 and server.stored() == before


def test_a_replay_answers_the_job_when_its_pictures_are_gone(server: Running) -> None:
    headers = {"idempotency-key": f"key-{time.time_ns()}", "accept": "image/png"}
    wish = {"image": server.upload(picture((24, 24), "navy"))}
    first = server.client.post(COPY, json=wish, headers=headers)
    assert first.headers["content-type"] == "image/png"
    for image in (wish["image"], first.headers["x-image-id"]):
        assert server.client.delete(f"/api/v1/images/{image}").status_code == 204
    again = server.client.post(COPY, json=wish, headers=headers)
    assert again.status_code == 200 and again.headers["content-type"].startswith("application/json")
    assert again.json()["id"] == first.headers["x-job-id"]


def test_a_client_that_goes_away_does_not_end_its_job(server: Running) -> None:
    before = {
        job["id"] for job in JobList.model_validate(server.client.get("/api/v1/jobs").json()).model_dump()["jobs"]
    }
    with pytest.raises(Exception, match="timed out"):
        server.client.post(PAINT, json={"num_inference_steps": 8, "step_seconds": 0.1, "prompt": "left"}, timeout=0.3)
    jobs = server.client.get("/api/v1/jobs").json()["jobs"]
    new = [job for job in jobs if job["id"] not in before]
    assert len(new) == 1
    assert until_ended(server, new[0]["id"])["status"] == "succeeded"


def test_many_at_once(server: Running) -> None:
    def run(seed: int) -> dict:
        return server.client.post(PAINT, json={"seed": seed}).json()

    with ThreadPoolExecutor(16) as threads:
        jobs = list(threads.map(run, range(64)))
    assert [job["request"]["seed"] for job in jobs] == list(range(64))
    assert len({job["id"] for job in jobs}) == 64 and {job["status"] for job in jobs} == {"succeeded"}


def test_priority_goes_first(server: Running) -> None:
    blocker = server.client.post(f"{PAINT}?wait=0", json={"num_inference_steps": 5, "step_seconds": 0.1}).json()
    low = server.client.post(f"{PAINT}?wait=0&priority=1", json={}).json()
    high = server.client.post(f"{PAINT}?wait=0&priority=9", json={}).json()
    assert high["position"] == 0
    assert server.client.get(low["links"]["self"]).json()["position"] == 1
    ended = [until_ended(server, job["id"]) for job in (blocker, low, high)]
    assert ended[2]["started"] < ended[1]["started"]


def test_the_classes_of_the_document_are_models() -> None:
    assert issubclass(JobAnswer, BaseModel)
