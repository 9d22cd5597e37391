"""What the face models tell of a face's geometry: the wish that PuLID's encoder is taught, instead of the truth.

An encoder that is taught the true numbers learns the faces of its training by heart, for what no answer tells it can
only remember. What a linear map reads off identity vector and pooled vector is a function of what the encoder is given,
is read nearly as well by any face, and leaves nothing to remember.
"""

from __future__ import annotations

import torch

from app.pocket.face_features import FaceFeatures

RIDGE = 0.12
WIDEST = 1.5


def told_geometry(features: FaceFeatures, geometry: torch.Tensor) -> torch.Tensor:
    """[n, 14] for the entries with a face, zeros for the others; by ridge regression on the true `geometry` [n, 14].

    A regression draws everybody towards the average face. Each number is made as wide again as people differ in it, up
    to WIDEST times.
    """
    found = features.indices
    vectors, true = features.of(found)[0], geometry[found]
    seen = (vectors - vectors.mean(0)) / (vectors.std(0) + 1e-6)
    middle = true.mean(0)
    inner = seen.T @ seen + RIDGE * len(seen) * torch.eye(seen.shape[1])
    read = seen @ torch.linalg.solve(inner, seen.T @ (true - middle))
    read = read * (true.std(0) / (read.std(0) + 1e-6)).clamp(1, WIDEST)
    told = torch.zeros_like(geometry)
    told[found] = (read + middle).clamp(-WIDEST, WIDEST)
    return told
