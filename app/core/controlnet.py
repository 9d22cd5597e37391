"""ControlNet: pictures that follow edges, depth, poses or other maps, from noise or from a picture."""

from pydantic import model_validator

from app.core import control_fields as fields
from app.core.attachments import ControlNet
from app.core.capability import Capability, Context, Result
from app.core.control_drawing import FollowingRequest, check_following, draw_following
from app.core.control_pictures import ControlPicture

LISTS = (
    "control_type",
    "controlnet_model",
    "controlnet_conditioning_scale",
    "control_guidance_start",
    "control_guidance_end",
    "preprocess",
)
"""Fields with an entry for each control picture."""


class ControlNetRequest(FollowingRequest):
    """Pictures to follow, each with the network that follows it."""

    control_image: fields.ControlImages
    control_type: fields.ControlTypes
    controlnet_model: fields.ControlModels = ("auto",)
    controlnet_conditioning_scale: fields.ControlScales = (1.0,)
    control_guidance_start: fields.ControlStarts = (0.0,)
    control_guidance_end: fields.ControlEnds = (1.0,)
    preprocess: fields.Preprocessing = ("auto",)

    @model_validator(mode="after")
    def fills_lists(self) -> "ControlNetRequest":
        """An entry for each control picture, so that a recipe says them all."""
        count = len(self.control_image)
        for name in LISTS:
            given = getattr(self, name)
            if len(given) not in {1, count}:
                raise ValueError(f"{count} control pictures need as many entries of {name}, or one, not {len(given)}")
            object.__setattr__(self, name, tuple(given) * (count if len(given) == 1 else 1))
        for start, end in zip(self.control_guidance_start, self.control_guidance_end, strict=True):
            fields.require_window(start, end)
        for picture in self.pictures:
            if picture.control_type == "inpaint" and picture.preprocess != "off" and not self.mask_image:
                raise ValueError("the control type inpaint needs image and mask_image")
        return self

    @property
    def pictures(self) -> list[ControlPicture]:
        """What is followed."""
        return [
            ControlPicture(*facts) for facts in zip(self.control_image, self.control_type, self.preprocess, strict=True)
        ]

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


def run(request: ControlNetRequest, context: Context) -> Result:
    """The maps first, at the size that is worked at; then one call for each picture."""
    return draw_following(request, context, request.controls())


CONTROLNET = Capability(
    name="controlnet/generate",
    title="Generate",
    summary="Make or change pictures that follow edges, depth, poses or other maps.",
    request=ControlNetRequest,
    run=run,
    check=check_following,
    needs=("text-to-image",),
    listed_additions={"controlnet_model": ("control_type", "controlnet-")},
    group_title="ControlNet",
    example={"prompt": "a red car, blue background", "control_type": ["canny"], "seed": 7},
)
