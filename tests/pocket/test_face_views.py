"""Encoders learn from what the product's own face stack shows them, and from nothing else."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from PIL import Image  # noqa: E402

from app.models import eva_clip, faces  # noqa: E402
from app.models.device import TorchDevice  # noqa: E402
from app.pocket import crops, face_features, face_networks, face_views, people, world  # noqa: E402
from app.pocket.check import load  # noqa: E402
from app.pocket.spec import WEIGHTS  # noqa: E402
from app.pocket.train_identity import FACES, IDENTITY, IMAGE_ENCODER  # noqa: E402

CLIP = IDENTITY / IMAGE_ENCODER / "eva02_clip.safetensors"


@pytest.fixture(scope="module")
def some(tmp_path_factory) -> people.People:
    return people.build(tmp_path_factory.mktemp("people"), "views", 32, load(WEIGHTS).vae, lambda line: None)


@pytest.fixture(scope="module")
def analyser() -> faces.FaceAnalyser:
    clip = eva_clip.open_file(CLIP, face_networks.HEAD_DIM)
    return faces.open_analyser([IDENTITY / FACES], TorchDevice("cpu"), clip)


@pytest.fixture(scope="module")
def views(some, analyser, tmp_path_factory) -> face_views.FaceViews:
    return face_views.build(tmp_path_factory.mktemp("views"), some, analyser, lambda line: None)


def test_a_view_is_the_aligned_face_in_grey(some, views, analyser) -> None:
    assert views.found.mean() > 0.9
    drawn = [index for index in views.indices if index % people.PICTURES_EACH != face_views.DECODED]
    grey = (crops.to_unit(some.pictures[drawn]) * crops.LUMINANCE).sum(1, keepdim=True)
    pictures = [Image.fromarray(some.pictures[index]) for index in drawn]
    aligned = np.stack([analyser.align(image, analyser.find(image)).matrix[:2] for image in pictures])
    matrices = torch.from_numpy(aligned * face_networks.IMAGE_SIZE / 512).float()
    cut = crops.warp(grey, matrices, face_networks.IMAGE_SIZE)
    seen = views.pictures(drawn)
    is_face = seen < 0.95
    assert 0.1 < is_face.float().mean() < 0.9
    assert (cut - seen)[is_face].abs().mean() < 0.06
    moved = crops.warp(grey, matrices + 6.0 * torch.eye(3)[2:], face_networks.IMAGE_SIZE)
    assert (moved - seen)[is_face].abs().mean() > 2 * (cut - seen)[is_face].abs().mean()


def test_a_picture_without_a_face_is_left_out(analyser, some, tmp_path) -> None:
    empty = people.People(**{**vars(some), "pictures": some.pictures.copy(), "decoded": some.decoded})
    empty.pictures[0] = np.asarray(Image.new("RGB", (people.SIZE, people.SIZE), world.COLOURS["blue"]))
    seen = face_views.build(tmp_path, empty, analyser, lambda line: None)
    assert not seen.found[0] and 0 not in seen.indices and not seen.views[0].any()


def test_features_are_those_of_the_product(some, views, analyser, tmp_path) -> None:
    clip = eva_clip.open_file(CLIP, face_networks.HEAD_DIM)
    features = face_features.build(tmp_path, some, views, clip, lambda line: None)
    for index in views.indices[:6]:
        source = some.decoded if index % people.PICTURES_EACH == face_views.DECODED else some.pictures
        image = Image.fromarray(source[index])
        told = analyser.identify(image, analyser.find(image))
        vectors, hidden = features.of([index])
        wanted = np.concatenate([told.arcface, told.clip_pooled])
        assert np.abs(vectors[0].numpy() - wanted).max() < 0.02 * np.abs(wanted).max()
        states = np.stack(told.clip_hidden)
        assert np.abs(hidden[0].numpy() - states).mean() < 0.02 * np.abs(states).mean(), "a view has eight bits"
