"""What the capability tests share: the real Context over tiny checkpoints, pictures, and a pipeline that mirrors.

What a capability makes through the real Context, Storage and Runtime is compared with what stock diffusers makes when
it is called by hand: the capability adds nothing and leaves nothing out. `Mirror` stands in for the runtime where only
geometry matters: it answers the negative of what it was handed, so that every pixel tells where it came from.
"""

import io
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import torch
from diffusers import AutoPipelineForImage2Image, AutoPipelineForInpainting, AutoPipelineForText2Image
from PIL import Image, ImageChops

from app.core.context import RunContext
from app.core.storage import Storage

KINDS = {
    "text-to-image": AutoPipelineForText2Image,
    "image-to-image": AutoPipelineForImage2Image,
    "inpaint": AutoPipelineForInpainting,
}


def noise(size, seed=0):
    """A picture of random pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def block(size, box):
    """A mask that is white in one box."""
    mask = Image.new("L", size, 0)
    mask.paste(255, box)
    return mask


def pixels(image):
    return np.asarray(image).astype(int)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


class Mirror:
    """A runtime whose every pipeline answers the negative of the picture, and keeps what it was asked."""

    size_multiple = 8
    default_size = (64, 64)
    num_timesteps = 1

    def __init__(self):
        self.calls = []

    @contextmanager
    def borrow(self, model, **additions):
        yield self

    def generators(self, seed, count):
        return [seed + number for number in range(count)]

    def count_timesteps(self, num_inference_steps, strength=None):
        return 1

    def __call__(self, **arguments):
        self.calls.append(arguments)
        image = arguments["image"]
        assert all(side % self.size_multiple == 0 for side in image.size)
        arguments["callback_on_step_end"](self, 0, 0, {})
        return SimpleNamespace(images=[ImageChops.invert(image)])


class Studio(RunContext):
    """A run's own Context, which also takes pictures in, keeps what was reported and borrowed, and is a `Door`."""

    size_multiple = 8

    def __init__(self, home, runtime, library=None):
        self.storage = Storage(home)
        self.reports = []
        self.borrowed = []
        self.cancelled = threading.Event()
        super().__init__(
            storage=self.storage,
            models=library,
            runtime=runtime,
            client=None,
            report=lambda kind, data: self.reports.append((kind, data)),
            cancelled=self.cancelled,
            previewed=threading.Event(),
        )

    def borrow(self, model, **additions):
        self.borrowed.append((model, additions))
        return super().borrow(model, **additions)

    def size(self, reference):
        return self.storage.size(reference)

    def put(self, image, kind="image"):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return self.storage.put(buffer.getvalue(), kind=kind).id

    def steps_reported(self):
        """(step, steps) of every report since the last call."""
        found = [(data["step"], data["steps"]) for kind, data in self.reports if kind == "step"]
        self.reports.clear()
        self.step = 0
        return found


def stock_pipelines(checkpoint):
    """task -> a stock pipeline of this checkpoint, opened by diffusers alone."""
    base = AutoPipelineForText2Image.from_pretrained(checkpoint, local_files_only=True)
    pipelines = {task: kind.from_pipe(base) for task, kind in KINDS.items()}
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)
    return pipelines
