"""Edits that stay put, for every instruction editor: back to the picture's size and place, and only what changed."""

from typing import Any

from PIL import Image

from app.imaging.align import align, undo_resize
from app.imaging.paste_changes import paste_changes


def stay_put(request: Any, original: Image.Image, edited: Image.Image) -> tuple[Image.Image, dict[str, Any], list[str]]:
    """The edited picture in the original's place, by a wish with `align` and `paste_changes`; what the answer states
    of it, and notes.
    """
    told: dict[str, Any] = {}
    notes: list[str] = []
    image = undo_resize(edited.convert("RGB"), original.size)
    if request.align:
        aligned = align(original, image)
        image, told["alignment"] = aligned.image, aligned.told()
        if not aligned.before.is_sure:
            notes.append("Too little of the picture stayed as it was to say whether it slid; it was left where it is.")
    if request.paste_changes:
        pasted = paste_changes(original, image, grow=request.paste_grow, feather=request.paste_feather)
        image = pasted.image
        told["changed_share"] = round(pasted.share, 4)
        notes += [pasted.note] if pasted.note else []
    return image, told, notes
