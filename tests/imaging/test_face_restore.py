"""A restored face laid back: in its place at every size, soft at its edge, and nothing else is touched."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from app.errors import InvalidRequest
from app.imaging.face_restore import crop_mask, enlarged_matrix, lay_back

SIZE = (400, 300)


def parts(box=(156, 100, 356, 420)):
    drawn = Image.new("L", (512, 512), 0)
    ImageDraw.Draw(drawn).ellipse(box, fill=1)
    return np.asarray(drawn)


def matrix(scale=2.5, angle=0.2, at=(200, 150)):
    """The middle of the crop looks at `at`."""
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    return np.hstack([turn, (np.array([256, 256]) - turn @ np.array(at))[:, None]])


def picture(seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8))


def changed(one, other):
    return (np.asarray(one) != np.asarray(other)).any(-1)


RED = Image.new("RGB", (512, 512), (255, 0, 0))


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.5, 8.0])
def test_the_face_stands_in_its_place_and_outside_the_crop_every_byte_stays(scale):
    image = picture()
    mapped = matrix(scale)
    result = lay_back(image, RED, crop_mask(parts()), mapped, 1.0)
    assert result.getpixel((200, 150)) == (255, 0, 0)
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    inside = np.stack([x, y, np.ones_like(x)], -1) @ mapped.T
    outside = ((inside < 8) | (inside > 503)).any(-1)
    assert not changed(image, result)[outside].any()


def test_blend_zero_is_the_picture_itself():
    image = picture()
    assert lay_back(image, RED, crop_mask(parts()), matrix(), 0.0).tobytes() == image.tobytes()


def test_half_a_blend_lies_half_way():
    image = picture()
    half, whole = (lay_back(image, RED, crop_mask(parts()), matrix(), blend) for blend in (0.5, 1.0))
    between = (np.asarray(image).astype(int) + np.asarray(whole)) / 2
    assert np.abs(np.asarray(half) - between).max() <= 2


def test_a_face_that_is_laid_back_unchanged_stays_where_it_was():
    """Cut out, and laid back: no shift of even half a pixel, at the picture's size and at twice that."""
    import cv2

    smooth = Image.fromarray(cv2.GaussianBlur(np.asarray(picture()), (0, 0), 6))
    mapped = matrix(2.0)
    crop = Image.fromarray(cv2.warpAffine(np.asarray(smooth), mapped, (512, 512)))
    mask = crop_mask(parts((60, 60, 450, 450)))
    back = lay_back(smooth, crop, mask, mapped, 1.0)
    assert np.abs(np.asarray(back).astype(int) - np.asarray(smooth)).max() <= 3
    larger = smooth.resize((800, 600), Image.Resampling.BICUBIC)
    back = lay_back(larger, crop, mask, enlarged_matrix(mapped, SIZE, larger.size), 1.0)
    assert np.abs(np.asarray(back).astype(int) - np.asarray(larger)).max() <= 3


def test_the_mask_is_soft_and_leaves_the_rim_and_what_is_no_face():
    mask = crop_mask(parts())
    assert mask[256, 256] > 0.99 and not mask[:10].any() and not mask[:, -10:].any() and mask[30, 30] == 0
    assert np.abs(np.diff(mask, axis=1)).max() < 0.05
    hat = np.full((512, 512), 18, np.uint8)
    with pytest.raises(InvalidRequest, match="No parts of a face"):
        crop_mask(hat)


def test_a_face_beyond_the_edge_is_cut_there():
    result = lay_back(picture(), RED, crop_mask(parts()), matrix(at=(2, 2)), 1.0)
    assert result.size == SIZE and result.getpixel((1, 1)) == (255, 0, 0)
    assert lay_back(picture(), RED, crop_mask(parts()), matrix(at=(5000, 5000)), 1.0).tobytes() == picture().tobytes()
