"""ControlNet: pictures that follow edges, depth, poses or other maps, from noise or from a picture."""

from pydantic import model_validator

from app.core import control_fields as fields
from app.core.attachments import ControlNet
from app.core.capability import Capability, Context, Door, ModelRequest, Result
from app.core.control_drawing import draw_following
from app.core.drawing import require_work, size_asked_for
from app.core.fields import MaskBlur, MaskPadding, NewHeight, NewWidth, Overlay
from app.imaging.sizes import LARGEST_WORK, require_pixels, whole_strength

LISTS = (
    "control_type",
    "controlnet_model",
    "controlnet_conditioning_scale",
    "control_guidance_start",
    "control_guidance_end",
    "preprocess",
)
"""Fields with an entry for each control picture."""

STRENGTH = 0.8


class ControlNetRequest(ModelRequest):
    """Pictures to follow, each with the network that follows it; a picture to start from makes it a change of that."""

    control_image: fields.ControlImages
    control_type: fields.ControlTypes
    controlnet_model: fields.ControlModels = ("auto",)
    controlnet_conditioning_scale: fields.ControlScales = (1.0,)
    control_guidance_start: fields.ControlStarts = (0.0,)
    control_guidance_end: fields.ControlEnds = (1.0,)
    preprocess: fields.Preprocessing = ("auto",)
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
    def fills_lists(self) -> "ControlNetRequest":
        """An entry for each control picture, so that a recipe says them all; the strength as soon as it is known."""
        count = len(self.control_image)
        for name in LISTS:
            given = getattr(self, name)
            if len(given) not in {1, count}:
                raise ValueError(f"{count} control pictures need as many entries of {name}, or one, not {len(given)}")
            object.__setattr__(self, name, tuple(given) * (count if len(given) == 1 else 1))
        for start, end in zip(self.control_guidance_start, self.control_guidance_end, strict=True):
            if start >= end:
                raise ValueError(f"control_guidance_start {start:g} must lie before control_guidance_end {end:g}")
        if self.mask_image and not self.image:
            raise ValueError("mask_image needs the picture that it masks, in image")
        for kind, way in zip(self.control_type, self.preprocess, strict=True):
            if kind == "inpaint" and way != "off" and not self.mask_image:
                raise ValueError("the control type inpaint needs image and mask_image")
        if self.image and self.strength is None and (self.num_inference_steps is not None or not self.mask_image):
            strength = whole_strength(self.num_inference_steps) if self.mask_image else STRENGTH
            object.__setattr__(self, "strength", strength)
        return self

    def controls(self) -> list[ControlNet]:
        """The networks that go on the model, in the order of the control pictures."""
        return [
            ControlNet(model, start, end, controlnet_conditioning_scale=scale, control_type=kind)
            for kind, model, scale, start, end in zip(
                self.control_type,
                self.controlnet_model,
                self.controlnet_conditioning_scale,
                self.control_guidance_start,
                self.control_guidance_end,
                strict=True,
            )
        ]


def check(request: ControlNetRequest, door: Door) -> None:
    """There is a step to take, the mask has a white part, and the size has no more pixels than a model makes."""
    if request.image:
        require_work(request, door)
    if door.size_multiple and (request.width or request.height) and not request.mask_image:
        own = door.size(request.image or request.control_image[0])
        require_pixels(size_asked_for(request.width, request.height, own, door.size_multiple), LARGEST_WORK)


def run(request: ControlNetRequest, context: Context) -> Result:
    """The maps first, at the size that is worked at; then one call for each picture."""
    return draw_following(request, context, request.controls())


CONTROLNET = Capability(
    name="controlnet/generate",
    title="Generate",
    summary="Make or change pictures that follow edges, depth, poses or other maps.",
    request=ControlNetRequest,
    run=run,
    check=check,
    needs=("text-to-image",),
    listed_additions={"controlnet_model": ("control_type", "controlnet-")},
    group_title="ControlNet",
    example={"prompt": "a red car, blue background", "control_type": ["canny"], "seed": 7},
)
