"""Which devices there are, without importing torch, and which waiting job goes to which worker.

`choose` is a pure function of what waits and what the workers hold. A job whose model lies ready on an idle worker may
go before the head of the queue, within the head's priority and a small look-ahead. When nobody is idle, a job may join
jobs of its own model on a worker with a free seat, where they share forwards; one that is more urgent than a job there
joins even a full worker. A job that was passed over `PATIENCE` times lets nobody by any more, so nothing starves for
the sake of warm models.
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
URGENT_SEATS = 1
"""Jobs beyond a worker's seats that may join because they are more urgent than one that it holds."""
SEATS_ON_A_GPU = 8


@dataclass(frozen=True)
class OpenWorker:
    """A worker that is up: the models that lie ready on it, the jobs that it holds, and how many those may be."""

    name: str
    resident: frozenset[str] = frozenset()
    held: tuple[Waiting, ...] = ()
    seats: int = 1


@dataclass(frozen=True)
class Choice:
    """A job, its worker, why, and the jobs that it was let past."""

    job: Waiting
    worker: OpenWorker
    reason: str
    passed_over: tuple[Waiting, ...] = ()


def choose(waiting: Sequence[Waiting], workers: Sequence[OpenWorker]) -> Choice | None:
    """The next job and its worker; `waiting` is in queue order. None when nothing waits or nobody can take anything."""
    if not waiting:
        return None
    idle = [worker for worker in workers if not worker.held]
    return _start(waiting, idle) if idle else _join(waiting, workers)


def seats_on(device: str, wished: int | None) -> int:
    """How many jobs a worker of this device may hold: as set, else 8 on a GPU and 1 where sharing gains nothing."""
    if wished is not None:
        return wished
    return SEATS_ON_A_GPU if device.startswith("cuda") else 1


def _join(waiting: Sequence[Waiting], workers: Sequence[OpenWorker]) -> Choice | None:
    """The first job that may share a worker with what it holds."""
    for index, job in enumerate(waiting[:LOOK_AHEAD]):
        if job.priority != waiting[0].priority:
            break
        for worker in sorted(workers, key=lambda worker: len(worker.held)):
            if _may_join(job, worker):
                return Choice(job, worker, "it shares the device with others there", tuple(waiting[:index]))
        if job.passed_over >= PATIENCE:
            break
    return None


def _may_join(job: Waiting, worker: OpenWorker) -> bool:
    if job.alone or any(held.alone for held in worker.held):
        return False
    if job.model is None:
        return len(worker.held) < worker.seats
    models = {held.model for held in worker.held}
    if len(worker.held) < worker.seats and models <= {job.model, None}:
        return True
    urgent = all(held.model is not None for held in worker.held) and any(
        job.priority > held.priority for held in worker.held
    )
    has_place = len(worker.held) < worker.seats + URGENT_SEATS
    return urgent and has_place and (job.model in models or job.model in worker.resident)


def _start(waiting: Sequence[Waiting], idle: Sequence[OpenWorker]) -> Choice:
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


def _emptiest(idle: Sequence[OpenWorker]) -> OpenWorker:
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
