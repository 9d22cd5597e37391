"""Devices that are only described (EIS_FAKE_DEVICES), for tests and demonstrations: their workers run on the CPU.

    cuda:0=RTX 4090:24,cuda:1=RTX 3060:12:40:61

A device's name, what it is called, its memory in GB, and, if wished, its load in percent and its temperature.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from app.errors import InvalidRequest

GIB = 2**30
MOST_GB = 1024
PATTERN = re.compile(
    r"(?P<device>cuda:[0-9]{1,2})=(?P<name>[^:=,]{1,60}):(?P<gb>[0-9]{1,4}(?:\.[0-9]{1,3})?)"
    r"(?::(?P<load>[0-9]{1,3})(?::(?P<celsius>[0-9]{1,3}))?)?"
)


@dataclass(frozen=True)
class SimulatedDevice:
    """One described device. Its load and temperature are always what was written."""

    device: str
    name: str
    total_bytes: int
    load_percent: int = 0
    temperature: float | None = None


def read_devices(described: Sequence[str]) -> tuple[SimulatedDevice, ...]:
    """What the setting describes; `InvalidRequest` shows how it is written."""
    found: dict[str, SimulatedDevice] = {}
    for text in described:
        match = PATTERN.fullmatch(text.strip())
        if match is None:
            raise _wrong(f"{text[:80]!r} describes no device")
        gigabytes, load = float(match["gb"]), int(match["load"] or 0)
        if not 0 < gigabytes <= MOST_GB:
            raise _wrong(f"{match['device']} has above 0 and at most {MOST_GB} GB")
        if load > 100:
            raise _wrong(f"{match['device']} has a load of at most 100 percent")
        if match["device"] in found:
            raise _wrong(f"{match['device']} is described twice")
        celsius = float(match["celsius"]) if match["celsius"] else None
        found[match["device"]] = SimulatedDevice(
            match["device"], match["name"].strip(), int(gigabytes * GIB), load, celsius
        )
    return tuple(found.values())


def _wrong(what: str) -> InvalidRequest:
    return InvalidRequest(
        f"EIS_FAKE_DEVICES: {what}; write DEVICE=NAME:GB[:LOAD[:CELSIUS]], as in "
        "cuda:0=RTX 4090:24,cuda:1=RTX 3060:12:40:61."
    )
