"""Faces framed and numbered on their picture."""

import numpy as np
from PIL import Image

from app.imaging.detected_faces import Face
from app.imaging.face_boxes import FRAME, POINT, draw_faces

BACKGROUND = (90, 90, 90)


def face(box):
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    shares = np.array([[0.3, 0.4], [0.7, 0.4], [0.5, 0.6], [0.35, 0.8], [0.65, 0.8]])
    return Face(box, 0.9, (shares * (width, height) + (left, top)).astype(np.float32))


def where(picture, colour):
    """Left, top, right, bottom of all pixels of a colour."""
    rows, columns = np.nonzero((np.asarray(picture) == colour).all(-1))
    return columns.min(), rows.min(), columns.max(), rows.max()


def test_a_face_is_framed_at_its_box_and_marked_at_its_points():
    picture = Image.new("RGB", (640, 480), BACKGROUND)
    drawn = draw_faces(picture, [face((100, 120, 300, 400))])
    left, top, right, bottom = where(drawn, FRAME)
    assert (left, top, right, bottom) == (100, 120, 300, 400)
    eyes, mouth = where(drawn, POINT)[1], where(drawn, POINT)[3]
    assert abs(eyes - (120 + 0.4 * 280)) <= 3 and abs(mouth - (120 + 0.8 * 280)) <= 3
    assert drawn.getpixel((200, 200)) == BACKGROUND, "the face itself stays to be seen"
    assert picture.getpixel((100, 200)) == BACKGROUND, "the picture that was handed in is left alone"


def test_each_number_is_another_one_and_no_face_changes_nothing():
    picture = Image.new("RGB", (640, 480), BACKGROUND)
    boxes = (40, 60, 240, 300), (340, 60, 540, 300)
    drawn = draw_faces(picture, [face(box) for box in boxes])
    plates = [np.asarray(drawn.crop((box[0], box[1], box[0] + 28, box[1] + 30))) for box in boxes]
    assert (plates[0] != plates[1]).any(), "0 and 1 look alike"
    assert draw_faces(picture, []).tobytes() == picture.tobytes()


def test_the_number_of_a_face_beyond_the_edge_stays_inside_the_picture():
    picture = Image.new("RGB", (300, 300), BACKGROUND)
    drawn = np.asarray(draw_faces(picture, [face((-80, -60, 120, 140))]))
    assert (drawn[:16, :8] == FRAME).all(-1).any(), "the plate is cut off with the frame"
    corner = np.asarray(draw_faces(picture, [face((296, 296, 420, 420))]))
    plate = (corner[270:, 270:] == FRAME).all(-1)
    assert plate.sum() > 100


def test_frames_of_a_small_and_of_a_large_picture_can_be_seen():
    for side in (64, 2048):
        drawn = draw_faces(Image.new("L", (side, side), 90), [face((side / 4, side / 4, side / 2, side / 2))])
        assert drawn.mode == "RGB"
        column = np.asarray(drawn)[side * 3 // 8]
        thick = (column[: side * 3 // 8] == FRAME).all(-1).sum()
        assert thick >= max(1, side / 300)
