"""A step of Stable Diffusion 1.5's UNet at 512x512 on a CPU: the profile beside diffusers plain and in bfloat16."""

import copy
import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from benchmarks.rows import Row, left_out


def unet_step(rounds: int) -> list[Row]:
    """Random weights of the published configuration, batch 1; interleaved, medians after one step to warm up."""
    import diffusers
    import torch

    from app.models import compiling
    from app.models.attention import faster_attention
    from app.models.device import cpu_has_bfloat16
    from app.models.single_files import LAYOUTS

    if not cpu_has_bfloat16():
        return [left_out("SD 1.5 UNet step at 512x512", "this processor has no bfloat16 instructions")]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet_class = diffusers.UNet2DConditionModel
        plain = unet_class.from_config(unet_class.load_config(LAYOUTS / "sd15" / "unet")).eval()
    one_liner = copy.deepcopy(plain).to(torch.bfloat16)
    profile = copy.deepcopy(one_liner).to(memory_format=torch.channels_last)
    sides: dict[str, tuple[Any, Any, Callable[[], Any]]] = {
        "plain": (plain, torch.float32, nullcontext),
        "bfloat16": (one_liner, torch.bfloat16, nullcontext),
        "profile": (profile, torch.bfloat16, faster_attention),
    }
    has_compiler = any(map(shutil.which, compiling.COMPILERS))
    if has_compiler:
        compiled = copy.deepcopy(profile)
        compiling.CompiledBlocks(compiled).use(True)
        sides["compiled"] = (compiled, torch.bfloat16, nullcontext)
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds + 1):
        for name, (unet, dtype, block) in sides.items():
            latents, words = torch.randn(1, 4, 64, 64, dtype=dtype), torch.randn(1, 77, 768, dtype=dtype)
            with torch.no_grad(), block():
                begun = time.perf_counter()
                unet(latents, 500, words)
                times[name].append(time.perf_counter() - begun)
    median = {name: statistics.median(taken[1:]) for name, taken in times.items()}
    what = f"SD 1.5 UNet step at 512x512, {torch.get_num_threads()} threads"
    by_compiler = left_out(f"{what}, EIS_COMPILE", "no C++ compiler is installed")
    if has_compiler:
        by_compiler = (
            f"{what}, EIS_COMPILE",
            f"{median['plain'] / median['compiled']:.2f} x plain diffusers, "
            f"{median['bfloat16'] / median['compiled']:.2f} x its bfloat16 one-liner",
            f"{median['compiled']:.2f} s; the first call took {times['compiled'][0]:.0f} s",
        )
    return [
        (
            what,
            f"{median['plain'] / median['profile']:.2f} x plain diffusers, "
            f"{median['bfloat16'] / median['profile']:.2f} x its bfloat16 one-liner",
            f"{median['profile']:.2f} s beside {median['plain']:.2f} s and {median['bfloat16']:.2f} s; "
            f"attention as it is faster here",
        ),
        by_compiler,
    ]
