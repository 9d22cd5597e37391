"""Full-size checkpoints of random weights, and how many of their pictures an hour one GPU makes with and without us.

Random weights cost what trained ones cost. The plain side is stock diffusers as its documentation has it: one pipeline
for each task over the same weights, in the same number format, one call after the other.
"""

import itertools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from app.models import schedulers
from app.models.library import ModelLibrary
from app.models.runtime import open_runtime
from app.models.single_files import LAYOUTS, tokenizers
from app.models.tiers import PARAMETERS
from benchmarks.rows import Row
from tests.models.mixed_jobs import Wish, mixed_wishes

TASKS = {
    "text-to-image": diffusers.AutoPipelineForText2Image,
    "image-to-image": diffusers.AutoPipelineForImage2Image,
    "inpaint": diffusers.AutoPipelineForInpainting,
}
DISK_RESERVE = 2 * 10**9
"""Bytes of the disk that a benchmark leaves alone."""


Make = Callable[[Path, str, torch.dtype], Path]
"""Writes a checkpoint of a family in a number format into a folder, and answers the folder."""


def make_full_size(folder: Path, family: str, dtype: torch.dtype, *, layouts: Path = LAYOUTS) -> Path:
    """Write a checkpoint of the published configuration with random weights; answers the folder."""
    layout = layouts / family
    index = json.loads((layout / "model_index.json").read_text())
    parts: dict[str, Any] = dict(tokenizers(layout))
    for name, (library, class_name) in ((key, value) for key, value in index.items() if isinstance(value, list)):
        if name in parts or library is None:
            continue
        if library == "diffusers":
            part_class = getattr(diffusers, class_name)
            parts[name] = part_class.from_config(part_class.load_config(layout / name))
        elif (layout / name / "config.json").is_file():
            config = transformers.CLIPTextConfig.from_pretrained(layout / name)
            parts[name] = getattr(transformers, class_name)(config)
    for part in parts.values():
        if isinstance(part, torch.nn.Module):
            part.to(dtype)
    if family == "sd15":
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    getattr(diffusers, index["_class_name"])(**parts).save_pretrained(folder)
    return folder


def full_size_bytes(family: str) -> int:
    """Of a checkpoint that `make_full_size` writes in a format of two bytes."""
    return int(2 * PARAMETERS[family])


def disk_lacks(needed: int) -> str:
    """What the disk of temporary files lacks for checkpoints of so many bytes, in words; empty where they fit."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if needed + DISK_RESERVE <= free:
        return ""
    return (
        f"it takes {(needed + DISK_RESERVE) / 1e9:.0f} GB of free disk for temporary files; {free / 1e9:.0f} are there"
    )


def many(side: int, count: int) -> list[Wish]:
    """So many jobs, no two alike."""
    wishes = []
    for number, wish in zip(range(count), itertools.cycle(mixed_wishes(side)), strict=False):
        arguments = {**wish.arguments, "prompt": f"{wish.arguments['prompt']}, picture {number}"}
        arguments["num_inference_steps"] += 2 * (number // 8)
        wishes.append(Wish(wish.task, arguments, wish.scheduler, number))
    return wishes


def plain(folder: Path, device: str, dtype: torch.dtype) -> Callable[[Wish], Any]:
    """Stock diffusers: draws one wish."""
    first = TASKS["text-to-image"].from_pretrained(folder, dtype=dtype).to(device)
    pipelines = {task: kind.from_pipe(first) for task, kind in TASKS.items()}
    config = {**first.scheduler.config, "_class_name": type(first.scheduler).__name__}
    for pipeline in pipelines.values():
        pipeline.set_progress_bar_config(disable=True)

    def draw(wish: Wish) -> Any:
        pipeline = pipelines[wish.task]
        pipeline.scheduler = schedulers.create(wish.scheduler, config)
        return pipeline(**wish.arguments, generator=torch.Generator("cpu").manual_seed(wish.seed)).images[0]

    return draw


def mixed_jobs(
    family: str,
    side: int,
    count: int,
    precision: str,
    rounds: int,
    *,
    device: str = "cuda:0",
    make: Make = make_full_size,
) -> Row:
    """So many mixed jobs through the runtime, eight at a time, against one by one in diffusers."""
    dtype = getattr(torch, precision)
    with tempfile.TemporaryDirectory() as home:
        folder = make(Path(home) / "published", family, dtype)
        library = ModelLibrary(Path(home) / "home")
        library.add(folder, id=f"random-{family}")
        stock = plain(folder, device, dtype)
        runtime = open_runtime(device=device, library=library, precision=precision)
        wishes = many(side, count)

        def ours(wish: Wish) -> Any:
            with runtime.borrow(f"random-{family}", task=wish.task, scheduler=wish.scheduler) as pipeline:
                return pipeline(**wish.arguments, generator=runtime.generators(wish.seed, 1)).images[0]

        def one_by_one() -> float:
            begun = time.perf_counter()
            for wish in wishes:
                stock(wish)
            return time.perf_counter() - begun

        def at_once() -> float:
            begun = time.perf_counter()
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(ours, wishes))
            return time.perf_counter() - begun

        one_by_one(), at_once()
        pairs = [(one_by_one(), at_once()) for _ in range(rounds)]
        pace = runtime.batcher.pace.table()
        runtime.close()
    slow, fast = (statistics.median(side) for side in zip(*pairs, strict=True))
    curve = ", ".join(f"{size}: {1000 * seconds:.0f} ms" for size, seconds in (pace[-1] if pace else {}).items())
    return (
        f"{count} mixed {family} jobs at {side}x{side}, {precision}",
        f"{slow / fast:.2f} x plain diffusers",
        f"{count * 3600 / fast:.0f} pictures an hour beside {count * 3600 / slow:.0f}; forward by jobs in it {curve}",
    )
