"""Make a picture anew from another one and words."""

from app.core.capability import Capability, Context, Door, ModelRequest, Result
from app.core.drawing import make_anew, size_asked_for
from app.core.fields import InitImage, NewHeight, NewWidth, Strength
from app.imaging.sizes import LARGEST_WORK, require_a_step, require_pixels


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
        own = door.size(request.image)
        require_pixels(size_asked_for(request.width, request.height, own, door.size_multiple), LARGEST_WORK)


def run(request: ImageToImageRequest, context: Context) -> Result:
    """One call for each picture, so that each is the same picture when it is asked for alone."""
    images, notes = make_anew(request, context, context.image(request.image))
    return Result(images=images, seeds=request.seeds, notes=notes)


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
