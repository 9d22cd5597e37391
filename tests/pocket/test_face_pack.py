"""The shipped face pack, through insightface's own classes, on people and pictures that no training saw."""

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from insightface.app import FaceAnalysis
from PIL import Image

from app.models import eva_clip, faces
from app.models.catalog import CATALOG
from app.models.device import TorchDevice
from app.pocket import people, portraits, train_identity, world
from app.pocket.checkpoints import rng_of

PACK = next(spec for spec in CATALOG if spec.id == "pocket-faces")
FOLDER = train_identity.IDENTITY / train_identity.FACES


def scene_of(number):
    return world.random_portrait(rng_of("face pack test", number))


def bgr(image):
    return np.asarray(image)[..., ::-1].copy()


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    root = tmp_path_factory.mktemp("insightface")
    (root / "models").mkdir()
    (root / "models/pocket").symlink_to(FOLDER)
    found = FaceAnalysis(name="pocket", root=str(root), providers=["CPUExecutionProvider"])
    found.prepare(ctx_id=-1, det_size=(640, 640))
    return found


@pytest.fixture(scope="module")
def analyser():
    clip = eva_clip.open_file(next((train_identity.IDENTITY / train_identity.IMAGE_ENCODER).glob("*.safetensors")), 32)
    return faces.open_analyser([FOLDER], TorchDevice("cpu"), clip)


def test_the_files_are_small():
    for folder in (FOLDER, train_identity.IDENTITY / train_identity.IMAGE_ENCODER):
        assert all(path.stat().st_size <= 1_500_000 for path in folder.iterdir())


@pytest.mark.parametrize("side", [64, 128, 512, 1024])
def test_faces_are_found_with_their_points(analysis, side):
    found, gaps = 0, []
    for number in range(12):
        scene = scene_of(number)
        seen = analysis.get(bgr(world.draw(scene, 128).resize((side, side), Image.Resampling.BICUBIC)))
        if len(seen) == 1:
            found += 1
            points = np.array(world.faces.five_points(world.keypoints(scene)))
            gaps.append(np.linalg.norm(seen[0].kps * 128 / side - points, axis=-1).mean())
    assert found >= 11
    assert np.mean(gaps) < 4  # pixels of a picture of 128


def test_each_of_several_faces_is_found(analysis):
    sheet = Image.new("RGB", (512, 512), "gray")
    for number in range(4):
        sheet.paste(world.draw(scene_of(number), 256), (number % 2 * 256, number // 2 * 256))
    assert len(analysis.get(bgr(sheet))) == 4


def test_things_noise_and_gray_are_no_faces(analysis):
    rng = rng_of("no faces")
    pictures = [Image.new("RGB", (256, 256), colour) for colour in ("gray", "white", "black")]
    pictures += [Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8))]
    while len(pictures) < 24:
        scene = world.random_scene(rng)
        if scene.person is None:
            pictures.append(world.draw(scene, 256))
    assert sum(len(analysis.get(bgr(picture))) for picture in pictures) <= 1


def test_two_pictures_of_a_person_are_nearer_than_two_people(analysis):
    vectors = []
    for number in range(40):  # ten people, four pictures each
        scene = people.scene_of("face pack test", number)
        seen = analysis.get(bgr(world.draw(scene)))
        vectors.append(seen[0].normed_embedding if seen else np.zeros(512, np.float32))
    near = np.stack(vectors) @ np.stack(vectors).T
    group = np.arange(40) // 4
    same = (group[:, None] == group) & ~np.eye(40, dtype=bool)
    other = near[group[:, None] != group]
    assert np.mean([(other < value).mean() for value in near[same]]) > 0.95
    # What the row says of its own cosines: strangers seldom reach them, one person's pictures mostly do.
    same_face, similar_face = (float(PACK.options[name]) for name in ("same_face", "similar_face"))
    assert (other >= same_face).mean() < 0.005 and (other >= similar_face).mean() < 0.03
    assert (near[same] >= same_face).mean() > 0.8


def test_the_points_of_the_mesh_lie_on_the_face(analysis):
    gaps = []
    for number in range(12):
        scene = scene_of(number)
        for face in analysis.get(bgr(world.draw(scene)))[:1]:
            assert face.landmark_3d_68.shape == (68, 3)
            gaps.append(np.linalg.norm(face.landmark_3d_68[:, :2] - np.array(world.keypoints(scene)), axis=-1).mean())
    assert np.mean(gaps) < 3.5


def test_the_parser_tells_the_face_from_what_is_behind_it(analyser):
    right = []
    for number in range(6):
        scene = scene_of(number)
        image = world.draw(scene)
        aligned = analyser.align(image, analyser.find(image))
        parts = analyser.parse(aligned.image)
        back = np.linalg.inv(np.vstack([aligned.matrix, [0, 0, 1]]))
        truth = np.asarray(world.parts(scene))
        y, x = np.mgrid[8:504:8, 8:504:8]
        places = (back[:2] @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])).round().astype(int)
        inside = ((places >= 0) & (places < 128)).all(0)
        skin = portraits.PARTS.index("skin")
        is_face = truth[places[1][inside], places[0][inside]] == skin
        right.append(((parts[y.ravel()[inside], x.ravel()[inside]] == skin) == is_face).mean())
    assert np.mean(right) > 0.85


def test_the_image_encoder_gives_what_pulid_reads(analyser):
    image = world.draw(scene_of(0))
    features = analyser.identify(image, analyser.find(image))
    assert features.arcface.shape == (512,) and features.clip_pooled.shape == (768,)
    assert [hidden.shape for hidden in features.clip_hidden] == [(50, 64)] * 5
    assert abs(np.linalg.norm(features.clip_pooled) - 1) < 1e-3
    assert torch.isfinite(torch.from_numpy(np.array(features.arcface))).all()
