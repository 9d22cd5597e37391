"""What a training asks of the model that it is for: an editing one has sources, and has not all that others have."""

from typing import Any

from app.errors import InvalidRequest

EDIT_SCHEDULER = "Euler"
NOT_FOR_EDITING = ("class_prompt", "train_text_encoder", "snr_gamma")


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
