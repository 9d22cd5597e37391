"""The most memory that stands at once while something runs: on a GPU what tensors hold there, on a CPU the process."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests import own_memory


class Meter:
    """Seconds and peak bytes of what runs on one device; `what` says whose bytes they are."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.is_gpu = self.device.type == "cuda"
        self.what = "of tensors on the GPU" if self.is_gpu else "of the whole process"

    def settle(self) -> None:
        """Wait for what the device was told to do."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def measure(self, run: Callable[[], Any]) -> tuple[float, int]:
        """Run it; seconds until the device is done, and the most bytes that stood at once, earlier ones included."""
        self.settle()
        self._reset()
        begun = time.perf_counter()
        run()
        self.settle()
        return time.perf_counter() - begun, self._peak()

    def _reset(self) -> None:
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            # Five resets the peak of the resident set (proc(5)).
            Path("/proc/self/clear_refs").write_text("5")

    def _peak(self) -> int:
        if self.is_gpu:
            return torch.cuda.max_memory_allocated(self.device)
        return own_memory.peak()
