"""What a training needs that may be lacking: what its optimiser works with, and a model that does what it says."""

from collections.abc import Collection, Mapping
from typing import Any

from app.errors import DependencyMissing, InvalidRequest
from app.models.machine import check_package

CUDA = "adamw-8bit"
PACKAGED = (CUDA, "prodigy")
EDIT_SCHEDULER = "Euler"
NOT_FOR_EDITING = ("class_prompt", "train_text_encoder", "snr_gamma")


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


def check_editing(request: Any, edits: bool) -> None:
    """Refuse sources for a model that edits nothing; and of one that `edits`, what it has not.

    The request is a `LoraTrainingRequest`.
    """
    count = len(request.source_images)
    if count and not edits:
        raise InvalidRequest(
            f"{request.model!r} does not edit pictures: leave out source_images.", field="source_images"
        )
    if count not in {0, len(request.images)}:
        raise InvalidRequest(f"There are {count} sources for {len(request.images)} pictures.", field="source_images")
    if not edits:
        return
    for name in NOT_FOR_EDITING:
        if getattr(request, name):
            raise InvalidRequest(f"{name} is for SD 1.5 and SDXL: leave it out for this model.", field=name)
    if request.scheduler not in {None, EDIT_SCHEDULER}:
        raise InvalidRequest("This model draws with its own schedule: leave out scheduler.", field="scheduler")
