"""A megapixel made larger, beside spandrel's bare call, and the memory that twelve of them take.

The published network is the one that EIS_TEST_WEIGHTS names the folder of; without it, the same architecture at random
weights: as many operations.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from benchmarks.rows import Row

SIDE = 768
FILE = "realesr-animevideov3-x4.safetensors"


def megapixels(rounds: int, side: int = SIDE) -> list[Row]:
    """A picture in one part, and in two as little memory cuts it, each beside the bare call on all of it, in turn.

    Seconds are the processor's, so that other work on the machine does not count.
    """
    import numpy as np
    import torch
    from PIL import Image

    upscaler = _network()
    network = upscaler._model
    at_work = upscaler.at_work(nullcontext, lambda: None)
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    image, size = Image.fromarray(pixels), (4 * side, 4 * side)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    upscaler.reach()
    parts: dict[str, int] = {}

    def made(what: str, area: float) -> None:
        upscaler.area = lambda free: area
        parts[what] = at_work(image, size).tiles

    works: dict[str, Callable[[], object]] = {
        "bare": lambda: network(tensor),
        "whole": lambda: made("whole", side * side),
        "cut": lambda: made("cut", 0.6 * side * side),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds + 1):
        for name, work in works.items():
            begun = time.process_time()
            work()
            times[name].append(time.process_time() - begun)
    seconds = {name: statistics.median(found[1:]) / (side * side / 1e6) for name, found in times.items()}
    rows = []
    for name in ("whole", "cut"):
        ratio = statistics.median(own / bare for own, bare in zip(times[name][1:], times["bare"][1:], strict=True))
        count = "one part" if parts[name] == 1 else f"{parts[name]} parts"
        rows.append(
            (
                f"Real-ESRGAN animevideo v3: a megapixel, {side}x{side} in {count}, {torch.get_num_threads()} threads",
                f"{ratio:.2f} x spandrel's bare forward",
                f"{seconds[name]:.1f} s of the processor beside {seconds['bare']:.1f} s",
            )
        )
    return rows


def memory(rounds: int) -> list[Row]:
    """4000x3000 to 8000x6000 and its file, in a process of its own."""
    from tests.models.test_upscalers import LARGE

    folder = os.environ.get("EIS_TEST_WEIGHTS")
    if not folder:
        return [("4000x3000 by the x4 network: memory above the model", "left out", "EIS_TEST_WEIGHTS names no folder")]
    command = [sys.executable, "-c", LARGE, str(Path(folder) / FILE), "4000", "3000", "2", "0"]
    begun = time.perf_counter()
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    told = json.loads(run.stdout)
    return [
        (
            "4000x3000 to 8000x6000 by the x4 network, and its PNG: memory above the model",
            f"{told['peak'] / 1e9:.2f} GB",
            f"{told['at_work'] / 1e9:.2f} GB at work, {told['tiles']} parts, {time.perf_counter() - begun:.0f} s",
        )
    ]


def _network() -> object:
    from app.models import upscalers
    from app.models.catalog import CATALOG
    from app.models.device import TorchDevice

    folder = os.environ.get("EIS_TEST_WEIGHTS")
    if folder:
        path = Path(folder) / FILE
    else:
        import tempfile

        from tests.models.upscaling_networks import write_compact

        path = write_compact(Path(tempfile.mkdtemp()) / "compact.safetensors", convolutions=16, features=64)
    upscaler = upscalers.load(CATALOG[0], path, TorchDevice("cpu", "float32"))
    upscaler.place()
    return upscaler
