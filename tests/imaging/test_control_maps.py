"""Control maps show what they say: edges where edges are, near white, surfaces by their direction, bodies by joints."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps
from skimage import data

from app.imaging import control_maps
from app.imaging.ade20k import PALETTE, colour_classes
from app.imaging.body_pose import draw_bodies, openpose_points
from app.imaging.known_maps import is_dark_on_white, is_map
from app.imaging.merging import merged

SIDE = 128


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    return Image.fromarray(data.astronaut()).resize((256, 256))


@pytest.fixture(scope="module")
def square() -> Image.Image:
    image = Image.new("RGB", (SIDE, SIDE), (230, 230, 230))
    ImageDraw.Draw(image).rectangle((32, 32, 95, 95), fill=(40, 60, 80))
    return image


def near_border(reach: int) -> np.ndarray:
    """Where the square's border is, up to so many pixels away."""
    y, x = np.mgrid[0:SIDE, 0:SIDE]
    inside = np.minimum(np.minimum(x - 31.5, 95.5 - x), np.minimum(y - 31.5, 95.5 - y))
    return np.abs(inside) <= reach


@pytest.mark.parametrize(("kind", "reach"), [("canny", 2), ("scribble", 8), ("softedge", 10), ("lineart", 14)])
def test_lines_are_where_the_things_edges_are(square, kind, reach):
    drawn = control_maps.DRAWN[kind](square)
    assert drawn.size == square.size and drawn.mode == "RGB"
    bright = np.asarray(drawn)[..., 0] > 128
    assert bright.sum() > 150, "there are lines"
    assert bright[near_border(reach)].sum() == bright.sum(), "and nowhere else"


def test_canny_follows_its_thresholds(photo):
    few, many = (np.asarray(control_maps.canny(photo, low, high)) > 0 for low, high in ((200, 400), (30, 60)))
    assert 0 < few.sum() < many.sum() / 2


@pytest.mark.parametrize("kind", control_maps.DRAWN)
def test_a_drawn_map_is_known_as_one_and_a_photo_is_not(photo, kind):
    drawn = control_maps.DRAWN[kind](photo)
    assert is_map(kind, drawn) is True, "a plain truth, which an answer can hold"
    if kind not in {"tile", "color"}:
        assert not is_map(kind, photo)


def test_a_plain_picture_has_no_lines():
    plain = Image.new("RGB", (SIDE, SIDE), (120, 130, 140))
    for kind in ("canny", "lineart", "scribble", "softedge"):
        assert np.asarray(control_maps.DRAWN[kind](plain)).max() == 0, kind


def test_a_drawing_on_white_is_known_as_the_inverse_of_a_map(photo, square):
    drawn = control_maps.lineart(photo)
    assert is_dark_on_white(ImageOps.invert(drawn)) is True and not is_dark_on_white(drawn)
    assert not is_map("lineart", ImageOps.invert(drawn))
    assert not is_dark_on_white(photo) and not is_dark_on_white(square)
    assert not is_dark_on_white(Image.new("RGB", (64, 64), "white")), "an empty sheet has no lines"


def test_ink_on_tinted_paper_is_known_and_the_paper_becomes_black():
    paper = Image.new("RGB", (SIDE, SIDE), (244, 232, 206))
    draw = ImageDraw.Draw(paper)
    draw.ellipse((20, 20, 100, 100), outline=(34, 32, 29), width=3)
    assert is_dark_on_white(paper)
    lines = np.asarray(control_maps.ink(paper))
    assert lines[0, 0].tolist() == [0, 0, 0] and lines[60, 21].min() > 200
    draw.rectangle((40, 40, 80, 80), fill=(240, 60, 60))
    assert not is_dark_on_white(paper), "a coloured area is no ink"


def test_ink_on_white_is_its_inverse(photo):
    grey = photo.convert("L").point(lambda level: 255 if level > 60 else level).convert("RGB")
    assert is_dark_on_white(grey)
    assert np.array_equal(np.asarray(control_maps.ink(grey)), 255 - np.asarray(grey))


def test_lines_are_laid_over_as_dark_as_they_were(square):
    lines = Image.new("RGB", square.size)
    lines.paste((255, 255, 255), (0, 0, 4, 4))
    lines.paste((128, 128, 128), (8, 8, 12, 12))
    over = np.asarray(control_maps.under_lines(square, lines))
    assert over[2, 2].max() == 0 and over[20, 20].tolist() == [230, 230, 230]
    assert over[9, 9].tolist() == [115, 115, 115]


def ball() -> np.ndarray:
    """Nearness of half a ball before a wall."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] - SIDE / 2
    return np.sqrt(np.clip(50**2 - x**2 - y**2, 0, None))


def test_near_is_white_and_surfaces_are_coloured_by_where_they_look():
    depth = np.asarray(control_maps.depth_map(ball()))[..., 0]
    assert depth[64, 64] == 255 and depth[2, 2] == 0
    drawn = control_maps.normal_map(ball())
    normal = np.asarray(drawn).astype(int)
    assert normal[64, 64, 2] > 240, "the middle looks at the viewer"
    assert normal[64, 34, 0] > 160 > 100 > normal[64, 94, 0], "red to the left"
    assert normal[34, 64, 1] > 160 > 100 > normal[94, 64, 1], "green up"
    assert is_map("normal", drawn) and is_map("depth", control_maps.depth_map(ball()))


def test_classes_have_the_colours_that_networks_know():
    assert len(PALETTE) == 150 and PALETTE[12] == (150, 5, 61), "a person is crimson"
    drawn = colour_classes(np.array([[12, 2], [149, 150]]))
    assert [drawn.getpixel(at) for at in ((0, 0), (1, 0), (0, 1), (1, 1))] == [
        *(PALETTE[n] for n in (12, 2, 149)),
        (0, 0, 0),
    ]
    assert is_map("segmentation", colour_classes(np.tile(np.array([12, 2]), (64, 32))))


def body() -> np.ndarray:
    """COCO's points of somebody who stands straight."""
    return np.array(
        [[64, 16], [67, 13], [61, 13], [71, 14], [57, 14], [78, 36], [50, 36], [84, 56], [44, 56], [88, 76], [40, 76],
         [72, 76], [56, 76], [73, 98], [55, 98], [74, 120], [54, 120]], float
    )  # fmt: skip


def test_a_body_is_drawn_limb_by_limb_in_openposes_colours():
    points, scores = openpose_points(body(), np.ones(17))
    assert points[1].tolist() == [64, 36], "the neck lies between the shoulders"
    assert points[4].tolist() == [40, 76] and points[7].tolist() == [88, 76], "the right hand is at the picture's left"
    drawn = draw_bodies((SIDE, SIDE), [(points, scores)])
    assert is_map("openpose", drawn)
    pixel = np.asarray(drawn)
    assert pixel[76, 40].tolist() == [170, 255, 0], "the right wrist, the fifth colour"
    assert pixel[66, 42].any() and not pixel[66, 64 - 30].any()
    scores[4] = 0.1
    unsure = np.asarray(draw_bodies((SIDE, SIDE), [(points, scores)]))
    assert not unsure[76, 40].any(), "what was hardly seen is not drawn"


def test_what_is_masked_is_minus_one(square):
    mask = Image.new("L", square.size)
    mask.paste(255, (0, 0, 10, 10))
    conditioning = control_maps.inpaint(square, mask)
    assert conditioning.shape == (1, SIDE, SIDE, 3) and conditioning.dtype == np.float32
    assert (conditioning[0, :10, :10] == -1).all()
    assert np.allclose(conditioning[0, 20, 20], 230 / 255)
    shown = control_maps.shown(conditioning)
    assert shown.getpixel((5, 5)) == (0, 0, 0) and shown.getpixel((20, 20)) == (230, 230, 230)


def test_edits_are_merged_where_they_changed_something(photo):
    first, second = photo.copy(), photo.copy()
    ImageDraw.Draw(first).rectangle((20, 20, 80, 80), fill=(255, 0, 0))
    ImageDraw.Draw(second).rectangle((150, 150, 220, 220), fill=(0, 255, 0))
    grain = np.random.default_rng(1).integers(-6, 7, (256, 256, 3))
    noisy = Image.fromarray((np.asarray(second).astype(int) + grain).clip(0, 255).astype(np.uint8))
    both = np.asarray(merged(photo, [first, noisy]))
    assert both[50, 50].tolist() == [255, 0, 0] and both[185, 185, 1] > 240
    untouched = np.ones((256, 256), bool)
    for left, top, right, bottom in ((20, 20, 80, 80), (150, 150, 220, 220)):
        untouched[max(0, top - 24) : bottom + 25, max(0, left - 24) : right + 25] = False
    assert np.array_equal(both[untouched], np.asarray(photo)[untouched]), "a decoder's grain is no change"
    assert merged(photo, [first]) is first
    last = ImageDraw.Draw(second)
    last.rectangle((20, 20, 80, 80), fill=(0, 0, 255))
    assert np.asarray(merged(photo, [first, second]))[50, 50].tolist() == [0, 0, 255], "the later shows"
