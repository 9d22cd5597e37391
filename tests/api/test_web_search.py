"""Web search through REST against a SearXNG-shaped server: results, previews, references, and what is never reached."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.guarded_http import GuardedClient
from tests.api.serving import Running, serving
from tests.searching import PAGE, Searxng, png, searxng

WAIT = "/api/v1/web-search?wait=30"


@pytest.fixture(scope="module")
def server() -> Iterator[Searxng]:
    with searxng() as known:
        yield known


@pytest.fixture(scope="module")
def studio(server: Searxng, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    settings = {"search_provider": "searxng", "search_url": server.address, "trusted_hosts": (server.trusted,)}
    with serving(tmp_path_factory.mktemp("searching"), **settings) as running:
        yield running


@pytest.fixture
def results(server: Searxng) -> Iterator[dict[str, list[dict[str, Any]]]]:
    before = dict(server.answers)
    server.canary_hits.clear()
    yield server.answers
    server.answers.update(before)


def searched(studio: Running, **wish: Any) -> dict[str, Any]:
    answer = studio.client.post(WAIT, json={"query": "mid-century armchair", **wish})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_pictures_come_with_their_sources(studio: Running) -> None:
    job = searched(studio)
    data = job["result"]["data"]
    assert [(one["url"], one["licence"]) for one in data["results"]] == [(PAGE, "CC BY-SA 4.0")]
    assert "source" in job["result"]["notes"][0] and job["result"]["images"] == []


def test_facts_ground_a_prompt_and_are_told_as_a_stage(studio: Running) -> None:
    job = searched(studio, kind="text", ground="an armchair in a hall")
    grounding = job["result"]["data"]["grounding"]
    assert grounding["prompt"].startswith("an armchair in a hall. A mid-century armchair has tapered teak legs")
    assert grounding["facts"][0]["url"] == "https://design.example.org/armchairs"
    assert job["result"]["data"]["stages"][0]["text"] == grounding["prompt"]


def test_a_result_that_points_inside_is_refused_and_nobody_comes(studio: Running, server: Searxng, results) -> None:
    port = server.canary.rsplit(":", 1)[1]
    inside = [
        f"{server.canary}/direct.png",
        f"https://127.0.0.1:{port}/tls.png",
        f"http://localhost:{port}/name.png",
        f"https://[::1]:{port}/six.png",
        f"https://2130706433:{port}/number.png",
        # The host that is trusted as the provider: neither as a result, nor to lead further.
        f"{server.address}/picture.png",
        f"{server.address}/to-canary",
    ]
    results["images"] = [
        {"title": "x", "url": f"https://pages.example.org/{at}", "img_src": url, "thumbnail_src": url}
        for at, url in enumerate(inside)
    ]
    job = searched(studio)
    assert len(job["result"]["data"]["results"]) == len(inside)
    before = sum(server.hits.values())
    for number in range(len(inside)):
        path = f"/api/v1/jobs/{job['id']}/results/{number}"
        for answer in (studio.client.get(f"{path}/thumbnail"), studio.client.post(f"{path}/image")):
            assert answer.json()["error"]["code"] == "url_not_allowed", (inside[number], answer.text)
    assert not server.canary_hits and sum(server.hits.values()) == before


def test_a_redirect_of_a_result_leads_nowhere_inside(studio: Running, server: Searxng, results, monkeypatch) -> None:
    """The first hop is let in for this test alone; the second must still be refused."""
    monkeypatch.setattr(studio.service.found, "_client", GuardedClient([server.trusted]))
    url = f"{server.address}/to-canary/1"
    results["images"] = [{"title": "x", "url": PAGE, "img_src": url, "thumbnail_src": url}]
    job = searched(studio)
    for answer in (
        studio.client.get(f"/api/v1/jobs/{job['id']}/results/0/thumbnail"),
        studio.client.post(f"/api/v1/jobs/{job['id']}/results/0/image"),
    ):
        assert answer.json()["error"]["code"] == "url_not_allowed"
    assert server.hits["/to-canary/1"] == 2 and not server.canary_hits


def test_a_result_becomes_a_reference_that_any_capability_takes(studio: Running, server, results, monkeypatch) -> None:
    monkeypatch.setattr(studio.service.found, "_client", GuardedClient([server.trusted]))
    results["images"] = [{"title": "x", "url": PAGE, "img_src": f"{server.address}/chair.png"}]
    job = searched(studio)
    path = f"/api/v1/jobs/{job['id']}/results/0"
    small = studio.client.get(f"{path}/thumbnail")
    assert small.status_code == 200 and small.headers["content-type"] == "image/webp" and small.content[:4] == b"RIFF"
    kept = studio.client.post(f"{path}/image")
    assert kept.status_code == 201 and (kept.json()["width"], kept.json()["height"]) == (64, 64)
    wish = {"image": kept.json()["id"], "control_type": "canny"}
    drawn = studio.client.post("/api/v1/controlnet/preprocess?wait=30", json=wish)
    assert drawn.status_code == 200, drawn.text
    assert studio.client.get(f"/api/v1/images/{kept.json()['id']}").status_code == 200


def test_only_a_search_has_results_and_only_its_own(studio: Running) -> None:
    picture = studio.upload(png())
    wish = {"image": picture, "control_type": "canny"}
    other = studio.client.post("/api/v1/controlnet/preprocess?wait=30", json=wish).json()
    job = searched(studio)
    for id, number in ((other["id"], 0), (job["id"], 1), (job["id"], 999), ("0" * 26, 0)):
        assert studio.client.get(f"/api/v1/jobs/{id}/results/{number}/thumbnail").status_code == 404
        assert studio.client.post(f"/api/v1/jobs/{id}/results/{number}/image").status_code == 404


def test_without_a_provider_no_request_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path / "home") as running:
        connect, own = socket.socket.connect, ("127.0.0.1", running.port)
        strangers: list[Any] = []

        def watched(self: socket.socket, address: Any) -> None:
            if self.family in (socket.AF_INET, socket.AF_INET6) and tuple(address[:2]) != own:
                strangers.append(address)
            connect(self, address)

        monkeypatch.setattr(socket.socket, "connect", watched)
        answer = running.client.post(WAIT, json={"query": "chair"})
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "search_off"
        assert "EIS_SEARCH_PROVIDER" in answer.json()["error"]["message"]
        assert strangers == []
