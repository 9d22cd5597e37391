"""Faces of a real photo by the published RetinaFace (MobileNet), which EIS_TEST_WEIGHTS names the folder of."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from app.errors import FaceNotChosen, InvalidRequest, NoFaceFound
from app.models import faces, faces_facexlib
from app.models.device import TorchDevice

WEIGHTS = os.environ.get("EIS_TEST_WEIGHTS")
BOX = (178, 54, 271, 179)
"""Of the one face in scikit-image's astronaut, as the weights' own page states it."""

pytestmark = pytest.mark.skipif(not WEIGHTS, reason="EIS_TEST_WEIGHTS names no folder of published weights")


@pytest.fixture(scope="module")
def analyser(tmp_path_factory):
    folder = tmp_path_factory.mktemp("facexlib")
    shutil.copy(Path(WEIGHTS) / "retinaface-mobile0.25.safetensors", folder / "retinaface_mobile0.25.safetensors")
    return faces.open_analyser([folder], TorchDevice("cpu"))


@pytest.fixture(scope="module")
def astronaut():
    from skimage import data

    return Image.fromarray(data.astronaut())


def test_the_astronauts_face_is_found_within_two_pixels(analyser, astronaut):
    face = analyser.find(astronaut)
    assert np.abs(np.array(face.box) - BOX).max() <= 2
    assert face.score > 0.99
    left_eye, right_eye, nose, left_mouth, right_mouth = face.keypoints
    assert left_eye[0] < nose[0] < right_eye[0] and left_mouth[0] < right_mouth[0]
    assert max(left_eye[1], right_eye[1]) < nose[1] < min(left_mouth[1], right_mouth[1])


def test_the_astronaut_is_lined_up(analyser, astronaut, record_property):
    aligned = analyser.align(astronaut, analyser.find(astronaut))
    error = faces.alignment_error(aligned)
    record_property("alignment_error_pixels", error)
    # The head is turned a little, so that no turn and scale alone brings all five points onto the template.
    assert error == pytest.approx(10.55, abs=0.3)
    moved = aligned.keypoints @ aligned.matrix[:, :2].T + aligned.matrix[:, 2]
    assert np.linalg.norm(moved - faces_facexlib.TEMPLATE, axis=1).max() < 20
    assert aligned.image.size == (512, 512)


@pytest.mark.parametrize("size", [(2048, 2048), (1300, 1300)])
def test_a_larger_copy_has_the_same_face_in_its_own_pixels(analyser, astronaut, size):
    face = analyser.find(astronaut.resize(size, Image.Resampling.LANCZOS))
    scale = size[0] / 512
    assert np.abs(np.array(face.box) / scale - BOX).max() < 6


def test_the_same_face_twice_is_a_choice(analyser, astronaut):
    both = Image.new("RGB", (900, 512))
    both.paste(astronaut, (0, 0))
    both.paste(astronaut.resize((400, 400), Image.Resampling.LANCZOS), (500, 60))
    assert len(analyser.detect(both)) == 2
    with pytest.raises(FaceNotChosen, match="shows 2 faces") as caught:
        analyser.find(both)
    large, small = caught.value.details["faces"]
    assert np.abs(np.array(large["box"]) - BOX).max() <= 2
    assert small["box"][0] > 600
    by_number, by_box = analyser.find(both, index=1), analyser.find(both, box=(620, 90, 720, 210))
    assert by_number.box == by_box.box
    crops = [analyser.align(both, analyser.find(both, index=index)) for index in (0, 1)]
    assert crops[0].keypoints[:, 0].max() < 300 < 600 < crops[1].keypoints[:, 0].min()
    # Both crops show one person in one place: they differ by the scaling alone.
    difference = np.abs(np.asarray(crops[0].image, float) - np.asarray(crops[1].image, float))[100:400, 100:400].mean()
    assert difference < 20


@pytest.mark.parametrize("name", ["chelsea", "coffee", "rocket"])
def test_a_cat_a_cup_and_a_rocket_have_no_face(analyser, name):
    from skimage import data

    with pytest.raises(NoFaceFound, match="looked at the picture's own size") as caught:
        analyser.find(Image.fromarray(getattr(data, name)()))
    assert caught.value.details == {"faces": []}


def test_a_small_copy_is_refused_with_the_faces_size(analyser, astronaut):
    small = Image.new("RGB", (640, 640))
    small.paste(astronaut.resize((200, 200), Image.Resampling.LANCZOS), (100, 100))
    with pytest.raises(InvalidRequest, match=r"The face is 3\dx[45]\d pixels small; at least 40"):
        analyser.find(small)
