"""From a control picture to what a ControlNet follows: a map that is there already, or one that is drawn of it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from app.core.capability import Context
from app.errors import InvalidRequest
from app.imaging import control_maps
from app.imaging.known_maps import is_dark_on_white, is_map

WITH_WEIGHTS = {
    "depth": "depth-map",
    "normal": "depth-map",
    "segmentation": "segmentation-map",
    "openpose": "pose-map",
}
"""Type of map -> the task of the model that draws it."""

LINES = {"lineart", "lineart_anime", "scribble", "softedge", "canny"}


@dataclass(frozen=True)
class ControlPicture:
    """A stored picture, what it is a map of, or is made one of, and whether a map is drawn (auto, on, off)."""

    reference: str
    control_type: str
    preprocess: str


@dataclass(frozen=True, eq=False)
class Followed:
    """What a pipeline is handed of a control picture, and the same as a picture to look at."""

    conditioning: Any
    shown: Image.Image
    how: str


def draw_map(
    kind: str,
    image: Image.Image,
    context: Context,
    *,
    low: int = control_maps.CANNY_LOW,
    high: int = control_maps.CANNY_HIGH,
) -> Image.Image:
    """The map of this type of a picture, as large."""
    if kind == "canny":
        return control_maps.canny(image, low, high)
    if kind in control_maps.DRAWN:
        return control_maps.DRAWN[kind](image)
    with context.map_maker(WITH_WEIGHTS[kind]) as maker:
        return maker.map(image, kind)


def follow(
    picture: ControlPicture,
    placed: Callable[[Image.Image], Image.Image],
    context: Context,
    mask: Image.Image | None = None,
) -> Followed:
    """What is followed of one control picture; `placed` brings it to the size and part that is worked on.

    `mask` is that part's: the type `inpaint` needs it.
    """
    kind, preprocess, control = picture.control_type, picture.preprocess, context.image(picture.reference)
    part = placed(control)
    if kind == "inpaint" and preprocess != "off":
        if mask is None:
            raise InvalidRequest("The control type inpaint follows a picture with a mask.", field="mask_image")
        conditioning = control_maps.inpaint(part, mask)
        return Followed(conditioning, control_maps.shown(conditioning), "masked")
    if preprocess == "off":
        return Followed(part, part, "as it is")
    if preprocess == "auto":
        if kind in LINES and is_dark_on_white(control):
            part = placed(control_maps.ink(control))
            return Followed(part, part, "inverted")
        if is_map(kind, control):
            return Followed(part, part, "as it is")
    drawn = draw_map(kind, part, context)
    return Followed(drawn, drawn, "drawn")


def told(
    models: Sequence[str], pictures: Sequence[ControlPicture], followed: Sequence[Followed]
) -> list[dict[str, str]]:
    """For the answer's data: which network followed what."""
    return [
        {"control_type": picture.control_type, "controlnet_model": model, "map": one.how}
        for picture, model, one in zip(pictures, models, followed, strict=True)
    ]
