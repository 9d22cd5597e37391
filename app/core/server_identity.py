"""Which process a server is, so that another one on the same machine can see for certain that it has died.

A process is named by the machine's start, the namespace in which its number counts, the number, and the moment at which
it began: numbers are given again, the four together are not. Of a server on another machine nothing is known but the
end of its lease.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from app.core.jobs import new_id


@dataclass(frozen=True)
class Identity:
    """A server's own id, and the process that it is."""

    id: str
    place: str
    pid: int
    began: int


def own_identity() -> Identity:
    """A new identity for this process."""
    pid = os.getpid()
    return Identity(new_id(), _place(), pid, _began(pid) or 0)


def is_dead(place: str, pid: int, began: int) -> bool:
    """Whether that process ran here and is gone; False where that cannot be known."""
    return bool(place) and bool(began) and place == _place() and _began(pid) != began


def _place() -> str:
    """This start of the machine and this process's namespace of numbers; empty where the kernel tells neither."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{started} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _began(pid: int) -> int | None:
    """When this process began, in the kernel's ticks; None when there is none, or only its remains."""
    try:
        state, *figures = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in {"Z", "X"} else int(figures[18])
