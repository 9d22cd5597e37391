"""One device: how much memory is free, which number format models take on it, and where its noise comes from.

The only file that says `torch.cuda`.
"""

import copy
import ctypes
import gc
from contextlib import suppress

import psutil
import torch

from app.core.model_offload import AUTO, Offload, check_strategy
from app.errors import InvalidRequest
from app.models.machine import FULL_SIZE, cpu_has_bfloat16, ram_free, ram_limit
from app.models.tiers import SHARE_FOR_WORK

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
RAM_FOR_WORK = 1 * 2**30
"""Bytes of a CPU's memory that models leave to the work itself (activations, pictures, the rest of the process)."""


class TorchDevice:
    """A torch device by its name: `cpu`, `cuda:0`; `auto` is the first GPU, else the CPU.

    The ModelCache asks it for bytes (`app.core.model_offload.Device`). `dtype` is what layers compute in; a `precision`
    may say more about how weights are stored. `offload` is None where each model takes what fits. `compiles` asks for
    compiled blocks.
    """

    def __init__(self, name: str, precision: str = AUTO, *, offload: str = AUTO, compiles: bool = False) -> None:
        if name in {"auto", "inline"}:
            name = "cuda:0" if torch.cuda.is_available() else "cpu"
        self.torch_device = torch.device(name)
        if self.torch_device.type == "cuda" and not torch.cuda.is_available():
            raise InvalidRequest(f"The device {name!r} is not there: torch sees no GPU.")
        self.name = str(self.torch_device)
        self.precision = precision
        self.dtype = PRECISIONS.get(precision, torch.float16 if self.keeps_parked else torch.float32)
        self.has_cpu_profile = False
        self.compiles = compiles
        check_strategy(offload, self.torch_device.type)
        self.offload = None if offload == AUTO else Offload(offload)
        if self.keeps_parked:
            # Products of float32 matrices in TF32: the VAE of SDXL, decoded in float32, loses nothing that is seen.
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True

    def for_model(self, bytes: int) -> "TorchDevice":
        """This device as a model of so many bytes of weights is opened on it.

        On a CPU with bfloat16 instructions, models of published size get the CPU profile where the precision leaves
        the format of computing open: bfloat16, channels last, attention by `faster_attention`. Small ones stay in
        float32, the stock pipeline's bits.
        """
        is_free = self.precision not in PRECISIONS
        if not is_free or self.keeps_parked or bytes < FULL_SIZE or not cpu_has_bfloat16():
            return self
        profiled = copy.copy(self)
        profiled.dtype, profiled.has_cpu_profile = torch.bfloat16, True
        return profiled

    @property
    def keeps_parked(self) -> bool:
        """Whether RAM is another memory than the device's."""
        return self.torch_device.type != "cpu"

    def total_bytes(self) -> int:
        """All memory of the device."""
        if self.keeps_parked:
            return torch.cuda.get_device_properties(self.torch_device).total_memory
        return ram_limit()

    def free_bytes(self) -> int:
        """Bytes that models could still take, leaving room for the work itself."""
        if self.keeps_parked:
            free, total = torch.cuda.mem_get_info(self.torch_device)
            reserved = torch.cuda.memory_reserved(self.torch_device)
            unused = reserved - torch.cuda.memory_allocated(self.torch_device)
            return max(0, free + unused - int(total * SHARE_FOR_WORK))
        return max(0, ram_free() - RAM_FOR_WORK)

    def used_bytes(self) -> int:
        """Bytes that this process holds on the device."""
        if self.keeps_parked:
            return torch.cuda.memory_reserved(self.torch_device)
        return psutil.Process().memory_info().rss

    def allocated_bytes(self) -> int:
        """Bytes of it that tensors hold; on a CPU nobody tells them from the rest."""
        return torch.cuda.memory_allocated(self.torch_device) if self.keeps_parked else self.used_bytes()

    def empty_cache(self) -> None:
        """Give freed blocks back to the device; collects first, because modules stand in reference cycles."""
        gc.collect()
        if self.keeps_parked:
            torch.cuda.empty_cache()

    def trim(self) -> None:
        """Give back all that is free, of the device and of this process's own memory (glibc keeps freed pages)."""
        self.empty_cache()
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).malloc_trim(0)

    def is_out_of_memory(self, error: BaseException) -> bool:
        """Whether this error says that memory ran out, on a GPU or on a CPU."""
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            return True
        text = str(error)
        return isinstance(error, RuntimeError) and (
            "can't allocate memory" in text or "not enough memory" in text or "CUDA out of memory" in text
        )

    def generators(self, seed: int, count: int) -> list[torch.Generator]:
        """One noise source for each picture with seeds seed, seed + 1, ... (modulo 2**32).

        They stand on the CPU whatever the device is, so that a seed means one picture on every device.
        """
        return [torch.Generator("cpu").manual_seed((seed + number) % 2**32) for number in range(count)]


def in_bfloat16(device: TorchDevice) -> TorchDevice:
    """The device, computing in bfloat16 where it would in float16: large transformers overflow there."""
    if device.dtype is not torch.float16:
        return device
    own = copy.copy(device)
    own.dtype = torch.bfloat16
    return own


def parked_default() -> int:
    """Half of the machine's memory."""
    return ram_limit() // 2
