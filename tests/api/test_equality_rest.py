"""Through REST, a worker process and the queue, a picture is pixel for pixel what the stock diffusers pipeline draws.

Every family meets every task, every one of five schedulers, and a LoRA or none: sixty pictures. The LoRA's key style
(kohya's or diffusers') changes from one scheduler and task to the next, so that each family and task meets both. Then
the same with nothing said but the words and the seed. Both sides open the same tiny random checkpoints in float32 on
the CPU with diffusers' own attention. Inpainting is compared with `padding_mask_crop` null and before the paste-back
(`overlay` false).
"""

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
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


TASKS = ("text-to-image", "image-to-image", "inpaint")
STYLES = {"kohya": make_lora_kohya, "diffusers": make_lora_diffusers}
DEFAULT_STRENGTH = {"image-to-image": 0.6, "inpaint": 0.99}
ADVICE = {"sd15": (25, 7.0), "sdxl": (30, 6.0)}
"""Steps and guidance that a checkpoint's row recommends, with DPM++ 2M Karras."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A tiny checkpoint on disk with a LoRA in each key style, and what diffusers alone draws with it."""

    family: str
    folder: Path
    loras: Mapping[str, Path]
    opened: dict[str | None, Any] = field(default_factory=dict)

    @property
    def model(self) -> str:
        return f"tiny-{self.family}"

    def lora_model(self, style: str) -> str:
        return f"lora-{self.family}-{style}"

    def stock(self, task: str, scheduler: str, style: str | None) -> Any:
        """The stock pipeline for a task, with a fresh scheduler."""
        base = self.opened.get(style) or self.open(style)
        scheduler_class, switches = SCHEDULERS[scheduler]
        keywords = {"requires_safety_checker": False} if self.family == "sd15" else {}
        fresh = scheduler_class.from_config(base.scheduler.config, **switches)
        pipeline = CLASSES[self.family, task].from_pipe(base, scheduler=fresh, **keywords)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def open(self, style: str | None) -> Any:
        """diffusers' own pipeline, opened by diffusers alone."""
        keywords = {"requires_safety_checker": False, "safety_checker": None} if self.family == "sd15" else {}
        pipeline = CLASSES[self.family, "text-to-image"].from_pretrained(self.folder, use_safetensors=True, **keywords)
        if style is not None:
            lora = self.loras[style]
            pipeline.load_lora_weights(lora.parent, weight_name=lora.name, adapter_name="put_on")
            pipeline.set_adapters(["put_on"], [WEIGHT])
        self.opened[style] = pipeline
        return pipeline

    @cache  # noqa: B019 - sixty small pictures for the length of a module
    def drawn(self, task: str, scheduler: str, style: str | None) -> np.ndarray:
        """The pixels of the stock pipeline."""
        arguments: dict[str, Any] = {**WORDS, "num_inference_steps": STEPS}
        if task == "text-to-image":
            arguments |= {"width": 64, "height": 64}
        else:
            arguments |= {"image": picture(), "strength": STRENGTH}
        if task == "inpaint":
            arguments |= {"mask_image": mask(), "width": 64, "height": 64}
        return pixels(self.stock(task, scheduler, style)(**arguments, generator=noise()).images[0])


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
    """One of each family, each with a LoRA in both published key styles."""
    root = tmp_path_factory.mktemp("checkpoints")
    found = {}
    for seed, (family, make) in enumerate({"sd15": make_sd15, "sdxl": make_sdxl}.items()):
        folder = make(root / family, seed)
        loras = {
            style: make_lora(root / f"lora-{family}-{style}.safetensors", folder, 10 * seed + number)
            for number, (style, make_lora) in enumerate(STYLES.items())
        }
        found[family] = Checkpoint(family, folder, loras)
    return found


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Checkpoint]) -> Iterator[Running]:
    """A server with the real catalog, the real runtime and a worker process."""
    home = tmp_path_factory.mktemp("studio")
    library = ModelLibrary(home)
    for checkpoint in checkpoints.values():
        library.add(checkpoint.folder, id=checkpoint.model)
        for style, lora in checkpoint.loras.items():
            library.add(lora, id=checkpoint.lora_model(style))
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


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


def noise() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def through_rest(studio: Running, task: str, wish: dict[str, Any]) -> np.ndarray:
    """The pixels of the service's answer; the pictures that the task takes are added to the wish."""
    if task != "text-to-image":
        wish = {"image": data_uri(picture())} | wish
    if task == "inpaint":
        wish = {"mask_image": data_uri(mask()), "padding_mask_crop": None, "overlay": False} | wish
    answer = studio.client.post(f"/api/v1/{task}?wait=120", json=wish, headers={"accept": "image/png"}, timeout=130)
    assert answer.headers["content-type"] == "image/png", answer.text
    return pixels(Image.open(io.BytesIO(answer.content), formats=["PNG"]))


def wish_for(checkpoint: Checkpoint, task: str, scheduler: str, style: str | None) -> dict[str, Any]:
    """Every parameter said."""
    wish = WORDS | {"model": checkpoint.model, "seed": SEED, "num_inference_steps": STEPS, "scheduler": scheduler}
    wish |= {"width": 64, "height": 64} if task == "text-to-image" else {"strength": STRENGTH}
    return wish | ({"loras": [{"model": checkpoint.lora_model(style), "weight": WEIGHT}]} if style else {})


def style_of(task: str, scheduler: str) -> str:
    """The key style of the LoRA that this pair gets."""
    return list(STYLES)[(TASKS.index(task) + list(SCHEDULERS).index(scheduler)) % len(STYLES)]


def require_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert int((ours != theirs).sum()) == 0, f"{int((ours != theirs).sum())} of {theirs.size} values differ"


@pytest.mark.parametrize("with_lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_pixels_are_those_of_the_stock_pipeline(
    studio: Running, checkpoints: dict[str, Checkpoint], family: str, task: str, scheduler: str, with_lora: bool
) -> None:
    checkpoint = checkpoints[family]
    style = style_of(task, scheduler) if with_lora else None
    ours = through_rest(studio, task, wish_for(checkpoint, task, scheduler, style))
    require_same(ours, checkpoint.drawn(task, scheduler, style))
    if with_lora:
        assert (ours != checkpoint.drawn(task, scheduler, None)).mean() > 0.1


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_the_comparison_would_see_another_scheduler(checkpoints: dict[str, Checkpoint], family: str, task: str) -> None:
    for with_lora in (False, True):
        drawn = {
            checkpoints[family].drawn(task, name, style_of(task, name) if with_lora else None).tobytes()
            for name in SCHEDULERS
        }
        assert len(drawn) == len(SCHEDULERS)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_words_and_a_seed_alone_are_stock_with_what_the_row_recommends(
    studio: Running, checkpoints: dict[str, Checkpoint], family: str, task: str
) -> None:
    """No negative prompt is none on both sides: SDXL is handed zeros in its place."""
    checkpoint = checkpoints[family]
    steps, guidance = ADVICE[family]
    arguments: dict[str, Any] = {"prompt": WORDS["prompt"], "num_inference_steps": steps, "guidance_scale": guidance}
    if task != "text-to-image":
        arguments |= {"image": picture(), "strength": DEFAULT_STRENGTH[task]}
    if task == "inpaint":
        arguments |= {"mask_image": mask()}
    theirs = pixels(checkpoint.stock(task, "DPM++ 2M Karras", None)(**arguments, generator=noise()).images[0])
    wish = {"prompt": WORDS["prompt"], "seed": SEED, "model": checkpoint.model}
    require_same(through_rest(studio, task, wish), theirs)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_lora_changes_the_picture_and_is_taken_off(
    studio: Running, checkpoints: dict[str, Checkpoint], family: str, style: str
) -> None:
    checkpoint = checkpoints[family]
    plain, with_lora = (wish_for(checkpoint, "text-to-image", "Euler", one) for one in (None, style))
    before, changed, after = (through_rest(studio, "text-to-image", wish) for wish in (plain, with_lora, plain))
    assert (before != changed).mean() > 0.1 and np.array_equal(before, after)
