"""What a wish about a person may put on the model beside the face: further ControlNets, and pictures as a prompt."""

from collections.abc import Sequence
from typing import Any

from PIL import Image

from app.core.attachments import ControlNet, FaceReference, ImagePrompt
from app.core.capability import Context, Door, ModelRequest
from app.core.identity_fields import (
    Blocks,
    ControlEnds,
    ControlImages,
    ControlNets,
    ControlStarts,
    FurtherPromptImages,
    IpAdapterModel,
    IpScale,
)
from app.errors import InvalidRequest

FOR_PROMPT_IMAGES = {"ip_adapter_model": ("ip-adapter", "ip_adapter_images")}
"""`Capability.additions_for` of what takes `PicturePrompted`."""


class FurtherControls(ModelRequest):
    """Control pictures beside the face, each with the ControlNet that follows it."""

    control_images: ControlImages = ()
    controlnets: ControlNets = ()
    control_guidance_start: ControlStarts = ()
    control_guidance_end: ControlEnds = ()


class PicturePrompted(ModelRequest):
    """Pictures as a prompt beside the face and the words."""

    ip_adapter_images: FurtherPromptImages = ()
    ip_adapter_model: IpAdapterModel = "auto"
    ip_adapter_scale: IpScale = 0.6
    ip_adapter_blocks: Blocks = "all"


def require_controls(request: FurtherControls, door: Door | None = None) -> None:
    """`InvalidRequest` where pictures, networks and their times do not belong together."""
    count = len(request.control_images)
    if len(request.controlnets) != count:
        raise InvalidRequest(
            f"{count} control pictures need as many ControlNets, not {len(request.controlnets)}.", field="controlnets"
        )
    for name in ("control_guidance_start", "control_guidance_end"):
        given = getattr(request, name)
        if given and len(given) != count:
            raise InvalidRequest(f"{count} control pictures need as many of {name}, not {len(given)}.", field=name)
    for number, (start, end) in enumerate(zip(*_windows(request), strict=True), 1):
        if start >= end:
            raise InvalidRequest(
                f"Control picture {number} would end ({end:g}) before it starts ({start:g}).",
                field="control_guidance_end",
            )


def controls_of(request: FurtherControls, context: Context) -> tuple[list[ControlNet], list[Image.Image]]:
    """The further networks as they are put on a model, and the picture that each follows."""
    starts, ends = _windows(request)
    nets = [
        ControlNet(net.model, start, end, controlnet_conditioning_scale=net.weight)
        for net, start, end in zip(request.controlnets, starts, ends, strict=True)
    ]
    return nets, [context.image(reference) for reference in request.control_images]


def picture_prompt_of(request: PicturePrompted, context: Context) -> list[ImagePrompt]:
    """The pictures that serve as a prompt as they are put on a model; none where none were given."""
    images = [context.image(reference) for reference in request.ip_adapter_images]
    if not images:
        return []
    return [
        ImagePrompt(
            request.ip_adapter_model,
            images=images,
            faces=[FaceReference(image, field="ip_adapter_images") for image in images],
            scale=request.ip_adapter_scale,
            blocks=request.ip_adapter_blocks,
        )
    ]


def control_arguments(drawings: Sequence[Image.Image]) -> dict[str, Any]:
    """The control pictures of a call, in the order of what is attached; nothing where there are none."""
    return {"control_image": list(drawings)} if drawings else {}


def _windows(request: FurtherControls) -> tuple[Sequence[float], Sequence[float]]:
    count = len(request.control_images)
    return request.control_guidance_start or (0.0,) * count, request.control_guidance_end or (1.0,) * count
