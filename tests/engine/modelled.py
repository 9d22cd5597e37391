"""A catalog whose capability needs a model, and runtimes for it that need no torch."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from PIL import Image

from app.core.capability import Capability, Context, ModelRequest, Result
from app.core.fields import Height, Width
from app.errors import DependencyMissing, NoDevice, OutOfMemory, ServiceError
from tests.engine.capabilities import squares


class DrawRequest(ModelRequest):
    """A picture from a model."""

    width: Width = None
    height: Height = None


def draw(request: DrawRequest, context: Context) -> Result:
    """Two passes of a pipeline for each picture."""
    context.expect_steps(2 * request.num_inference_steps)
    with context.borrow(request.model, task="text-to-image", loras=request.loras) as pipeline:
        for _ in range(2):
            pipeline(num_inference_steps=request.num_inference_steps, callback_on_step_end=context.on_step)
    if request.prompt == "too large":
        raise RuntimeError("CUDA out of memory")
    return Result(images=[squares(request.seed)], seeds=[request.seed])


class Pipeline:
    """Calls the step callback as diffusers does."""

    num_timesteps = 0

    def __call__(self, *, num_inference_steps: int, callback_on_step_end: Any) -> None:
        self.num_timesteps = num_inference_steps
        for step in range(num_inference_steps):
            callback_on_step_end(self, step, 999 - step, {"latents": (step, num_inference_steps)})


class Runtime:
    """The runtime's interface over plain pictures."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.limit: int | None = None

    @contextmanager
    def borrow(self, model: str, **additions: Any) -> Iterator[Pipeline]:
        self.opened.append(model)
        yield Pipeline()

    def preview(self, pipeline: Pipeline, latents: tuple[int, int]) -> Image.Image:
        return Image.new("RGB", (900, 900), (255 * latents[0] // latents[1], 0, 0))

    def memory(self) -> dict:
        told = {"allocated": 10, "placed_bytes": len(self.resident()) * 2**20, "limit": self.limit}
        told["frozen"] = gc.get_freeze_count()
        return told | {"settings": self.settings}

    def resident(self) -> list[str]:
        return sorted(set(self.opened))

    def translate(self, error: BaseException) -> ServiceError | None:
        return OutOfMemory("Make the picture smaller.") if "out of memory" in str(error) else None

    def configure(self, **settings: Any) -> None:
        """As the cache does: what does not fit goes; a model of this runtime counts a mebibyte."""
        if settings["precision"] == "float64":
            raise DependencyMissing("The precision float64 needs a package.")
        limit = settings["model_memory_bytes"]
        self.limit, self.settings = limit, settings
        if limit is not None:
            del self.opened[: max(0, len(self.opened) - limit // 2**20)]

    def clean_up(self) -> None:
        self.opened.clear()

    def nudge(self) -> None:
        """Nobody waits for others here."""

    def close(self) -> None:
        self.opened.clear()


def open_runtime(**facts: Any) -> Runtime:
    """As `app.models.runtime.open_runtime` is called."""
    wanted = {"device", "library", "precision", "offload", "compile", "model_memory_bytes", "parked_memory_bytes"}
    assert set(facts) == wanted
    runtime = Runtime()
    settings = {name: value for name, value in facts.items() if name not in {"device", "library", "compile"}}
    runtime.limit, runtime.settings = facts["model_memory_bytes"], settings
    return runtime


def refuse(**facts: Any) -> Runtime:
    """A device that is not there."""
    raise NoDevice("There is no such device.")


CATALOG = (
    Capability("test/draw", "Draw", "Draw with a model.", DrawRequest, draw, needs=("text-to-image",)),
)
