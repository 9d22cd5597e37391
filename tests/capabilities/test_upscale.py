"""Upscale from the door to the picture: Lanczos on a fresh machine, a network where one is installed, and refusals."""

import io
import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.core.catalog import find
from app.core.handlers import resolve
from app.errors import InvalidRequest, JobCancelled, UnknownModel
from app.models.library import ModelLibrary
from app.models.runtime import open_runtime
from tests.api.serving import serving
from tests.capabilities.studio import Studio, noise, pixels
from tests.models.upscaling_networks import write_compact

UPSCALE = find("upscale")
WEIGHTS = os.environ.get("EIS_TEST_WEIGHTS")


@pytest.fixture(scope="module")
def astronaut():
    return Image.fromarray(pytest.importorskip("skimage.data").astronaut())


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A home with one small network."""
    folder = tmp_path_factory.mktemp("upscalers")
    library = ModelLibrary(folder / "home")
    library.add(write_compact(folder / "small.safetensors"), id="small")
    return library


@pytest.fixture(scope="module")
def runtime(library, one_thread):
    opened = open_runtime(device="cpu", library=library, precision="float32")
    yield opened
    opened.close()


def test_with_no_weights_it_is_lanczos_and_says_so(run_capability, picture):
    result = run_capability(UPSCALE, image=picture, scale=3, upscaler="lanczos")
    (image,) = result.images
    assert image.tobytes() == picture.resize((192, 144), Image.Resampling.LANCZOS).tobytes()
    assert "Lanczos" in result.notes[0] and "eis models pull real-esrgan" in result.notes[0]
    assert result.data["upscaler"] == "lanczos" and result.data["to"] == [192, 144]


def test_auto_is_the_network_that_is_installed(run_capability, picture):
    result = run_capability(UPSCALE, image=picture, scale=4)
    assert result.data["upscaler"] == "small" and result.notes == []
    assert result.images[0].size == (256, 192)
    assert result.images[0].tobytes() != picture.resize((256, 192), Image.Resampling.LANCZOS).tobytes()


def test_its_parts_are_the_steps_and_no_seam_shows(run_capability, studio, picture):
    whole = run_capability(UPSCALE, image=picture, scale=4)
    assert studio.steps_reported() == [(0, 1), (1, 1)]
    parts = run_capability(UPSCALE, image=picture, scale=4, tile_size=32)
    assert studio.steps_reported() == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert parts.data["tiles"] == 4 and parts.data["overlap"] == 5
    assert np.abs(pixels(parts.images[0]) - pixels(whole.images[0])).max() <= 1


def test_a_cancelled_run_ends_between_two_parts(run_capability, studio, picture):
    report = studio._report

    def cancel_after_the_first(kind, data):
        report(kind, data)
        if data.get("step") == 1:
            studio.cancelled.set()

    studio._report = cancel_after_the_first
    with pytest.raises(JobCancelled):
        run_capability(UPSCALE, image=picture, scale=4, tile_size=32)
    assert studio.steps_reported()[-1] == (1, 4)


@pytest.mark.parametrize("upscaler", ["lanczos", "small"])
def test_what_is_transparent_stays_so(run_capability, upscaler):
    picture = noise((40, 30)).convert("RGBA")
    alpha = Image.linear_gradient("L").resize((40, 30))
    picture.putalpha(alpha)
    (image,) = run_capability(UPSCALE, image=picture, scale=2, upscaler=upscaler).images
    assert image.mode == "RGBA"
    assert image.getchannel("A").tobytes() == alpha.resize((80, 60), Image.Resampling.LANCZOS).tobytes()


@pytest.mark.parametrize(
    ("wish", "error", "said"),
    [
        ({"scale": 9}, InvalidRequest, "scale"),
        ({"scale": 0.5}, InvalidRequest, "scale"),
        ({"tile_size": 8}, InvalidRequest, "tile_size"),
        ({"denoise_strength": 0.5}, InvalidRequest, "'small' has none"),
        ({"upscaler": "tiny-sd15"}, UnknownModel, "no model of this name"),
        ({"upscaler": "sdxl"}, InvalidRequest, "does not serve upscale"),
    ],
)
def test_what_could_only_fail_is_refused_at_the_door(run_capability, picture, wish, error, said):
    with pytest.raises(error, match=said):
        run_capability(UPSCALE, image=picture, **wish)


@pytest.mark.parametrize("size", [(2000, 1500), (2100, 20)])
def test_a_result_beyond_the_limits_is_refused_with_its_size(run_capability, size):
    with pytest.raises(InvalidRequest, match=f"{size[0] * 8}x{size[1] * 8}"):
        run_capability(UPSCALE, image=Image.new("RGB", size), scale=8)


def test_the_short_name_of_a_batch_means_it(library):
    assert resolve("upscale", (UPSCALE,), library) is UPSCALE


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """A server on a machine where nothing was ever pulled."""
    engine = {"runtime": "app.models.runtime:open_runtime"}
    with serving(tmp_path_factory.mktemp("fresh"), engine=engine, ready_seconds=300) as running:
        yield running


def file_of(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def ask(server, image, **wish):
    files = {key: (None, str(value)) for key, value in wish.items()}
    files["image"] = ("image.png", file_of(image), "image/png")
    return server.client.post("/api/v1/upscale?wait=300", files=files, timeout=320)


def test_on_a_fresh_machine_the_astronaut_is_made_larger_and_the_answer_repeats_it(fresh, astronaut):
    answer = ask(fresh, astronaut, scale=2)
    assert answer.status_code == 200, answer.text
    job = answer.json()
    assert job["model"] == job["request"]["upscaler"] == "lanczos" and "Lanczos" in job["result"]["notes"][0]
    (image,) = job["result"]["images"]
    content = fresh.client.get(image["url"]).content
    made = Image.open(io.BytesIO(content), formats=["PNG"])
    assert made.tobytes() == astronaut.resize((1024, 1024), Image.Resampling.LANCZOS).tobytes()
    recipe = fresh.client.get(f"/api/v1/images/{image['id']}/metadata").json()["recipe"]
    assert recipe["capability"] == "upscale" and recipe["request"]["scale"] == 2
    again = fresh.client.post("/api/v1/upscale?wait=300", json=recipe["request"], timeout=320).json()
    assert again["result"]["images"][0]["sha256"] == image["sha256"]


def test_a_batch_may_say_upscale(fresh, astronaut):
    """The brief's handler, through the brief's endpoint."""
    stored = fresh.upload(file_of(astronaut))
    wishes = [{"handler": "upscale", "request": {"image": stored, "scale": scale}} for scale in (2, 3)]
    batch = fresh.client.post("/api/v1/batch/submit-batch", json={"jobs": wishes})
    assert batch.status_code == 202, batch.text
    sizes = []
    for job in batch.json()["jobs"]:
        while (ended := fresh.client.get(f"/api/v1/jobs/{job['id']}").json())["status"] in {"queued", "running"}:
            time.sleep(0.1)
        assert ended["status"] == "succeeded" and ended["capability"] == "upscale"
        sizes.append(ended["result"]["images"][0]["width"])
    assert sizes == [1024, 1536]


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({"scale": 12}, "scale"),
        ({"scale": 8, "image": (4000, 3000)}, "32000x24000"),
        ({"upscaler": "pocket"}, "does not serve upscale"),
        ({"denoise_strength": 0.4}, "denoise_strength"),
    ],
)
def test_over_rest_a_mistake_is_one_clear_422_and_nothing_is_stored(fresh, astronaut, wish, said):
    wish = dict(wish)
    image = Image.new("RGB", wish.pop("image")) if "image" in wish else astronaut
    before = fresh.stored()[0]
    answer = ask(fresh, image, **wish)
    assert answer.status_code == 422 and said in answer.text, answer.text
    assert fresh.stored()[0] == before


@pytest.mark.skipif(not WEIGHTS, reason="EIS_TEST_WEIGHTS names no folder of published weights")
def test_the_published_network_serves_as_a_file_of_ones_own(astronaut, tmp_path):
    """Twice as large by the x4 network: sharper than Lanczos, and close to it from afar."""
    library = ModelLibrary(tmp_path / "home")
    library.add(Path(WEIGHTS) / "realesr-animevideov3-x4.safetensors", id="animevideo")
    runtime = open_runtime(device="cpu", library=library, precision="float32")
    studio = Studio(tmp_path, runtime, library)
    part = astronaut.crop((150, 30, 300, 180))
    request = UPSCALE.request(image=studio.put(part), scale=2, upscaler="animevideo")
    (made,) = UPSCALE.run(request, studio).images
    smooth = part.resize((300, 300), Image.Resampling.LANCZOS)
    assert np.abs(pixels(made.resize(part.size, Image.Resampling.BOX)) - pixels(part)).mean() < 8
    assert edges(made) > 1.2 * edges(smooth)
    runtime.close()


def edges(image):
    """How steep the steepest hundredth of the steps between neighbours is: grain is no edge."""
    return np.percentile(np.abs(np.diff(pixels(image.convert("L")), axis=1)), 99)
