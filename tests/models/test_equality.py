"""A borrowed pipeline draws the very pixels of the stock diffusers pipeline: tasks, schedulers, LoRAs, families."""

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from app.core.fields import WeightedModel

PLAIN = {
    "sd15": diffusers.StableDiffusionPipeline,
    "sdxl": diffusers.StableDiffusionXLPipeline,
}
CLASSES = {
    ("sd15", "text-to-image"): diffusers.StableDiffusionPipeline,
    ("sd15", "image-to-image"): diffusers.StableDiffusionImg2ImgPipeline,
    ("sd15", "inpaint"): diffusers.StableDiffusionInpaintPipeline,
    ("sdxl", "text-to-image"): diffusers.StableDiffusionXLPipeline,
    ("sdxl", "image-to-image"): diffusers.StableDiffusionXLImg2ImgPipeline,
    ("sdxl", "inpaint"): diffusers.StableDiffusionXLInpaintPipeline,
}
SCHEDULERS = {
    "Euler": (diffusers.EulerDiscreteScheduler, {}),
    "Euler a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "DPM++ 2M Karras": (diffusers.DPMSolverMultistepScheduler, {"use_karras_sigmas": True}),
    "DDIM": (diffusers.DDIMScheduler, {}),
    "UniPC": (diffusers.UniPCMultistepScheduler, {}),
}
WORDS = {"prompt": "a red car, blue background", "negative_prompt": "blurry dark photo", "guidance_scale": 5.0}
TASKS = ("text-to-image", "image-to-image", "inpaint")
LORAS = {"sd15": "lora-sd15-kohya", "sdxl": "lora-sdxl-diffusers"}


def picture():
    image = Image.new("RGB", (64, 64), (200, 60, 40))
    ImageDraw.Draw(image).ellipse((10, 20, 50, 60), fill=(30, 90, 220))
    return image


def mask():
    image = Image.new("L", (64, 64), 0)
    ImageDraw.Draw(image).rectangle((16, 16, 47, 40), fill=255)
    return image


def arguments(task):
    given = {**WORDS, "num_inference_steps": 3}
    if task == "text-to-image":
        return {**given, "width": 64, "height": 64}
    given |= {"image": picture(), "strength": 0.7}
    return given | ({"mask_image": mask(), "width": 64, "height": 64} if task == "inpaint" else {})


@pytest.fixture(scope="module")
def stock(sources):
    """Family, with a LoRA or not -> components that diffusers opened by itself."""
    opened = {}
    for family, plain in PLAIN.items():
        for lora in (None, LORAS[family]):
            pipeline = plain.from_pretrained(sources / f"tiny-{family}", use_safetensors=True)
            if lora is not None:
                pipeline.load_lora_weights(sources, weight_name=f"{lora}.safetensors", adapter_name="put_on")
                pipeline.set_adapters(["put_on"], [0.8])
            opened[family, lora is not None] = pipeline
    return opened


def stock_view(pipeline, family, task, scheduler_class, switches):
    components = {name: part for name, part in pipeline.components.items() if name != "scheduler"}
    flags = {"requires_safety_checker": False} if family == "sd15" else {}
    if family == "sdxl" and task != "text-to-image":
        components.pop("image_encoder", None)
        components.pop("feature_extractor", None)
    scheduler = scheduler_class.from_config(pipeline.scheduler.config, **switches)
    view = CLASSES[family, task](**components, scheduler=scheduler, **flags)
    view.set_progress_bar_config(disable=True)
    return view


def noise(seed, count=1):
    return [torch.Generator().manual_seed(seed + number) for number in range(count)]


def same(ours, theirs):
    return len(ours) == len(theirs) and all(
        np.array_equal(np.asarray(one), np.asarray(other)) for one, other in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("with_lora", [False, True], ids=["plain", "lora"])
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("family", PLAIN)
def test_pixels_are_stock_on_five_schedulers(runtime, stock, family, task, with_lora):
    loras = [WeightedModel(model=LORAS[family], weight=0.8)] if with_lora else []
    drawn = []
    for name, (scheduler_class, switches) in SCHEDULERS.items():
        with runtime.borrow(f"tiny-{family}", task=task, scheduler=name, loras=loras) as pipeline:
            ours = pipeline(**arguments(task), generator=noise(11)).images
        view = stock_view(stock[family, with_lora], family, task, scheduler_class, switches)
        theirs = view(**arguments(task), generator=noise(11)).images
        assert same(ours, theirs), name
        drawn.append(np.asarray(ours[0]).tobytes())
    assert len(set(drawn)) >= 4, "the schedulers must not all draw one picture"


@pytest.mark.parametrize("family", PLAIN)
def test_several_pictures_of_one_prompt_have_a_seed_each(runtime, stock, family):
    given = {**arguments("text-to-image"), "num_images_per_prompt": 3}
    with runtime.borrow(f"tiny-{family}", task="text-to-image", scheduler="Euler a") as pipeline:
        ours = pipeline(**given, generator=runtime.generators(2**32 - 1, 3)).images
    scheduler_class, switches = SCHEDULERS["Euler a"]
    view = stock_view(stock[family, False], family, "text-to-image", scheduler_class, switches)
    theirs = view(**given, generator=[torch.Generator().manual_seed(seed) for seed in (2**32 - 1, 0, 1)]).images
    assert same(ours, theirs)
    assert not same(ours[:1], ours[1:2])


@pytest.mark.parametrize("family", PLAIN)
@pytest.mark.parametrize("changes", [{"guidance_scale": 1.0}, {"guidance_scale": 0.0}, {"negative_prompt": None}])
def test_guidance_and_missing_negatives_are_stock(runtime, stock, family, changes):
    given = {**arguments("text-to-image"), **changes}
    with runtime.borrow(f"tiny-{family}", task="text-to-image", scheduler="DDIM") as pipeline:
        ours = pipeline(**given, generator=noise(5)).images
    view = stock_view(stock[family, False], family, "text-to-image", *SCHEDULERS["DDIM"])
    assert same(ours, view(**given, generator=noise(5)).images)


def test_clip_skip_is_stock_on_sdxl(runtime, stock):
    given = {**arguments("text-to-image"), "clip_skip": 1}
    with runtime.borrow("tiny-sdxl", task="text-to-image", scheduler="DDIM") as pipeline:
        ours = pipeline(**given, generator=noise(5)).images
        without = pipeline(**arguments("text-to-image"), generator=noise(5)).images
    view = stock_view(stock["sdxl", False], "sdxl", "text-to-image", *SCHEDULERS["DDIM"])
    assert same(ours, view(**given, generator=noise(5)).images)
    assert not same(ours, without)


@pytest.mark.parametrize("family", PLAIN)
def test_padding_mask_crop_passes_through(runtime, stock, family):
    given = {**arguments("inpaint"), "padding_mask_crop": 8}
    with runtime.borrow(f"tiny-{family}", task="inpaint", scheduler="Euler") as pipeline:
        ours = pipeline(**given, generator=noise(2)).images
    view = stock_view(stock[family, False], family, "inpaint", *SCHEDULERS["Euler"])
    assert same(ours, view(**given, generator=noise(2)).images)


@pytest.mark.parametrize("family", PLAIN)
def test_two_loras_with_weights_are_stock(runtime, sources, family):
    names = [f"lora-{family}-kohya", f"lora-{family}-diffusers"]
    plain = PLAIN[family].from_pretrained(sources / f"tiny-{family}", use_safetensors=True)
    for number, name in enumerate(names):
        plain.load_lora_weights(sources, weight_name=f"{name}.safetensors", adapter_name=f"n{number}")
    plain.set_adapters(["n0", "n1"], [0.7, -0.4])
    view = stock_view(plain, family, "text-to-image", *SCHEDULERS["Euler"])
    theirs = view(**arguments("text-to-image"), generator=noise(3)).images
    loras = [WeightedModel(model=name, weight=weight) for name, weight in zip(names, (0.7, -0.4), strict=True)]
    with runtime.borrow(f"tiny-{family}", task="text-to-image", scheduler="Euler", loras=loras) as pipeline:
        ours = pipeline(**arguments("text-to-image"), generator=noise(3)).images
    assert same(ours, theirs)
    with runtime.borrow(f"tiny-{family}", task="text-to-image", scheduler="Euler", loras=loras[:1]) as pipeline:
        alone = pipeline(**arguments("text-to-image"), generator=noise(3)).images
    assert not same(alone, ours)
