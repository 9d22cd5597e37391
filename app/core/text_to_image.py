"""Make a picture from words, optionally enlarged and refined in a second pass."""

from PIL import Image

from app.core.capability import Capability, Context, Door, ModelRequest, Result
from app.core.drawing import size_for
from app.core.fields import Height, SecondPassScale, SecondPassSteps, SecondPassStrength, Width
from app.imaging.sizes import LARGEST_WORK, Size, lost_strength, require_a_step, require_pixels, round_up


class TextToImageRequest(ModelRequest):
    """A picture from words, optionally enlarged and refined in a second pass."""

    width: Width = None
    height: Height = None
    second_pass_scale: SecondPassScale = None
    second_pass_strength: SecondPassStrength = 0.5
    second_pass_steps: SecondPassSteps = None


def check(request: TextToImageRequest, door: Door) -> None:
    """The second pass has a step to take and no more pixels than a model makes."""
    if request.second_pass_scale is None:
        return
    require_a_step(second_steps(request), request.second_pass_strength)
    if request.width and request.height and door.size_multiple:
        require_pixels(enlarged_size(request, (request.width, request.height), door.size_multiple), LARGEST_WORK)


def run(request: TextToImageRequest, context: Context) -> Result:
    """One call for each picture, so that each is the same picture when it is asked for alone."""
    with context.borrow(request.model, task="text-to-image", **request.additions()) as pipeline:
        width, height = size_for(request.width, request.height, pipeline)
        steps = pipeline.count_timesteps(request.num_inference_steps)
        if request.second_pass_scale is not None:
            require_pixels(enlarged_size(request, (width, height), pipeline.size_multiple), LARGEST_WORK)
            steps += pipeline.count_timesteps(second_steps(request), request.second_pass_strength)
        context.expect_steps(steps * request.num_images_per_prompt)
        images = [
            pipeline(
                **request.arguments(),
                width=width,
                height=height,
                generator=generator,
                callback_on_step_end=context.on_step,
            ).images[0]
            for generator in context.generators(request.seed, request.num_images_per_prompt)
        ]
    notes = []
    if request.second_pass_scale is not None:
        images = second_pass(request, context, images)
        notes.append(
            f"First made at {width}x{height}, then enlarged and refined at {images[0].width}x{images[0].height}."
        )
        notes += lost_strength(second_steps(request), request.second_pass_strength)
    return Result(images=images, seeds=request.seeds, notes=notes)


def second_pass(request: TextToImageRequest, context: Context, images: list[Image.Image]) -> list[Image.Image]:
    """Each picture enlarged (Lanczos) and made anew in part, with the noise of its own seed."""
    arguments = request.arguments() | {
        "num_inference_steps": second_steps(request),
        "strength": request.second_pass_strength,
    }
    with context.borrow(request.model, task="image-to-image", **request.additions()) as pipeline:
        refined = []
        for image, generator in zip(images, context.generators(request.seed, len(images)), strict=True):
            size = enlarged_size(request, image.size, pipeline.size_multiple)
            enlarged = image.resize(size, Image.Resampling.LANCZOS)
            refined += pipeline(
                **arguments, image=enlarged, generator=generator, callback_on_step_end=context.on_step
            ).images
        return refined


def second_steps(request: TextToImageRequest) -> int:
    """The steps of the second pass."""
    return request.second_pass_steps or request.num_inference_steps


def enlarged_size(request: TextToImageRequest, size: Size, multiple: int) -> Size:
    """The size of the second pass."""
    width, height = (round_up(side * request.second_pass_scale, multiple) for side in size)
    return width, height


TEXT_TO_IMAGE = Capability(
    name="text-to-image",
    title="Text to image",
    summary="Make a picture from words.",
    request=TextToImageRequest,
    run=run,
    check=check,
    needs=("text-to-image",),
    example={"prompt": "a red car, blue background", "seed": 7},
)
