"""What a training asks of the model that it is for: an editing one has sources, and has not all that others have."""

from typing import Any

from app.core.capability import Door
from app.errors import InvalidRequest

PAIRS_TASK = "step1x-edit"
EDIT_TASKS = ("qwen-edit", PAIRS_TASK)
"""What the models serve that learn edits; those of `PAIRS_TASK` learn nothing else."""
EDIT_SCHEDULER = "Euler"
NOT_FOR_EDITING = ("class_prompt", "train_text_encoder", "snr_gamma")


def check_editing(request: Any, door: Door) -> None:
    """Refuse sources for a model that edits nothing, and of one that edits, what it has not and what lacks.

    The request is a `LoraTrainingRequest`.
    """
    edits = any(door.serves(task) for task in EDIT_TASKS)
    count = len(request.source_images)
    if count and not edits:
        raise InvalidRequest(
            f"{request.model!r} does not edit pictures: leave out source_images.", field="source_images"
        )
    if not count and door.serves(PAIRS_TASK):
        raise InvalidRequest(
            f"{request.model!r} learns edits alone: give source_images, what each of images was made from.",
            field="source_images",
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
