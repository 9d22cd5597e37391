"""What SDXL takes of a GPU, and how long a picture takes, under every way in which its weights can stand there.

Random weights of the published size. The service's side goes through its own runtime, as a worker opens it with
`EIS_OFFLOAD` and `EIS_PRECISION`. Whoever's turn is over stands aside in RAM before the peak of the next one is read.
Every picture has words of its own: the service remembers what it encoded, and a repeated prompt would flatter it.
"""

import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from app.core.model_offload import AUTO, STRATEGIES, Offload
from app.errors import OutOfMemory, ServiceError
from app.models.library import ModelLibrary
from app.models.runtime import open_runtime
from benchmarks.full_size import TASKS, Make, make_full_size
from benchmarks.meter import Meter
from benchmarks.rows import Row, left_out

MODEL = "random"
PLAIN = "bfloat16"
"""The format of the plain side: SDXL's autoencoder decodes in it, where float16 would be widened and take more."""
PEAK_TARGET, TIME_TARGET = 0.45, 1.25
QUANTISED = ("float8", "int8", "int4")
REFUSALS = (ServiceError, torch.OutOfMemoryError)
"""What a device may say to a way that is not for it."""


@dataclass(frozen=True)
class Way:
    """How the service is told to keep weights: two settings, and a field of the request."""

    offload: str
    precision: str
    vae_tiling: bool = False

    def __str__(self) -> str:
        tiles = ", vae_tiling" if self.vae_tiling else ""
        return f"EIS_OFFLOAD={self.offload} EIS_PRECISION={self.precision}{tiles}"


LOW_MEMORY = (
    Way("streamed", "bfloat16"),
    Way("streamed", "float8"),
    Way("model_cpu", "float8", vae_tiling=True),
)
EVERY = (*(Way(name, PLAIN) for name in STRATEGIES), *(Way(Offload.NONE.value, name) for name in QUANTISED))


class Wishes:
    """Pictures of one size, no two with the same words."""

    def __init__(self, side: int, steps: int) -> None:
        self.steps = steps
        self._side = side
        self._numbers = itertools.count()

    def next(self, steps: int) -> dict[str, Any]:
        """The arguments of a pipeline's call."""
        number = next(self._numbers)
        return {
            "prompt": f"a red car in the snow, picture {number}",
            "width": self._side,
            "height": self._side,
            "num_inference_steps": steps,
            "guidance_scale": 7.0,
            "generator": torch.Generator("cpu").manual_seed(number),
        }


class Side:
    """One side of a comparison: draws by the first function, and leaves the device by the second."""

    def __init__(self, draw: Callable[[dict[str, Any]], Any], stand_aside: Callable[[], None]) -> None:
        self.draw = draw
        self.stand_aside = stand_aside
        self.seconds: list[float] = []
        self.peaks: list[int] = []

    def turn(self, meter: Meter, wishes: Wishes, pictures: int = 1) -> None:
        """Come to the device, draw one picture of two steps to warm up and then those that count, and leave."""
        self.draw(wishes.next(2))
        for _ in range(pictures):
            wish = wishes.next(wishes.steps)
            seconds, peak = meter.measure(lambda wish=wish: self.draw(wish))
            self.seconds.append(seconds)
            self.peaks.append(peak)
        self.stand_aside()

    @property
    def time(self) -> float:
        """The median of the pictures' seconds."""
        return statistics.median(self.seconds)

    @property
    def peak(self) -> float:
        """The median of the pictures' peaks, in bytes."""
        return statistics.median(self.peaks)


@contextmanager
def published(family: str, make: Make) -> Iterator[tuple[Path, ModelLibrary]]:
    """A checkpoint on the disk for the block, and a library that holds it as `MODEL`."""
    with tempfile.TemporaryDirectory() as home:
        folder = make(Path(home) / "published", family, torch.bfloat16)
        library = ModelLibrary(Path(home) / "home")
        library.add(folder, id=MODEL)
        yield folder, library


def plain_side(folder: Path, device: str) -> Side:
    """Stock diffusers with everything on the device."""
    pipeline = TASKS["text-to-image"].from_pretrained(folder, dtype=getattr(torch, PLAIN))
    pipeline.set_progress_bar_config(disable=True)

    def draw(wish: dict[str, Any]) -> Any:
        return pipeline.to(device)(**wish).images[0]

    def stand_aside() -> None:
        pipeline.to("cpu")
        if torch.device(device).type == "cuda":
            torch.cuda.empty_cache()

    return Side(draw, stand_aside)


@contextmanager
def served_side(library: ModelLibrary, device: str, way: Way) -> Iterator[tuple[Side, Any]]:
    """The service under these settings, with its runtime; `ServiceError` where they are refused or not kept to."""
    runtime = open_runtime(device=device, library=library, precision=way.precision, offload=way.offload)

    def draw(wish: dict[str, Any]) -> Any:
        with runtime.borrow(MODEL, task="text-to-image", vae_tiling=way.vae_tiling) as pipeline:
            image = pipeline(**wish).images[0]
            if pipeline.notes:
                raise OutOfMemory(" ".join(pipeline.notes))
            return image

    def stand_aside() -> None:
        # No room for models parks what nobody has borrowed.
        for room in (0, None):
            runtime.configure(
                offload=way.offload, precision=way.precision, model_memory_bytes=room, parked_memory_bytes=None
            )

    try:
        yield Side(draw, stand_aside), runtime
    finally:
        runtime.close()
        runtime.device.trim()


def low_memory(
    rounds: int,
    *,
    device: str = "cuda:0",
    family: str = "sdxl",
    side: int = 1024,
    steps: int = 30,
    ways: tuple[Way, ...] = LOW_MEMORY,
    make: Make = make_full_size,
) -> Iterator[Row]:
    """Each way to do with little memory beside plain diffusers with everything on the device, in turns."""
    meter = Meter(device)
    with published(family, make) as (folder, library):
        for way in ways:
            wishes = Wishes(side, steps)
            plain = plain_side(folder, device)
            try:
                with served_side(library, device, way) as (served, _):
                    for _ in range(rounds):
                        plain.turn(meter, wishes)
                        served.turn(meter, wishes)
            except REFUSALS as error:
                yield left_out(f"{family} {side}x{side}, {way}", str(error))
                continue
            yield (
                f"{family} {side}x{side}, {way}: peak",
                f"{served.peak / plain.peak:.2f} x plain diffusers (target {PEAK_TARGET})",
                f"{served.peak / 1e9:.2f} GB beside {plain.peak / 1e9:.2f} GB {meter.what}",
            )
            yield (
                f"{family} {side}x{side}, {way}: time",
                f"{served.time / plain.time:.2f} x plain diffusers (target {TIME_TARGET})",
                f"{served.time:.2f} s beside {plain.time:.2f} s, {steps} steps",
            )


def every_way(
    rounds: int,
    *,
    device: str = "cuda:0",
    family: str = "sdxl",
    side: int = 1024,
    steps: int = 20,
    ways: tuple[Way, ...] = EVERY,
    make: Make = make_full_size,
) -> Iterator[Row]:
    """Peak and time under every strategy and every precision, after plain diffusers; one after the other."""
    meter, wishes = Meter(device), Wishes(side, steps)

    def row(name: str, side_of: Side, more: str = "") -> Row:
        return (
            f"{family} {side}x{side}, {name}",
            f"{side_of.peak / 1e9:.2f} GB",
            f"{side_of.time:.2f} s for {steps} steps{more}",
        )

    with published(family, make) as (folder, library):
        name = f"plain diffusers in {PLAIN}: peak {meter.what}"
        try:
            plain = plain_side(folder, device)
            plain.turn(meter, wishes, rounds)
            yield row(name, plain)
            del plain
        except torch.OutOfMemoryError as error:
            yield left_out(name, str(error))
        for way in ways:
            try:
                with served_side(library, device, way) as (served, runtime):
                    served.draw(wishes.next(2))
                    [model] = runtime.memory()["models"]
                    served.turn(meter, wishes, rounds)
            except REFUSALS as error:
                yield left_out(f"{family} {side}x{side}, {way}", str(error))
                continue
            settled = f"; settled on {model['strategy']}" if way.offload == AUTO else ""
            yield row(str(way), served, settled)
