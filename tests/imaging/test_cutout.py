"""A product is found on even and on busy ground, stands where it is put, and throws its shadow below itself."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from app.errors import InvalidRequest
from app.imaging.cutout import cut_out, place, shadow_under


def bottle(ground):
    """A dark bottle on this ground, and where it is."""
    image, mask = ground.copy(), Image.new("L", ground.size)
    for canvas, fill in ((image, (20, 60, 30)), (mask, 255)):
        ImageDraw.Draw(canvas).rounded_rectangle((40, 20, 80, 110), 8, fill=fill)
    return image, np.asarray(mask) > 0


def overlap(one, other):
    return (one & other).sum() / (one | other).sum()


def test_on_an_even_ground():
    image, wanted = bottle(Image.new("RGB", (120, 130), (240, 240, 235)))
    mask, words = cut_out(image)
    assert words == "its even background"
    assert overlap(np.asarray(mask) > 0, wanted) > 0.97


def test_on_a_busy_ground():
    noise = np.random.default_rng(1).integers(150, 255, (130, 120, 3), np.uint8)
    image, wanted = bottle(Image.fromarray(noise))
    mask, words = cut_out(image)
    assert words == "OpenCV's GrabCut"
    assert overlap(np.asarray(mask) > 0, wanted) > 0.9
    assert np.asarray(cut_out(image)[0]).tobytes() == np.asarray(mask).tobytes()


def test_nothing_to_cut_out_is_said():
    with pytest.raises(InvalidRequest, match=r"cover 0\.0% of its picture"):
        cut_out(Image.new("RGB", (60, 60), "white"))


@pytest.mark.parametrize("at", [(0.5, 0.5), (0.0, 1.0), (1.0, 0.0)])
def test_it_stays_whole_on_the_canvas_and_keeps_its_shape(at):
    image, wanted = bottle(Image.new("RGB", (120, 130), "white"))
    placed = place(image, Image.fromarray(wanted), (400, 300), scale=0.5, at=at, shadow=True)
    left, top, right, bottom = placed.mask.getbbox()
    assert (right - left, bottom - top) == pytest.approx((68, 150), abs=2)
    assert left >= 0 and right <= 400 and top >= 0 and bottom <= 300
    inside = np.asarray(placed.image)[top + 20 : bottom - 20, left + 15 : right - 15].astype(int)
    assert np.abs(inside - (20, 60, 30)).max() <= 1


def test_the_shadow_lies_under_it_and_nowhere_else():
    shadow = np.asarray(shadow_under((200, 200), (60, 40, 140, 150)).convert("L"))
    assert shadow[150, 100] < 200
    assert shadow[:120].min() == 255 and shadow[:, :30].min() == 255
