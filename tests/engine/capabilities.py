"""Capabilities without torch, for the engine's tests: they draw, fail, ignore a cancel, or kill their own process."""

import os
import signal
import time
from typing import Annotated, Literal

import numpy
from PIL import Image
from pydantic import Field

from app.core.capability import Capability, Context, Request, Result
from app.core.fields import ImageReference, InitImage, NegativePrompt, Prompt, Seed, field
from app.errors import InvalidRequest

StepCount = Annotated[int, Field(ge=1, le=10_000, description="How many steps the painting takes.")]
OptionalMask = Annotated[ImageReference | None, field("A mask of the picture's size, or none.", kind="mask")]
Seconds = Annotated[float, Field(ge=0, le=60, description="How long one step takes.")]


class PaintRequest(Request):
    """A picture of coloured squares drawn from a seed."""

    prompt: Prompt = ""
    negative_prompt: NegativePrompt = ""
    seed: Seed = None
    num_inference_steps: StepCount = 4
    step_seconds: Seconds = 0.0
    num_images_per_prompt: Annotated[int, Field(ge=0, le=8, description="How many pictures.")] = 1


def squares(seed: int, side: int = 64) -> Image.Image:
    """The picture that belongs to a seed."""
    colours = numpy.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=numpy.uint8)
    return Image.fromarray(colours).resize((side, side), Image.Resampling.NEAREST)


def paint(request: PaintRequest, context: Context) -> Result:
    """Draw, and report every step."""
    for step in range(request.num_inference_steps):
        time.sleep(request.step_seconds)
        context.progress(step + 1, request.num_inference_steps)
    seeds = [request.seed + index for index in range(request.num_images_per_prompt)]
    return Result(images=[squares(seed) for seed in seeds], seeds=seeds, data={"squares": 64}, notes=["Painted."])


class FailRequest(Request):
    """How to fail."""

    way: Literal["refusal", "bug", "memory", "not_json", "exit"] = "refusal"


def fail(request: FailRequest, context: Context) -> Result:
    """Fail in the wished way."""
    match request.way:
        case "refusal":
            raise InvalidRequest("The wish cannot be granted.", field="way")
        case "bug":
            raise RuntimeError("/home/operator/secret.txt was not found")
        case "memory":
            raise MemoryError
        case "not_json":
            return Result(data={"value": float("nan")})
    raise SystemExit(3)


class KillRequest(Request):
    """Below which file the attempts are counted."""

    lives: Annotated[int, Field(ge=0, le=9, description="From which attempt on the process survives.")] = 9
    counter: str = ""


def kill(request: KillRequest, context: Context) -> Result:
    """End the process as the kernel's out-of-memory killer does, until it was done often enough."""
    done = 0
    if request.counter:
        with open(request.counter, "a+") as file:
            file.seek(0)
            done = len(file.read())
            file.write("x")
    if done < request.lives:
        os.kill(os.getpid(), signal.SIGKILL)
    return Result(data={"lives": done})


class StubbornRequest(Request):
    """How long no step is reported."""

    seconds: Seconds = 30.0


def stubborn(request: StubbornRequest, context: Context) -> Result:
    """Say that it began, and never look again whether the job was cancelled."""
    context.progress(1, 2)
    time.sleep(request.seconds)
    return Result()


class CopyRequest(Request):
    """A picture, and a mask of its size."""

    image: InitImage
    mask_image: OptionalMask = None


def copy(request: CopyRequest, context: Context) -> Result:
    """Answer the picture as it is."""
    return Result(images=[context.image(request.image)])


CATALOG = (
    Capability("test/paint", "Paint", "Draw coloured squares.", PaintRequest, paint, example={"seed": 1}),
    Capability("test/fail", "Fail", "Fail in a wished way.", FailRequest, fail),
    Capability("test/kill", "Kill", "Kill the worker.", KillRequest, kill),
    Capability("test/stubborn", "Stubborn", "Ignore a cancel.", StubbornRequest, stubborn),
    Capability("test/copy", "Copy", "Answer the picture.", CopyRequest, copy),
)
