"""Stored pictures over HTTP."""

import io

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app.api.negotiation import preferred
from app.api.schemas import ImageAnswer
from tests.api.conftest import picture
from tests.api.serving import Running
from tests.api.test_capabilities import PAINT


def made(server: Running, **fields: object) -> dict:
    """The first picture of a fresh job."""
    return server.client.post(PAINT, json=fields).json()["result"]["images"][0]


def test_a_picture_is_uploaded_in_three_ways(server: Running) -> None:
    data = picture((33, 22), "teal")
    for answer in (
        server.client.post("/api/v1/images", files={"image": ("../../x.png", data, "image/png")}),
        server.client.post("/api/v1/images", content=data, headers={"content-type": "image/png"}),
        server.client.post(
            "/api/v1/images", json={"image": "data:image/png;base64," + __import__("base64").b64encode(data).decode()}
        ),
    ):
        assert answer.status_code == 201, answer.text
        stored = ImageAnswer.model_validate(answer.json(), strict=True)
        assert (stored.width, stored.height) == (33, 22) and answer.headers["location"] == stored.url
        shown = Image.open(io.BytesIO(server.client.get(stored.url).content), formats=["PNG"])
        assert shown.getpixel((3, 3)) == (0, 128, 128)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "AVIF"])
def test_other_formats_become_png(server: Running, kind: str) -> None:
    stored = server.client.post("/api/v1/images", files={"image": ("a", picture((20, 20), "lime", kind=kind))}).json()
    answer = server.client.get(stored["url"])
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content), formats=["PNG"]).size == (20, 20)


@pytest.mark.parametrize(
    ("query", "accept", "expected"),
    [
        ("", "", "image/png"),
        ("", "image/avif,image/webp,image/apng,image/svg+xml,image/*,*/*;q=0.8", "image/png"),
        ("", "image/webp", "image/webp"),
        ("", "image/webp, image/jpeg;q=0.5", "image/webp"),
        ("", "text/html", "image/png"),
        ("?format=jpeg", "image/png", "image/jpeg"),
        ("?format=jpg", "", "image/jpeg"),
        ("?format=webp", "", "image/webp"),
        ("?format=png", "image/webp", "image/png"),
    ],
)
def test_a_picture_is_answered_in_the_wished_format(server: Running, query: str, accept: str, expected: str) -> None:
    image = made(server, seed=4)
    answer = server.client.get(image["url"] + query, headers={"accept": accept})
    assert answer.status_code == 200 and answer.headers["content-type"] == expected
    kind = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}[expected]
    assert Image.open(io.BytesIO(answer.content), formats=[kind]).size == (64, 64)
    assert "immutable" in answer.headers["cache-control"] and "private" in answer.headers["cache-control"]
    assert server.client.get(f"{image['url']}?format=gif").status_code == 422


def test_a_picture_that_webp_cannot_hold_is_answered_as_what_can(server: Running) -> None:
    id = server.upload(picture((16_384, 8), "navy"))
    url = f"/api/v1/images/{id}"
    refused = server.client.get(f"{url}?format=webp")
    assert refused.status_code == 422 and "16383" in refused.json()["error"]["message"]
    assert server.client.get(f"{url}?format=jpeg").headers["content-type"] == "image/jpeg"
    for accept, expected in {
        "image/webp": "image/png",
        "image/webp, image/jpeg;q=0.5": "image/jpeg",
        "image/webp, */*;q=0.1": "image/png",
    }.items():
        answer = server.client.get(url, headers={"accept": accept})
        assert answer.status_code == 200 and answer.headers["content-type"] == expected, accept


def test_a_result_that_webp_cannot_hold_loses_no_job(server: Running) -> None:
    wish = {"image": server.upload(picture((16_384, 8), "navy"))}
    path = "/api/v1/test/copy"
    answer = server.client.post(path, json=wish, headers={"accept": "image/webp"})
    assert answer.status_code == 200 and answer.json()["status"] == "succeeded"
    answer = server.client.post(path, json=wish, headers={"accept": "image/webp, image/jpeg;q=0.5"})
    assert answer.headers["content-type"] == "image/jpeg" and server.service.get(answer.headers["x-job-id"])


def test_a_thumbnail_is_small_and_webp(server: Running) -> None:
    id = server.upload(picture((900, 300), "navy"))
    answer = server.client.get(f"/api/v1/images/{id}/thumbnail?size=128")
    shown = Image.open(io.BytesIO(answer.content), formats=["WEBP"])
    assert answer.headers["content-type"] == "image/webp" and max(shown.size) == 128
    assert server.client.get(f"/api/v1/images/{id}/thumbnail?size=100000").status_code == 422


def test_metadata_tells_how_a_picture_was_made(server: Running) -> None:
    image = made(server, prompt="a quiet lake", seed=12)
    told = server.client.get(f"{image['url']}/metadata").json()
    assert told["recipe"]["capability"] == "test/paint" and told["recipe"]["request"]["seed"] == 12
    assert told["infotext"].startswith("a quiet lake") and (told["width"], told["height"]) == (64, 64)
    upload = server.upload(picture())
    assert server.client.get(f"/api/v1/images/{upload}/metadata").json()["recipe"] is None


@pytest.mark.parametrize("value", ["9" * 30, "[" * 400 + "]" * 400, "1e999"], ids=["digits", "depth", "infinity"])
def test_a_stranger_s_recipe_that_no_answer_can_hold_is_absent(server: Running, value: str) -> None:
    info = PngInfo()
    info.add_itxt("eis_recipe", '{"capability": "test/paint", "request": ' + value + "}")
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=info)
    id = server.upload(buffer.getvalue())
    # As files are that were stored before such recipes were left out.
    server.service.storage.path(id).write_bytes(buffer.getvalue())
    answer = server.client.get(f"/api/v1/images/{id}/metadata")
    assert answer.status_code == 200 and answer.json()["recipe"] is None


def test_pictures_are_found_by_words_and_seed(server: Running) -> None:
    first = made(server, prompt="an otter by the river", seed=771)
    made(server, prompt="an otter in the snow", seed=772)
    both = server.client.get("/api/v1/images?prompt=otter").json()
    assert both["total"] == 2 and both["images"][1]["id"] == first["id"] and both["images"][1]["url"] == first["url"]
    assert "owner" not in both["images"][0]
    assert server.client.get("/api/v1/images?prompt=otter river").json()["total"] == 1
    assert server.client.get("/api/v1/images?seed=772").json()["images"][0]["prompt"].endswith("snow")
    assert server.client.get("/api/v1/images?prompt=otter&limit=1&offset=1").json()["images"][0]["id"] == first["id"]
    assert server.client.get("/api/v1/images?model=none").json()["total"] == 0
    assert server.client.get("/api/v1/images?prompt=ott%25").json()["total"] == 0
    assert server.client.get("/api/v1/images?sneed=1").status_code == 422


def test_a_deleted_picture_is_gone(server: Running) -> None:
    image = made(server, prompt="fleeting")
    server.client.get(f"{image['url']}/thumbnail")
    assert server.client.delete(image["url"]).status_code == 204
    for part in ("", "/thumbnail", "/metadata"):
        assert server.client.get(image["url"] + part).status_code == 404
    assert server.client.delete(image["url"]).status_code == 404
    assert server.client.get("/api/v1/images?prompt=fleeting").json()["total"] == 0
    assert not list((server.home / "images").rglob(f"{image['id']}*"))


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "a/x"), ("b/y", "b/y"), ("*/*", "a/x"), ("b/*;q=0.9, a/x;q=0.1", "b/y"), ("c/z", None),
        ("a/x;q=0, */*", "b/y"), ("a/x;q=zero", None), (",,;;", None), ("*/*;q=0.1, b/y;q=0.2", "b/y"),
    ],
)  # fmt: skip
def test_the_accept_header_is_weighed(accept: str, expected: str | None) -> None:
    assert preferred(accept, ("a/x", "b/y")) == expected


def test_a_picture_that_a_waiting_job_names_is_kept(server: Running) -> None:
    slow = {"num_inference_steps": 200, "step_seconds": 0.05}
    blocker = server.client.post(f"{PAINT}?wait=0&priority=10", json=slow).json()["id"]
    image = server.upload(picture())
    job = server.client.post("/api/v1/test/copy?wait=0", json={"image": image}).json()["id"]
    refused = server.client.delete(f"/api/v1/images/{image}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")
    assert server.client.get(f"/api/v1/images/{image}").status_code == 200
    for waiting in (job, blocker):
        server.client.delete(f"/api/v1/jobs/{waiting}")
    assert server.client.delete(f"/api/v1/images/{image}").status_code == 204
