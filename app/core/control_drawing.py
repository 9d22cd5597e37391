"""Pictures that follow control pictures: from noise, from a picture, or in its masked part, by what a wish brings.

A wish here has `control_image`, `control_type` and `preprocess` (lists of one length), `image`, `mask_image`,
`strength`, `padding_mask_crop`, `mask_blur`, `overlay`, `width`, `height` and `return_maps`.
"""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from app.core.attachments import ControlNet
from app.core.capability import Context, Pipeline, Result
from app.core.control_pictures import Followed, follow, told
from app.core.drawing import draw_each, require_multiple, sheet_for, size_asked_for, size_to_work_at
from app.imaging.crop import Sheet, lay_out, pad_to_multiple
from app.imaging.masks import fade_inwards
from app.imaging.sizes import LARGEST_WORK, Size, lost_strength, of_area, require_pixels

Drawn = tuple[list[Image.Image], list[Followed], list[str]]


def task_of(request: Any) -> str:
    """What a pipeline does for this wish."""
    return "inpaint" if request.mask_image else "image-to-image" if request.image else "text-to-image"


def draw_following(request: Any, context: Context, controls: Sequence[ControlNet]) -> Result:
    """The maps first, at the size that is worked at; then one call for each picture. Maps come after the pictures."""
    task = task_of(request)
    more = request.additions() | {"attachments": controls}
    with context.borrow(request.model, task=task, **more) as pipeline:
        draw = {"inpaint": repainted, "image-to-image": anew, "text-to-image": from_noise}[task]
        images, followed, notes = draw(request, context, pipeline)
    if request.image:
        notes += lost_strength(request.num_inference_steps, request.strength)
    data = {"controls": told([control.model for control in controls], request.control_type, followed)}
    maps = [one.shown for one in followed] if request.return_maps else []
    return Result(images=images + maps, seeds=request.seeds, data=data, notes=notes)


def from_noise(request: Any, context: Context, pipeline: Pipeline) -> Drawn:
    """Pictures in the shape of the first control picture, or of the size that was asked for."""
    own, area = context.image(request.control_image[0]).size, pipeline.default_size[0] * pipeline.default_size[1]
    if request.width or request.height:
        size = require_multiple(size_asked_for(request.width, request.height, own, pipeline.size_multiple), pipeline)
        require_pixels(size, LARGEST_WORK)
    else:
        size = of_area(own, area, pipeline.size_multiple)
    followed = follow_each(request, context, pipeline, size)
    images = draw_each(request, context, pipeline, **handed(followed), width=size[0], height=size[1])
    return images, followed, []


def anew(request: Any, context: Context, pipeline: Pipeline) -> Drawn:
    """The whole picture anew in part."""
    image = context.image(request.image)
    size, notes = size_to_work_at(request.width, request.height, image.size, pipeline)
    followed = follow_each(request, context, pipeline, size)
    start = pad_to_multiple(resized(image, size), pipeline.size_multiple)
    images = draw_each(request, context, pipeline, **handed(followed), image=start, strength=request.strength)
    return [picture.crop((0, 0, *size)) for picture in images], followed, notes


def repainted(request: Any, context: Context, pipeline: Pipeline) -> Drawn:
    """The masked part anew; every byte outside the mask stays."""
    image, mask = context.image(request.image), context.mask(request.mask_image)
    sheet, notes = sheet_for(image, mask, request.padding_mask_crop, pipeline)
    followed = follow_each(request, context, pipeline, image.size, sheet)
    width, height = sheet.image.size
    painted = draw_each(
        request,
        context,
        pipeline,
        **handed(followed),
        image=sheet.image,
        mask_image=sheet.mask,
        width=width,
        height=height,
        strength=request.strength,
    )
    if not request.overlay:
        return [sheet.cut(picture) for picture in painted], followed, notes
    alpha = fade_inwards(mask, request.mask_blur)
    return [sheet.lay_over(image, picture, alpha) for picture in painted], followed, notes


def handed(followed: list[Followed]) -> dict[str, Any]:
    """What a call is told of the control pictures."""
    return {"control_image": [one.conditioning for one in followed]}


def follow_each(
    request: Any, context: Context, pipeline: Pipeline, size: Size, sheet: Sheet | None = None
) -> list[Followed]:
    """What is followed of each control picture: whole at this size, or the part of it that a sheet is of."""

    def placed(control: Image.Image) -> Image.Image:
        whole = resized(control, size)
        if sheet is None:
            return pad_to_multiple(whole, pipeline.size_multiple)
        mask = Image.new("L", size)
        return lay_out(whole, mask, sheet.box, sheet.scaled, multiple=pipeline.size_multiple).image

    mask = sheet.mask if sheet else None
    return [
        follow(kind, way, context.image(reference), placed, context, mask)
        for kind, way, reference in zip(request.control_type, request.preprocess, request.control_image, strict=True)
    ]


def resized(image: Image.Image, size: Size) -> Image.Image:
    """The picture at this size, as diffusers resizes control pictures."""
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
