"""Repaint the white part of a mask and keep every byte outside it."""

from PIL import Image
from pydantic import model_validator

from app.core.capability import Capability, Context, Door, ModelRequest, Pipeline, Result
from app.core.fields import InitImage, MaskBlur, MaskImage, MaskPadding, Overlay, RepaintStrength
from app.errors import InvalidRequest
from app.imaging.crop import Sheet, box_around, lay_out
from app.imaging.masks import fade_inwards, sees_white, white_box
from app.imaging.sizes import (
    Size,
    largest_area,
    lost_strength,
    of_area,
    require_a_step,
    whole_strength,
    within_area,
)


class InpaintRequest(ModelRequest):
    """A picture, a mask as large, and what to paint where it is white."""

    image: InitImage
    mask_image: MaskImage
    padding_mask_crop: MaskPadding = 32
    strength: RepaintStrength = None
    mask_blur: MaskBlur = 4
    overlay: Overlay = True

    @model_validator(mode="after")
    def fills_strength(self) -> "InpaintRequest":
        """As soon as the steps are known, so that a recipe says which strength a picture was made with."""
        if self.strength is None and self.num_inference_steps is not None:
            object.__setattr__(self, "strength", whole_strength(self.num_inference_steps))
        return self


def check(request: InpaintRequest, door: Door) -> None:
    """There is a step to take, and the mask has a white part."""
    require_a_step(request.num_inference_steps, request.strength)
    white_box(door.mask(request.mask_image))


def run(request: InpaintRequest, context: Context) -> Result:
    """One call for each picture, so that each is the same picture when it is asked for alone."""
    image, mask = context.image(request.image), context.mask(request.mask_image)
    with context.borrow(request.model, task="inpaint", **request.additions()) as pipeline:
        steps = pipeline.count_timesteps(request.num_inference_steps, request.strength)
        context.expect_steps(steps * request.num_images_per_prompt)
        sheet, notes = sheet_for(request, image, mask, pipeline)
        painted = [
            pipeline(
                **request.arguments(),
                image=sheet.image,
                mask_image=sheet.mask,
                width=sheet.image.width,
                height=sheet.image.height,
                strength=request.strength,
                generator=generator,
                callback_on_step_end=context.on_step,
            ).images[0]
            for generator in context.generators(request.seed, request.num_images_per_prompt)
        ]
    if request.overlay:
        alpha = fade_inwards(mask, request.mask_blur)
        images = [sheet.lay_over(image, picture, alpha) for picture in painted]
    else:
        images = [sheet.cut(picture) for picture in painted]
    where = {"box": list(sheet.box), "work_size": list(sheet.scaled)}
    notes += lost_strength(request.num_inference_steps, request.strength)
    return Result(images=images, seeds=request.seeds, data=where, notes=notes)


def sheet_for(
    request: InpaintRequest, image: Image.Image, mask: Image.Image, pipeline: Pipeline
) -> tuple[Sheet, list[str]]:
    """What the model works on: the part around the mask at a size that suits the model, or the whole picture."""
    white, multiple = white_box(mask), pipeline.size_multiple
    if request.padding_mask_crop is not None:
        box = box_around(white, request.padding_mask_crop, image.size, pipeline.default_size)
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


INPAINT = Capability(
    name="inpaint",
    title="Inpaint",
    summary="Repaint the white part of a mask and keep every byte outside it.",
    request=InpaintRequest,
    run=run,
    check=check,
    needs=("inpaint",),
    example={"prompt": "a green apple, white background", "seed": 7},
)
