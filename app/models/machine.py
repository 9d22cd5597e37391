"""What this machine has: the memory that this process may use, and what its processor can.

A container's own limit of memory counts (cgroup v2).
"""

import functools
import os
from importlib.util import find_spec
from pathlib import Path

import psutil

from app.errors import DependencyMissing

FULL_SIZE = 10**9
"""Bytes of weights from which a model is of published size, and a CPU's bfloat16 worth its rounding."""


def ram_limit() -> int:
    """All memory that there is for this process."""
    limit = psutil.virtual_memory().total
    group = _group_number("memory.max")
    return min(limit, group) if group is not None else limit


def ram_free() -> int:
    """What of it nobody uses."""
    free = psutil.virtual_memory().available
    limit, used = _group_number("memory.max"), _group_number("memory.current")
    return min(free, limit - used) if limit is not None and used is not None else free


@functools.cache
def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies matrices of bfloat16 (AVX512-BF16 or AMX)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


PACKAGES = {
    "int8": ("torchao", "torchao", "quant"),
    "int4": ("optimum.quanto", "optimum-quanto", "quant"),
    "gguf": ("gguf", "gguf", "quant"),
    "adamw-8bit": ("bitsandbytes", "bitsandbytes", "train"),
    "prodigy": ("prodigyopt", "prodigyopt", "train"),
}
"""For each number format, file format or optimiser that needs a package of its own: the module, the name under which it
is installed, and the extra that brings it."""


def check_package(name: str) -> None:
    """`DependencyMissing` where the package that this format or optimiser needs is not installed."""
    module, package, extra = PACKAGES.get(name, ("", "", ""))
    if module and not _is_installed(module):
        raise DependencyMissing(
            f"{name} needs the package {package}: pip install 'edit-image-service[{extra}]'.",
            package=package,
            extra=extra,
        )


def _is_installed(module: str) -> bool:
    """Whether a module could be imported; asks without importing more than the packages around it."""
    try:
        found = find_spec(module)
    except ModuleNotFoundError:
        return False
    # A folder that an uninstalled package left behind is found too; it has no origin.
    return found is not None and found.origin is not None


def _group_number(name: str) -> int | None:
    """A container's own limit or use; None where there is none."""
    path = os.path.join("/sys/fs/cgroup", name)
    try:
        with open(path, encoding="ascii") as file:
            text = file.read().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
