"""The keypoint drawing and the turned head: angles are measured on the points, by another way than they were made."""

import math

import numpy as np
import pytest

from app.errors import InvalidRequest
from app.imaging import keypoints
from app.imaging.keypoints import (
    POSES,
    draw_keypoints,
    five_points,
    head_pose,
    reference_size,
    turn_head,
    turn_keypoints,
)


def straight_head():
    """68 points of a head that looks ahead, in pixels; depth towards the viewer. Left and right mirror each other."""
    rng = np.random.default_rng(3)
    points = np.zeros((68, 3))
    angles = np.linspace(math.pi, 0, 17)
    points[:17] = np.stack([62 * np.cos(angles), 85 * np.sin(angles) - 30, 40 * np.sin(angles) - 30], axis=-1)
    for start, x in ((17, -46), (22, 18)):
        points[start : start + 5] = np.stack([x + 7 * np.arange(5), np.full(5, -48), np.full(5, 32)], axis=-1)
    points[27:31] = np.stack([np.zeros(4), np.linspace(-30, -14, 4), np.linspace(46, 60, 4)], axis=-1)
    points[31:36] = np.stack([np.linspace(-10, 10, 5), np.full(5, 4), np.full(5, 50)], axis=-1)
    for start, x in ((36, -27), (42, 27)):
        circle = np.linspace(math.pi, -math.pi, 6, endpoint=False)
        points[start : start + 6] = np.stack(
            [x + 11 * np.cos(circle), -31 + 4 * np.sin(circle), np.full(6, 29)], axis=-1
        )
    ring = np.linspace(math.pi, -math.pi, 12, endpoint=False)
    # The mouth stands as far before the eyes as in the mean face.
    depth = 29 + 55 * math.tan(keypoints.MOUTH_FORWARD)
    points[48:60] = np.stack([21 * np.cos(ring), 24 + 6 * np.sin(ring), np.full(12, depth)], axis=-1)
    points[60:] = points[48:56] * [0.7, 1, 1] + rng.normal(0, 0.1, (8, 3))
    points[60:, 0] -= points[60:, 0].mean()
    return points + np.array([300, 400, 0])


def turned(points, yaw, pitch, roll=0.0):
    """The points turned about their middle by the usual matrices: yaw first, then pitch, then roll."""
    yaw, pitch, roll = (math.radians(angle) for angle in (yaw, pitch, roll))
    around_y = np.array([[math.cos(yaw), 0, math.sin(yaw)], [0, 1, 0], [-math.sin(yaw), 0, math.cos(yaw)]])
    around_x = np.array([[1, 0, 0], [0, math.cos(pitch), math.sin(pitch)], [0, -math.sin(pitch), math.cos(pitch)]])
    around_z = np.array([[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]])
    middle = points.mean(axis=0)
    return (points - middle) @ (around_z @ around_x @ around_y).T + middle


def fitted_angles(before, after):
    """Yaw, pitch, roll and scale of the best rigid map from one set of points to another (Kabsch)."""
    a, b = before - before.mean(axis=0), after - after.mean(axis=0)
    u, s, vt = np.linalg.svd(a.T @ b)
    sign = np.diag([1, 1, np.sign(np.linalg.det(vt.T @ u.T))])
    r = vt.T @ sign @ u.T
    return (
        math.degrees(math.atan2(-r[2, 0], r[2, 2])),
        math.degrees(math.asin(-r[2, 1])),
        math.degrees(math.atan2(-r[0, 1], r[1, 1])),
        (s * np.diag(sign)).sum() / (a**2).sum(),
    )


def test_points_at_the_edge_and_on_each_other_are_drawn():
    points = np.array([[-30.0, -20], [1e3, 5], [50, 50], [50, 50], [50, 50]])
    picture = np.asarray(draw_keypoints((100, 80), points))
    assert picture.shape == (80, 100, 3)
    assert tuple(picture[50, 50]) == (255, 0, 255)


def test_five_points_are_eyes_nose_and_mouth_corners():
    points = straight_head()
    five = five_points(points)
    assert five.shape == (5, 2)
    assert np.allclose(five, [(273, 369), (327, 369), (300, 386), (279, 424), (321, 424)], atol=0.6)


@pytest.mark.parametrize("towards", [1, -1], ids=["depth to the viewer", "depth away"])
@pytest.mark.parametrize("pose", [(0, 0, 0), (25, 0, 0), (-35, 10, 0), (10, -20, 15), (0, 18, -30)])
def test_a_pose_is_read_off_the_points(pose, towards):
    points = turned(straight_head(), *pose) * [1, 1, towards]
    assert head_pose(points) == pytest.approx(pose, abs=0.3)


@pytest.mark.parametrize("towards", [1, -1], ids=["depth to the viewer", "depth away"])
@pytest.mark.parametrize("name", POSES)
@pytest.mark.parametrize("seen", [(0, 0, 0), (20, -10, 8), (-30, 15, -12)])
def test_a_head_that_was_turned_looks_where_it_should(seen, name, towards):
    head = straight_head()
    yaw, pitch = POSES[name]
    points = turn_head(turned(head, *seen) * [1, 1, towards], yaw, pitch)
    found = fitted_angles(head, points)
    assert found[:3] == pytest.approx((yaw, pitch, 0), abs=0.5)
    assert found[3] == pytest.approx(1, abs=1e-6), "the head keeps its size"


def test_a_straight_head_turned_to_the_front_stays_where_it_is():
    head = straight_head()
    assert np.abs(turn_keypoints(head, 0, 0) - five_points(head)).max() < 0.5


@pytest.mark.parametrize("seen", [(0, 0, 0), (25, -10, 10)])
def test_the_turned_head_keeps_its_place(seen):
    points = turned(straight_head(), *seen)
    ears = points[[0, 16]].mean(axis=0)[:2]
    for yaw, pitch in POSES.values():
        assert np.allclose(turn_head(points, yaw, pitch)[[0, 16]].mean(axis=0)[:2], ears)


def test_each_pose_shows_in_the_five_points():
    shown = {name: turn_keypoints(straight_head(), *pose) for name, pose in POSES.items()}

    def nose_offset(name):
        five = shown[name]
        return five[2] - five[[0, 1, 3, 4]].mean(axis=0)

    assert nose_offset("left")[0] < -10 < 10 < nose_offset("right")[0]
    assert abs(nose_offset("front")[0]) < 1
    assert nose_offset("up")[1] < nose_offset("front")[1] - 5
    assert nose_offset("down")[1] > nose_offset("front")[1] + 5
    # A head turned aside shows its eyes nearer to each other by the cosine.
    apart = {name: np.linalg.norm(five[1] - five[0]) for name, five in shown.items()}
    assert apart["left"] / apart["front"] == pytest.approx(math.cos(math.radians(30)), abs=0.02)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((512, 512), (1024, 1024)),
        ((1024, 1024), (1024, 1024)),
        ((3000, 4000), (960, 1280)),
        ((1000, 1200), (1024, 1216)),
        ((1920, 1080), (1280, 704)),
        ((640, 480), (1280, 960)),
    ],
)
def test_a_reference_gets_instantids_size(size, wanted):
    assert reference_size(size) == wanted


def test_a_strip_is_no_reference():
    with pytest.raises(InvalidRequest, match="too narrow"):
        reference_size((4000, 100))
