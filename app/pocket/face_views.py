"""What the product's own face stack makes of every picture of the people: who is seen, and the grey view of the face.

Training on crops that the renderer's own points cut is training on something the product never sees: its detector is
off by a pixel, its alignment fits the best of five points and not their mean, its outline comes from a network. So
what is to read faces in the product learns from what the product shows it, mistakes and all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import resize

from app.errors import InvalidRequest
from app.models.faces import FaceAnalyser
from app.pocket import archive
from app.pocket.face_networks import EMBEDDING, IMAGE_SIZE
from app.pocket.people import PICTURES_EACH, People

DECODED = PICTURES_EACH - 1
"""Which picture of each person is looked at as the autoencoder gives it back; the others are looked at as drawn."""

SHAPES: archive.Shapes = {
    "vectors": (np.float32, (EMBEDDING,)),
    "views": (np.uint8, (IMAGE_SIZE, IMAGE_SIZE)),
    "found": (np.bool_, ()),
}


@dataclass(frozen=True)
class FaceViews:
    """First axis: entries. Where no face was found everything is zero."""

    vectors: np.ndarray  # [n, 512] raw identity vectors
    views: np.ndarray  # [n, 112, 112] grey, white where there is no face
    found: np.ndarray  # [n] whether a face was

    @property
    def indices(self) -> list[int]:
        """The entries with a face."""
        return np.flatnonzero(self.found).tolist()

    def pictures(self, indices: list[int]) -> torch.Tensor:
        """[n, 1, 112, 112] of 0 to 1."""
        return torch.from_numpy(self.views[indices].astype(np.float32))[:, None] / 255


def build(folder: Path, some: People, analyser: FaceAnalyser, report: Callable[[str], None] = print) -> FaceViews:
    """Look at what the folder lacks, then open it. Delete the files when the face pack has changed."""

    def make(indices: range) -> dict[str, np.ndarray]:
        made = {name: np.zeros((len(indices), *shape), kind) for name, (kind, shape) in SHAPES.items()}
        for row, index in enumerate(indices):
            source = some.decoded if index % PICTURES_EACH == DECODED else some.pictures
            image = Image.fromarray(source[index])
            try:
                face = analyser.find(image)
                aligned = analyser.align(image, face)
            except InvalidRequest:
                continue
            view = resize(analyser.eva_input(aligned.image)[:, :1], [IMAGE_SIZE, IMAGE_SIZE], 3, antialias=True)
            made["vectors"][row] = analyser.embed(image, face)
            made["views"][row] = (view[0, 0].clamp(0, 1) * 255).round().byte().cpu().numpy()
            made["found"][row] = True
        return made

    return FaceViews(**archive.build(folder, f"views-{some.seed}", SHAPES, len(some), make, report))
