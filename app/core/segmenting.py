"""What the wishes about one thing of a picture do alike: say where it is, and get its mask."""

from typing import Any, Protocol, Self

from PIL import Image
from pydantic import model_validator

from app.core.capability import Context, Door, Request
from app.core.fields import InitImage
from app.core.segment_fields import Boxes, MaskIndex, NegativePoints, Points, Segmenter, ThingMask
from app.errors import InvalidRequest
from app.imaging.masks import white_box
from app.imaging.prompts import Prompts
from app.imaging.segments import best_of, described, united

SEGMENTER = "segmenter"
NO_WEIGHTS = "grabcut"
"""The segmenter that cuts by colours alone."""


class Pointing(Request):
    """A picture, and where its thing is."""

    image: InitImage
    points: Points = None
    negative_points: NegativePoints = None
    boxes: Boxes = None
    segmenter: Segmenter = "auto"

    @property
    def prompts(self) -> Prompts:
        """Points and boxes as numbers."""
        return Prompts.read(self.points, self.negative_points, self.boxes)

    @model_validator(mode="after")
    def points_go_with_one_box(self) -> Self:
        """Points say more about one thing, and each of several boxes is another one."""
        told = self.prompts
        if told.negative_points and not told:
            raise ValueError("negative_points say what is not meant; points or boxes must say what is")
        if len(told.boxes) > 1 and (told.points or told.negative_points):
            raise ValueError("points go with one box at most")
        return self


class Meaning(Pointing):
    """One thing of a picture, by its mask or by pointing at it."""

    mask_image: ThingMask = None
    mask_index: MaskIndex = None

    @model_validator(mode="after")
    def means_something(self) -> Self:
        """By a mask or by pointing, and not by both."""
        if self.mask_image is None and not self.prompts:
            raise ValueError("say which thing is meant: one of mask_image, points and boxes is needed")
        if self.mask_image is not None and self.prompts:
            raise ValueError("mask_image says which thing is meant already: leave out points and boxes")
        return self


class _Pointed(Protocol):
    image: str
    segmenter: str
    prompts: Prompts


def check_meaning(request: Any, door: Door) -> None:
    """Points and boxes lie in the picture, and a mask has a white part."""
    request.prompts.require_within(door.size(request.image))
    if getattr(request, "mask_image", None) is not None:
        white_box(door.mask(request.mask_image))


def thing_of(request: Any, context: Context, image: Image.Image) -> tuple[Image.Image, dict[str, Any], list[str]]:
    """The mask of what is meant, what an answer says of it, and notes; `InvalidRequest` where nothing was found."""
    if request.mask_image is not None:
        return context.mask(request.mask_image), {}, []
    with context.segmenter(request.segmenter) as segmenter:
        segments = segmenter.segment(image, request.prompts)
    if len(request.prompts.boxes) > 1:
        mask, said = united(segments), {"segmenter": request.segmenter}
    else:
        chosen = best_of(segments, request.mask_index)
        mask = chosen.mask
        said = {"segmenter": request.segmenter, "mask": described(chosen)}
    if mask.getbbox() is None:
        raise InvalidRequest("Nothing was found there: point at another place of the thing, or draw a box around it.",
                             field="points" if request.points else "boxes")  # fmt: skip
    return mask, said, segmenter_notes(request)


def segmenter_notes(request: _Pointed) -> list[str]:
    """What a person should know of the masks."""
    if request.segmenter != NO_WEIGHTS:
        return []
    return [
        "The mask is GrabCut's (OpenCV, no weights): it follows colours and edges, and knows no things. "
        "`eis models pull sam2.1-base-plus` fetches a model that does."
    ]
