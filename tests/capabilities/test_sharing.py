"""Jobs of one model at once through a real server: they share forwards, and nobody sees it in the picture."""

import io
import json
import time
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from tests.api.serving import Running, serving
from tests.capabilities.studio import block, noise
from tests.capabilities.test_over_rest import file_of, made, send

STEPS = {"text-to-image": (40, 32, 45), "image-to-image": (60, 50), "inpaint": (40, 35, 45)}
"""Long enough that the last job comes while the first still runs, however slow the machine is."""


@pytest.fixture(scope="module")
def server(checkpoints, one_thread, tmp_path_factory) -> Iterator[Running]:
    engine = {"runtime": "app.models.runtime:open_runtime"}
    with serving(
        tmp_path_factory.mktemp("home"), engine=engine, precision="float32", jobs_at_once=8
    ) as running:
        running.service.models.add(checkpoints["tiny-sdxl"], id="tiny-sdxl")
        yield running


def wishes() -> list[tuple[str, dict, dict]]:
    """(capability, fields, pictures) of eight jobs that agree in nothing but the picture's size."""
    picture, mask = noise((64, 64), 5), block((64, 64), (32, 0, 64, 64))
    schedulers = iter(["Euler", "DDIM", "UniPC", "DPM++ 2M Karras", "Euler a", "DDIM", "Euler", "LMS"])
    found = []
    for capability, counts in STEPS.items():
        pictures = {} if capability == "text-to-image" else {"image": picture}
        if capability == "inpaint":
            pictures["mask_image"] = mask
        for number, steps in enumerate(counts):
            wish = {
                "prompt": f"a car {number}",
                "model": "tiny-sdxl",
                "num_inference_steps": steps,
                "guidance_scale": 3.0 + number,
                "scheduler": next(schedulers),
                "seed": 10 * steps + number,
            }
            if capability == "text-to-image":
                wish |= {"width": 64, "height": 64}
            found.append((capability, wish, pictures))
    return found


def forwards(server: Running) -> dict[str, int]:
    (worker,) = server.service.readiness()["workers"]
    return worker["memory"].get("forwards") or {"forwards": 0, "calls": 0, "largest": 0}


def submit(server: Running, capability: str, wish: dict, pictures: dict) -> str:
    form = {name: (None, str(value)) for name, value in wish.items()}
    form |= {name: (f"{name}.png", file_of(image), "image/png") for name, image in pictures.items()}
    answer = server.client.post(f"/api/v1/{capability}?wait=0", files=form, timeout=130)
    assert answer.status_code in (200, 202), answer.text
    return answer.json()["id"]


def test_eight_mixed_jobs_at_once_share_forwards_and_draw_what_each_draws_alone(server):
    alone = [made(server, send(server, *wish))[1][0] for wish in wishes()]
    before = forwards(server)
    assert before["forwards"] == before["calls"], "alone, every step is a forward of its own"
    ids = [submit(server, *wish) for wish in wishes()]
    pictures = []
    for name in ids:
        until = time.monotonic() + 300
        while (job := server.client.get(f"/api/v1/jobs/{name}").json())["status"] in ("queued", "running"):
            assert time.monotonic() < until, "it never ended"
            time.sleep(0.05)
        assert job["status"] == "succeeded", json.dumps(job)
        assert job["attempt"] == 1
        pictures.append(server.client.get(job["result"]["images"][0]["url"]).content)
    after = forwards(server)
    assert after["calls"] == 2 * before["calls"], "every step was served once"
    assert after["forwards"] - before["forwards"] < 0.6 * before["calls"], "they did not meet"
    for expected, picture in zip(alone, pictures, strict=True):
        drawn = np.asarray(Image.open(io.BytesIO(picture), formats=["PNG"])).astype(int)
        assert np.abs(drawn - np.asarray(expected).astype(int)).max() <= 1
