"""What optimisers need that a machine may lack: a package, or a device of another kind."""

from collections.abc import Collection, Mapping

from app.errors import DependencyMissing
from app.models.machine import check_package

CUDA = "adamw-8bit"
PACKAGED = (CUDA, "prodigy")


def unserved(devices: Collection[str] | None) -> Mapping[str, Mapping[str, str]]:
    """See `Capability.unserved`: the optimisers that cannot work here, each with what they lack."""
    if devices is None:
        return {}
    lacking: dict[str, str] = {}
    for name in PACKAGED:
        try:
            check_package(name)
        except DependencyMissing as error:
            lacking[name] = error.message.removeprefix(f"{name} ").rstrip(".")
    if not any("cuda" in device for device in devices):
        also = f", and {lacking[CUDA].removeprefix('needs ')}" if CUDA in lacking else ""
        lacking[CUDA] = f"needs a CUDA device, which this service has not{also}"
    return {"optimizer": lacking}
