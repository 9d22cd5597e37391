"""Through REST, a worker process and the queue, a picture is pixel for pixel what the stock diffusers pipeline draws.

Both sides open the same tiny random checkpoints in float32 on the CPU with diffusers' own attention. Inpainting is
compared with `padding_mask_crop` null and before the paste-back (`overlay` false). Every scheduler meets every task in
`tests/capabilities`; here each pair of family, scheduler and LoRA takes one task in turn, across the process border.
"""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from app.models.library import ModelLibrary
from tests.api.serving import Running, serving
from tests.models.tiny_checkpoints import make_lora_diffusers, make_lora_kohya, make_sd15, make_sdxl

SEED, STEPS, STRENGTH, WEIGHT = 11, 4, 0.7, 0.8
WORDS = {"prompt": "a red car, blue background", "negative_prompt": "blurry dark photo", "guidance_scale": 5.0}
CLASSES: dict[tuple[str, str], Any] = {
    ("sd15", "text-to-image"): diffusers.StableDiffusionPipeline,
    ("sd15", "image-to-image"): diffusers.StableDiffusionImg2ImgPipeline,
    ("sd15", "inpaint"): diffusers.StableDiffusionInpaintPipeline,
    ("sdxl", "text-to-image"): diffusers.StableDiffusionXLPipeline,
    ("sdxl", "image-to-image"): diffusers.StableDiffusionXLImg2ImgPipeline,
    ("sdxl", "inpaint"): diffusers.StableDiffusionXLInpaintPipeline,
}
SCHEDULERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "Euler": (diffusers.EulerDiscreteScheduler, {}),
    "Euler a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "DPM++ 2M Karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "DDIM": (diffusers.DDIMScheduler, {}),
    "UniPC": (diffusers.UniPCMultistepScheduler, {}),
}


@dataclass(frozen=True)
class Checkpoint:
    """Where a tiny checkpoint and its LoRA lie, and the id of each."""

    family: str
    folder: Path
    lora: Path

    @property
    def model(self) -> str:
        return f"tiny-{self.family}"

    @property
    def lora_model(self) -> str:
        return f"lora-{self.family}"

    @cache  # noqa: B019 - two frozen values for the length of a module
    def opened(self, with_lora: bool) -> Any:
        """diffusers' own pipeline, opened by diffusers alone."""
        keywords = {"requires_safety_checker": False, "safety_checker": None} if self.family == "sd15" else {}
        pipeline = CLASSES[self.family, "text-to-image"].from_pretrained(self.folder, use_safetensors=True, **keywords)
        if with_lora:
            pipeline.load_lora_weights(self.lora.parent, weight_name=self.lora.name, adapter_name="put_on")
            pipeline.set_adapters(["put_on"], [WEIGHT])
        return pipeline

    def stock(self, task: str, scheduler: str, *, with_lora: bool) -> Any:
        """The stock pipeline for a task, with a fresh scheduler."""
        base = self.opened(with_lora)
        scheduler_class, switches = SCHEDULERS[scheduler]
        keywords = {"requires_safety_checker": False} if self.family == "sd15" else {}
        fresh = scheduler_class.from_config(base.scheduler.config, **switches)
        pipeline = CLASSES[self.family, task].from_pipe(base, scheduler=fresh, **keywords)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Both sides on one thread: modules this small are slower on several, and the sums add up in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("MKL_NUM_THREADS", "1")
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """One of each family, each with a LoRA in another of the two published key styles."""
    root = tmp_path_factory.mktemp("checkpoints")
    sd15 = make_sd15(root / "sd15", 1)
    sdxl = make_sdxl(root / "sdxl", 2)
    return {
        "sd15": Checkpoint("sd15", sd15, make_lora_kohya(root / "lora-sd15.safetensors", sd15, 3)),
        "sdxl": Checkpoint("sdxl", sdxl, make_lora_diffusers(root / "lora-sdxl.safetensors", sdxl, 4)),
    }


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Checkpoint]) -> Iterator[Running]:
    """A server with the real catalog, the real runtime and a worker process."""
    home = tmp_path_factory.mktemp("studio")
    library = ModelLibrary(home)
    for checkpoint in checkpoints.values():
        library.add(checkpoint.folder, id=checkpoint.model)
        library.add(checkpoint.lora, id=checkpoint.lora_model)
    with serving(
        home,
        engine={"runtime": "app.models.runtime:open_runtime"},
        catalog="app.core.catalog:CATALOG",
        devices=("cpu",),
        heartbeat_seconds=5.0,
        ready_seconds=120.0,
    ) as running:
        yield running


def picture() -> Image.Image:
    image = Image.new("RGB", (64, 64), (200, 60, 40))
    ImageDraw.Draw(image).ellipse((10, 20, 50, 60), fill=(30, 90, 220))
    return image


def mask() -> Image.Image:
    image = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(image).rectangle((16, 16, 47, 40), fill=255)
    return image


def data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def through_rest(studio: Running, checkpoint: Checkpoint, task: str, scheduler: str, *, with_lora: bool) -> np.ndarray:
    """The pixels of the service's answer."""
    wish: dict[str, Any] = {
        **WORDS, "model": checkpoint.model, "seed": SEED, "num_inference_steps": STEPS, "scheduler": scheduler
    }  # fmt: skip
    if task == "text-to-image":
        wish |= {"width": 64, "height": 64}
    else:
        wish |= {"image": data_uri(picture()), "strength": STRENGTH}
    if task == "inpaint":
        wish |= {"mask_image": data_uri(mask()), "padding_mask_crop": None, "overlay": False}
    if with_lora:
        wish["loras"] = [{"model": checkpoint.lora_model, "weight": WEIGHT}]
    answer = studio.client.post(f"/api/v1/{task}?wait=120", json=wish, headers={"accept": "image/png"}, timeout=130)
    assert answer.headers["content-type"] == "image/png", answer.text
    return np.asarray(Image.open(io.BytesIO(answer.content), formats=["PNG"]).convert("RGB"))


def through_stock(checkpoint: Checkpoint, task: str, scheduler: str, *, with_lora: bool) -> np.ndarray:
    """The pixels of the stock pipeline."""
    arguments: dict[str, Any] = {**WORDS, "num_inference_steps": STEPS}
    if task == "text-to-image":
        arguments |= {"width": 64, "height": 64}
    else:
        arguments |= {"image": picture(), "strength": STRENGTH}
    if task == "inpaint":
        arguments |= {"mask_image": mask(), "width": 64, "height": 64}
    pipeline = checkpoint.stock(task, scheduler, with_lora=with_lora)
    image = pipeline(**arguments, generator=torch.Generator().manual_seed(SEED)).images[0]
    return np.asarray(image.convert("RGB"))


TASKS = ("text-to-image", "image-to-image", "inpaint")


@pytest.mark.parametrize("with_lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_pixels_are_those_of_the_stock_pipeline(
    studio: Running, checkpoints: dict[str, Checkpoint], family: str, scheduler: str, with_lora: bool
) -> None:
    task = TASKS[(list(SCHEDULERS).index(scheduler) + 2 * with_lora) % len(TASKS)]
    ours = through_rest(studio, checkpoints[family], task, scheduler, with_lora=with_lora)
    theirs = through_stock(checkpoints[family], task, scheduler, with_lora=with_lora)
    assert int((ours != theirs).sum()) == 0, f"{task}: {int((ours != theirs).sum())} of {theirs.size} values differ"
    other = "DDIM" if scheduler == "Euler" else "Euler"
    assert theirs.tobytes() != through_stock(checkpoints[family], task, other, with_lora=with_lora).tobytes()


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_lora_changes_the_picture_and_is_taken_off(
    studio: Running, checkpoints: dict[str, Checkpoint], family: str
) -> None:
    checkpoint = checkpoints[family]
    before = through_rest(studio, checkpoint, "text-to-image", "Euler", with_lora=False)
    with_it = through_rest(studio, checkpoint, "text-to-image", "Euler", with_lora=True)
    after = through_rest(studio, checkpoint, "text-to-image", "Euler", with_lora=False)
    assert (before != with_it).mean() > 0.1 and np.array_equal(before, after)
