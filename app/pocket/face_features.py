"""What the face models say of every picture of the people, kept on disk: the identity modules learn from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from app.models.eva_clip import EvaClip
from app.pocket import archive, face_networks
from app.pocket.face_views import FaceViews
from app.pocket.people import People

SCALES = 5  # depths of the image encoder that are looked at
PLACES = (face_networks.IMAGE_SIZE // face_networks.PATCH) ** 2 + 1


@dataclass(frozen=True)
class FaceFeatures:
    """First axis: entries; those without a face in `found` are zero."""

    vectors: np.ndarray  # [n, 512 + 768] raw identity vector, pooled vector of unit length
    hidden: np.ndarray  # [n, SCALES, PLACES, width]
    found: np.ndarray  # [n] of bool

    @property
    def of_recognition(self) -> FaceFeatures:
        """The identity vectors [n, 512] alone, which are all that InstantID sees; hidden states stay."""
        return replace(self, vectors=self.vectors[:, : face_networks.EMBEDDING])

    @property
    def indices(self) -> list[int]:
        """The entries with a face."""
        return np.flatnonzero(self.found).tolist()

    def of(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """([n, 1280], [n, SCALES, PLACES, width]) of these entries."""
        vectors, hidden = (array[indices].astype(np.float32) for array in (self.vectors, self.hidden))
        return torch.from_numpy(vectors), torch.from_numpy(hidden)


@torch.no_grad()
def build(
    folder: Path, some: People, views: FaceViews, clip: EvaClip, report: Callable[[str], None] = print
) -> FaceFeatures:
    """Compute what the folder lacks, then open it. Delete the files when a network has changed."""

    def make(indices: range) -> dict[str, np.ndarray]:
        rows = list(indices)
        seen = clip.encode(clip.preprocess(views.pictures(rows).expand(-1, 3, -1, -1)))
        pooled = torch.nn.functional.normalize(seen.pooled, dim=-1)
        known = torch.from_numpy(views.found[rows].astype(np.float32))
        vectors = torch.cat([torch.from_numpy(views.vectors[rows]), pooled], -1) * known[:, None]
        hidden = torch.stack(list(seen.hidden), 1) * known[:, None, None, None]
        return {"vectors": vectors.numpy(), "hidden": hidden.numpy()}

    width = clip.tower.embed_dim
    shapes = {
        "vectors": (np.float16, (face_networks.EMBEDDING + face_networks.POOLED,)),
        "hidden": (np.float16, (SCALES, PLACES, width)),
    }
    arrays = archive.build(folder, f"features-{some.seed}", shapes, len(some), make, report)
    return FaceFeatures(**arrays, found=views.found)
