"""Named places at which a test may let the process die, so that every moment of a job's life can be a power cut.

`EIS_CRASH_AT=point:n` ends the process with `os._exit(137)` when it reaches `point` for the n-th time: no clean-up, no
flush, as kill -9 would. Without the variable a point costs one dictionary look-up.
"""

import os
from collections import Counter

VARIABLE = "EIS_CRASH_AT"

POINTS = (
    "insert",
    "claim",
    "heartbeat",
    "temp_write",
    "fsync",
    "rename",
    "webhook_row",
    "done",
    "webhook_sent",
)
"""In the order in which a job meets them. heartbeat, temp_write, fsync and rename lie in the worker process."""

_reached: Counter[str] = Counter()


def reach(point: str) -> None:
    """Say that the process is at this point; does not return when the variable names it and its count is reached."""
    wish = os.environ.get(VARIABLE)
    if not wish:
        return
    name, _, count = wish.partition(":")
    if name == point:
        _reached[point] += 1
        if _reached[point] == int(count or "1"):
            os._exit(137)
