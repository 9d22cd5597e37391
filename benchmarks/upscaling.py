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
from contextlib import nullcontext
from pathlib import Path

from benchmarks.rows import Row

SIDE = 768
FILE = "realesr-animevideov3-x4.safetensors"
TILE = 512


def megapixels(rounds: int) -> list[Row]:
    """A picture whole and in parts, each beside the bare call on as many pixels; the sides in turn."""
    import numpy as np
    import torch
    from PIL import Image

    upscaler = _network()
    network = upscaler._model
    at_work = upscaler.at_work(nullcontext, lambda: None)
    pixels = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    image, size = Image.fromarray(pixels), (4 * SIDE, 4 * SIDE)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    upscaler.reach()
    times: dict[str, list[float]] = {"bare": [], "whole": [], "parts": []}
    for _ in range(rounds + 1):
        for side, work in (
            ("bare", lambda: network(tensor)),
            ("whole", lambda: at_work(image, size)),
            ("parts", lambda: at_work(image, size, tile_size=TILE)),
        ):
            begun = time.perf_counter()
            work()
            times[side].append(time.perf_counter() - begun)
    megapixel = SIDE * SIDE / 1e6
    seconds = {side: statistics.median(found[1:]) / megapixel for side, found in times.items()}
    rows = []
    for side, what in (("whole", "in one part"), ("parts", f"in parts of {TILE} pixels")):
        ratio = statistics.median(own / bare for own, bare in zip(times[side][1:], times["bare"][1:], strict=True))
        rows.append(
            (
                f"Real-ESRGAN animevideo v3: a megapixel of input, {what}, {torch.get_num_threads()} threads",
                f"{ratio:.2f} x spandrel's bare forward",
                f"{seconds[side]:.2f} s beside {seconds['bare']:.2f} s",
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
