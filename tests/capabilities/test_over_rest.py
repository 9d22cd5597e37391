"""Over HTTP to a real server with the real runtime: what the answer and the file say is enough to repeat a picture.

That the pictures are stock diffusers' own, over HTTP as well, is shown in `tests/api/test_equality_rest.py`.
"""

import io

import numpy as np
import pytest
from PIL import Image

from app.cli_run import other_weights
from app.imaging.infotext import request_from_infotext
from tests.api.serving import serving
from tests.capabilities.studio import block, noise, pixels
from tests.models.tiny_checkpoints import make_embedding_sd15, make_lora_diffusers

SIZE = (64, 64)
IMAGE = noise(SIZE, 5)


@pytest.fixture(scope="module")
def server(checkpoints, one_thread, tmp_path_factory):
    engine = {"runtime": "app.models.runtime:open_runtime"}
    with serving(tmp_path_factory.mktemp("home"), engine=engine, precision="float32") as running:
        for model in ("tiny-sd15", "tiny-sdxl"):
            running.service.models.add(checkpoints[model], id=model)
        published = tmp_path_factory.mktemp("additions")
        lora = make_lora_diffusers(published / "lora.safetensors", checkpoints["tiny-sdxl"])
        running.service.models.add(lora, id="lora-sdxl")
        running.service.models.add(make_embedding_sd15(published / "moody.safetensors"), id="moody")
        yield running


def file_of(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def send(server, capability, wish, pictures):
    """The answer to a form, with or without pictures."""
    form = {name: (None, str(value)) for name, value in wish.items()}
    form |= {name: (f"{name}.png", file_of(image), "image/png") for name, image in pictures.items()}
    return server.client.post(f"/api/v1/{capability}?wait=120", files=form, timeout=130)


def made(server, answer):
    """The finished job and its pictures."""
    assert answer.status_code == 200, answer.text
    job = answer.json()
    links = [image["url"] for image in job["result"]["images"]]
    return job, [Image.open(io.BytesIO(server.client.get(link).content), formats=["PNG"]) for link in links]


def draw(server, wish):
    return made(server, server.client.post("/api/v1/text-to-image?wait=120", json=wish, timeout=130))


def test_the_answer_states_what_was_left_open_and_the_file_repeats_it(server):
    wish = {"prompt": "a red car", "model": "tiny-sdxl", "num_images_per_prompt": 2, "num_inference_steps": 2}
    job, images = draw(server, {**wish, "width": 64, "height": 64})
    request = job["request"]
    assert None not in [request[name] for name in ("seed", "num_inference_steps", "guidance_scale", "scheduler")]
    second = job["result"]["images"][1]
    found = server.client.get(f"/api/v1/images/{second['id']}/metadata").json()
    assert found["recipe"]["request"] == request and found["recipe"]["position"] == 1
    told = request_from_infotext(found["infotext"])
    assert told["seed"] == second["seed"] == (request["seed"] + 1) % 2**32
    assert (told["scheduler"], told["num_inference_steps"]) == (request["scheduler"], 2)
    _, again = draw(server, {**told, "num_images_per_prompt": 1})
    assert again[0].tobytes() == images[1].tobytes(), "the infotext alone repeats the picture"
    _, whole = draw(server, found["recipe"]["request"])
    assert [image.tobytes() for image in whole] == [image.tobytes() for image in images]


def test_the_recipe_tells_weights_that_were_replaced_since(server):
    style = '[{"model": "lora-sdxl", "weight": 0.5}]'
    wish = {"prompt": "a red car", "model": "tiny-sdxl", "num_inference_steps": 1, "loras": style}
    job, _ = made(server, send(server, "text-to-image", {**wish, "width": 64, "height": 64}, {}))
    image = job["result"]["images"][0]["id"]
    recipe = server.client.get(f"/api/v1/images/{image}/metadata").json()["recipe"]
    models = server.service.models
    assert recipe["addition_sha256"] == {"lora-sdxl": models.get("lora-sdxl").sha256}
    assert other_weights(recipe, recipe["request"], models) == []
    other = {**recipe, "addition_sha256": {"lora-sdxl": "0" * 64}, "model_sha256": "1" * 64}
    lora, model = other_weights(other, recipe["request"], models)
    assert "lora-sdxl" in lora and "0000000000" in lora and "tiny-sdxl" in model
    assert other_weights(other, {**recipe["request"], "loras": [], "model": "tiny-sd15"}, models) == []


def test_inpaint_and_outpaint_keep_the_uploaded_bytes(server):
    image, mask = noise((90, 70), 8), block((90, 70), (30, 20, 50, 40))
    wish = {"prompt": "a red car", "model": "tiny-sd15", "num_inference_steps": 3, "seed": 4, "scheduler": "Euler"}
    _, images = made(server, send(server, "inpaint", wish, {"image": image, "mask_image": mask}))
    assert (pixels(images[0])[pixels(mask) == 0] == pixels(image)[pixels(mask) == 0]).all()
    assert np.abs(pixels(images[0]) - pixels(image))[pixels(mask) > 0].mean() > 5
    _, images = made(server, send(server, "outpaint", {**wish, "left": 16}, {"image": image}))
    assert images[0].size == (106, 70)
    assert (pixels(images[0].crop((16, 0, 106, 70))) == pixels(image)).all()


@pytest.mark.parametrize(
    ("capability", "wish", "pictures", "word"),
    [
        ("inpaint", {}, {"image": IMAGE, "mask_image": Image.new("L", SIZE, 0)}, "no white part"),
        ("inpaint", {}, {"image": IMAGE, "mask_image": block((32, 32), (0, 0, 9, 9))}, "32x32"),
        ("inpaint", {"strength": 0.001}, {"image": IMAGE, "mask_image": block(SIZE, (0, 0, 9, 9))}, "no step"),
        ("image-to-image", {"strength": 0.001}, {"image": IMAGE}, "no step"),
        ("image-to-image", {"width": 4096}, {"image": noise((10, 200))}, "4096x81920"),
        ("outpaint", {}, {"image": IMAGE}, "more than 0"),
        ("outpaint", {"left": 8, "strength": 0.001}, {"image": IMAGE}, "no step"),
        ("outpaint", {"top": 2048, "bottom": 2048}, {"image": Image.new("RGB", (16_000, 20))}, "64,000,000"),
        ("text-to-image", {"second_pass_scale": 4, "width": 4096, "height": 4096}, {}, "16384x16384"),
        ("text-to-image", {"second_pass_scale": 2, "second_pass_strength": 0.001}, {}, "no step"),
        ("text-to-image", {"loras": '[{"model": "tiny-sdxl"}]'}, {}, "no LoRA"),
        ("text-to-image", {"loras": '[{"model": "moody"}]'}, {}, "no LoRA"),
        ("text-to-image", {"loras": '[{"model": "lora-sdxl"}]'}, {}, "made for sdxl"),
        ("text-to-image", {"textual_inversions": '["tiny-sd15"]'}, {}, "no textual inversion"),
        ("inpaint", {"textual_inversions": '["moody"]', "model": "tiny-sdxl"},
         {"image": IMAGE, "mask_image": block(SIZE, (0, 0, 9, 9))}, "made for sd15"),
    ],
)  # fmt: skip
def test_a_wish_that_cannot_be_met_is_refused_at_the_door_and_changes_nothing(
    server, capability, wish, pictures, word
):
    wish = {"prompt": "x", "model": "tiny-sd15", "num_inference_steps": 3, **wish}
    before = server.stored()
    answer = send(server, capability, wish, pictures)
    assert answer.status_code in {413, 422}, answer.text
    assert word in answer.json()["error"]["message"]
    assert server.stored() == before
