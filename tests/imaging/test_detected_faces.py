"""The choice of one face: every way to say it, and what a client is told when it says nothing or something wrong."""

import numpy as np
import pytest

from app.api.errors import status_of
from app.errors import FaceNotChosen, InvalidRequest, NoFaceFound
from app.imaging.detected_faces import Face, choose_face, largest_first, overlap


def face(left, top, width, height, score=0.9):
    return Face((left, top, left + width, top + height), score, np.zeros((5, 2), dtype=np.float32))


SMALL, LARGE, TALL = face(10, 10, 50, 50), face(200, 20, 120, 150), face(400, 0, 60, 140)
THREE = [SMALL, LARGE, TALL]


def test_the_largest_comes_first_and_of_two_as_large_the_surer():
    assert largest_first(THREE) == [LARGE, TALL, SMALL]
    doubtful, sure = face(0, 0, 50, 50, 0.6), face(100, 0, 50, 50, 0.95)
    assert largest_first([doubtful, sure]) == [sure, doubtful]


def test_one_face_needs_no_choice():
    assert choose_face([LARGE]) is LARGE
    assert choose_face([LARGE], index=0) is LARGE


@pytest.mark.parametrize(("index", "wanted"), [(0, LARGE), (1, TALL), (2, SMALL)])
def test_a_number_counts_from_the_largest(index, wanted):
    assert choose_face(THREE, index=index) is wanted


@pytest.mark.parametrize(
    ("box", "wanted"), [((0, 0, 70, 70), SMALL), ((390, 0, 470, 150), TALL), ((0, 0, 330, 180), LARGE)]
)
def test_a_box_means_the_face_that_it_covers_most(box, wanted):
    assert choose_face(THREE, box=box) is wanted


def test_overlap_is_shared_over_joint_area():
    assert overlap((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert overlap((0, 0, 10, 10), (10, 0, 20, 10)) == 0
    assert overlap((0, 0, 10, 10), (0, 0, 10, 10)) == 1


def test_no_face_says_how_it_was_looked_for():
    with pytest.raises(NoFaceFound, match=r"No face was found in the picture \(looked twice\)\.") as caught:
        choose_face([], tried="looked twice")
    assert caught.value.details == {"faces": []}
    assert status_of(type(caught.value)) == 422


def test_several_faces_without_a_choice_are_listed_largest_first():
    with pytest.raises(FaceNotChosen, match="shows 3 faces: say which") as caught:
        choose_face(THREE)
    assert [entry["box"] for entry in caught.value.details["faces"]] == [
        [200, 20, 320, 170], [400, 0, 460, 140], [10, 10, 60, 60]
    ]  # fmt: skip
    assert status_of(type(caught.value)) == 422


@pytest.mark.parametrize("index", [3, 17, -1])
def test_a_number_without_a_face_is_told_how_many_there_are(index):
    with pytest.raises(FaceNotChosen, match=rf"no face number {index}: the picture shows 3 faces") as caught:
        choose_face(THREE, index=index)
    assert len(caught.value.details["faces"]) == 3
    with pytest.raises(FaceNotChosen, match="shows one face,"):
        choose_face([LARGE], index=1)


def test_a_box_over_no_face_is_refused_even_where_there_is_only_one():
    with pytest.raises(FaceNotChosen, match="lies over no face; the picture shows 3 faces"):
        choose_face(THREE, box=(500, 300, 600, 400))
    with pytest.raises(FaceNotChosen, match="no face; the picture shows one face"):
        choose_face([LARGE], box=(500, 300, 600, 400))


@pytest.mark.parametrize("small", [face(0, 0, 39, 60), face(0, 0, 60, 30.4)])
def test_a_face_under_40_pixels_is_refused_with_its_size(small):
    with pytest.raises(
        InvalidRequest, match=rf"{small.size[0]:.0f}x{small.size[1]:.0f} pixels small; at least 40"
    ) as caught:
        choose_face([small])
    assert caught.value.details["size"] == [round(side) for side in small.size]
    assert status_of(type(caught.value)) == 422
    assert choose_face([face(0, 0, 40, 40)])
    with pytest.raises(InvalidRequest, match="at least 80"):
        choose_face([face(0, 0, 60, 60)], smallest=80)


def test_a_face_moves_with_its_picture():
    grown = Face((1, 2, 3, 4), 0.5, np.array([[1, 2]], dtype=np.float32)).scaled(2, 3)
    assert grown.box == (2, 6, 6, 12)
    assert grown.keypoints.tolist() == [[2, 6]]
