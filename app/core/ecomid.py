"""EcomID: pictures of a person with PuLID's identity and a keypoint network of its own, in one pose or in several."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from app.core.attachments import FaceReference
from app.core.capability import Capability, Context, Result
from app.core.drawing import draw_each, size_for
from app.core.ecomid_settings import advise, identity_of
from app.core.fields import Height, Width
from app.core.further_controls import FurtherControls, controls_of, require_controls
from app.core.identity import IdentityRequest, Placement, likeness, placement_for, placement_of, references
from app.core.identity_fields import (
    ControlScale,
    EcomIdMethod,
    EcomIdModel,
    IdEnd,
    IdScale,
    IdStart,
    Keypoints,
    PoseFaceIndex,
    PoseImage,
    Poses,
)
from app.imaging.grid import grid_of
from app.imaging.keypoints import POSES, turn_keypoints


class EcomIdRequest(IdentityRequest, FurtherControls):
    """What every wish to EcomID may say."""

    ecomid_model: EcomIdModel = "auto"
    method: EcomIdMethod = "fidelity"
    id_scale: IdScale = None
    controlnet_conditioning_scale: ControlScale = 0.8
    id_start: IdStart = 0.0
    id_end: IdEnd = 1.0
    width: Width = None
    height: Height = None


class EcomIdGenerateRequest(EcomIdRequest):
    """A person, what the picture shows, and where the face is to be."""

    pose_image: PoseImage = None
    pose_face_index: PoseFaceIndex = None
    keypoints: Keypoints = None


class EcomIdMultiPoseRequest(EcomIdRequest):
    """A person, and the ways the head is to look: one picture each, and all of them on a sheet."""

    poses: Poses = ("front", "left", "right", "up", "down")


def generate(request: EcomIdGenerateRequest, context: Context) -> Result:
    """One call for each picture, so that each is the same picture when it is asked for alone."""
    faces = references(request, context)
    with context.faces(request.ecomid_model) as reader:
        placement = placement_for(request, context, reader, faces[0])
    images = draw_in(request, context, faces, [placement])
    with context.faces(request.ecomid_model) as reader:
        data = likeness(reader, faces[0], images)
    return Result(images=images, seeds=request.seeds, data=data)


def multi_pose(request: EcomIdMultiPoseRequest, context: Context) -> Result:
    """For each pose the pictures of its seeds; the sheet of all of them comes last."""
    faces = references(request, context)
    with context.faces(request.ecomid_model) as reader:
        own, points = placement_of(reader, faces[0]), reader.points(faces[0])
    placements = [Placement(turn_keypoints(points, *POSES[pose]), own.box, own.size) for pose in request.poses]
    images = draw_in(request, context, faces, placements)
    count = request.num_images_per_prompt
    named = [pose for pose in request.poses for _ in range(count)]
    with context.faces(request.ecomid_model) as reader:
        data = likeness(reader, faces[0], images)
    sheet = grid_of(images, names=named)
    seeds = request.seeds * len(request.poses)
    return Result(images=[*images, sheet], seeds=[*seeds, seeds[0]], data={"poses": named, "grid": len(images), **data})


def draw_in(
    request: EcomIdRequest, context: Context, faces: Sequence[FaceReference], placements: Sequence[Placement]
) -> list[Image.Image]:
    """The wish's pictures with the face in each of these places."""
    nets, drawings = controls_of(request, context)
    identity = [identity_of(request, faces), *nets]
    with context.borrow(request.model, task="text-to-image", attachments=identity, **request.additions()) as pipeline:
        size = size_for(request.width, request.height, pipeline)
        images = []
        for placement in placements:
            drawing = placement.on(size).drawing()
            images += draw_each(
                request,
                context,
                pipeline,
                rounds=len(placements),
                width=size[0],
                height=size[1],
                control_image=[drawing, *drawings],
            )
    return images


def _capability(name: str, title: str, summary: str, request: Any, run: Any, example: Mapping[str, Any]) -> Capability:
    return Capability(
        name=f"ecomid/{name}",
        title=title,
        summary=summary,
        request=request,
        run=run,
        needs=("text-to-image",),
        check=require_controls,
        additions={"ecomid_model": "ecomid"},
        advise=advise,
        group_title="EcomID",
        example=example,
    )


ECOMID_GENERATE = _capability(
    "generate",
    "Generate",
    "Make pictures of a person from words and a photograph, with the face where you want it.",
    EcomIdGenerateRequest,
    generate,
    {"prompt": "a portrait of a person, blue background", "seed": 7},
)
ECOMID_MULTI_POSE = _capability(
    "multi-pose",
    "Multi-pose",
    "Make pictures of a person who looks ahead, left, right, up and down.",
    EcomIdMultiPoseRequest,
    multi_pose,
    {"prompt": "a portrait of a person, blue background", "poses": ["front", "left"], "seed": 7},
)
