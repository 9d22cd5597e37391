"""Capabilities about people without torch: a face is a square of one brightness on black, so each place is known.

The search for faces, the choice of one and its refusals are the product's own; only the networks are not.
"""

from contextlib import nullcontext
from typing import Annotated, Any

import numpy as np
from PIL import Image

from app.core import detect_faces
from app.core.attachments import FaceReference
from app.core.capability import Capability, Context, Request, Result
from app.core.fields import InitImage, Prompt, field
from app.core.identity import references
from app.core.identity_fields import (
    FaceBox,
    FaceImage,
    FaceImages,
    FaceImagesIndex,
    FaceIndex,
    OwnFaceImage,
    PartMaskImage,
    PoseFaceIndex,
    PoseImage,
    Poses,
    TargetFaceIndex,
)
from app.errors import InvalidRequest
from app.imaging.detected_faces import Face, choose_face, largest_first
from app.imaging.grid import grid_of

ALIKE = (0.87, 0.41, 0.12, None)


def picture_of(*faces: tuple[int, int, int, int], size: tuple[int, int] = (240, 160)) -> Image.Image:
    """Squares (left, top, side, brightness) on black."""
    picture = Image.new("RGB", size)
    for left, top, side, brightness in faces:
        picture.paste((brightness,) * 3, (left, top, left + side, top + side))
    return picture


class Squares:
    """A face reader that knows squares."""

    def all(self, image: Image.Image) -> list[Face]:
        light = np.asarray(image.convert("L"))
        return largest_first([self.face(light == value) for value in np.unique(light) if value])

    def face(self, where: np.ndarray) -> Face:
        rows, columns = np.nonzero(where)
        box = tuple(float(edge) for edge in (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1))
        return Face(box, 0.9, np.full((5, 2), (box[0], box[1]), np.float32))

    def find(self, wish: FaceReference) -> Face:
        try:
            return choose_face(self.all(wish.image), index=wish.index, box=wish.box, smallest=8)
        except InvalidRequest as refusal:
            refusal.details = {**refusal.details, **wish.place}
            raise


class LookRequest(detect_faces.DetectFacesRequest):
    """The product's wish; no model is needed to see squares."""

    faces_model: Annotated[str, field("Ignored.")] = "auto"


class PersonRequest(Request):
    """A person."""

    prompt: Prompt = ""
    face_image: FaceImage
    face_images: FaceImages = ()
    face_index: FaceIndex = None
    face_images_index: FaceImagesIndex = ()
    face_box: FaceBox = None


class SwapRequest(PersonRequest):
    """A person, and a picture of another one."""

    image: InitImage
    target_face_index: TargetFaceIndex = None


class EditRequest(PersonRequest):
    """A picture of a person; the face is its own where no other picture is given."""

    image: InitImage
    mask_image: PartMaskImage = None
    face_image: OwnFaceImage = None


class FollowRequest(PersonRequest):
    """A person, as the face of another picture looks."""

    pose_image: PoseImage = None
    pose_face_index: PoseFaceIndex = None


class PosesRequest(PersonRequest):
    """A person in several poses."""

    poses: Poses = ("front", "left", "up")


def cut_out(image: Image.Image, wish: FaceReference) -> Image.Image:
    """The face that is meant, 96 pixels large."""
    return image.crop(tuple(round(edge) for edge in Squares().find(wish).box)).resize((96, 96))


def look(request: LookRequest, context: Any) -> Result:
    """The product's own search, over squares."""
    context.faces = lambda model: nullcontext(Squares())
    return detect_faces.run(request, context)


def person(request: PersonRequest, context: Context) -> Result:
    """The face that is meant, four times, each less alike."""
    (wish, *further) = references(request, context)
    images = [cut_out(wish.image, wish)] * 4 + [cut_out(other.image, other) for other in further]
    return Result(images=images, data={"identity_similarity": list(ALIKE)})


def swap(request: SwapRequest, context: Context) -> Result:
    """The face of the picture that would be changed."""
    image = context.image(request.image)
    made = cut_out(image, FaceReference(image, request.target_face_index, field="image"))
    (wish, *_) = references(request, context)
    Squares().find(wish)
    return Result(images=[made], data={"identity_similarity": [0.9]})


def edit(request: EditRequest, context: Context) -> Result:
    """The face that is meant."""
    (wish, *_) = references(request, context, own=request.image)
    return Result(images=[cut_out(wish.image, wish)], data={"identity_similarity": [0.6]})


def follow(request: FollowRequest, context: Context) -> Result:
    """The face that is followed."""
    image = context.image(request.pose_image or request.face_image)
    wish = FaceReference(image, request.pose_face_index, field="pose_image")
    return Result(images=[cut_out(image, wish)], data={"identity_similarity": [0.4], "identity_thresholds": [0.4, 0.2]})


def poses(request: PosesRequest, context: Context) -> Result:
    """The face once for each pose, and a sheet."""
    (wish, *_) = references(request, context)
    images = [cut_out(wish.image, wish)] * len(request.poses)
    alike = [0.8] * len(images)
    data = {"poses": list(request.poses), "grid": len(images), "identity_similarity": alike}
    return Result(images=[*images, grid_of(images, names=list(request.poses))], data=data)


CATALOG = (
    Capability("person", "Person", "Show a face.", PersonRequest, person),
    Capability("swap", "Swap", "Swap a face.", SwapRequest, swap),
    Capability("edit", "Edit", "Edit a picture.", EditRequest, edit),
    Capability("follow", "Follow", "Show the face of a pose.", FollowRequest, follow),
    Capability("poses", "Poses", "Show a face in poses.", PosesRequest, poses),
    Capability("detect-faces", "Detect faces", "Find faces.", LookRequest, look),
)
