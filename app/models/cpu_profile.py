"""How large checkpoints run on a CPU: in bfloat16 and channels-last where the processor has the instructions for it.

Which of it pays differs from processor to processor (PyTorch's fused attention is quick in bfloat16 where there is AMX
and slow where there is only AVX-512), so it is measured once in a process, for a fraction of a second, on layers of the
published sizes. A checkpoint below `PUBLISHED` parameters stays as it is: it gains little, and its pictures are those
of the stock float32 pipeline to the bit.
"""

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from app.models.attention import Way, chunked
from app.models.device import TorchDevice

PUBLISHED = 300_000_000
"""Parameters of a UNet from which on it counts as one of the published sizes."""
INSTRUCTIONS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Flags of /proc/cpuinfo: x86 with AVX-512 or AMX, and Arm."""
TRIALS = 5


@dataclass(frozen=True)
class Profile:
    """What pays on this processor: bfloat16 layers, and attention in chunks within them."""

    half: bool
    chunked: bool


def apply(modules: Mapping[str, torch.nn.Module], device: TorchDevice) -> Way:
    """Bring a checkpoint's modules into the format that the device's profile wants; answers how they are to attend."""
    if not is_wanted(modules, device):
        return Way()
    profile = measure()
    if device.cpu_profile == "auto" and not profile.half:
        return Way()
    for module in modules.values():
        module.to(dtype=torch.bfloat16)
        if any(isinstance(part, torch.nn.Conv2d) for part in module.modules()):
            module.to(memory_format=torch.channels_last)
    return Way(chunked=profile.chunked)


def is_wanted(modules: Mapping[str, torch.nn.Module], device: TorchDevice) -> bool:
    """Whether the profile has a say: on a CPU whose number format was left open, for a large model or by wish."""
    if device.keeps_parked or device.precision != "auto" or device.cpu_profile == "plain":
        return False
    if device.cpu_profile == "bf16":
        return True
    size = sum(parameter.numel() for parameter in modules["unet"].parameters())
    return size >= PUBLISHED and has_instructions()


@functools.cache
def has_instructions() -> bool:
    """Whether the processor computes in bfloat16 by itself."""
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="ignore") as file:
            flags = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return False
    return not INSTRUCTIONS.isdisjoint(flags.split())


@functools.cache
def measure() -> Profile:
    """Time a convolution and a linear layer in both formats, and attention in bfloat16 both ways."""
    half = torch.bfloat16
    with torch.no_grad():
        picture, kernel = torch.randn(1, 320, 32, 32), torch.randn(320, 320, 3, 3)
        words, matrix = torch.randn(1024, 640), torch.randn(640, 640)
        last = torch.channels_last
        halves = (picture.to(half, memory_format=last), kernel.to(half, memory_format=last), words.to(half))
        half_matrix = matrix.to(half)

        def plain() -> None:
            F.conv2d(picture, kernel, padding=1)
            F.linear(words, matrix)

        def in_half() -> None:
            F.conv2d(halves[0], halves[1], padding=1)
            F.linear(halves[2], half_matrix)

        heads = [torch.randn(1, 8, 1024, 80, dtype=half) for _ in range(3)]
        layers = quicker(in_half, plain)
        chunks = quicker(lambda: chunked(*heads), lambda: F.scaled_dot_product_attention(*heads))
    return Profile(half=layers, chunked=chunks)


def quicker(
    one: Callable[[], object], other: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> bool:
    """Whether `one` takes less time than `other`: medians of trials in turn, after one of each that warms up."""
    spent: tuple[list[float], list[float]] = ([], [])
    for trial in range(TRIALS + 1):
        for seconds, work in zip(spent, (one, other), strict=True):
            began = clock()
            work()
            if trial:
                seconds.append(clock() - began)
    return statistics.median(spent[0]) < statistics.median(spent[1])
