"""Which devices there are, without importing torch, and which waiting job goes to which idle worker.

`choose` is a pure function of what waits and who is idle. A job whose model lies ready on an idle worker may go before
the head of the queue, within the head's priority and a small look-ahead; a job that was passed over `PATIENCE` times
lets nobody by any more, so nothing starves for the sake of warm models.
"""

import ctypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.core.batch_processing import Waiting
from app.errors import InvalidRequest

INLINE = "inline"
LOOK_AHEAD = 8
PATIENCE = 4


@dataclass(frozen=True)
class IdleWorker:
    """A worker that can take a job, and the models that lie ready on it."""

    name: str
    resident: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Choice:
    """A job, its worker, why, and the jobs that it was let past."""

    job: Waiting
    worker: IdleWorker
    reason: str
    passed_over: tuple[Waiting, ...] = ()


def choose(waiting: Sequence[Waiting], idle: Sequence[IdleWorker]) -> Choice | None:
    """The next job and its worker; `waiting` is in queue order. None when nothing waits or nobody is idle."""
    if not waiting or not idle:
        return None
    head = waiting[0]
    for index, job in enumerate(waiting[:LOOK_AHEAD]):
        if job.priority != head.priority:
            break
        if job.model is None:
            return Choice(job, _emptiest(idle), "it needs no model", tuple(waiting[:index]))
        warm = next((worker for worker in idle if job.model in worker.resident), None)
        if warm is not None:
            return Choice(job, warm, f"{job.model} lies ready there", tuple(waiting[:index]))
        if job.passed_over >= PATIENCE:
            break
    return Choice(head, _emptiest(idle), "it is next")


def _emptiest(idle: Sequence[IdleWorker]) -> IdleWorker:
    """Who has the fewest models to put aside."""
    return min(idle, key=lambda worker: len(worker.resident))


def resolve_devices(wished: Sequence[str]) -> tuple[str, ...]:
    """The devices to run workers on: `auto` becomes every CUDA device, or the CPU where there is none."""
    devices: list[str] = []
    for name in wished:
        if name == "auto":
            count = count_cuda_devices()
            devices += [f"cuda:{index}" for index in range(count)] or ["cpu"]
        elif name in {"cpu", INLINE} or (name.startswith("cuda:") and name[5:].isdigit()):
            devices.append(name)
        elif name == "cuda":
            devices.append("cuda:0")
        else:
            raise InvalidRequest(f"There is no device {name[:40]!r}: devices are auto, cpu, cuda:0, ..., inline.")
    if not devices:
        raise InvalidRequest("No device is named: devices are auto, cpu, cuda:0, ..., inline.")
    return tuple(dict.fromkeys(devices))


def count_cuda_devices() -> int:
    """How many CUDA devices a worker would see: the driver's count, narrowed by CUDA_VISIBLE_DEVICES."""
    present = _count_by_nvml()
    if present is None:
        present = _count_by_driver(Path("/proc/driver/nvidia/gpus"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    named = []
    for name in visible.split(","):
        if name.strip() in {"", "-1"}:
            break
        named.append(name)
    return min(present, len(named))


def _count_by_nvml() -> int | None:
    """NVIDIA's management library, asked through ctypes: present wherever a driver is, and quick."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return None
    if library.nvmlInit_v2() != 0:
        return None
    try:
        count = ctypes.c_uint(0)
        return count.value if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0 else None
    finally:
        library.nvmlShutdown()


def _count_by_driver(folder: Path) -> int:
    return len(list(folder.iterdir())) if folder.is_dir() else 0
