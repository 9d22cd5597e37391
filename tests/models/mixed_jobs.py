"""Eight jobs of one base that agree in nothing but the picture's size, alone or at once in threads."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

PATIENCE = 120.0
"""Seconds that a thread may take on a busy machine."""


def photo(seed: int, side: int = 64) -> Image.Image:
    """Soft random colours."""
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), "uint8")
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def half_mask(side: int = 64) -> Image.Image:
    """White on the right."""
    mask = Image.new("L", (side, side), 0)
    mask.paste(255, (side // 2, 0, side, side))
    return mask


@dataclass
class Wish:
    """One job: how it borrows and what it calls."""

    task: str
    arguments: dict[str, Any]
    scheduler: str | None = None
    seed: int = 0
    borrow: dict[str, Any] = field(default_factory=dict)


def mixed_wishes(side: int = 64) -> list[Wish]:
    """Text, image and mask; steps, guidance and schedulers mixed; pictures of `side` pixels."""
    text = [
        Wish("text-to-image", {"prompt": "a red car", "num_inference_steps": 25, "guidance_scale": 7.5}, "Euler", 1),
        Wish("text-to-image", {"prompt": "a cat", "num_inference_steps": 20, "guidance_scale": 3.0}, "DDIM", 2),
        Wish("text-to-image", {"prompt": "a house", "num_inference_steps": 18, "guidance_scale": 5.0}, "UniPC", 3),
        Wish(
            "text-to-image",
            {"prompt": "snow", "negative_prompt": "night", "num_inference_steps": 24, "guidance_scale": 6.0},
            "Euler a",
            4,
        ),
    ]
    image = [
        Wish("image-to-image", {"prompt": word, "image": photo(seed, side), **numbers}, scheduler, seed)
        for word, scheduler, seed, numbers in (
            ("a dog", "DPM++ 2M Karras", 5, {"strength": 0.8, "num_inference_steps": 25, "guidance_scale": 4.0}),
            ("a boat", "Euler", 6, {"strength": 0.9, "num_inference_steps": 20, "guidance_scale": 8.0}),
        )
    ]
    masked = {"image": photo(3, side), "mask_image": half_mask(side), "strength": 1.0, "num_inference_steps": 22}
    inpaint = [
        Wish("inpaint", {"prompt": word, **masked}, scheduler, seed)
        for word, scheduler, seed in (("a star", "DDIM", 7), ("a lamp", "Heun", 8))
    ]
    for wish in inpaint:
        # Heun takes two forwards for a step.
        wish.arguments["num_inference_steps"] //= 2 if wish.scheduler == "Heun" else 1
    for wish in text:
        wish.arguments |= {"width": side, "height": side}
    return text + image + inpaint


def draw(runtime: Any, model: str, wish: Wish, **more: Any) -> tuple[np.ndarray, int]:
    """The picture and the steps it took."""
    steps = 0

    def count(pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal steps
        steps += 1
        return tensors

    with runtime.borrow(model, task=wish.task, scheduler=wish.scheduler, **wish.borrow, **more) as pipeline:
        image = pipeline(
            **wish.arguments, generator=runtime.generators(wish.seed, 1), callback_on_step_end=count
        ).images[0]
    return np.asarray(image).astype(int), steps


def at_once(jobs: list[Callable[[], Any]]) -> list[Any]:
    """Run each in a thread of its own; answers what each returned or raised."""
    answers: list[Any] = [None] * len(jobs)

    def run(number: int) -> None:
        try:
            answers[number] = jobs[number]()
        except BaseException as error:
            answers[number] = error

    threads = [threading.Thread(target=run, args=(number,), daemon=True) for number in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a job never came back"
    return answers
