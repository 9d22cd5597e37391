"""Make a picture anew from another one and words."""

from PIL import Image

from app.core.capability import Capability, Context, Door, ModelRequest, Pipeline, Result
from app.core.fields import InitImage, NewHeight, NewWidth, Strength
from app.errors import InvalidRequest
from app.imaging.crop import pad_to_multiple
from app.imaging.sizes import (
    LARGEST_WORK,
    Size,
    largest_area,
    lost_strength,
    require_a_step,
    require_pixels,
    round_near,
    within_area,
)


class ImageToImageRequest(ModelRequest):
    """A picture to start from, and how far to go from it."""

    image: InitImage
    strength: Strength = 0.6
    width: NewWidth = None
    height: NewHeight = None


def check(request: ImageToImageRequest, door: Door) -> None:
    """There is a step to take, and the size asked for has no more pixels than a model makes."""
    require_a_step(request.num_inference_steps, request.strength)
    if door.size_multiple and (request.width or request.height):
        require_pixels(size_asked_for(request, door.size(request.image), door.size_multiple), LARGEST_WORK)


def run(request: ImageToImageRequest, context: Context) -> Result:
    """One call for each picture, so that each is the same picture when it is asked for alone."""
    image = context.image(request.image)
    with context.borrow(request.model, task="image-to-image", **request.additions()) as pipeline:
        steps = pipeline.count_timesteps(request.num_inference_steps, request.strength)
        context.expect_steps(steps * request.num_images_per_prompt)
        size, notes = size_to_work_at(request, image.size, pipeline)
        scaled = image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
        start = pad_to_multiple(scaled, pipeline.size_multiple)
        images = [
            pipeline(
                **request.arguments(),
                image=start,
                strength=request.strength,
                generator=generator,
                callback_on_step_end=context.on_step,
            ).images[0]
            for generator in context.generators(request.seed, request.num_images_per_prompt)
        ]
    notes += lost_strength(request.num_inference_steps, request.strength)
    return Result(images=[picture.crop((0, 0, *size)) for picture in images], seeds=request.seeds, notes=notes)


def size_to_work_at(request: ImageToImageRequest, own: Size, pipeline: Pipeline) -> tuple[Size, list[str]]:
    """The size asked for, or the picture's own as far as the model works well at it, and what to say of it."""
    multiple = pipeline.size_multiple
    if request.width or request.height:
        width, height = size_asked_for(request, own, multiple)
        if width % multiple or height % multiple:
            raise InvalidRequest(
                f"width and height must be multiples of {multiple} for this model; got {width}x{height}."
            )
        require_pixels((width, height), LARGEST_WORK)
        return (width, height), []
    size = within_area(own, largest_area(pipeline.default_size))
    if size == own:
        return own, []
    return size, [
        f"The picture of {own[0]}x{own[1]} was scaled to {size[0]}x{size[1]}, the most that this model works well at; "
        "width and height ask for another size."
    ]


def size_asked_for(request: ImageToImageRequest, own: Size, multiple: int) -> Size:
    """The width and height of the wish; a side that it leaves out follows the picture's shape."""
    width = request.width or round_near(own[0] * request.height / own[1], multiple)
    return width, request.height or round_near(own[1] * width / own[0], multiple)


IMAGE_TO_IMAGE = Capability(
    name="image-to-image",
    title="Image to image",
    summary="Make a picture anew from another one and words.",
    request=ImageToImageRequest,
    run=run,
    check=check,
    needs=("image-to-image",),
    example={"prompt": "a blue car, yellow background", "strength": 0.6, "seed": 7},
)
