"""What all wishes about a person share: whose face is meant, where it is to be, and how alike the results are."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from pydantic import model_validator

from app.core.attachments import Box, FaceReference
from app.core.capability import Context, FaceReader, ModelRequest
from app.core.identity_fields import FaceBox, FaceImage, FaceImages, FaceImagesIndex, FaceIndex
from app.errors import InvalidRequest
from app.imaging.keypoints import draw_keypoints
from app.imaging.sizes import Size

NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
REACH = 1.1
"""From the middle of five keypoints to the edge of the face's box, in lengths of their longer extent."""


class IdentityRequest(ModelRequest):
    """A wish with a person in it: one picture or several of the same, and which of the faces is meant."""

    face_image: FaceImage
    face_images: FaceImages = ()
    face_index: FaceIndex = None
    face_images_index: FaceImagesIndex = ()
    face_box: FaceBox = None

    @model_validator(mode="after")
    def chooses_in_each(self) -> "IdentityRequest":
        """See `require_choices`."""
        require_choices(self)
        return self


def references(request: Any, context: Context, own: str | None = None) -> tuple[FaceReference, ...]:
    """The faces of a wish that has the fields of `IdentityRequest`; that of the picture `own` where it names none."""
    image, field = context.image(request.face_image or own), "face_image" if request.face_image else "image"
    first = FaceReference(image, request.face_index, box_of(request.face_box), field)
    further = zip(request.face_images, request.face_images_index or (None,) * len(request.face_images), strict=True)
    return (
        first,
        *(
            FaceReference(context.image(other), index, field="face_images", number=number)
            for number, (other, index) in enumerate(further)
        ),
    )


def require_choices(request: Any) -> None:
    """`ValueError` where there are choices of faces, and not one for each further picture."""
    count, chosen = len(request.face_images), len(request.face_images_index)
    if chosen and chosen != count:
        raise ValueError(f"{count} further pictures need as many entries of face_images_index, not {chosen}")


def box_of(text: str | None) -> Box | None:
    """`left,top,right,bottom` as numbers."""
    if text is None:
        return None
    left, top, right, bottom = numbers_in(text)
    return left, top, right, bottom


def numbers_in(text: str) -> list[float]:
    """Every number of a text."""
    return [float(part) for part in NUMBER.findall(text)]


def likeness(
    reader: FaceReader, wanted: FaceReference, images: Sequence[Image.Image], near: Sequence[Box | None] = ()
) -> dict[str, Any]:
    """For the answer's data: how alike each picture's face is to the one that was wanted.

    The cosine of ArcFace's vectors: near 1 for one person, near 0 for two; None where a picture shows no face that can
    be known. `near` says where in each picture the face is; else its largest counts. Beside it stand the cosines from
    which this face pack's faces count as one person's, and as those of people who look alike.
    """
    target = reader.vector(wanted)
    found = []
    for number, image in enumerate(images):
        box = near[number] if near else None
        reference = FaceReference(image, None if box else 0, box)
        try:
            found.append(round(cosine(target, reader.vector(reference)), 4))
        except InvalidRequest:
            # Nobody is there, or too small to be known: what was made is kept all the same.
            found.append(None)
    return {"identity_similarity": found, "identity_thresholds": list(reader.thresholds)}


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    """-1 to 1; 0 where one of the two has no length."""
    length = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / length if length else 0.0


@dataclass(frozen=True, eq=False)
class Placement:
    """Where a face is to be: five keypoints [5, 2] and its box, in the pixels of a picture of `size`."""

    points: np.ndarray
    box: Box
    size: Size

    def on(self, size: Size) -> "Placement":
        """The same on another size: the whole picture fits, in the middle."""
        scale = min(size[0] / self.size[0], size[1] / self.size[1])
        across, down = ((new - old * scale) / 2 for new, old in zip(size, self.size, strict=True))
        left, top, right, bottom = (edge * scale for edge in self.box)
        box = (left + across, top + down, right + across, bottom + down)
        return Placement(self.points * scale + np.array([across, down]), box, size)

    def drawing(self) -> Image.Image:
        """The keypoints as identity networks read them."""
        return draw_keypoints(self.size, self.points)

    def region(self) -> Image.Image:
        """White where the face is."""
        mask = Image.new("L", self.size)
        ImageDraw.Draw(mask).rectangle(self.box, fill=255)
        return mask


def placement_of(reader: FaceReader, wish: FaceReference) -> Placement:
    """Where a face is in its own picture."""
    face = reader.find(wish)
    return Placement(face.keypoints, face.box, wish.image.size)


def placement_for(request: Any, context: Context, reader: FaceReader, person: FaceReference) -> Placement:
    """Where a wish's face is to be: as its keypoints say, as in its pose picture, or as in the person's own."""
    if request.keypoints is None:
        if request.pose_image is None:
            return placement_of(reader, person)
        pose = FaceReference(context.image(request.pose_image), request.pose_face_index, field="pose_image")
        return placement_of(reader, pose)
    points = np.asarray(numbers_in(request.keypoints), np.float32).reshape(5, 2)
    size = (request.width, request.height)
    if not all(size):
        raise InvalidRequest("keypoints are in the result's pixels, so its size must be stated.", field="keypoints")
    if (points >= size).any():
        raise InvalidRequest(f"A keypoint lies outside the result of {size[0]}x{size[1]}.", field="keypoints")
    middle, reach = points.mean(0), REACH * np.ptp(points, axis=0).max()
    return Placement(points, (*(middle - reach), *(middle + reach)), size)


def whole_numbers(face: Any) -> list[int]:
    """A face's box for an answer."""
    return [round(edge) for edge in face.box]


def first_stated(*sources: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping of all of them, in which the earlier goes before the later."""
    merged: dict[str, Any] = {}
    for source in reversed(sources):
        merged |= source
    return merged
