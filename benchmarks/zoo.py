"""What it takes to change from one checkpoint to another where more are in use than there is room for.

The plain side opens the checkpoint's folder anew. Its files are in the system's cache by then, which is the best that
opening can be; and because files are mapped and read when they are first used, each side also draws a small picture of
one step, after which every weight was used.
"""

import gc
import itertools
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from app.models.device import TorchDevice
from app.models.library import ModelLibrary
from app.models.runtime import open_runtime
from benchmarks.full_size import TASKS, Make, make_full_size
from benchmarks.meter import Meter
from benchmarks.rows import Row

COPIES = 4
TARGET = 0.35
SMALL = {"prompt": "a red car", "width": 64, "height": 64, "num_inference_steps": 1, "guidance_scale": 1.0}

Switch = tuple[float, float]
"""Seconds until the checkpoint stands on the device, and until its first small picture."""


def switches(
    rounds: int,
    rooms: tuple[int, ...] = (1,),
    *,
    device: str = "cuda:0",
    precision: str = "bfloat16",
    family: str = "sd15",
    copies: int = COPIES,
    make: Make = make_full_size,
) -> Iterator[Row]:
    """A switch among so many checkpoints, with room for each of `rooms` of them on the device.

    They are copies of one file set: what a switch costs is the same whatever the weights say.
    """
    with tempfile.TemporaryDirectory() as home:
        first = make(Path(home) / "checkpoint-0", family, torch.bfloat16)
        folders = [first]
        folders += [shutil.copytree(first, Path(home) / f"checkpoint-{number}") for number in range(1, copies)]
        library = ModelLibrary(Path(home) / "home")
        for folder in folders:
            library.add(folder)
        for room in rooms:
            yield _switches(rounds, room, library, folders, device, precision, family)


def _switches(
    rounds: int, room: int, library: ModelLibrary, folders: list[Path], device: str, precision: str, family: str
) -> Row:
    names = [folder.name for folder in folders]
    copies = len(names)
    at = TorchDevice(device, precision).for_model(library.get(names[0]).bytes_on_disk)
    placed = int(sum(library.get(name).bytes_on_disk for name in names) / copies * at.dtype.itemsize / 2)
    runtime = open_runtime(
        device=device,
        library=library,
        precision=precision,
        # Half of a checkpoint more than they take, so that pictures need no tiles; another one does not fit.
        model_memory_bytes=int((room + 0.5) * placed),
        parked_memory_bytes=2 * copies * placed,
    )
    # As a worker's process does once it is open.
    runtime.device.empty_cache()
    gc.freeze()
    meter = Meter(device)

    def ours(name: str) -> Switch:
        begun = time.perf_counter()
        with runtime.borrow(name, task="text-to-image") as pipeline:
            meter.settle()
            opened = time.perf_counter() - begun
            pipeline(**SMALL, generator=runtime.generators(0, 1))
            return opened, time.perf_counter() - begun

    def plain(folder: Path) -> Switch:
        begun = time.perf_counter()
        pipeline: Any = TASKS["text-to-image"].from_pretrained(folder, dtype=at.dtype).to(device)
        meter.settle()
        opened = time.perf_counter() - begun
        pipeline.set_progress_bar_config(disable=True)
        pipeline(**SMALL, generator=runtime.generators(0, 1))
        return opened, time.perf_counter() - begun

    for folder, name in zip(folders, names, strict=True):
        plain(folder), ours(name)
    pairs: list[tuple[Switch, Switch]] = []
    for _, (folder, name) in zip(range(rounds), itertools.cycle(zip(folders, names, strict=True)), strict=False):
        stock = plain(folder)
        runtime.device.empty_cache()
        pairs.append((stock, ours(name)))
    states = [model["state"] for model in runtime.memory()["models"]]
    assert states.count("placed") == room, states
    runtime.close()
    gc.unfreeze()
    runtime.device.trim()
    (slow, slow_drawn), (fast, fast_drawn) = (
        tuple(statistics.median(one) for one in zip(*side, strict=True)) for side in zip(*pairs, strict=True)
    )
    parked = states.count("parked")
    others = f"the other {parked} parked in RAM" if parked else "the others gone: a CPU has no other memory to park in"
    target = f" (target {TARGET})" if room < copies else ""
    return (
        f"{copies} {family} checkpoints on {at.torch_device.type}, room for {room}: a switch",
        f"{fast / slow:.2f} x from_pretrained().to(){target}; with a first picture {fast_drawn / slow_drawn:.2f} x",
        f"{fast:.2f} s beside {slow:.2f} s; with a small picture of one step {fast_drawn:.2f} s beside "
        f"{slow_drawn:.2f} s" + (f"; {others}" if room < copies else ""),
    )
