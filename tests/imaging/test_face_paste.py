"""The pixels of a swap: where the crop lies, what the mask takes, and that nothing outside it changes by one byte."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from app.errors import InvalidRequest
from app.imaging.face_paste import (
    SWAPPED_PARTS,
    face_region,
    match_colours,
    paste_face,
    require_face_in_mask,
    soft_mask,
    swap_mask,
    working_size,
)


def noise(size, seed=0, low=0, high=256):
    return Image.fromarray(np.random.default_rng(seed).integers(low, high, (size[1], size[0], 3), dtype=np.uint8))


def ellipse(size, box):
    mask = Image.new("L", size)
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    return mask


def parsed_face():
    """Parts of an aligned crop: hair around skin, eyes, a mouth, a stray pixel of skin, a hole, neck below."""
    parts = np.zeros((512, 512), dtype=np.uint8)
    cv2.ellipse(parts, (256, 250), (190, 230), 0, 0, 360, 17, -1)
    cv2.rectangle(parts, (200, 400), (312, 511), 14, -1)
    cv2.ellipse(parts, (256, 290), (130, 170), 0, 0, 360, 1, -1)
    for x, part in ((193, 4), (319, 5)):
        cv2.circle(parts, (x, 240), 18, part, -1)
    cv2.ellipse(parts, (256, 371), (50, 20), 0, 0, 360, 12, -1)
    parts[300:306, 256:262] = 0
    parts[10:14, 10:14] = 1
    return parts


# --- the part around a face -------------------------------------------------------------------------------------------


@given(
    st.integers(64, 900),
    st.integers(64, 900),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(20, 400),
    st.floats(0.6, 1.6),
)
@settings(max_examples=200, deadline=None)
def test_the_region_lies_in_the_picture_and_holds_the_face(width, height, x, y, side, shape):
    face = (x * width - side / 2, y * height - side * shape / 2, x * width + side / 2, y * height + side * shape / 2)
    left, top, right, bottom = face_region(face, (width, height))
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert left <= max(face[0], 0) + 1 and right >= min(face[2], width) - 1
    assert top <= max(face[1], 0) + 1 and bottom >= min(face[3], height) - 1


def test_the_region_is_three_faces_wide_around_its_middle_and_moves_inwards_at_an_edge():
    assert face_region((400, 400, 480, 500), (1000, 1000)) == (290, 300, 590, 600)
    assert face_region((400, 400, 480, 500), (1000, 1000), factor=2) == (340, 350, 540, 550)
    at_the_corner = face_region((0, 0, 80, 100), (1000, 1000))
    assert at_the_corner[:2] == (0, 0) and at_the_corner[2] == at_the_corner[3] >= 190
    assert face_region((100, 50, 300, 350), (400, 400)) == (0, 0, 400, 400)


def test_a_face_outside_the_picture_is_refused():
    with pytest.raises(InvalidRequest, match="outside"):
        face_region((500, 500, 600, 600), (300, 300))


@pytest.mark.parametrize(
    ("region", "wanted"),
    [((0, 0, 300, 300), (1024, 1024)), ((0, 0, 2000, 1000), (1024, 512)), ((5, 5, 105, 305), (344, 1024))],
)
def test_a_region_is_painted_at_the_models_own_size(region, wanted):
    assert working_size(region, 1024) == wanted


# --- the mask ---------------------------------------------------------------------------------------------------------


def test_the_mask_is_the_face_alone_and_whole_and_lies_where_the_face_lies():
    parts = parsed_face()
    # The crop shows the picture turned by 20 degrees, at 1.6 times its size.
    turn = np.deg2rad(20)
    matrix = 1.6 * np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0]])
    matrix[:, 2] = np.array([256, 290]) - matrix[:, :2] @ [350, 260]
    mask = np.asarray(swap_mask(parts, matrix, (700, 500)))
    assert mask.shape == (500, 700) and set(np.unique(mask)) == {0, 255}
    wanted = np.zeros((500, 700), dtype=np.uint8)
    cv2.ellipse(wanted, ((350, 260), (2 * 130 / 1.6, 2 * 170 / 1.6), -20), 255, -1)
    both = (mask > 0) & (wanted > 0)
    assert both.sum() / ((mask > 0) | (wanted > 0)).sum() > 0.97
    # The hole of a misread pixel is filled; the stray patch in the crop's corner is left out.
    assert mask[255:270, 345:360].all()
    corner = np.linalg.inv(matrix[:, :2]) @ (np.array([12, 12]) - matrix[:, 2])
    x, y = np.clip(np.round(corner).astype(int), 0, [699, 499])
    assert not mask[max(0, y - 5) : y + 5, max(0, x - 5) : x + 5].any()


@pytest.mark.parametrize("part", range(19))
def test_hair_ears_and_neck_stay(part):
    parts = np.full((512, 512), 1, dtype=np.uint8)
    parts[:, 256:] = part
    right = np.asarray(swap_mask(parts, np.eye(2, 3), (512, 512)))[:, 300:]
    assert bool(right.any()) == (part in SWAPPED_PARTS)
    assert {0, 7, 8, 9, 14, 15, 16, 17, 18}.isdisjoint(SWAPPED_PARTS)


def test_a_crop_without_a_face_is_refused():
    parts = np.full((512, 512), 17, dtype=np.uint8)
    parts[:20, :20] = 1
    with pytest.raises(InvalidRequest, match="No face was seen"):
        swap_mask(parts, np.eye(2, 3), (512, 512))


def test_the_mask_fades_inwards_only():
    mask = ellipse((300, 300), (80, 60, 220, 250))
    soft = np.asarray(soft_mask(mask, (80, 60, 220, 250)))
    hard = np.asarray(mask)
    assert not soft[hard == 0].any()
    assert soft[155, 150] == 255
    between = ((soft > 0) & (soft < 255)).sum()
    assert 0.1 < between / (hard > 0).sum() < 0.6


def test_a_mask_beside_the_face_is_refused():
    mask = ellipse((300, 300), (0, 0, 90, 90))
    require_face_in_mask(mask, (60, 60, 120, 120))
    with pytest.raises(InvalidRequest, match="misses the face"):
        require_face_in_mask(mask, (150, 150, 250, 250))
    with pytest.raises(InvalidRequest, match="misses the face"):
        require_face_in_mask(Image.new("L", (300, 300), 127), (60, 60, 120, 120))


# --- colours and paste ------------------------------------------------------------------------------------------------


def statistics(picture, mask):
    lab = cv2.cvtColor(np.asarray(picture, dtype=np.float32) / 255, cv2.COLOR_RGB2LAB)[np.asarray(mask) > 127]
    return lab.mean(axis=0), lab.std(axis=0)


def test_colours_inside_the_mask_become_the_originals():
    mask = ellipse((200, 160), (40, 20, 160, 140))
    original = noise((200, 160), 1, 60, 140)
    cast = np.asarray(noise((200, 160), 2, 90, 160)) * [1.1, 0.9, 0.8] + [20, 0, 10]
    painted = Image.fromarray(np.clip(cast, 0, 255).astype(np.uint8))
    before, wanted = statistics(painted, mask), statistics(original, mask)
    assert np.abs(before[0] - wanted[0]).max() > 10
    mean, spread = statistics(match_colours(painted, original, mask), mask)
    assert np.abs(mean - wanted[0]).max() < 1.0
    assert np.abs(spread / wanted[1] - 1).max() < 0.08


def test_what_lies_outside_the_mask_does_not_count_for_the_colours():
    mask = ellipse((200, 160), (40, 20, 160, 140))
    face, painted = noise((200, 160), 1, 60, 140), noise((200, 160), 2, 90, 150)
    surrounded = Image.composite(face, Image.new("RGB", face.size, (0, 255, 0)), mask)
    assert match_colours(painted, surrounded, mask) == match_colours(painted, face, mask)


def test_the_spread_changes_at_most_by_half():
    mask = Image.new("L", (100, 100), 255)
    flat, lively = noise((100, 100), 1, 118, 138), noise((100, 100), 2, 0, 256)
    raised = statistics(match_colours(flat, lively, mask), mask)[1]
    assert np.abs(raised / statistics(flat, mask)[1] - 1.5).max() < 0.1


def test_equal_colours_stay():
    picture, mask = noise((100, 100)), ellipse((100, 100), (10, 10, 90, 90))
    assert np.abs(np.asarray(match_colours(picture, picture, mask)).astype(int) - np.asarray(picture)).max() <= 1


def test_a_black_mask_matches_nothing():
    with pytest.raises(InvalidRequest, match="no white part"):
        match_colours(noise((20, 20)), noise((20, 20)), Image.new("L", (20, 20)))


@given(st.integers(0, 400), st.integers(0, 300), st.floats(20, 300), st.sampled_from([64, 100, 256, 512]))
@settings(max_examples=60, deadline=None)
def test_outside_the_mask_every_byte_stays(x, y, side, work):
    original = noise((400, 300), 5)
    face = (x - side / 2, y - side / 2, x + side / 2, y + side / 2)
    region = face_region(face, original.size)
    mask = soft_mask(ellipse(original.size, [round(edge) for edge in face]), face)
    if not np.asarray(mask.crop(region)).any():
        return
    painted = noise(working_size(region, work), 6)
    result = paste_face(original, painted, region, mask)
    differs = np.any(np.asarray(result) != np.asarray(original), axis=-1)
    assert not differs[np.asarray(mask) == 0].any()
    assert result.size == original.size and original == noise((400, 300), 5)


def test_in_the_middle_of_the_mask_stands_the_new_face():
    original = Image.new("RGB", (400, 300), (90, 120, 60))
    face = (150, 100, 250, 200)
    region = face_region(face, original.size)
    mask = soft_mask(ellipse(original.size, face), face)
    painted = noise(working_size(region, 512), 7)
    result = paste_face(original, painted, region, mask)
    differs = np.any(np.asarray(result) != np.asarray(original), axis=-1)
    assert differs[np.asarray(mask) == 255].mean() > 0.9
