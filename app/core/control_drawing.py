"""Pictures that follow control pictures: from noise, from a picture, or in its masked part."""

from collections.abc import Sequence
from typing import Any

from PIL import Image
from pydantic import model_validator

from app.core import control_fields as fields
from app.core.attachments import ControlNet
from app.core.capability import Context, Door, ModelRequest, Pipeline, Result
from app.core.control_pictures import ControlPicture, Followed, follow, told
from app.core.drawing import draw_each, require_multiple, require_work, sheet_for, size_asked_for, size_to_work_at
from app.core.fields import MaskBlur, MaskPadding, NewHeight, NewWidth, Overlay
from app.imaging.crop import Sheet, lay_out, pad_to_multiple
from app.imaging.masks import fade_inwards
from app.imaging.sizes import LARGEST_WORK, Size, lost_strength, of_area, require_pixels, whole_strength

Drawn = tuple[list[Image.Image], list[Followed], list[str]]

STRENGTH = 0.8


class FollowingRequest(ModelRequest):
    """What wishes with control pictures share: a picture to start from makes it a change of that."""

    image: fields.StartImage = None
    mask_image: fields.PartMask = None
    strength: fields.StartStrength = None
    padding_mask_crop: MaskPadding = 32
    mask_blur: MaskBlur = 4
    overlay: Overlay = True
    width: NewWidth = None
    height: NewHeight = None
    return_maps: fields.ReturnMaps = True

    @model_validator(mode="after")
    def starts_from_something(self) -> "FollowingRequest":
        """A mask has its picture; the strength stands in the wish as soon as it is known, so that a recipe says it."""
        if self.mask_image and not self.image:
            raise ValueError("mask_image needs the picture that it masks, in image")
        if self.image and self.strength is None and (self.num_inference_steps is not None or not self.mask_image):
            strength = whole_strength(self.num_inference_steps) if self.mask_image else STRENGTH
            object.__setattr__(self, "strength", strength)
        return self

    @property
    def pictures(self) -> list[ControlPicture]:
        """What is followed."""
        raise NotImplementedError

    def finished(self, drawn: list[Image.Image], followed: list[Followed]) -> list[Image.Image]:
        """The model's own pictures as they are laid in their place."""
        return drawn


def check_following(request: FollowingRequest, door: Door) -> None:
    """There is a step to take, the mask has a white part, and the size has no more pixels than a model makes."""
    if request.image:
        require_work(request, door)
    if door.size_multiple and (request.width or request.height) and not request.mask_image:
        own = door.size(request.image or request.pictures[0].reference)
        require_pixels(size_asked_for(request.width, request.height, own, door.size_multiple), LARGEST_WORK)


def task_of(request: FollowingRequest) -> str:
    """What a pipeline does for this wish."""
    return "inpaint" if request.mask_image else "image-to-image" if request.image else "text-to-image"


def draw_following(request: FollowingRequest, context: Context, controls: Sequence[ControlNet]) -> Result:
    """The maps first, at the size that is worked at; then one call for each picture. Maps come after the pictures."""
    task = task_of(request)
    more = request.additions() | {"attachments": controls}
    with context.borrow(request.model, task=task, **more) as pipeline:
        draw = {"inpaint": repainted, "image-to-image": anew, "text-to-image": from_noise}[task]
        images, followed, notes = draw(request, context, pipeline)
    if request.image:
        notes += lost_strength(request.num_inference_steps, request.strength)
    data = {"controls": told([control.model for control in controls], request.pictures, followed)}
    maps = [one.shown for one in followed] if request.return_maps else []
    return Result(images=images + maps, seeds=request.seeds, data=data, notes=notes)


def from_noise(request: FollowingRequest, context: Context, pipeline: Pipeline) -> Drawn:
    """Pictures in the shape of the first control picture, or of the size that was asked for."""
    own, area = context.image(request.pictures[0].reference).size, pipeline.default_size[0] * pipeline.default_size[1]
    if request.width or request.height:
        size = require_multiple(size_asked_for(request.width, request.height, own, pipeline.size_multiple), pipeline)
        require_pixels(size, LARGEST_WORK)
    else:
        size = of_area(own, area, pipeline.size_multiple)
    followed = follow_each(request, context, pipeline, size)
    drawn = draw_each(request, context, pipeline, **handed(followed), width=size[0], height=size[1])
    return request.finished(drawn, followed), followed, []


def anew(request: FollowingRequest, context: Context, pipeline: Pipeline) -> Drawn:
    """The whole picture anew in part."""
    image = context.image(request.image)
    size, notes = size_to_work_at(request.width, request.height, image.size, pipeline)
    followed = follow_each(request, context, pipeline, size)
    start = pad_to_multiple(resized(image, size), pipeline.size_multiple)
    drawn = draw_each(request, context, pipeline, **handed(followed), image=start, strength=request.strength)
    return [picture.crop((0, 0, *size)) for picture in request.finished(drawn, followed)], followed, notes


def repainted(request: FollowingRequest, context: Context, pipeline: Pipeline) -> Drawn:
    """The masked part anew; every byte outside the mask stays."""
    image, mask = context.image(request.image), context.mask(request.mask_image)
    sheet, notes = sheet_for(image, mask, request.padding_mask_crop, pipeline)
    followed = follow_each(request, context, pipeline, image.size, sheet)
    width, height = sheet.image.size
    drawn = draw_each(
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
    painted = request.finished(drawn, followed)
    if not request.overlay:
        return [sheet.cut(picture) for picture in painted], followed, notes
    alpha = fade_inwards(mask, request.mask_blur)
    return [sheet.lay_over(image, picture, alpha) for picture in painted], followed, notes


def handed(followed: list[Followed]) -> dict[str, Any]:
    """What a call is told of the control pictures."""
    return {"control_image": [one.conditioning for one in followed]}


def follow_each(
    request: FollowingRequest, context: Context, pipeline: Pipeline, size: Size, sheet: Sheet | None = None
) -> list[Followed]:
    """What is followed of each control picture: whole at this size, or the part of it that a sheet is of."""

    def placed(control: Image.Image) -> Image.Image:
        whole = resized(control, size)
        if sheet is None:
            return pad_to_multiple(whole, pipeline.size_multiple)
        mask = Image.new("L", size)
        return lay_out(whole, mask, sheet.box, sheet.scaled, multiple=pipeline.size_multiple).image

    mask = sheet.mask if sheet else None
    return [follow(picture, placed, context, mask) for picture in request.pictures]


def resized(image: Image.Image, size: Size) -> Image.Image:
    """The picture at this size, as diffusers resizes control pictures."""
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
