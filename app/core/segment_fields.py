"""The vocabulary of wishes about things in a picture: where they are, and what becomes of their mask."""

from typing import Annotated

from app.core.fields import ImageReference, field

_POINTS = r"^\s*\d+(\.\d+)?\s*,\s*\d+(\.\d+)?([\s;]+\d+(\.\d+)?\s*,\s*\d+(\.\d+)?){0,63}\s*$"
_BOX = r"\d+(\.\d+)?(\s*,\s*\d+(\.\d+)?){3}"

Points = Annotated[
    str | None,
    field(
        "Points on the thing, as x,y in the picture's pixels; several with ; between them. null: none.",
        kind="points",
        pattern=_POINTS,
        max_length=2000,
    ),
]
NegativePoints = Annotated[
    str | None,
    field(
        "Points that are not part of the thing, written like `points`; null: none.",
        kind="points",
        pattern=_POINTS,
        max_length=2000,
    ),
]
Boxes = Annotated[
    str | None,
    field(
        "Boxes around things, as left,top,right,bottom; several with ; between them are several things. null: none.",
        kind="points",
        pattern=rf"^\s*{_BOX}([\s;]+{_BOX}){{0,31}}\s*$",
        max_length=2000,
    ),
]
Everything = Annotated[bool, field("Look for every thing in the picture, without points; SAM only.")]
Segmenter = Annotated[
    str,
    field(
        "Id of what makes masks of points and boxes; `auto` is the best that is installed, GrabCut where none is.",
        kind="addition",
        min_length=1,
        max_length=200,
    ),
]
EraserModel = Annotated[
    str,
    field(
        "Id of what fills the hole; `auto` is the best that is installed, OpenCV's inpainting where none is.",
        kind="addition",
        min_length=1,
        max_length=200,
    ),
]
ThingMask = Annotated[
    ImageReference | None,
    field(
        "The thing as a mask, as large as the picture and white where the thing is; null: by points or boxes.",
        kind="mask",
    ),
]
MaskIndex = Annotated[
    int | None,
    field("Which of the masks that points or one box give, from 0; null: the one of the best score.", ge=0, le=2),
]
MaskGrow = Annotated[
    int, field("Pixels by which the mask is grown before it is used; negative: it shrinks.", ge=-64, le=64)
]
InvertMask = Annotated[bool, field("Turn the mask round: white is all but the thing.")]
Inline = Annotated[
    bool, field("Answer the masks inside the answer, as PNGs in data URIs, and keep no pictures of them.")
]
# fmt: skip
