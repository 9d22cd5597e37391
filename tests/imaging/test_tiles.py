"""Tiles: a picture that is worked on part by part is the one that is worked on whole."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from app.imaging.tiles import Grid, Pass, cores, enlarge, grid_of_area, grid_of_side, sizes_on_the_way

SIZE = (97, 61)
REACH = 5


def noise(size, mode="RGB"):
    shape = (size[1], size[0]) + ((3,) if mode == "RGB" else ())
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8))


def blurred_and_doubled(part):
    """A stand-in that looks exactly five pixels far: a box of eleven, zero beyond the edge, and twice as large."""
    array = np.pad(np.asarray(part, dtype=np.int64), ((REACH, REACH), (REACH, REACH), (0, 0)))
    total = sum(
        array[y : y + part.height, x : x + part.width] for y in range(2 * REACH + 1) for x in range(2 * REACH + 1)
    )
    mean = (total // (2 * REACH + 1) ** 2).astype(np.uint8)
    return Image.fromarray(mean.repeat(2, 0).repeat(2, 1))


def made(target, grid, reach=REACH, **more):
    return enlarge(noise(SIZE), Pass(SIZE, target, grid), blurred_and_doubled, scale=2, reach=reach, **more)


def difference(one, other):
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


@pytest.mark.parametrize("target", [(194, 122), (97, 61), (291, 183), (150, 95)])
@pytest.mark.parametrize("side", [7, 16, 33, 64, 96])
def test_no_seam_at_any_tile_size_and_any_scale(target, side):
    assert difference(made(target, grid_of_side(SIZE, side)), made(target, Grid(1, 1))) <= 1


def test_less_than_the_reach_shows():
    """So the test above can fail: a ring that is too narrow leaves seams."""
    assert difference(made((194, 122), Grid(4, 3), reach=2), made((194, 122), Grid(1, 1))) > 1


def test_the_resize_on_parts_is_the_resize_of_the_whole():
    whole = blurred_and_doubled(noise(SIZE)).resize((133, 84), Image.Resampling.LANCZOS)
    assert difference(made((133, 84), Grid(5, 4)), whole) <= 1


def test_every_part_is_told_and_what_it_raises_ends_the_work():
    told = []
    made((194, 122), Grid(3, 2), on_tile=lambda: told.append(1))
    assert len(told) == 6

    def stop():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        made((194, 122), Grid(3, 2), on_tile=stop)


def test_parts_begin_where_the_network_cuts_the_whole():
    starts = set()

    def network(part):
        starts.add(part.size)
        return part

    enlarge(noise(SIZE), Pass(SIZE, SIZE, Grid(4, 3)), network, scale=1, reach=5, multiple=8)
    assert all(width % 8 == 0 or (width - 97) % 8 == 0 for width, _ in starts)


def test_cores_cover_the_picture_once():
    seen = np.zeros((61, 97), int)
    for left, top, right, bottom in cores(SIZE, Grid(7, 5)):
        seen[top:bottom, left:right] += 1
    assert (seen == 1).all()


def test_a_ramp_leaves_no_step_between_parts_that_disagree():
    """Each part answers another grey; with a ramp, neighbouring pixels differ by a fraction of it."""
    greys = iter([40, 200])
    step = Pass((64, 32), (64, 32), Grid(2, 1))
    faded = enlarge(
        Image.new("RGB", (64, 32)), step, lambda part: Image.new("RGB", part.size, (next(greys),) * 3),
        scale=1, reach=16, ramp=8,
    )  # fmt: skip
    row = np.asarray(faded)[16, :, 0].astype(int)
    assert row[0] == 40 and row[-1] == 200 and np.abs(np.diff(row)).max() <= 160 / 8 + 1


@pytest.mark.parametrize("area", [4_000, 20_000, 1_000_000])
def test_no_part_shows_more_than_the_area_and_the_fewest_pixels_are_seen_twice(area):
    size, reach = (4000, 3000), 18
    grid = grid_of_area(size, area, reach)
    width, height = -(-size[0] // grid.columns) + 2 * reach, -(-size[1] // grid.rows) + 2 * reach
    assert width * height <= area * 1.01
    if area == 1_000_000:
        assert grid.count * width * height <= 1.1 * size[0] * size[1]


def test_a_picture_that_fits_is_not_cut():
    assert grid_of_area((100, 80), 8000, 18) == Grid(1, 1)


def test_passes_go_on_until_the_target_is_within_reach():
    assert sizes_on_the_way((10, 8), (20, 16), 4) == [(20, 16)]
    assert sizes_on_the_way((10, 8), (40, 32), 4) == [(40, 32)]
    assert sizes_on_the_way((10, 8), (80, 64), 4) == [(40, 32), (80, 64)]
    assert sizes_on_the_way((10, 8), (80, 64), 2) == [(20, 16), (40, 32), (80, 64)]
    assert sizes_on_the_way((10, 8), (20, 16), 1) == [(20, 16)]


def test_a_filter_of_pillow_is_another_network():
    """Any function serves; Pillow's own blur looks two pixels far."""

    def blur(part):
        return part.filter(ImageFilter.BoxBlur(1))

    whole = blur(noise(SIZE))
    parts = enlarge(noise(SIZE), Pass(SIZE, SIZE, Grid(5, 4)), blur, scale=1, reach=2)
    assert difference(parts, whole) == 0
