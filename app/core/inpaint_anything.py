"""Inpaint Anything: point at a thing; its mask is found; then remove it, fill it, or replace what is around it."""

import base64
import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from app.core.capability import Capability, Context, Door, ModelRequest, Result
from app.core.drawing import repaint
from app.core.fields import MaskBlur, MaskPadding, Strength
from app.core.segment_fields import EraserModel, Everything, Inline, InvertMask, MaskGrow
from app.core.segmenting import (
    NO_WEIGHTS,
    SEGMENTER,
    Meaning,
    Pointing,
    check_meaning,
    segmenter_notes,
    thing_of,
)
from app.errors import InvalidRequest, WeightsMissing
from app.imaging import holes
from app.imaging.masks import white_box
from app.imaging.segments import described, made_ready
from app.imaging.sizes import require_a_step

GROUP = "Inpaint Anything"
RING = 7
"""Pixels by which a mask is grown by default: what a tight mask leaves of a thing shows as a halo."""

OPENCV_INPAINT = "opencv-inpaint"
POINT = {"points": "64,64"}


class SegmentRequest(Pointing):
    """A picture and points, boxes, or the wish for everything."""

    everything: Everything = False
    mask_grow: MaskGrow = 0
    mask_blur: MaskBlur = 0
    invert_mask: InvertMask = False
    inline: Inline = False


class RemoveRequest(Meaning):
    """What is removed, and by what."""

    eraser: EraserModel = "auto"
    mask_grow: MaskGrow = RING
    mask_blur: MaskBlur = 4


class FillRequest(ModelRequest, Meaning):
    """What is painted in the thing's place, by a prompt."""

    mask_grow: MaskGrow = RING
    mask_blur: MaskBlur = 4
    padding_mask_crop: MaskPadding = 32
    strength: Strength = 1.0


class ReplaceBackgroundRequest(FillRequest):
    """What is painted around the thing, by a prompt."""

    mask_grow: MaskGrow = 0


def check_segment(request: SegmentRequest, door: Door) -> None:
    """There is something to look for, and something that can."""
    if not request.prompts and not request.everything:
        raise InvalidRequest("Say what to look for: points, boxes, or everything.", field="points")
    if request.prompts and request.everything:
        raise InvalidRequest("everything takes no points and boxes.", field="everything")
    if request.everything and request.segmenter == NO_WEIGHTS:
        raise WeightsMissing(
            "GrabCut must be told where a thing is; `eis models pull sam2.1-base-plus` fetches what finds everything.",
            model="sam2.1-base-plus",
            command="eis models pull sam2.1-base-plus",
        )
    check_meaning(request, door)


def segment(request: SegmentRequest, context: Context) -> Result:
    """The masks as black and white pictures, each as a mask field takes it."""
    image = context.image(request.image)
    with context.segmenter(request.segmenter) as segmenter:
        found = segmenter.everything(image) if request.everything else segmenter.segment(image, request.prompts)
    told: list[dict[str, Any]] = [described(one) for one in found]
    ready = [
        made_ready(one.mask, grow=request.mask_grow, invert=request.invert_mask, blur=request.mask_blur)
        for one in found
    ]
    if request.inline:
        told = [{**said, "mask": data_uri(mask)} for said, mask in zip(told, ready, strict=True)]
    images = [] if request.inline else [mask.convert("RGB") for mask in ready]
    data = {"size": list(image.size), "segmenter": request.segmenter, "masks": told}
    return Result(images=images, data=data, notes=segmenter_notes(request))


def data_uri(mask: Image.Image) -> str:
    """A mask as a PNG of one bit a pixel where that is enough."""
    buffer = io.BytesIO()
    levels = {value for value, count in enumerate(mask.histogram()) if count}
    (mask.convert("1") if levels <= {0, 255} else mask).save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def remove(request: RemoveRequest, context: Context) -> Result:
    """The hole is filled at full resolution, part by part; the mask's edge fades within the ring that it was grown."""
    image = context.image(request.image)
    mask, said, notes = thing_of(request, context, image)
    hole = made_ready(mask, grow=request.mask_grow)
    white_box(hole)
    parts = holes.parts_of(hole)
    context.progress(0, len(parts))
    with context.eraser(request.eraser) as eraser:
        filled = holes.fill(image, hole, parts, eraser, lambda number: context.progress(number, len(parts)))
    removed = image.copy()
    removed.paste(filled, mask=made_ready(hole, blur=request.mask_blur))
    if request.eraser == OPENCV_INPAINT:
        notes.append(
            "Removed by OpenCV's inpainting (Telea's method, no weights): large holes blur. "
            "`eis models pull lama` fetches a model that goes on with textures."
        )
    data = {**said, "eraser": request.eraser, "box": list(white_box(hole)), "parts": len(parts)}
    return Result(images=[removed], data=data, notes=notes)


def check_painting(request: FillRequest, door: Door) -> None:
    """There is a step to take, and the thing is in the picture."""
    require_a_step(request.num_inference_steps, request.strength)
    check_meaning(request, door)


def fill(request: FillRequest, context: Context) -> Result:
    """The thing's place painted anew."""
    return painted(request, context, invert=False)


def replace_background(request: ReplaceBackgroundRequest, context: Context) -> Result:
    """All but the thing painted anew."""
    return painted(request, context, invert=True)


def painted(request: FillRequest, context: Context, *, invert: bool) -> Result:
    """As `inpaint` does, by the mask of the thing or of all around it."""
    image = context.image(request.image)
    mask, said, notes = thing_of(request, context, image)
    hole = made_ready(mask, grow=request.mask_grow, invert=invert)
    sheets, sheet, more = repaint(request, context, image, hole)
    alpha = made_ready(hole, blur=request.mask_blur)
    data: Mapping[str, Any] = {**said, "box": list(sheet.box), "work_size": list(sheet.scaled)}
    images = [sheet.lay_over(image, picture, alpha) for picture in sheets]
    return Result(images=images, seeds=request.seeds, data=dict(data), notes=notes + more)


def _one(name: str, title: str, summary: str, request: type, run: Any, check: Any, **more: Any) -> Capability:
    return Capability(f"inpaint-anything/{name}", title, summary, request, run, check=check, group_title=GROUP, **more)


INPAINT_ANYTHING_REMOVE = _one(
    "remove", "Remove", "Take a thing out of a picture and fill what was behind it.", RemoveRequest, remove,
    check_meaning, additions={"eraser": "erase", SEGMENTER: "segment"}, example=POINT,
)  # fmt: skip
INPAINT_ANYTHING_FILL = _one(
    "fill", "Fill", "Paint something else in a thing's place.", FillRequest, fill, check_painting,
    needs=("inpaint",), additions={SEGMENTER: "segment"}, example={**POINT, "prompt": "a green apple", "seed": 7},
)  # fmt: skip
INPAINT_ANYTHING_BACKGROUND = _one(
    "replace-background", "Replace background", "Keep a thing and paint everything around it anew.",
    ReplaceBackgroundRequest, replace_background, check_painting, needs=("inpaint",),
    additions={SEGMENTER: "segment"}, example={**POINT, "prompt": "blue background", "seed": 7},
)  # fmt: skip
INPAINT_ANYTHING_SEGMENT = _one(
    "segment", "Segment", "Find the masks of what points and boxes mean, with their scores.", SegmentRequest, segment,
    check_segment, additions={SEGMENTER: "segment"}, example=POINT,
)  # fmt: skip
