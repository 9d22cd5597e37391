"""Edits that stay put, on photographs: slid, zoomed, blurred, compressed, tinted, and painted over in places."""

import io

import numpy as np
import pytest
import skimage.data
from PIL import Image, ImageDraw

from app.imaging.align import Motion, align, measure, undo_resize
from app.imaging.merging import merged
from app.imaging.opencv import load_opencv
from app.imaging.paste_changes import paste_changes

PHOTOS = ("astronaut", "coffee", "chelsea")


def photo(name):
    return Image.fromarray(getattr(skimage.data, name)())


def slid(image, motion):
    """What an editor makes of a picture that slides and zooms it."""
    cv2 = load_opencv()
    matrix = motion.matrix(image.size)
    pixels = cv2.warpAffine(
        np.asarray(image), matrix, image.size, flags=cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT_101
    )
    return Image.fromarray(pixels)


def spoilt(image, seed, edits=3):
    """Things painted in, a blur, other colours and JPEG's noise; answers what was painted over as well."""
    chance = np.random.default_rng(seed)
    image, painted = image.copy(), Image.new("L", image.size)
    for _ in range(edits):
        x, y = chance.integers(0, image.width), chance.integers(0, image.height)
        reach = int(min(image.size) * chance.uniform(0.08, 0.16))
        box = (x - reach, y - reach, x + reach, y + reach)
        ImageDraw.Draw(image).ellipse(box, fill=tuple(int(value) for value in chance.integers(0, 256, 3)))
        ImageDraw.Draw(painted).ellipse(box, fill=255)
    blurred = load_opencv().GaussianBlur(np.asarray(image), (0, 0), 0.8)
    tinted = blurred * chance.uniform(0.93, 1.07) + chance.uniform(-8, 8, 3)
    buffer = io.BytesIO()
    Image.fromarray(np.clip(tinted, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=80)
    return Image.open(buffer, formats=["JPEG"]).convert("RGB"), np.asarray(painted) > 0


def worst_error(found, true, size):
    """The most pixels by which any place of the picture is told wrong."""
    reach = abs(found.zoom - true.zoom) / 2
    return np.hypot(abs(found.x - true.x) + reach * size[0], abs(found.y - true.y) + reach * size[1])


@pytest.mark.parametrize("name", PHOTOS)
@pytest.mark.parametrize(
    "motion", [Motion(12, -12, 1.03), Motion(-12, 7.4, 0.97), Motion(0.6, 0.3, 1.004)], ids=["in", "out", "slight"]
)
def test_a_slip_of_an_editor_is_measured_and_undone(name, motion):
    image = photo(name)
    edited, _ = spoilt(slid(image, motion), seed=len(name))
    found = align(image, edited)
    assert found.moved
    assert worst_error(found.before, motion, image.size) < 0.5
    assert found.after.at_the_corners(image.size) < 0.5
    assert set(found.told()) == {"before", "after", "moved"} and found.told()["before"]["zoom"] == round(
        found.before.zoom, 4
    )


@pytest.mark.parametrize("name", PHOTOS)
def test_what_did_not_slide_stays_as_it_is(name):
    image = photo(name)
    edited, _ = spoilt(image, seed=2)
    found = align(image, edited)
    assert found.before.at_the_corners(image.size) < 0.2
    assert worst_error(found.after, Motion(), image.size) < 0.2


@pytest.mark.parametrize(("name", "other"), [("astronaut", "coffee"), ("coffee", "chelsea"), ("chelsea", "astronaut")])
def test_another_picture_is_left_alone(name, other):
    image = photo(name)
    edited = photo(other).resize(image.size)
    found = align(image, edited)
    assert not found.moved and not found.before.is_sure
    assert found.image is edited
    pasted = paste_changes(image, edited)
    assert pasted.mask is None and pasted.image is edited and "Most of the picture changed" in pasted.note


def test_a_picture_that_shows_nothing_is_left_alone():
    grey = Image.new("RGB", (200, 160), (90, 90, 90))
    assert measure(grey, grey).confidence == 0
    small = Image.new("RGB", (20, 12), (1, 2, 3))
    assert align(small, small).image is small


@pytest.mark.parametrize("name", PHOTOS)
def test_only_what_changed_is_pasted(name):
    """Also after a slip: every byte outside the mask is the original's, and the edit is inside."""
    image = photo(name)
    edited, painted = spoilt(slid(image, Motion(9, -5, 1.02)), seed=4)
    laid = align(image, edited).image
    pasted = paste_changes(image, laid)
    mask = np.asarray(pasted.mask)
    before, after = np.asarray(image), np.asarray(pasted.image)
    assert np.array_equal(after[mask == 0], before[mask == 0])
    where = np.asarray(slid(Image.fromarray(painted.astype(np.uint8) * 255), inverse(Motion(9, -5, 1.02)))) > 250
    differs = where & (np.abs(np.asarray(laid).astype(int) - before).max(axis=-1) > 60)
    assert (mask[differs] > 0).mean() > 0.97
    assert pasted.share < painted.mean() + 0.15
    assert np.abs(after[differs].astype(int) - before[differs]).max(axis=-1).mean() > 40


def inverse(motion):
    return Motion(-motion.x / motion.zoom, -motion.y / motion.zoom, 1 / motion.zoom)


def test_the_mask_grows_and_fades_as_it_is_asked_to():
    image = photo("coffee")
    edited = image.copy()
    ImageDraw.Draw(edited).rectangle((200, 100, 280, 180), fill=(10, 200, 30))
    narrow, wide = (np.asarray(paste_changes(image, edited, grow=grow, feather=4).mask) for grow in (0, 20))
    assert (narrow == 255).sum() < (wide == 255).sum()
    assert ((narrow > 0) & (wide == 0)).sum() == 0
    assert narrow[140, 240] == 255 and narrow[140, 190] == 0 and wide[140, 185] == 255
    sharp = np.unique(np.asarray(paste_changes(image, edited, grow=4, feather=0).mask))
    assert sharp.tolist() == [0, 255]


def test_nothing_changed_means_nothing_is_pasted():
    image = photo("chelsea")
    edited, _ = spoilt(image, seed=3, edits=0)
    pasted = paste_changes(image, edited)
    assert pasted.mask is None and pasted.share == 0 and "Nothing changed" in pasted.note


def on_another_background(wide):
    """A green square on yellow and on purple, with a spot on it that changes by even more."""
    image, edited = (Image.new("RGB", (128, 128), colour) for colour in ((245, 215, 60), (140, 70, 189)))
    for picture, spot in ((image, (250, 250, 250)), (edited, (10, 10, 10))):
        ImageDraw.Draw(picture).rectangle((30, 30, 30 + wide, 30 + wide), fill=(60, 180, 80))
        ImageDraw.Draw(picture).ellipse((40, 40, 50, 50), fill=spot)
    return image, edited


@pytest.mark.parametrize("wide", [20, 40, 60])
def test_a_background_that_was_asked_for_is_the_change(wide):
    """Where it is most of the picture, what changed by even more is not pasted alone."""
    image, edited = on_another_background(wide)
    pasted = paste_changes(image, edited)
    assert pasted.image is edited and "Most of the picture changed" in pasted.note


def test_a_background_and_a_thing_asked_for_one_after_the_other_are_merged():
    image, behind = on_another_background(75)
    red = image.copy()
    ImageDraw.Draw(red).rectangle((68, 68, 86, 86), fill=(200, 30, 30))
    for edits in ((behind, red), (red, behind)):
        shown = merged(image, edits)
        colours = [shown.getpixel(place) for place in ((5, 5), (77, 77), (45, 45))]
        assert colours == [(140, 70, 189), (200, 30, 30), (10, 10, 10)]


def test_light_that_was_asked_for_is_no_tint():
    image = photo("coffee")
    edited = Image.fromarray(np.clip(np.asarray(image).astype(int) - 70, 0, 255).astype(np.uint8))
    ImageDraw.Draw(edited).rectangle((200, 100, 280, 180), fill=(10, 200, 30))
    assert paste_changes(image, edited).image is edited


def test_a_stretch_is_undone_edge_on_edge():
    """A model's own size, of another shape by rounding: no shift and no zoom is left."""
    image = photo("coffee")
    worked_at = image.resize((576, 384), Image.Resampling.LANCZOS)
    back = undo_resize(worked_at, image.size)
    assert back.size == image.size
    assert measure(image, back).at_the_corners(image.size) < 0.1
    assert undo_resize(image, image.size) is image
