"""Masks and holes: what points at a thing, GrabCut on a photo, and that filling leaves everything else alone."""

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageDraw

from app.errors import InvalidRequest
from app.imaging import grabcut, holes
from app.imaging.prompts import Prompts
from app.imaging.segments import Segment, best_of, described, grown, made_ready, united
from app.imaging.smearing import smear


@pytest.fixture(scope="module")
def astronaut():
    data = pytest.importorskip("skimage.data")
    return Image.fromarray(data.astronaut())


def disc(size, centre, radius):
    mask = Image.new("L", size, 0)
    x, y = centre
    ImageDraw.Draw(mask).ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return mask


def overlap(one, other):
    """Intersection over union of two masks."""
    a, b = np.asarray(one) > 127, np.asarray(other) > 127
    return (a & b).sum() / (a | b).sum()


def test_prompts_are_read_as_they_are_written():
    told = Prompts.read("10,20; 30.5,40", "1,2", "0,0,5,5;6,6,9,9")
    assert told.points == ((10, 20), (30.5, 40)) and told.negative_points == ((1, 2),)
    assert told.boxes == ((0, 0, 5, 5), (6, 6, 9, 9))
    assert told and not Prompts.read(None, "1,2", None)


@pytest.mark.parametrize(
    ("prompts", "field", "said"),
    [
        (Prompts(points=((64, 3),)), "points", "64,3 lies outside the picture of 64x48"),
        (Prompts(points=((3, 3),), negative_points=((3, 48),)), "negative_points", "3,48 lies outside"),
        (Prompts(boxes=((0, 0, 65, 9),)), "boxes", "reaches beyond the picture of 64x48"),
        (Prompts(boxes=((9, 0, 9, 9),)), "boxes", "holds nothing"),
    ],
)
def test_what_lies_outside_the_picture_is_refused_by_its_field(prompts, field, said):
    with pytest.raises(InvalidRequest, match=said) as refusal:
        prompts.require_within((64, 48))
    assert refusal.value.details["field"] == field


def test_grabcut_finds_the_patch_that_is_clicked_and_the_one_in_a_box(astronaut):
    """The round patch on the suit: its place was measured by eye."""
    patch = disc(astronaut.size, (171, 385), 37)
    clicked = grabcut.segment(astronaut, Prompts(points=((171, 385),)))
    assert len(clicked) == 3 and overlap(clicked[0], patch) > 0.9
    shares = [np.asarray(mask).mean() for mask in clicked]
    assert shares == sorted(shares), "each guess reaches further"
    (boxed,) = grabcut.segment(astronaut, Prompts(boxes=((125, 340, 218, 428),)))
    assert overlap(boxed, patch) > 0.9
    again = grabcut.segment(astronaut, Prompts(boxes=((125, 340, 218, 428),)))
    assert again[0].tobytes() == boxed.tobytes()


def test_a_point_that_does_not_belong_takes_its_part_away():
    picture = Image.new("RGB", (96, 64), (240, 240, 240))
    ImageDraw.Draw(picture).rectangle((20, 16, 75, 47), fill=(30, 90, 200))
    ImageDraw.Draw(picture).rectangle((48, 16, 75, 47), fill=(60, 130, 220))
    both = grabcut.segment(picture, Prompts(points=((34, 32),), boxes=((16, 12, 80, 52),)))[0]
    without = grabcut.segment(
        picture, Prompts(points=((34, 32),), negative_points=((62, 32),), boxes=((16, 12, 80, 52),))
    )[0]
    assert both.getpixel((62, 32)) == 255 and without.getpixel((62, 32)) == 0
    assert without.getpixel((34, 32)) == 255


def test_a_mask_grows_shrinks_turns_round_and_fades_inwards():
    mask = disc((64, 64), (32, 32), 10)
    assert grown(mask, 5).getbbox() == (17, 17, 48, 48)
    assert grown(mask, -5).getbbox() == (27, 27, 38, 38)
    assert grown(disc((64, 64), (0, 0), 10), -3).getpixel((0, 0)) == 255, "the picture's edge is no edge of the thing"
    turned = made_ready(mask, invert=True)
    assert ImageChops.invert(turned).tobytes() == mask.tobytes()
    soft = made_ready(mask, grow=5, blur=4)
    assert soft.getbbox() == (17, 17, 48, 48) and soft.getpixel((32, 32)) == 255
    assert 0 < soft.getpixel((17, 32)) < 255
    assert np.asarray(soft)[np.asarray(mask) > 0].min() == 255, "the thing itself is covered whole"


def test_the_best_mask_is_the_one_of_the_highest_score_or_of_the_number_asked_for():
    masks = [Segment(disc((8, 8), (4, 4), size), score) for size, score in ((1, 0.2), (2, 0.9), (3, 0.5))]
    assert best_of(masks) is masks[1] and best_of(masks, 2) is masks[2]
    assert best_of([Segment(one.mask) for one in masks]).mask is masks[0].mask
    with pytest.raises(InvalidRequest, match="There are 1 masks"):
        best_of(masks[:1], 1)
    assert described(masks[1]) == {"score": 0.9, "share": round(21 / 64, 6), "box": [2, 2, 7, 7]}
    assert united(masks).tobytes() == masks[2].mask.tobytes()


def noise(size, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@pytest.mark.parametrize("longest", [96, 128, 768])
def test_filling_touches_every_pixel_of_the_holes_and_no_other(longest):
    """The filler answers the negative of all that it is handed, so a pixel that was written shows."""
    picture = noise((400, 300))
    mask = disc((400, 300), (150, 130), 95)
    ImageDraw.Draw(mask).line((360, 0, 390, 299), fill=255, width=3)
    sizes = []

    def negative(part, hole):
        assert part.size == hole.size and hole.getbbox() is not None
        sizes.append(part.size)
        return ImageChops.invert(part)

    done = []
    parts = holes.parts_of(mask, longest=longest)
    filled = holes.fill(picture, mask, parts, negative, done.append)
    expected = picture.copy()
    expected.paste(ImageChops.invert(picture), mask=mask)
    assert filled.tobytes() == expected.tobytes()
    assert done == list(range(1, len(parts) + 1)) and max(max(size) for size in sizes) <= longest
    assert len(parts) == 2 if longest == 768 else len(parts) > 8


def test_a_large_hole_is_filled_from_its_rim_and_every_part_sees_something_known():
    mask = Image.new("L", (1000, 1000), 0)
    mask.paste(255, (200, 200, 800, 800))
    known = []

    def look(part, hole):
        known.append(1 - np.asarray(hole).mean() / 255)
        return part

    parts = holes.parts_of(mask, longest=256)
    holes.fill(Image.new("RGB", (1000, 1000)), mask, parts, look, lambda number: None)
    assert len(parts) == 25 and min(known) > 0.2
    middle = parts[-1].core
    assert middle[0] <= 500 < middle[2] and middle[1] <= 500 < middle[3], "the middle comes last"


def test_a_small_hole_is_seen_with_what_is_around_it():
    mask = disc((2000, 1500), (700, 600), 40)
    (part,) = holes.parts_of(mask)
    assert part.core == mask.getbbox()
    assert part.box == (596, 496, 805, 705)


def test_smearing_carries_the_colours_around_inwards():
    picture = Image.new("RGB", (60, 40), (200, 120, 40))
    ImageDraw.Draw(picture).rectangle((20, 10, 39, 29), fill=(0, 0, 255))
    hole = Image.new("L", (60, 40), 0)
    hole.paste(255, (18, 8, 42, 32))
    filled = smear(picture, hole)
    assert np.abs(np.asarray(filled).astype(int) - (200, 120, 40)).max() <= 4
