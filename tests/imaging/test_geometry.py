"""Masks, crops and canvases: against brute force, and at the picture's edges."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from app.errors import InvalidRequest
from app.imaging.canvas import Margins, border_distance, border_mask, extend, seam_alpha
from app.imaging.crop import box_around, lay_out, pad_to_multiple
from app.imaging.masks import binarise, cover_cells, fade_inwards, sees_white, white_box
from app.imaging.sizes import of_area, require_a_step, round_up, within_area

SIDES = st.integers(1, 90)


def noise(size, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


@st.composite
def boxes(draw):
    """A picture's size and a box within it."""
    width, height = draw(SIDES), draw(SIDES)
    left, top = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    return (width, height), (left, top, draw(st.integers(left + 1, width)), draw(st.integers(top + 1, height)))


# --- the box around a mask -------------------------------------------------------------------------------------------


@given(boxes(), st.integers(0, 40), st.tuples(st.integers(1, 20), st.integers(1, 20)))
@settings(max_examples=300, deadline=None)
def test_the_box_holds_the_mask_and_its_padding_and_no_more_than_its_shape_asks(picture_and_inner, padding, aspect):
    (width, height), inner = picture_and_inner
    left, top, right, bottom = box_around(inner, padding, (width, height), aspect)
    assert 0 <= left < right <= width and 0 <= top < bottom <= height
    assert left <= max(inner[0] - padding, 0) and right >= min(inner[2] + padding, width)
    assert top <= max(inner[1] - padding, 0) and bottom >= min(inner[3] + padding, height)
    # Brute force: of all sizes that hold the padded box and are at least as wide (or high) as the shape asks or reach
    # across the whole picture, none is smaller.
    least_width = min(inner[2] + padding, width) - max(inner[0] - padding, 0)
    least_height = min(inner[3] + padding, height) - max(inner[1] - padding, 0)

    def fits(w, h):
        wide = w * aspect[1] >= h * aspect[0] or w == width
        high = h * aspect[0] >= w * aspect[1] or h == height
        return wide if least_width * aspect[1] < least_height * aspect[0] else high

    candidates = [w * h for w in range(least_width, width + 1) for h in (least_height,) if fits(w, h)] + [
        w * h for h in range(least_height, height + 1) for w in (least_width,) if fits(w, h)
    ]
    assert (right - left) * (bottom - top) == min(candidates)


@given(boxes(), st.integers(0, 40))
@settings(deadline=None)
def test_a_box_away_from_the_edges_lies_evenly_around_the_mask(picture_and_inner, padding):
    (width, height), inner = picture_and_inner
    far = 200
    inner = tuple(side + far for side in inner)
    box = box_around(inner, padding, (width + 2 * far, height + 2 * far), (1, 1))
    assert abs((inner[0] - box[0]) - (box[2] - inner[2])) <= 1
    assert abs((inner[1] - box[1]) - (box[3] - inner[3])) <= 1


# --- sheets: there and back ------------------------------------------------------------------------------------------


@given(boxes(), st.sampled_from([1, 8, 16]))
@settings(deadline=None)
def test_a_sheet_of_the_same_scale_comes_back_to_the_byte(picture_and_box, multiple):
    size, box = picture_and_box
    image, white = noise(size), Image.new("L", size, 255)
    scaled = (box[2] - box[0], box[3] - box[1])
    sheet = lay_out(image, white, box, scaled, multiple=multiple)
    assert all(side % multiple == 0 for side in sheet.image.size) and sheet.mask.size == sheet.image.size
    assert (np.asarray(sheet.lay_over(image, sheet.image, white)) == np.asarray(image)).all()
    inverted = Image.fromarray(255 - np.asarray(sheet.image))
    expected = np.asarray(image).copy()
    expected[box[1] : box[3], box[0] : box[2]] = 255 - expected[box[1] : box[3], box[0] : box[2]]
    assert (np.asarray(sheet.lay_over(image, inverted, white)) == expected).all()


@pytest.mark.parametrize("scaled", [(128, 128), (96, 160), (40, 24)])
def test_a_change_of_scale_does_not_shift(scaled):
    """A smooth picture, through another scale and back, lies where it lay: any shift by a pixel is worse."""
    across = np.sin(np.arange(100)[None, :, None] / 7 + np.arange(3)) + np.cos(np.arange(90)[:, None, None] / 9)
    image = Image.fromarray(((across + 2) * 63).astype(np.uint8))
    box, white = (13, 9, 83, 77), Image.new("L", (100, 90), 255)
    sheet = lay_out(image, white, box, scaled, multiple=8)
    back = np.asarray(sheet.lay_over(image, sheet.image, white)).astype(float)

    def error(dx, dy):
        moved = np.roll(np.asarray(image).astype(float), (dy, dx), axis=(0, 1))
        return np.abs(back - moved)[20:70, 20:70].mean()

    straight = error(0, 0)
    assert straight < 1.5
    assert all(error(dx, dy) > 2 * straight for dx in (-1, 0, 1) for dy in (-1, 0, 1) if (dx, dy) != (0, 0))


@given(boxes(), st.data())
@settings(deadline=None, max_examples=60)
def test_black_in_the_mask_keeps_the_bytes_at_any_scale(picture_and_box, data):
    size, _ = picture_and_box
    seed = data.draw(st.integers(0, 99))
    greys = np.random.default_rng(seed).choice([0, 0, 60, 128, 255], (size[1], size[0])).astype(np.uint8)
    assume((greys >= 128).any())
    mask = Image.fromarray(greys)
    box = box_around(white_box(mask), 5, size, (1, 1))
    scaled = of_area((box[2] - box[0], box[3] - box[1]), 64 * 64, 8)
    image = noise(size)
    sheet = lay_out(image, mask, box, scaled, multiple=8, cover=True)
    alpha = fade_inwards(mask, data.draw(st.integers(0, 6)))
    painted = Image.fromarray(255 - np.asarray(sheet.image))
    result = np.asarray(sheet.lay_over(image, painted, alpha))
    assert (result[greys == 0] == np.asarray(image)[greys == 0]).all()


def test_a_thin_stroke_is_covered_at_a_smaller_scale():
    mask = Image.new("L", (400, 400), 0)
    mask.paste(255, (201, 0, 202, 400))
    sheet = lay_out(noise((400, 400)), mask, (0, 0, 400, 400), (64, 64), multiple=8, cover=True)
    cells = np.asarray(sheet.mask)
    assert (cells[:, 32:40] == 255).all() and cells[:, :24].max() == 0 and cells[:, 48:].max() == 0


def test_padding_repeats_the_edge_and_keeps_the_rest():
    image = noise((13, 9))
    padded = pad_to_multiple(image, 8)
    assert padded.size == (16, 16)
    assert (np.asarray(padded)[:9, :13] == np.asarray(image)).all()
    assert (np.asarray(padded)[:9, 13] == np.asarray(image)[:, 12]).all()
    assert pad_to_multiple(noise((1, 1)), 64).size == (64, 64)


# --- masks -----------------------------------------------------------------------------------------------------------


def test_an_empty_mask_is_refused():
    for grey in (0, 127):
        with pytest.raises(InvalidRequest, match="no white"):
            white_box(Image.new("L", (9, 9), grey))
    assert white_box(Image.new("L", (9, 9), 128)) == (0, 0, 9, 9)


@given(st.integers(0, 999), st.integers(0, 9), st.integers(1, 40), st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_fading_against_brute_force(seed, distance, width, height):
    random = np.random.default_rng(seed)
    mask = (random.random((height, width)) > 0.05).astype(np.uint8) * 255
    mask[: height // 3] = random.integers(0, 256)
    faded = np.asarray(fade_inwards(Image.fromarray(mask), distance)).astype(int)
    assert (faded <= mask).all()
    black = np.argwhere(mask == 0)
    depth = np.zeros(mask.shape, np.float32)
    for y, x in np.ndindex(mask.shape):
        depth[y, x] = min(np.hypot(*(black - (y, x)).T).min(initial=np.inf), distance + 1)
    for y, x in np.ndindex(mask.shape):
        window = depth[max(0, y - distance) : y + distance + 1, max(0, x - distance) : x + distance + 1]
        assert faded[y, x] == int(mask[y, x] * (depth[y, x] / max(window.max(), 1)))


def test_the_middle_of_a_thin_stroke_is_full():
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (10, 30, 60, 35))
    faded = np.asarray(fade_inwards(mask, 8))
    assert list(faded[29:36, 40]) == [0, 85, 170, 255, 170, 85, 0]


@given(st.integers(0, 999), st.sampled_from([1, 2, 8]), st.integers(1, 6), st.integers(1, 6))
@settings(deadline=None)
def test_cells_against_brute_force(seed, cell, across, down):
    greys, chances = [0, 127, 128, 255], [0.9, 0.05, 0.025, 0.025]
    mask = np.random.default_rng(seed).choice(greys, (down * cell, across * cell), p=chances)
    covered = np.asarray(cover_cells(Image.fromarray(mask.astype(np.uint8)), cell))
    for y in range(down):
        for x in range(across):
            part = (slice(y * cell, (y + 1) * cell), slice(x * cell, (x + 1) * cell))
            assert (covered[part] == (255 if (mask[part] >= 128).any() else 0)).all()


def test_the_pixels_that_diffusers_asks():
    mask = Image.new("L", (32, 32), 0)
    mask.paste(255, (9, 9, 16, 16))
    assert not sees_white(mask, 8)
    mask.putpixel((8, 8), 255)
    assert sees_white(mask, 8)
    assert binarise(mask).getextrema() == (0, 255)


# --- canvases --------------------------------------------------------------------------------------------------------

MARGINS = st.tuples(*[st.integers(0, 40)] * 4).map(lambda values: Margins(*values))


@given(SIDES, SIDES, MARGINS, st.integers(0, 12))
@settings(deadline=None, max_examples=60)
def test_a_canvas_keeps_the_picture_and_its_masks_agree(width, height, margins, seam):
    assume(any(margins))
    image = noise((width, height))
    canvas = extend(image, margins)
    assert canvas.size == (width + margins.left + margins.right, height + margins.top + margins.bottom)
    assert (np.asarray(canvas.crop(margins.place(image.size))) == np.asarray(image)).all()
    mask, alpha = border_mask(image.size, margins, seam), seam_alpha(image.size, margins, seam)
    outside = border_distance(image.size, margins) > 0
    assert (np.asarray(mask)[outside] == 255).all() and (np.asarray(alpha)[outside] == 255).all()
    assert (np.asarray(alpha)[np.asarray(mask) == 0] == 0).all(), "what the model keeps is the picture's own"
    assert (np.asarray(mask) == 0).any()
    if seam == 0:
        assert (np.asarray(alpha)[~outside] == 0).all() and (np.asarray(mask)[~outside] == 0).all()


def test_a_seam_lies_only_on_sides_that_grow_and_fades():
    alpha = np.asarray(seam_alpha((60, 40), Margins(10, 0, 0, 0), 8))
    row = alpha[20]
    assert (row[:10] == 255).all() and (row[18:] == 0).all()
    assert (np.diff(row[9:19].astype(int)) < 0).all()
    assert (alpha == row).all()


def test_the_border_goes_on_in_the_pictures_colours():
    image = Image.new("RGB", (40, 40), (200, 30, 30))
    image.paste((30, 30, 200), (20, 0, 40, 40))
    canvas = np.asarray(extend(image, Margins(30, 0, 30, 0))).astype(int)
    assert (np.abs(canvas[:, 25] - (200, 30, 30)) < 12).all() and (np.abs(canvas[:, 75] - (30, 30, 200)) < 12).all()
    assert np.abs(np.diff(canvas, axis=1))[:, 28:31].max() < 12, "no hard edge where the picture ends"


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_sizes():
    assert [round_up(side, 8) for side in (1, 8, 9, 8.0000000001)] == [8, 8, 16, 8]
    assert within_area((100, 50), 5000) == (100, 50)
    assert within_area((4000, 3000), 1_000_000) == (1154, 866)
    assert of_area((400, 200), 512 * 512, 8) == (728, 360)


@given(SIDES, SIDES, st.integers(1, 10_000))
def test_a_limited_size_has_no_more_pixels_and_the_same_shape(width, height, area):
    limited = within_area((width, height), area)
    assert limited[0] * limited[1] <= max(area, max(limited))
    assert limited[0] <= width and limited[1] <= height


def test_no_step_left_says_what_to_raise():
    require_a_step(4, 0.25)
    require_a_step(3, 0.34)
    with pytest.raises(InvalidRequest, match=r"raise strength to 0\.25"):
        require_a_step(4, 0.24)
