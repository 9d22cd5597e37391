"""InstantID: pictures of a person in the pose of another picture, and a face swap that keeps the old face's pose."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from app.core.attachments import FaceReference, InstantIdIdentity
from app.core.capability import Capability, Context, Result
from app.core.drawing import draw_each, require_work, size_for
from app.core.face_swap import swap
from app.core.fields import Height, InitImage, Prompt, Strength, Width
from app.core.further_controls import FurtherControls, controls_of, require_controls
from app.core.identity import IdentityRequest, Placement, likeness, placement_for, references
from app.core.identity_fields import (
    ControlScale,
    EnhanceNonFace,
    FaceAdapterScale,
    IdEnd,
    IdStart,
    InstantIdModel,
    Keypoints,
    PoseFaceIndex,
    PoseImage,
    TargetFaceIndex,
)
from app.imaging.sizes import Size

SETTINGS = {"num_inference_steps": 30, "guidance_scale": 5.0, "scheduler": "Euler"}
"""The authors' own; guidance above 5 burns the colours."""


class InstantIdRequest(IdentityRequest):
    """What every wish to InstantID may say."""

    instantid_model: InstantIdModel = "auto"
    ip_adapter_scale: FaceAdapterScale = 0.8
    controlnet_conditioning_scale: ControlScale = 0.8
    id_start: IdStart = 0.0
    id_end: IdEnd = 1.0


class InstantIdGenerateRequest(InstantIdRequest, FurtherControls):
    """A person, what the picture shows, and where the face is to be."""

    pose_image: PoseImage = None
    pose_face_index: PoseFaceIndex = None
    keypoints: Keypoints = None
    enhance_non_face_region: EnhanceNonFace = True
    width: Width = None
    height: Height = None


class InstantIdSwapRequest(InstantIdRequest):
    """A picture, and the person whose face goes on it, looking where the old face looked."""

    prompt: Prompt = "portrait of a person"
    image: InitImage
    target_face_index: TargetFaceIndex = None
    strength: Strength = 0.6


def advise(values: Mapping[str, Any], base: Any, added: Mapping[str, Any]) -> dict[str, Any]:
    """The authors' settings; an embedded base and a few-step one keep their own."""
    recommended = base.recommended
    if recommended is None or base.embedded or recommended.is_for_few_steps:
        return {}
    return dict(SETTINGS)


def identity_of(
    request: InstantIdRequest, faces: Sequence[FaceReference], region: Image.Image | None = None
) -> InstantIdIdentity:
    """The wish's face as it is put on a model."""
    return InstantIdIdentity(
        request.instantid_model,
        request.id_start,
        request.id_end,
        faces=faces,
        ip_adapter_scale=request.ip_adapter_scale,
        controlnet_conditioning_scale=request.controlnet_conditioning_scale,
        region=region,
    )


def generate(request: InstantIdGenerateRequest, context: Context) -> Result:
    """One call for each picture, so that each is the same picture when it is asked for alone."""
    faces = references(request, context)
    with context.faces(request.instantid_model) as reader:
        placement = placement_for(request, context, reader, faces[0])
    region = None
    if request.enhance_non_face_region:
        region = placement.on(whole_size(request, placement)).region()
    nets, drawings = controls_of(request, context)
    identity = [identity_of(request, faces, region), *nets]
    with context.borrow(request.model, task="text-to-image", attachments=identity, **request.additions()) as pipeline:
        size = size_for(request.width, request.height, pipeline)
        drawing = placement.on(size).drawing()
        control = [drawing, *drawings]
        images = draw_each(request, context, pipeline, width=size[0], height=size[1], control_image=control)
    with context.faces(request.instantid_model) as reader:
        data = likeness(reader, faces[0], images)
    return Result(images=images, seeds=request.seeds, data=data)


def whole_size(request: InstantIdGenerateRequest, placement: Placement) -> Size:
    """The result's size as far as it is known before the model is open: only its proportions count."""
    return (request.width, request.height) if request.width and request.height else placement.size


def swap_face(request: InstantIdSwapRequest, context: Context) -> Result:
    """The face of one person on the other's picture, where and as the old face looked."""
    faces = references(request, context)
    return swap(request, context, request.instantid_model, faces, [identity_of(request, faces)], keeps_pose=True)


INSTANTID_GENERATE = Capability(
    name="instantid/generate",
    title="Generate",
    summary="Make pictures of a person from words and a photograph, in a pose of your choice.",
    request=InstantIdGenerateRequest,
    run=generate,
    needs=("text-to-image",),
    check=require_controls,
    additions={"instantid_model": "instantid"},
    advise=advise,
    group_title="InstantID",
    example={"prompt": "a portrait of a person, blue background", "seed": 7},
)
INSTANTID_SWAP = Capability(
    name="instantid/swap",
    title="Face swap",
    summary="Put a person's face on another picture, looking where the old face looked.",
    request=InstantIdSwapRequest,
    run=swap_face,
    needs=("inpaint",),
    check=require_work,
    additions={"instantid_model": "instantid"},
    advise=advise,
    group_title="InstantID",
    example={"seed": 7},
)
