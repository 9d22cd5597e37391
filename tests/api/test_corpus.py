"""Every operation of the document meets awkward values: no answer is a fault, every refusal is the uniform one."""

import random
import time
from typing import Any

import httpx
import pytest

from app.core.catalog import CATALOG as PRODUCT
from app.core.jobs import JobStatus
from tests.api.serving import Running
from tests.engine.modelled import CATALOG as MODELLED

MARK = "Zyzzyva"
AWKWARD: list[Any] = [
    None, True, False, 0, -1, 1, 7, 2**31, 2**32, 2**53, 2**63, -(2**63), 1e-300, 1e300, -0.0, 0.1, "", " ", "a", MARK,
    "0", "-1", "1e999", "nan", "null", "true", "[]", "{}", "\u202e\u0007", "é" * 300, "🙂" * 50, "a" * 12_000,
    "'; DROP TABLE jobs; --", "../../etc/passwd", "%00", "${jndi:ldap://x}", "<script>alert(1)</script>",
    "(" * 400, "(((a:1.2):1e9):-4)", "[a:b:0.5]", "BREAK " * 100, "\\(a\\)", "(a:1.5", "a:)", "((a))[[b]]",
    [], [None], [[]], ["a"] * 100, [MARK], {}, {"a": 1}, {"model": MARK}, [{"model": "a", "weight": 9}], [{}],
    "0" * 26, "data:,", "data:image/png;base64,AAAA", "https://", "http://[::", "https://127.1/", "file:///etc/passwd",
]  # fmt: skip
VALUES_EACH = 18
ALLOWED = {200, 201, 202, 204, 303, 400, 404, 405, 409, 413, 415, 422}
CAPABILITIES = [*PRODUCT, *MODELLED]


def check(answer: httpx.Response, about: object) -> None:
    assert answer.status_code in ALLOWED, (about, answer.status_code, answer.text[:300])
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert set(error) == {"code", "message", "details"}, about
        assert "Traceback" not in answer.text and "/site-packages/" not in answer.text
        assert MARK not in answer.text, about


@pytest.fixture(autouse=True)
def emptied(server: Running):
    """What was accepted is cancelled, so that the tests after this one wait for nothing."""
    yield
    for status in (JobStatus.QUEUED, JobStatus.RUNNING):
        for job in server.service.list_jobs(status=status, limit=500)[0]:
            server.client.delete(f"/api/v1/jobs/{job.id}")
    deadline = time.monotonic() + 30
    while server.service.readiness()["running"]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("capability", CAPABILITIES, ids=lambda capability: capability.name)
def test_every_field_meets_every_value(server: Running, capability: Any) -> None:
    path = f"/api/v1/{capability.name}?wait=0"
    sent = 0
    chance = random.Random(capability.name)
    for name in capability.request.model_fields:
        for value in chance.sample(AWKWARD, VALUES_EACH):
            body = {**capability.example, name: value}
            check(server.client.post(path, json=body), (name, value))
            sent += 1
            if isinstance(value, str) and sent % 3 == 0:
                form = {**{key: str(one) for key, one in capability.example.items()}, name: value}
                files = {key: (None, text) for key, text in form.items()}
                check(server.client.post(path, files=files), ("form", name, value))
    assert sent == len(capability.request.model_fields) * VALUES_EACH > 0
    assert server.client.get("/health").status_code == 200


def test_fields_together(server: Running) -> None:
    chance = random.Random(20261123)
    for _ in range(150):
        capability = chance.choice(CAPABILITIES)
        fields = sorted(capability.request.model_fields)
        names = chance.sample(fields, min(4, len(fields)))
        body = {**capability.example, **{name: chance.choice(AWKWARD) for name in names}}
        check(server.client.post(f"/api/v1/{capability.name}?wait=0", json=body), body)


def test_every_parameter_of_every_operation(server: Running) -> None:
    document = server.client.get("/openapi.json").json()
    chance = random.Random(1)
    texts = [str(value) for value in AWKWARD if isinstance(value, str | int | float) and len(str(value)) < 400]
    asked = 0
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            parameters = [one for one in operation.get("parameters", ()) if one["in"] == "query"]
            for text in chance.sample(texts, 12):
                url = path
                for one in operation.get("parameters", ()):
                    if one["in"] == "path":
                        url = url.replace(
                            "{" + one["name"] + "}", httpx.URL("http://x", params={"a": text}).query[2:].decode()
                        )
                query = {chance.choice(parameters)["name"]: text} if parameters else {}
                if url.endswith("/events") or "pull" in url:
                    query |= {"preview": "false"} if url.endswith("/events") else {}
                answer = server.client.request(
                    method, url, params=query | ({"wait": 0} if method == "post" and "wait" in str(parameters) else {})
                )
                check(answer, (method, url, query))
                asked += 1
    assert asked > 200
