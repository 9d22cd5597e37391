"""SD 1.5's UNet at 512 x 512 on a CPU: plain float32, the bfloat16 one-liner, and our profile, in turn.

    python -m benchmarks.cpu_profile --rounds 5

The weights are random, of the published shape: a step costs the same whatever it draws. The three take turns in one
process, so that a neighbour slows all of them; told are medians and the ratios of the medians.
"""

import argparse
import copy
import json
import os
import statistics
import time
from collections.abc import Callable

import torch
from diffusers import UNet2DConditionModel

from app.models import attention, cpu_profile
from app.models.attention import Way
from app.models.cpu_profile import Profile

SD15 = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
"""What differs from the class's own defaults in the published configuration, and what it must not differ in."""


def step_of(unet: torch.nn.Module, batch: int) -> Callable[[], torch.Tensor]:
    """One forward of the UNet on noise, in its own format."""
    dtype = next(unet.parameters()).dtype
    latents = torch.randn(batch, 4, 64, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    words = torch.randn(batch, 77, 768, generator=torch.Generator().manual_seed(2)).to(dtype)

    def run() -> torch.Tensor:
        with torch.no_grad():
            return unet(latents, 500, words).sample

    return run


def profiled(half: torch.nn.Module, profile: Profile) -> torch.nn.Module:
    """A copy of the bfloat16 UNet as the profile would have it."""
    unet = copy.deepcopy(half).to(memory_format=torch.channels_last)
    if profile.chunked:
        attention.put_on([unet], Way(chunked=True))
    return unet


def measure(batch: int, rounds: int, profile: Profile) -> dict[str, object]:
    """The three in turn; seconds are medians."""
    torch.manual_seed(0)
    plain = UNet2DConditionModel(**SD15).eval()
    half = copy.deepcopy(plain).to(torch.bfloat16)
    steps = {
        "float32": step_of(plain, batch),
        "bfloat16": step_of(half, batch),
        "profile": step_of(profiled(half, profile), batch),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    answers = {}
    for turn in range(rounds + 1):
        for name, run in steps.items():
            began = time.perf_counter()
            answers[name] = run().float()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    scale = answers["float32"].std()
    return {
        "batch": batch,
        "seconds": {name: round(value, 3) for name, value in medians.items()},
        "float32_over_profile": round(medians["float32"] / medians["profile"], 2),
        "bfloat16_over_profile": round(medians["bfloat16"] / medians["profile"], 2),
        "error": {name: float((answers[name] - answers["float32"]).std() / scale) for name in ("bfloat16", "profile")},
    }


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--chunked", choices=["measured", "yes", "no"], default="measured")
    options = parser.parse_args()
    measured = cpu_profile.measure()
    chunks = measured.chunked if options.chunked == "measured" else options.chunked == "yes"
    profile = Profile(measured.half, chunks)
    results = [measure(batch, options.rounds, profile) for batch in options.batches]
    facts = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "load": [round(value, 2) for value in os.getloadavg()],
        "measured": vars(measured),
        "chunked": chunks,
    }
    print(json.dumps({**facts, "results": results}, indent=2))


if __name__ == "__main__":
    main()
