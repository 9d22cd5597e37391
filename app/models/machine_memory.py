"""How much of the machine's memory this process may use: a container's own limit counts (cgroup v2)."""

import os

import psutil


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


def _group_number(name: str) -> int | None:
    """A container's own limit or use; None where there is none."""
    path = os.path.join("/sys/fs/cgroup", name)
    try:
        with open(path, encoding="ascii") as file:
            text = file.read().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
