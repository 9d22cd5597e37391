"""What a picture's file says about how it was made: a recipe of this service, or the infotext of A1111 and its kin."""

from collections.abc import Mapping
from typing import Any

from app.imaging.infotext import request_from_infotext

OF_AN_INFOTEXT = "text-to-image"
"""The capability whose form shows an infotext: it does not name one, and all that it holds is asked for there."""


def wish_of(metadata: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(capability, fields of its request) as the file says them; ("", {}) where it says nothing.

    A file may come from anywhere: nothing here is checked but its shape.
    """
    recipe = metadata.get("recipe") or {}
    request = recipe.get("request")
    if isinstance(request, Mapping) and request:
        return str(recipe.get("capability")), dict(request)
    if metadata.get("infotext"):
        return OF_AN_INFOTEXT, request_from_infotext(metadata["infotext"])
    return "", {}
