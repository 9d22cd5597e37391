"""Repaint the white part of a mask and keep every byte outside it."""

from pydantic import model_validator

from app.core.capability import Capability, Context, Door, ModelRequest, Result
from app.core.drawing import repaint
from app.core.fields import InitImage, MaskBlur, MaskImage, MaskPadding, Overlay, RepaintStrength
from app.imaging.masks import fade_inwards, white_box
from app.imaging.sizes import require_a_step, whole_strength


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
    painted, sheet, notes = repaint(request, context, image, mask)
    if request.overlay:
        alpha = fade_inwards(mask, request.mask_blur)
        images = [sheet.lay_over(image, picture, alpha) for picture in painted]
    else:
        images = [sheet.cut(picture) for picture in painted]
    where = {"box": list(sheet.box), "work_size": list(sheet.scaled)}
    return Result(images=images, seeds=request.seeds, data=where, notes=notes)


INPAINT = Capability(
    name="inpaint",
    title="Inpaint",
    tab="inpaint",
    summary="Repaint the white part of a mask and keep every byte outside it.",
    request=InpaintRequest,
    run=run,
    check=check,
    needs=("inpaint",),
    example={"prompt": "a green apple, white background", "seed": 7},
)
