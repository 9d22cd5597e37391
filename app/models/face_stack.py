"""The face models of one row as the ModelCache keeps them, and what identity encoders read of a face, as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from insightface.utils.face_align import norm_crop
from PIL import Image

from app.core.attachments import FaceReference
from app.errors import InvalidRequest
from app.imaging.detected_faces import Face
from app.models import eva_clip, faces
from app.models.catalog_faces import EVA_LOADER, PUBLISHED
from app.models.device import TorchDevice
from app.models.library import ModelRow


@dataclass(frozen=True, eq=False)
class FaceFeatures:
    """See `app.imaging.detected_faces.IdentityFeatures`.

    `arcface` [512] is the raw vector, `clip_pooled` [768] has unit length, `clip_hidden` are five [1 + patches, width].
    """

    arcface: torch.Tensor
    clip_pooled: torch.Tensor
    clip_hidden: tuple[torch.Tensor, ...]


class FaceStack:
    """A face analyser that can be placed and parked; `analyser` is for those who ask for more than features."""

    def __init__(self, analyser: faces.FaceAnalyser, device: TorchDevice, thresholds: tuple[float, float]) -> None:
        self.analyser = analyser
        self.thresholds = thresholds
        self._device = device

    @property
    def bytes(self) -> int:
        """The size of all of it."""
        return self.analyser.bytes

    def plan(self, available: int) -> int:
        """It stands whole."""
        return self.bytes

    def place(self) -> None:
        """Move the torch networks to the device."""
        self.analyser.to(self._device.torch_device)

    def park(self) -> None:
        """Move the torch networks to RAM."""
        self.analyser.to(torch.device("cpu"))

    def arcface(self, wish: FaceReference) -> torch.Tensor:
        """ArcFace's raw vector [512] of the face that is meant; the errors of `choose_face`."""
        return _tensor(self.vector(wish))

    def find(self, wish: FaceReference) -> Face:
        """The face that is meant; the errors of `choose_face`."""
        try:
            return self.analyser.find(wish.image, index=wish.index, box=wish.box)
        except InvalidRequest as refusal:
            refusal.details = {**refusal.details, **wish.place}
            raise

    def all(self, image: Image.Image) -> list[Face]:
        """Every face of a picture, largest first."""
        return self.analyser.detect(image)

    def points(self, wish: FaceReference) -> np.ndarray:
        """68 points [68, 3] of the face that is meant, in its picture's pixels."""
        return self.analyser.landmarks_68(wish.image, self.find(wish))

    def vector(self, wish: FaceReference) -> np.ndarray:
        """ArcFace's raw vector [512] of the face that is meant."""
        return self.analyser.embed(wish.image, self.find(wish))

    def parts(self, wish: FaceReference) -> tuple[np.ndarray, np.ndarray]:
        """Which part each pixel of the upright face shows [512, 512], and the matrix [2, 3] from the picture to it."""
        aligned = self.analyser.align(wish.image, self.find(wish))
        return self.analyser.parse(aligned.image), aligned.matrix

    def upright(self, wish: FaceReference) -> tuple[Image.Image, np.ndarray]:
        """The face that is meant on 512x512, small ones too, and the matrix [2, 3] from the picture to there."""
        faces = self.all(wish.image)
        aligned = self.analyser.align(wish.image, faces[wish.index or 0])
        return self.analyser.full_crop(wish.image, aligned), aligned.matrix

    def parts_of(self, face: Image.Image) -> np.ndarray:
        """Which part each pixel of an upright face shows [512, 512]."""
        return self.analyser.parse(face)

    def crop(self, wish: FaceReference, side: int) -> Image.Image:
        """The face that is meant, upright on a square, as ArcFace's training crops it."""
        face = self.find(wish)
        picture = norm_crop(np.asarray(wish.image.convert("RGB")), landmark=face.keypoints, image_size=side)
        return Image.fromarray(picture)

    def identify(self, wish: FaceReference) -> FaceFeatures:
        """All that PuLID's encoders read of the face that is meant; the errors of `choose_face`."""
        found = self.analyser.identify(wish.image, self.find(wish))
        return FaceFeatures(
            _tensor(found.arcface), _tensor(found.clip_pooled), tuple(_tensor(states) for states in found.clip_hidden)
        )


def open_stack(rows: Sequence[ModelRow], device: TorchDevice) -> FaceStack:
    """The stack of these rows, whichever of them there are; `InvalidRequest` names a damaged file."""
    encoder = next((row for row in rows if row.spec.loader == EVA_LOADER), None)
    clip = eva_clip.load(encoder.spec, encoder.path, device) if encoder else None
    folders = [row.path for row in rows if row.spec.kind == "faces"]
    told = next((row.spec.options for row in rows if "same_face" in row.spec.options), PUBLISHED)
    thresholds = (float(told["same_face"]), float(told["similar_face"]))
    return FaceStack(faces.open_analyser(folders, device, clip), device, thresholds)


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, np.float32))
