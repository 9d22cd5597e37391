"""Anime ControlNet through REST: stock pictures with the same lines, by SD 1.5, SDXL and a v-prediction single file."""

import io
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageOps
from safetensors.torch import load_file, save_file

from app.imaging import control_maps
from app.models.library import ModelLibrary
from tests.api.serving import Running, serving
from tests.api.test_controlnet_rest import CLASSES
from tests.api.test_equality_rest import (  # noqa: F401 (one_thread is a fixture)
    SEED,
    STRENGTH,
    WORDS,
    data_uri,
    mask,
    noise,
    one_thread,
    picture,
    pixels,
    require_same,
)
from tests.models.tiny_checkpoints import make_sd15, make_sdxl, make_sdxl_single_file
from tests.models.tiny_controlnets import make_controlnet

STEPS = 4
PATH = "/api/v1/anime-controlnet"
NOOB = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
"""What the marker keys of a single file mean, by diffusers' names."""


@dataclass(frozen=True)
class Anime:
    """A checkpoint, its network, and what its scheduler is to be told."""

    family: str
    folder: Path
    net: Path
    schedule: dict[str, Any]

    def draw(self, lines: Image.Image, task: str = "text-to-image", **more: Any) -> np.ndarray:
        """diffusers' own picture."""
        own = {"requires_safety_checker": False, "safety_checker": None} if self.family == "sd15" else {}
        net = diffusers.ControlNetModel.from_pretrained(self.net, use_safetensors=True)
        pipeline = CLASSES[self.family, task].from_pretrained(self.folder, controlnet=net, use_safetensors=True, **own)
        pipeline.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipeline.scheduler.config, **self.schedule)
        pipeline.set_progress_bar_config(disable=True)
        # diffusers asks for the name that transformers' older encoders had inside.
        pipeline.text_encoder.__dict__.setdefault("text_model", pipeline.text_encoder)
        arguments = WORDS | {"num_inference_steps": STEPS, "generator": noise()}
        arguments |= {"controlnet_conditioning_scale": 0.9, "control_guidance_end": 0.75}
        arguments["image" if task == "text-to-image" else "control_image"] = lines
        if task == "text-to-image":
            arguments |= {"width": 64, "height": 64}
        return pixels(pipeline(**arguments | more).images[0])


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Anime]:
    root = tmp_path_factory.mktemp("anime")
    found = {}
    for seed, (family, make) in enumerate({"sd15": make_sd15, "sdxl": make_sdxl}.items()):
        folder = make(root / family, seed)
        net = make_controlnet(root / f"lineart_anime-{family}", folder, seed)
        found[family] = Anime(family, folder, net, {})
    found["noob"] = Anime("sdxl", found["sdxl"].folder, found["sdxl"].net, NOOB)
    return found


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, kinds: dict[str, Anime]) -> Iterator[Running]:
    """A server with both families, and the SDXL's weights once more as a marked single file."""
    home = tmp_path_factory.mktemp("studio")
    library = ModelLibrary(home)
    for family in ("sd15", "sdxl"):
        library.add(kinds[family].folder, id=f"tiny-{family}")
        library.add(kinds[family].net, id=f"lines-{family}")
    file = make_sdxl_single_file(home / "noob" / "noob.safetensors", 1)
    save_file(load_file(file) | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, file)
    library.add(file, id="tiny-noob")
    shutil.rmtree(home / "noob")
    with serving(
        home,
        engine={"runtime": "app.models.runtime:open_runtime"},
        catalog="app.core.catalog:CATALOG",
        precision="float32",
    ) as running:
        yield running


def drawing() -> Image.Image:
    """Dark lines on white paper."""
    image = Image.new("RGB", (64, 64), "white")
    ImageDraw.Draw(image).ellipse((12, 8, 50, 54), outline=(0, 0, 0), width=2)
    return image


def wish_for(kind: str, lines: Image.Image, **more: Any) -> dict[str, Any]:
    wish = WORDS | {"model": f"tiny-{kind}", "seed": SEED, "num_inference_steps": STEPS, "scheduler": "Euler"}
    wish |= {"control_image": data_uri(lines), "width": 64, "height": 64}
    return wish | {"controlnet_conditioning_scale": 0.9, "control_guidance_end": 0.75} | more


def made(studio: Running, wish: dict[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
    job = studio.client.post(f"{PATH}?wait=120", json=wish, timeout=130).json()
    assert job.get("status") == "succeeded", job
    files = [studio.client.get(image["url"]).content for image in job["result"]["images"]]
    return job, [pixels(Image.open(io.BytesIO(file), formats=["PNG"])) for file in files]


@pytest.mark.parametrize(("kind", "clip_skip"), [("sd15", 1), ("sdxl", 0), ("noob", 0)])
def test_a_drawing_is_inverted_and_coloured_as_stock_does(
    studio: Running, kinds: dict[str, Anime], kind: str, clip_skip: int
) -> None:
    """SD 1.5 leaves out a layer of CLIP unless it is told otherwise; what a checkpoint predicts, its keys say."""
    job, (ours, lines) = made(studio, wish_for(kind, drawing()))
    assert job["request"]["clip_skip"] == clip_skip
    assert job["request"]["controlnet_model"] == f"lines-{kinds[kind].family}"
    assert job["result"]["data"]["controls"][0]["map"] == "inverted"
    white = ImageOps.invert(drawing())
    require_same(lines, pixels(white))
    require_same(ours, kinds[kind].draw(white, clip_skip=clip_skip))


def test_the_two_things_that_are_recognised_change_the_picture(studio: Running, kinds: dict[str, Anime]) -> None:
    """Equality says nothing where a default that is left out draws the same."""
    white = ImageOps.invert(drawing())
    sd15, noob = kinds["sd15"], kinds["noob"]
    _, (plain, _) = made(studio, wish_for("sd15", drawing(), clip_skip=0))
    require_same(plain, sd15.draw(white))
    assert (plain != sd15.draw(white, clip_skip=1)).mean() > 0.1
    assert (noob.draw(white) != kinds["sdxl"].draw(white)).mean() > 0.1


def test_white_lines_go_as_they_are_and_of_a_photo_lines_are_drawn(studio: Running, kinds: dict[str, Anime]) -> None:
    white = ImageOps.invert(drawing())
    for sent, lines, how in (
        (white, white, "as it is"),
        (picture(), control_maps.lineart(picture()), "drawn"),
    ):
        job, (ours, shown) = made(studio, wish_for("sdxl", sent))
        assert job["result"]["data"]["controls"][0]["map"] == how
        require_same(shown, pixels(lines))
        require_same(ours, kinds["sdxl"].draw(lines))


def test_colours_come_from_a_picture_and_stay_outside_a_mask(studio: Running, kinds: dict[str, Anime]) -> None:
    more = {"image": data_uri(picture()), "strength": STRENGTH, "width": None, "height": None}
    white = ImageOps.invert(drawing())
    _, (ours, _) = made(studio, wish_for("sdxl", drawing(), **more))
    require_same(ours, kinds["sdxl"].draw(white, "image-to-image", image=picture(), strength=STRENGTH))
    _, (part, _) = made(studio, wish_for("sdxl", drawing(), mask_image=data_uri(mask()), **more))
    outside = np.asarray(mask()) == 0
    assert np.array_equal(part[outside], pixels(picture())[outside])
    assert (part[~outside] != pixels(picture())[~outside]).mean() > 0.3


def test_kept_lines_lie_over_the_picture(studio: Running) -> None:
    _, (plain, lines) = made(studio, wish_for("sd15", drawing()))
    _, (ours, _) = made(studio, wish_for("sd15", drawing(), keep_lines=True))
    is_line = lines[..., 0] == 255
    assert 100 < is_line.sum() < 800 and plain[is_line].max() > 30
    assert ours[is_line].max() == 0
    assert np.array_equal(ours[lines[..., 0] == 0], plain[lines[..., 0] == 0])


def test_a_network_for_another_base_is_one_refusal_with_both_names(studio: Running) -> None:
    before = studio.stored()
    answer = studio.client.post(PATH, json=wish_for("sd15", drawing(), controlnet_model="lines-sdxl"))
    message = answer.json()["error"]["message"]
    assert answer.status_code == 422 and "lines-sdxl" in message and "tiny-sd15" in message
    assert studio.stored() == before
    answer = studio.client.post(PATH, json=wish_for("sd15", drawing(), control_guidance_start=0.8))
    assert answer.status_code == 422 and "control_guidance_start" in str(answer.json()["error"])


def test_without_a_network_the_answer_says_which_line_fetches_one(tmp_path: Path, kinds: dict[str, Anime]) -> None:
    for family, line in (("sd15", "controlnet-lineart-anime-sd15"), ("sdxl", "controlnet-lineart-anime-sdxl")):
        home = tmp_path / family
        ModelLibrary(home).add(kinds[family].folder, id=f"tiny-{family}")
        with serving(home, catalog="app.core.catalog:CATALOG") as running:
            answer = running.client.post(PATH, json=wish_for(family, drawing()))
        assert answer.status_code == 409
        assert f"eis models pull {line}" in answer.json()["error"]["message"]
