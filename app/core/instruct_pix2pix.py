"""InstructPix2Pix: change a picture by saying what to change; in a masked part, by several instructions, on a grid."""

from collections.abc import Iterator
from itertools import product
from typing import Any

from PIL import Image
from pydantic import model_validator

from app.core import edit_fields as fields
from app.core.capability import Capability, Context, Door, ModelRequest, Pipeline, Result
from app.core.control_fields import PartMask
from app.core.drawing import sheet_for, size_asked_for, size_to_work_at
from app.core.fields import MaskBlur, NewHeight, NewWidth
from app.core.staying_put import stay_put
from app.errors import InvalidRequest
from app.imaging.crop import Sheet, pad_to_multiple
from app.imaging.grid import grid_of
from app.imaging.masks import fade_inwards, white_box
from app.imaging.merging import merged
from app.imaging.sizes import LARGEST_WORK, Size, require_pixels

MOST_PICTURES = 16


class InstructRequest(ModelRequest):
    """A picture, and what to change about it."""

    prompt: fields.Instruction
    image: fields.EditedImage
    instructions: fields.MoreInstructions = ()
    image_guidance_scale: fields.ImageGuidance = 1.5
    guidance_scales: fields.GuidanceScales = ()
    image_guidance_scales: fields.ImageGuidanceScales = ()
    mask_image: PartMask = None
    padding_mask_crop: fields.WholePadding = None
    mask_blur: MaskBlur = 4
    width: NewWidth = None
    height: NewHeight = None
    align: fields.Align = False
    paste_changes: fields.PasteChanges = False
    paste_grow: fields.PasteGrow = 8
    paste_feather: fields.PasteFeather = 8

    @model_validator(mode="after")
    def is_not_too_much(self) -> "InstructRequest":
        """Pictures of a grid count too."""
        count = len(self.pairs) * self.num_images_per_prompt
        if count > MOST_PICTURES:
            raise ValueError(
                f"these scales and num_images_per_prompt ask for {count} pictures; at most {MOST_PICTURES}"
            )
        return self

    @property
    def pairs(self) -> list[tuple[float | None, float]]:
        """Each guidance_scale with each image_guidance_scale, row by row of the grid."""
        return list(
            product(
                self.guidance_scales or (self.guidance_scale,),
                self.image_guidance_scales or (self.image_guidance_scale,),
            )
        )

    @property
    def all_instructions(self) -> tuple[str, ...]:
        """The instructions in their order."""
        return (self.prompt, *self.instructions)


def check(request: InstructRequest, door: Door) -> None:
    """The mask has a white part, and the size has no more pixels than a model makes."""
    if request.mask_image:
        white_box(door.mask(request.mask_image))
        if request.width or request.height:
            raise InvalidRequest("A masked picture keeps its size: leave out width and height.", field="width")
        if request.align or request.paste_changes:
            raise InvalidRequest("A mask keeps all around it: leave out align and paste_changes.", field="align")
    elif (request.width or request.height) and door.size_multiple:
        own = door.size(request.image)
        require_pixels(size_asked_for(request.width, request.height, own, door.size_multiple), LARGEST_WORK)


def run(request: InstructRequest, context: Context) -> Result:
    """Every pair of scales, every seed, every instruction: one call each, always on the picture as it was given."""
    image = context.image(request.image)
    mask = context.mask(request.mask_image) if request.mask_image else None
    with context.borrow(request.model, task="instruct-pix2pix", **request.additions()) as pipeline:
        sheet, size, notes = worked_on(request, image, mask, pipeline)
        start = sheet.image if sheet else pad_to_multiple(resized(image, size), pipeline.size_multiple)
        calls = len(request.pairs) * request.num_images_per_prompt * len(request.all_instructions)
        context.expect_steps(pipeline.count_timesteps(request.num_inference_steps) * calls)
        edits = [list(edits_of(request, context, pipeline, start, *pair)) for pair in request.pairs]
    images, data = [], {}
    for whole in (merged(start, instructed) for each_seed in edits for instructed in each_seed):
        if sheet is not None:
            images.append(sheet.lay_over(image, whole, fade_inwards(mask, request.mask_blur)))
        elif not (request.align or request.paste_changes):
            images.append(whole.crop((0, 0, *size)))
        else:
            is_sized = request.width or request.height
            kept, told, more = stay_put(request, resized(image, size) if is_sized else image, whole.crop((0, 0, *size)))
            images.append(kept)
            data.setdefault("kept", []).append(told)
            notes += [note for note in more if note not in notes]
    seeds = request.seeds * len(request.pairs)
    if len(request.pairs) > 1:
        data |= {"grid": [{"guidance_scale": text, "image_guidance_scale": kept} for text, kept in request.pairs]}
        images.append(overview(request, images))
    return Result(images=images, seeds=seeds, data=data, notes=notes)


def worked_on(
    request: InstructRequest, image: Image.Image, mask: Image.Image | None, pipeline: Pipeline
) -> tuple[Sheet | None, Size, list[str]]:
    """The part around the mask that is worked on, or the size of the whole picture."""
    if mask is not None:
        sheet, notes = sheet_for(image, mask, request.padding_mask_crop, pipeline)
        return sheet, sheet.scaled, notes
    size, notes = size_to_work_at(request.width, request.height, image.size, pipeline)
    return None, size, notes


def edits_of(
    request: InstructRequest,
    context: Context,
    pipeline: Pipeline,
    start: Image.Image,
    guidance_scale: float | None,
    image_guidance_scale: float,
) -> Iterator[list[Image.Image]]:
    """For each seed, what each instruction makes of the same picture."""
    told: dict[str, Any] = request.arguments() | {
        "image": start,
        "guidance_scale": guidance_scale,
        "image_guidance_scale": image_guidance_scale,
        "callback_on_step_end": context.on_step,
    }
    for position in range(request.num_images_per_prompt):
        edits = []
        for instruction in request.all_instructions:
            generator = context.generators(request.seed, request.num_images_per_prompt)[position]
            edits += pipeline(**told | {"prompt": instruction, "generator": generator}).images
        yield edits


def overview(request: InstructRequest, images: list[Image.Image]) -> Image.Image:
    """The first picture of each pair on one sheet, with its scales below it."""
    firsts = images[:: request.num_images_per_prompt]
    names = [f"text {text:g}, picture {kept:g}" for text, kept in request.pairs]
    columns = len(request.image_guidance_scales) or 1
    return grid_of(firsts, names, columns=columns)


def resized(image: Image.Image, size: Size) -> Image.Image:
    """The picture at the size that is worked at."""
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


INSTRUCT_PIX2PIX = Capability(
    name="instruct-pix2pix",
    title="InstructPix2Pix",
    tab="instructions",
    group_title="Edit",
    summary="Change a picture by saying what to change.",
    request=InstructRequest,
    run=run,
    check=check,
    needs=("instruct-pix2pix",),
    example={"prompt": "make the car green", "seed": 7},
)
