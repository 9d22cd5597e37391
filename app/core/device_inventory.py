"""The devices of this machine as they are now: name, memory, load, temperature and tier. No torch.

CUDA is read through NVIDIA's management library, which counts by the PCI bus; workers are told to count the same way
(CUDA_DEVICE_ORDER), and CUDA_VISIBLE_DEVICES narrows and orders both. A figure that a driver does not give is None,
never a guess. A thread takes a sample every two seconds; whoever asks reads the last one and never waits for a driver.
"""

import ctypes
import functools
import logging
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from app.core.simulated_devices import SimulatedDevice
from app.errors import InvalidRequest
from app.models.machine import ram_free, ram_limit
from app.models.tiers import Tier, tier_of

logger = logging.getLogger(__name__)

INLINE = "inline"
SECONDS_BETWEEN_SAMPLES = 2.0
DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")
CPU_SENSORS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")

Kind = Literal["cuda", "cpu", "mps"]


@dataclass(frozen=True)
class Reading:
    """One device at one moment. Bytes, percent, degrees Celsius; None is what nobody could tell.

    `compute` orders devices by speed where nothing was measured: cores times megahertz.
    """

    device: str
    kind: Kind
    name: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    load_percent: float | None = None
    temperature: float | None = None
    compute: float | None = None
    simulated: bool = False

    @property
    def tier(self) -> Tier | None:
        """Its class by memory; None for a GPU whose memory nobody could tell."""
        if self.kind == "cpu":
            return Tier.CPU
        return None if self.total_bytes is None else tier_of(self.total_bytes)


@functools.cache
def management_library() -> Any:
    """The module pynvml, or None on a Linux without NVIDIA's library: reading it takes a tenth of the start there."""
    if sys.platform == "linux":
        try:
            ctypes.CDLL("libnvidia-ml.so.1")
        except OSError:
            return None
    import pynvml

    return pynvml


class Nvml:
    """The CUDA devices that a worker would see, in its order. `library` has pynvml's functions."""

    def __init__(self, library: Any = None) -> None:
        self._nvml = library or management_library()

    def count(self) -> int | None:
        """How many a worker sees; None where the library cannot be asked."""
        return self._with_handles(len)

    def readings(self) -> list[Reading] | None:
        """Every visible device; None where the library cannot be asked."""
        return self._with_handles(lambda handles: [self._read(index, handle) for index, handle in enumerate(handles)])

    def _with_handles(self, use: Callable[[list[Any]], Any]) -> Any:
        if self._nvml is None:
            return None
        try:
            self._nvml.nvmlInit()
        except self._nvml.NVMLError:
            return None
        try:
            return use(self._visible())
        except self._nvml.NVMLError:
            return None
        finally:
            self._nvml.nvmlShutdown()

    def _visible(self) -> list[Any]:
        """Handles as CUDA_VISIBLE_DEVICES names them: numbers or (beginnings of) UUIDs, up to the first unknown one."""
        everything = [self._nvml.nvmlDeviceGetHandleByIndex(n) for n in range(self._nvml.nvmlDeviceGetCount())]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        if visible is None:
            return everything
        found: list[Any] = []
        for name in (part.strip() for part in visible.split(",")):
            handle = self._named(name, everything)
            if handle is None:
                break
            found.append(handle)
        return found

    def _named(self, name: str, everything: Sequence[Any]) -> Any:
        if name.isdecimal():
            return everything[int(name)] if int(name) < len(everything) else None
        if name.startswith("MIG-"):
            with suppress(self._nvml.NVMLError):
                return self._nvml.nvmlDeviceGetHandleByUUID(name)
        if name.startswith("GPU-"):
            return next((h for h in everything if _text(self._nvml.nvmlDeviceGetUUID(h)).startswith(name)), None)
        return None

    def _read(self, index: int, handle: Any) -> Reading:
        memory = self._ask(self._nvml.nvmlDeviceGetMemoryInfo, handle)
        rates = self._ask(self._nvml.nvmlDeviceGetUtilizationRates, handle)
        cores = self._ask(self._nvml.nvmlDeviceGetNumGpuCores, handle)
        clock = self._ask(self._nvml.nvmlDeviceGetMaxClockInfo, handle, self._nvml.NVML_CLOCK_SM)
        name = self._ask(self._nvml.nvmlDeviceGetName, handle)
        return Reading(
            f"cuda:{index}",
            "cuda",
            _text(name) if name is not None else "NVIDIA GPU",
            total_bytes=memory.total if memory else None,
            free_bytes=memory.free if memory else None,
            load_percent=float(rates.gpu) if rates else None,
            temperature=self._ask(self._nvml.nvmlDeviceGetTemperature, handle, self._nvml.NVML_TEMPERATURE_GPU),
            compute=float(cores * clock) if cores and clock else None,
        )

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """One figure; None where this driver or device does not give it."""
        try:
            return function(*arguments)
        except (self._nvml.NVMLError, ctypes.ArgumentError):
            return None


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def count_cuda_devices(nvml: Nvml | None = None) -> int:
    """How many CUDA devices a worker would see: by the library, or by what the driver shows, narrowed likewise."""
    counted = (nvml or Nvml()).count()
    if counted is not None:
        return counted
    present = len(list(DRIVER_FOLDER.iterdir())) if DRIVER_FOLDER.is_dir() else 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    named = 0
    for name in visible.split(","):
        if name.strip() in {"", "-1"}:
            break
        named += 1
    return min(present, named)


def resolve_devices(wished: Sequence[str], simulated: Sequence[SimulatedDevice] = ()) -> tuple[str, ...]:
    """The devices to run workers on: `auto` becomes every CUDA device, or the CPU where there is none.

    Where devices are simulated, they are all the CUDA devices that there are.
    """
    devices: list[str] = []
    for name in wished:
        if name == "auto":
            found = [device.device for device in simulated] or [f"cuda:{n}" for n in range(count_cuda_devices())]
            devices += found or ["cpu"]
        elif name in {"cpu", INLINE} or (name.startswith("cuda:") and name[5:].isdigit()):
            devices.append(name)
        elif name == "cuda":
            devices.append("cuda:0")
        else:
            raise InvalidRequest(f"There is no device {name[:40]!r}: devices are auto, cpu, cuda:0, ..., inline.")
    if not devices:
        raise InvalidRequest("No device is named: devices are auto, cpu, cuda:0, ..., inline.")
    known = {device.device for device in simulated}
    for name in devices:
        if simulated and name.startswith("cuda") and name not in known:
            raise InvalidRequest(f"EIS_FAKE_DEVICES describes no device {name!r}, which EIS_DEVICES names.")
    return tuple(dict.fromkeys(devices))


def read_cpu(device: str = "cpu") -> Reading:
    """The processor and the memory that this process may use."""
    frequency = psutil.cpu_freq()
    cores = psutil.cpu_count() or 1
    return Reading(
        device,
        "cpu",
        _cpu_name(),
        total_bytes=ram_limit(),
        free_bytes=ram_free(),
        load_percent=psutil.cpu_percent(),
        temperature=_cpu_temperature(),
        compute=cores * (frequency.max or frequency.current) if frequency else None,
    )


@functools.cache
def _cpu_name() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpu_temperature() -> float | None:
    sensors = psutil.sensors_temperatures() if hasattr(psutil, "sensors_temperatures") else {}
    return next((max(s.current for s in sensors[name]) for name in CPU_SENSORS if sensors.get(name)), None)


def read_mps() -> Reading | None:
    """Apple's GPU, which shares the machine's memory; None on any other machine. macOS tells its load to nobody."""
    if platform.system() != "Darwin" or platform.machine() != "arm64":
        return None
    memory = psutil.virtual_memory()
    return Reading("mps", "mps", f"{_apple_chip()} GPU", total_bytes=memory.total, free_bytes=memory.available)


@functools.cache
def _apple_chip() -> str:
    command = ["/usr/sbin/sysctl", "-n", "machdep.cpu.brand_string"]
    return subprocess.run(command, capture_output=True, text=True, timeout=5, check=False).stdout.strip() or "Apple"


class Inventory:
    """What each device of the service was like at the last sample. `nvml` may be another one for tests."""

    def __init__(
        self, devices: Sequence[str], simulated: Sequence[SimulatedDevice] = (), nvml: Nvml | None = None
    ) -> None:
        self._devices = tuple(devices)
        self._simulated = {device.device: device for device in simulated}
        self._nvml = nvml or Nvml()
        self._sampled: dict[str, Reading] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="devices", daemon=True)

    def start(self) -> None:
        """Take samples from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Take no more."""
        self._stopping.set()

    def readings(self) -> dict[str, Reading]:
        """The last sample by device; the first caller takes it."""
        if not self._sampled:
            self._sample()
        return self._sampled

    def _run(self) -> None:
        while not self._stopping.wait(SECONDS_BETWEEN_SAMPLES):
            try:
                self._sample()
            except Exception:
                # A driver that is being replaced, or whatever else: the last sample stands until one succeeds again.
                logger.exception("the devices could not be read")

    def _sample(self) -> None:
        real = [name for name in self._devices if name not in self._simulated]
        gpus: dict[str, Reading] = {}
        if any(name.startswith("cuda") or name == INLINE for name in real) and not self._simulated:
            gpus = {reading.device: reading for reading in self._nvml.readings() or ()}
        found = {name: self._reading(name, gpus) for name in self._devices}
        if real and not gpus and (apple := read_mps()) is not None:
            found[apple.device] = apple
        # One assignment: who reads meanwhile has the old sample or the new one, whole.
        self._sampled = found

    def _reading(self, name: str, gpus: dict[str, Reading]) -> Reading:
        if name in self._simulated:
            told = self._simulated[name]
            return Reading(
                name,
                "cuda",
                told.name,
                total_bytes=told.total_bytes,
                free_bytes=told.total_bytes,
                load_percent=float(told.load_percent),
                temperature=told.temperature,
                compute=float(told.total_bytes),
                simulated=True,
            )
        if name == INLINE:
            return replace(gpus["cuda:0"], device=name) if "cuda:0" in gpus else read_cpu(name)
        if name == "cpu":
            return read_cpu()
        return gpus.get(name) or Reading(name, "cuda", "NVIDIA GPU")
