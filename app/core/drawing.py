"""What several capabilities do alike: the size to work at, and one call for each picture of a wish."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from app.core.attachments import Attachment
from app.core.capability import Context, Door, ModelRequest, Pipeline
from app.errors import InvalidRequest
from app.imaging.crop import Sheet, box_around, lay_out, pad_to_multiple
from app.imaging.masks import sees_white, white_box
from app.imaging.sizes import (
    LARGEST_WORK,
    Size,
    largest_area,
    lost_strength,
    of_area,
    require_a_step,
    require_pixels,
    round_near,
    within_area,
)


def draw_each(
    request: ModelRequest, context: Context, pipeline: Pipeline, *, rounds: int = 1, **arguments: Any
) -> list[Image.Image]:
    """The wish's pictures, one call for each, so that each is the same picture when it is asked for alone.

    `rounds` is how often the run does this.
    """
    steps = pipeline.count_timesteps(request.num_inference_steps, arguments.get("strength"))
    context.expect_steps(steps * request.num_images_per_prompt * rounds)
    arguments = request.arguments() | arguments | {"callback_on_step_end": context.on_step}
    return [
        pipeline(**arguments, generator=generator).images[0]
        for generator in context.generators(request.seed, request.num_images_per_prompt)
    ]


def require_work(request: Any, door: Door) -> None:
    """`InvalidRequest` where a wish's strength leaves no step to take, or its mask has no white part."""
    require_a_step(request.num_inference_steps, request.strength)
    if getattr(request, "mask_image", None) is not None:
        white_box(door.mask(request.mask_image))


def make_anew(
    request: Any, context: Context, image: Image.Image, attachments: Sequence[Attachment] = ()
) -> tuple[list[Image.Image], list[str]]:
    """The whole picture anew in part, by a wish with `strength`, `width` and `height`, and what to say of it."""
    more = request.additions() | {"attachments": attachments}
    with context.borrow(request.model, task="image-to-image", **more) as pipeline:
        size, notes = size_to_work_at(request.width, request.height, image.size, pipeline)
        scaled = image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
        start = pad_to_multiple(scaled, pipeline.size_multiple)
        images = draw_each(request, context, pipeline, image=start, strength=request.strength)
    notes += lost_strength(request.num_inference_steps, request.strength)
    return [picture.crop((0, 0, *size)) for picture in images], notes


def repaint(
    request: Any, context: Context, image: Image.Image, mask: Image.Image, attachments: Sequence[Attachment] = ()
) -> tuple[list[Image.Image], Sheet, list[str]]:
    """The part around the white of a mask, painted anew by a wish with `strength` and `padding_mask_crop`.

    What comes back is the model's own picture of the sheet; `Sheet.lay_over` brings it into its place.
    """
    more = request.additions() | {"attachments": attachments}
    with context.borrow(request.model, task="inpaint", **more) as pipeline:
        sheet, notes = sheet_for(image, mask, request.padding_mask_crop, pipeline)
        painted = paint_sheet(request, context, pipeline, sheet)
    notes += lost_strength(request.num_inference_steps, request.strength)
    return painted, sheet, notes


def paint_sheet(request: Any, context: Context, pipeline: Pipeline, sheet: Sheet) -> list[Image.Image]:
    """The model's own pictures of a sheet, by a wish with `strength`."""
    return draw_each(
        request,
        context,
        pipeline,
        image=sheet.image,
        mask_image=sheet.mask,
        width=sheet.image.width,
        height=sheet.image.height,
        strength=request.strength,
    )


def size_for(width: int | None, height: int | None, pipeline: Pipeline) -> Size:
    """(width, height) as asked for, or the model's own."""
    size = (width or pipeline.default_size[0], height or pipeline.default_size[1])
    return require_multiple(size, pipeline)


def require_multiple(size: Size, pipeline: Pipeline) -> Size:
    """The size itself; `InvalidRequest` where the model cannot take it."""
    multiple = pipeline.size_multiple
    if any(side % multiple for side in size):
        raise InvalidRequest(
            f"width and height must be multiples of {multiple} for this model; got {size[0]}x{size[1]}."
        )
    return size


def size_asked_for(width: int | None, height: int | None, own: Size, multiple: int) -> Size:
    """The width and height of a wish; a side that it leaves out follows the picture's shape."""
    width = width or round_near(own[0] * height / own[1], multiple)
    return width, height or round_near(own[1] * width / own[0], multiple)


def size_to_work_at(width: int | None, height: int | None, own: Size, pipeline: Pipeline) -> tuple[Size, list[str]]:
    """The size asked for, or the picture's own as far as the model works well at it, and what to say of it."""
    if width or height:
        size = require_multiple(size_asked_for(width, height, own, pipeline.size_multiple), pipeline)
        require_pixels(size, LARGEST_WORK)
        return size, []
    size = within_area(own, largest_area(pipeline.default_size))
    if size == own:
        return own, []
    return size, [
        f"The picture of {own[0]}x{own[1]} was scaled to {size[0]}x{size[1]}, the most that this model works well at; "
        "width and height ask for another size."
    ]


def sheet_for(
    image: Image.Image, mask: Image.Image, padding: int | None, pipeline: Pipeline
) -> tuple[Sheet, list[str]]:
    """What a model repaints of a picture: the part around the mask at a size that suits it, or the whole picture."""
    white, multiple = white_box(mask), pipeline.size_multiple
    if padding is not None:
        box = box_around(white, padding, image.size, pipeline.default_size)
        own = (box[2] - box[0], box[3] - box[1])
        scaled = size_for_part(own, pipeline)
        sheet = lay_out(image, mask, box, scaled, multiple=multiple, cover=True)
        if own[0] * own[1] <= largest_area(pipeline.default_size):
            return sheet, []
        return sheet, [
            f"The part of {own[0]}x{own[1]} around the mask was worked on at {scaled[0]}x{scaled[1]}, the most that "
            "this model works well at; smaller masks, one after the other, keep finer detail."
        ]
    size = within_area(image.size, largest_area(pipeline.default_size))
    sheet = lay_out(image, mask, (0, 0, *image.size), size, multiple=multiple)
    if not sees_white(sheet.mask, multiple):
        raise InvalidRequest(
            "The mask is too thin to be seen in the whole picture: padding_mask_crop works on its part alone.",
            field="padding_mask_crop",
        )
    if size == image.size:
        return sheet, []
    return sheet, [
        f"The picture of {image.width}x{image.height} was worked on at {size[0]}x{size[1]}, the most that this model "
        "works well at; padding_mask_crop works on the part around the mask alone, in finer detail."
    ]


def size_for_part(own: Size, pipeline: Pipeline) -> Size:
    """A small part is enlarged to the model's own area; a larger one stays as it is, as far as the model works well."""
    model_area = pipeline.default_size[0] * pipeline.default_size[1]
    if own[0] * own[1] < model_area:
        return of_area(own, model_area, pipeline.size_multiple)
    return within_area(own, largest_area(pipeline.default_size))
