"""Where EIS_ADMIN_KEYS names keys, only those change how the whole service runs; and no such route is forgotten."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import cli_doctor
from app.cli_settings import read_settings
from app.errors import InvalidRequest
from tests.api.serving import Running, serving

ADMIN, OTHER = "the operator's own key", "somebody else's key"
OPERATOR = {"x-api-key": ADMIN}
USER = {"x-api-key": OTHER}
GUARDED = {
    ("POST", "/api/v1/batch/pause"),
    ("POST", "/api/v1/batch/resume"),
    ("POST", "/api/v1/gpu/configure"),
    ("POST", "/api/v1/memory/cleanup"),
    ("POST", "/api/v1/memory/configure"),
    ("POST", "/api/v1/models"),
    ("DELETE", "/api/v1/models/{id}"),
    ("POST", "/api/v1/models/{id}/pull"),
    ("DELETE", "/api/v1/models/{id}/pull"),
}
"""What belongs to the operator."""
OWN = {
    ("POST", "/api/v1/batch/cancel/{id}"),
    ("DELETE", "/api/v1/batch/cancel/{id}"),
    ("POST", "/api/v1/batch/priority/{id}"),
    ("POST", "/api/v1/batch/retry/{id}"),
    ("POST", "/api/v1/batch/submit"),
    ("POST", "/api/v1/batch/submit-batch"),
    ("POST", "/api/v1/datasets"),
    ("DELETE", "/api/v1/images/{id}"),
    ("DELETE", "/api/v1/jobs/{id}"),
    ("POST", "/api/v1/images"),
    ("POST", "/api/v1/jobs/{id}/cancel"),
    ("POST", "/api/v1/jobs/{id}/results/{number}/image"),
    ("POST", "/api/v1/jobs/{id}/retry"),
}
"""What every key does with its own jobs and pictures; the capabilities' routes besides."""
DEEDS = ("pause_queue", "devices.configure", "models.remove", "models.pull", "models.add")
"""Calls by which the page would do what is guarded; so does `memory_status` where it is asked for a cleanup."""
UI = Path(__file__).resolve().parents[2] / "app" / "ui"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("operators")
    with serving(home, api_keys=(ADMIN, OTHER), admin_keys=(ADMIN,)) as running:
        yield running


def ask(server: Running, operation: tuple[str, str], key: dict[str, str]) -> tuple[int, str]:
    """Status and error code of an operation on what is not there."""
    method, path = operation
    answer = server.client.request(method, path.replace("{id}", "none-such"), json={}, headers=key)
    return answer.status_code, answer.json()["error"]["code"] if answer.status_code >= 400 else ""


def changing(server: Running) -> set[tuple[str, str]]:
    """Every operation of the document that changes something, without the capabilities' own."""
    paths = server.client.get("/openapi.json", headers=USER).json()["paths"]
    capabilities = {f"/api/v1/{capability.name}" for capability in server.service.catalog}
    found = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    return {(method, path) for method, path in found if method != "GET" and path not in capabilities}


def test_every_changing_route_is_an_operator_s_or_everybody_s(server: Running) -> None:
    assert changing(server) == GUARDED | OWN, "a route is new: say in GUARDED or OWN whose it is"


def test_only_an_operator_s_key_may(server: Running) -> None:
    for operation in sorted(GUARDED):
        assert ask(server, operation, USER) == (403, "not_permitted"), operation
        assert ask(server, operation, {}) == (401, "key_required"), operation
        assert ask(server, operation, OPERATOR)[0] != 403, operation
    for operation in sorted(OWN):
        assert ask(server, operation, USER)[0] not in {401, 403}, operation
    refused = server.client.post("/api/v1/batch/pause", headers=USER)
    assert set(refused.json()["error"]) == {"code", "message", "details"}
    assert "EIS_ADMIN_KEYS" in refused.json()["error"]["message"] and ADMIN not in refused.text


def test_a_refused_key_changes_nothing_and_its_own_work_goes_on(server: Running) -> None:
    before = server.service.queue_state(), server.service.device_status()["strategy"]
    server.client.post("/api/v1/batch/pause", headers=USER)
    server.client.post("/api/v1/gpu/configure", json={"strategy": "round_robin"}, headers=USER)
    assert (server.service.queue_state(), server.service.device_status()["strategy"]) == before
    assert server.client.post("/api/v1/test/paint", json={}, headers=USER).status_code == 200
    assert server.client.get("/api/v1/memory/status", headers=USER).status_code == 200
    assert server.client.post("/api/v1/batch/pause", headers=OPERATOR).json()["paused"]
    assert not server.client.post("/api/v1/batch/resume", headers=OPERATOR).json()["paused"]


def test_a_browser_s_cookie_counts_as_its_key(server: Running) -> None:
    for key, status in ((OTHER, 403), (ADMIN, 200)):
        cookie = server.client.post("/login", data={"key": key}).headers["set-cookie"].split(";")[0]
        server.client.cookies.clear()
        answer = server.client.post("/api/v1/batch/resume", headers={"cookie": cookie})
        assert answer.status_code == status, key


def test_the_list_of_models_says_who_may_change_it(server: Running) -> None:
    assert server.client.get("/api/v1/models", headers=OPERATOR).json()["may_change"] is True
    assert server.client.get("/api/v1/models", headers=USER).json()["may_change"] is False


def test_the_document_tells_of_the_refusal(server: Running) -> None:
    paths = server.client.get("/openapi.json", headers=USER).json()["paths"]
    for method, path in GUARDED:
        assert "EIS_ADMIN_KEYS" in paths[path][method.lower()]["responses"]["403"]["description"]


def test_without_operators_every_key_may(tmp_path: Path) -> None:
    with serving(tmp_path, api_keys=(ADMIN, OTHER)) as running:
        assert running.client.post("/api/v1/batch/resume", headers=USER).status_code == 200
        assert running.client.get("/api/v1/models", headers=USER).json()["may_change"] is True


def test_without_keys_everybody_may(tmp_path: Path) -> None:
    with serving(tmp_path) as running:
        assert running.client.post("/api/v1/batch/resume").status_code == 200


def test_an_operator_s_key_that_opens_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EIS_ADMIN_KEYS", "operator")
    for known in (None, "user", "operator2"):
        if known:
            monkeypatch.setenv("EIS_API_KEYS", known)
        with pytest.raises(InvalidRequest, match=r"^EIS_ADMIN_KEYS: .*EIS_API_KEYS") as refused:
            read_settings()
        assert "operator2" not in refused.value.message
    monkeypatch.setenv("EIS_API_KEYS", "user, operator")
    assert [key.get_secret_value() for key in read_settings().admin_keys] == ["operator"]


def test_the_doctor_says_who_may() -> None:
    assert "everything" in cli_doctor.keys(0, 0)[2]
    assert "2; each may" in cli_doctor.keys(2, 0)[2]
    assert "2; 1 may" in cli_doctor.keys(2, 1)[2]


def test_the_page_does_nothing_guarded_without_asking() -> None:
    """Every function of the page that calls one of the deeds asks `require_admin` before."""
    seen = []
    for path in sorted(UI.glob("*.py")):
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                words = ast.unparse(function)
                cleans = "memory_status" in words and "cleanup=True" in words
                if cleans or any(f"service.{deed}" in words for deed in DEEDS):
                    seen.append(f"{path.name}:{function.name}")
                    assert "require_admin(request)" in words, f"{seen[-1]} changes how the service runs unasked"
    assert {"batch_page.py:act", "devices_page.py:configure"} <= set(seen), "the rule has gone blind"
