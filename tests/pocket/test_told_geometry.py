"""What PuLID's encoder is taught of a geometry is what its input tells of it, as wide as people differ."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from app.pocket.face_features import FaceFeatures  # noqa: E402
from app.pocket.told_geometry import WIDEST, told_geometry  # noqa: E402


def people_of(count: int, lost: int = 0):
    """Vectors that tell the first number whole, the second in noise, and nothing of the others."""
    generator = torch.Generator().manual_seed(5)
    geometry = torch.rand(count, 14, generator=generator) * 2 - 1
    vectors = torch.randn(count, 60, generator=generator)
    vectors[:, 0] = 5 * geometry[:, 0]
    vectors[:, 1] = geometry[:, 1] + 0.4 * torch.randn(count, generator=generator)
    found = np.ones(count, np.bool_)
    found[:lost] = False
    return FaceFeatures(vectors.numpy(), np.zeros((count, 5, 2, 4), np.float32), found), geometry


def test_it_says_what_the_vectors_tell_and_as_wide_as_people_differ() -> None:
    features, geometry = people_of(20000, lost=7)
    told = told_geometry(features, geometry)[7:]
    true = geometry[7:]
    alike = [float(torch.corrcoef(torch.stack([told[:, k], true[:, k]]))[0, 1]) for k in range(14)]
    assert alike[0] > 0.999 and 0.75 < alike[1] < 0.9 and max(map(abs, alike[2:])) < 0.2
    assert told[:, :2].std(0) == pytest.approx(true[:, :2].std(0), rel=0.05)
    assert float(told[:, 2:].std(0).max()) < 0.2 * WIDEST


def test_who_has_no_face_is_told_nothing() -> None:
    features, geometry = people_of(200, lost=7)
    told = told_geometry(features, geometry)
    assert not told[:7].any() and told[7:].any() and told.abs().max() <= WIDEST
