"""InstructPix2Pix through REST draws what the stock diffusers pipelines draw; masks keep bytes, instructions merge."""

import io
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from app.core.staying_put import stay_put
from app.imaging.merging import merged
from app.models.library import ModelLibrary
from tests.api.serving import Running, serving
from tests.api.test_equality_rest import (  # noqa: F401 (one_thread is a fixture)
    SEED,
    data_uri,
    mask,
    noise,
    one_thread,
    picture,
    pixels,
    require_same,
)
from tests.models import tiny_checkpoints
from tests.models.tiny_checkpoints import build_sd15, build_sdxl

STEPS = 4
WORDS = {"prompt": "a red car", "negative_prompt": "blurry", "guidance_scale": 5.0, "image_guidance_scale": 1.4}
CLASSES: dict[str, Any] = {
    "sd15": diffusers.StableDiffusionInstructPix2PixPipeline,
    "sdxl": diffusers.StableDiffusionXLInstructPix2PixPipeline,
}
MORE: dict[str, dict[str, Any]] = {
    "sd15": {"requires_safety_checker": False, "safety_checker": None, "feature_extractor": None},
    "sdxl": {"add_watermarker": False},
}
PATH = "/api/v1/instruct-pix2pix?wait=120"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny editors in diffusers' layout, with the index that names their own pipelines."""
    root = tmp_path_factory.mktemp("editors")
    found = {}
    for seed, (family, build) in enumerate({"sd15": build_sd15, "sdxl": build_sdxl}.items()):
        folder = root / family
        parts = {name: part for name, part in build(folder, seed, in_channels=8).components.items() if part is not None}
        CLASSES[family](**parts, **MORE[family]).save_pretrained(folder, safe_serialization=True)
        found[family] = folder
    return found


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, folders: dict[str, Path]) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("studio")
    library = ModelLibrary(home)
    for family, folder in folders.items():
        library.add(folder, id=f"edit-{family}")
    with serving(
        home,
        engine={"runtime": "app.models.runtime:open_runtime"},
        catalog="app.core.catalog:CATALOG",
        precision="float32",
    ) as running:
        yield running


def wish_for(family: str) -> dict[str, Any]:
    return WORDS | {
        "model": f"edit-{family}",
        "image": data_uri(picture()),
        "seed": SEED,
        "num_inference_steps": STEPS,
        "scheduler": "Euler a",
    }


def stock(folder: Path, family: str, **changes: Any) -> np.ndarray:
    pipeline = CLASSES[family].from_pretrained(folder, use_safetensors=True, **MORE[family])
    pipeline.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    size = {"width": 64, "height": 64} if family == "sdxl" else {}
    arguments = WORDS | {"image": picture(), "num_inference_steps": STEPS, "generator": noise()} | size | changes
    return pixels(pipeline(**arguments).images[0])


COSXL = {
    "prediction_type": "v_prediction", "sigma_schedule": "exponential", "sigma_data": 1.0, "sigma_min": 0.003,
    "sigma_max": 100.0,
}  # fmt: skip
"""The schedule of the tiny CosXL-edit: other sigmas than the published ones, so that it counts who reads them."""


def cosxl(folder: Path) -> Any:
    """diffusers' own CosXL-edit with the weights of an SDXL editor."""
    parts = diffusers.StableDiffusionXLInstructPix2PixPipeline.from_pretrained(folder, use_safetensors=True)
    scheduler = diffusers.EDMEulerScheduler(**COSXL)
    components = {name: part for name, part in parts.components.items() if part is not None}
    return CLASSES["sdxl"](**components | {"scheduler": scheduler}, add_watermarker=False, is_cosxl_edit=True)


@pytest.mark.parametrize("layout", ["folder", "file"])
def test_cosxl_edit_is_known_and_draws_what_stock_draws(
    studio: Running, folders: dict[str, Path], tmp_path: Path, layout: str
) -> None:
    """As a folder by its pipeline and scheduler, as a single file by its sigmas; no other scheduler is taken."""
    pipeline = cosxl(folders["sdxl"])
    published = tmp_path / "published"
    if layout == "folder":
        pipeline.save_pretrained(published, safe_serialization=True)
        source = published
    else:
        source = tiny_checkpoints.write_single_file(pipeline, published / "cosxl.safetensors")
        sigmas = {f"edm_vpred.{name}": torch.tensor(COSXL[name]) for name in ("sigma_min", "sigma_max")}
        save_file(load_file(source) | sigmas, source)
    studio.service.models.add(source, id=f"cosxl-{layout}")
    wish = wish_for("sdxl") | {"model": f"cosxl-{layout}", "scheduler": None}
    job, (ours,) = edited(studio, wish)
    assert job["request"]["scheduler"] == "Euler"
    pipeline.set_progress_bar_config(disable=True)
    arguments = WORDS | {"image": picture(), "num_inference_steps": STEPS, "generator": noise()}
    drawn = pixels(pipeline(**arguments, width=64, height=64).images[0])
    require_same(ours, drawn)
    pipeline.is_cosxl_edit = False
    plain = pixels(pipeline(**arguments | {"generator": noise()}, width=64, height=64).images[0])
    assert (plain != drawn).mean() > 0.1
    refused = studio.client.post(PATH, json=wish | {"scheduler": "DPM++ 2M"}, timeout=130).json()
    assert "Euler" in (refused.get("error") or {}).get("message", ""), refused


def edited(studio: Running, wish: dict[str, Any]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """The job, and the pixels of its pictures."""
    job = studio.client.post(PATH, json=wish, timeout=130).json()
    assert job.get("status") == "succeeded", job
    files = [studio.client.get(image["url"]).content for image in job["result"]["images"]]
    return job, [pixels(Image.open(io.BytesIO(file), formats=["PNG"])) for file in files]


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_pixels_are_those_of_the_stock_pipeline(studio: Running, folders: dict[str, Path], family: str) -> None:
    _, (ours,) = edited(studio, wish_for(family))
    require_same(ours, stock(folders[family], family))
    _, (other,) = edited(studio, wish_for(family) | {"image_guidance_scale": 3.0})
    assert (ours != other).mean() > 0.1


def test_an_edit_stays_put_and_only_what_changed_is_pasted(studio: Running, folders: dict[str, Path]) -> None:
    keeping = {"align": True, "paste_changes": True, "paste_grow": 2, "paste_feather": 3}
    job, (ours,) = edited(studio, wish_for("sd15") | keeping)
    plain = Image.fromarray(stock(folders["sd15"], "sd15"))
    wanted, told, notes = stay_put(SimpleNamespace(**keeping), picture(), plain)
    require_same(ours, pixels(wanted))
    assert job["result"]["data"]["kept"] == [told] and set(told) == {"alignment", "changed_share"}
    assert job["result"]["notes"] == notes

    refused = studio.client.post(PATH, json=wish_for("sd15") | keeping | {"mask_image": data_uri(mask())})
    assert refused.status_code == 422 and "mask keeps" in refused.json()["error"]["message"]


def test_a_grid_has_the_stock_picture_of_every_pair(studio: Running, folders: dict[str, Path]) -> None:
    wish = wish_for("sd15") | {"guidance_scales": [3.0, 7.0], "image_guidance_scales": [1.2, 2.0]}
    job, found = edited(studio, wish)
    grid = job["result"]["data"]["grid"]
    assert [(pair["guidance_scale"], pair["image_guidance_scale"]) for pair in grid] == [
        (3.0, 1.2), (3.0, 2.0), (7.0, 1.2), (7.0, 2.0),
    ]  # fmt: skip
    assert len(found) == 5 and found[4].shape[1] == 2 * 64 + 4
    for pair, ours in zip(grid, found, strict=False):
        require_same(ours, stock(folders["sd15"], "sd15", **pair))


def test_a_mask_keeps_every_byte_outside_it(studio: Running) -> None:
    _, (ours,) = edited(studio, wish_for("sd15") | {"mask_image": data_uri(mask())})
    outside, before = np.asarray(mask()) == 0, pixels(picture())
    assert np.array_equal(ours[outside], before[outside])
    assert (ours[~outside] != before[~outside]).mean() > 0.3


def test_each_instruction_starts_from_the_picture_as_it_was_given(studio: Running, folders: dict[str, Path]) -> None:
    """Two instructions merge two stock edits of the same picture; neither is an edit of the other."""
    _, (ours,) = edited(studio, wish_for("sd15") | {"instructions": ["a blue boat"]})
    edits = [stock(folders["sd15"], "sd15", prompt=words) for words in (WORDS["prompt"], "a blue boat")]
    expected = merged(picture(), [Image.fromarray(edit) for edit in edits])
    require_same(ours, pixels(expected))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"prompt": "  "}, "instruction"),
        ({"prompt": ""}, "instruction"),
        ({"instructions": ["make it red", ""]}, "instruction"),
        ({"image_guidance_scale": 0.5}, "image_guidance_scale"),
        ({"guidance_scales": [2, 3, 4], "image_guidance_scales": [1, 2], "num_images_per_prompt": 3}, "18 pictures"),
        ({"mask_image": data_uri(mask().resize((32, 32)))}, "32x32"),
    ],
)
def test_what_could_only_fail_is_refused(studio: Running, change: dict[str, Any], word: str) -> None:
    answer = studio.client.post(PATH, json=wish_for("sd15") | change)
    assert answer.status_code == 422 and word in str(answer.json()["error"]), answer.text


def test_a_job_ends_within_a_step_of_its_cancelling(studio: Running) -> None:
    """Also of the SDXL pipeline, which reports its steps in an older form."""
    job = studio.service.submit(
        "instruct-pix2pix",
        {**wish_for("sdxl"), "num_inference_steps": 150, "image": studio.service.storage.put(png(picture())).id},
    )
    steps = []
    for event in studio.service.watch_blocking(job.id):
        if event.kind == "step":
            steps.append(event.data["step"])
            if len(steps) == 1:
                studio.service.cancel(job.id)
    assert steps and len(steps) <= 2
    assert studio.service.get(job.id).status.value == "cancelled"


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
