"""Faces as they were found in a picture, the choice of one of them, and what a network makes of it. Plain numbers.

One choice serves every part that looks at the face: the vector, the crop and the keypoints are of the same person.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from app.errors import FaceNotChosen, InvalidRequest, NoFaceFound

SMALLEST_FACE = 40.0
"""Pixels of a face's shorter side, below which the networks tell nobody from anybody."""

FloatBox = tuple[float, float, float, float]


@dataclass(frozen=True, eq=False)
class Face:
    """A face in a picture's pixels: `box` is (left, top, right, bottom) and may reach over the picture's edge.

    `keypoints` [5, 2] are left eye, right eye, nose, left and right corner of the mouth, left as the picture shows it.
    """

    box: FloatBox
    score: float
    keypoints: np.ndarray

    @property
    def size(self) -> tuple[float, float]:
        """Width and height."""
        return self.box[2] - self.box[0], self.box[3] - self.box[1]

    def scaled(self, across: float, down: float) -> "Face":
        """The same face in a picture that is `across` times as wide and `down` times as high."""
        left, top, right, bottom = self.box
        factors = np.array([across, down], dtype=np.float32)
        return Face((left * across, top * down, right * across, bottom * down), self.score, self.keypoints * factors)


@dataclass(frozen=True, eq=False)
class AlignedFace:
    """A face turned upright on 512x512 pixels (FFHQ's template); `matrix` [2, 3] maps the picture's pixels there.

    `keypoints` [5, 2] are the ones that it was aligned by, in the picture's pixels.
    """

    image: Image.Image
    matrix: np.ndarray
    keypoints: np.ndarray


@dataclass(frozen=True, eq=False)
class IdentityFeatures:
    """What identity encoders read of one face, all float32.

    `arcface` [512] is the raw vector, not normalised; `clip_pooled` [768] is L2-normalised; `clip_hidden` are five
    arrays [patches + 1, width], class token first.
    """

    arcface: np.ndarray
    clip_pooled: np.ndarray
    clip_hidden: tuple[np.ndarray, ...]


def largest_first(faces: Sequence[Face]) -> list[Face]:
    """By area, the largest first; of two as large the surer one."""
    return sorted(faces, key=lambda face: (-face.size[0] * face.size[1], -face.score))


def overlap(one: FloatBox, other: FloatBox) -> float:
    """The shared area of two boxes as a part of the area that they cover together: 0 to 1."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def choose_face(
    faces: Sequence[Face],
    *,
    index: int | None = None,
    box: FloatBox | None = None,
    smallest: float = SMALLEST_FACE,
    tried: str = "",
) -> Face:
    """The only face; of several the one with this number, largest first from 0, or the one that a box covers most.

    `NoFaceFound` where there is none (`tried` says how it was looked for), `FaceNotChosen` where nothing says which or
    what says it fits none; both list the boxes that were seen, largest first. `InvalidRequest` below `smallest` pixels.
    """
    faces = largest_first(faces)
    seen = described(faces)
    if not faces:
        raise NoFaceFound(f"No face was found in the picture{f' ({tried})' if tried else ''}.", faces=seen)
    if box is not None:
        chosen = max(faces, key=lambda face: overlap(face.box, box))
        if overlap(chosen.box, box) == 0:
            raise FaceNotChosen(f"The box lies over no face; the picture shows {counted(faces)}.", faces=seen)
    elif index is not None:
        if not 0 <= index < len(faces):
            raise FaceNotChosen(
                f"There is no face number {index}: the picture shows {counted(faces)}, counted from 0, largest first.",
                faces=seen,
            )
        chosen = faces[index]
    elif len(faces) > 1:
        raise FaceNotChosen(
            f"The picture shows {counted(faces)}: say which by its number (from 0, largest first) or by a box.",
            faces=seen,
        )
    else:
        chosen = faces[0]
    width, height = chosen.size
    if min(width, height) < smallest:
        raise InvalidRequest(
            f"The face is {width:.0f}x{height:.0f} pixels small; at least {math.ceil(smallest)} are needed in a "
            "picture of this size: crop it closer around the face, or use a larger one.",
            faces=seen,
            size=[round(width), round(height)],
            smallest=math.ceil(smallest),
        )
    return chosen


def counted(faces: Sequence[Face]) -> str:
    """How many, in words of a sentence."""
    return "one face" if len(faces) == 1 else f"{len(faces)} faces"


def described(faces: Sequence[Face]) -> list[dict[str, Any]]:
    """Boxes in whole pixels and scores, for a client to choose from."""
    return [{"box": [round(edge) for edge in face.box], "score": round(face.score, 3)} for face in faces]
