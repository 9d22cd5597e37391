"""Pictures as taggers read them, and scores as words: by plain arithmetic."""

import io

import numpy as np
import pytest
from PIL import Image

from app.core.storage import Storage
from app.imaging.tag_input import tagger_input
from app.imaging.tags import Label, Wish, mean_cut, tagged, written

SIDE = 448
RANDOM = np.random.default_rng(7)
LABELS = [
    Label(name, category)
    for name, category in (
        ("general", "rating"), ("explicit", "rating"), ("long_hair", "general"), ("hat", "general"),
        ("^_^", "general"), ("saber_(fate)", "character"), ("rin_(fate)", "character"), ("some_series", "3"),
    )
]  # fmt: skip


def noise(mode, width, height):
    bands = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    pixels = RANDOM.integers(0, 256, (height, width, bands), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if bands == 1 else pixels, mode)


def palette(width, height, *, clear=None):
    image = noise("RGB", width, height).quantize(16)
    if clear is not None:
        image.info["transparency"] = clear
    return image


def deep(width, height):
    return Image.fromarray(RANDOM.integers(0, 65536, (height, width), dtype=np.uint16))


ODD = {
    "rgb": noise("RGB", 640, 480), "tall": noise("RGB", 37, 911), "wide": noise("RGB", 1200, 17),
    "448": noise("RGB", SIDE, SIDE), "449": noise("RGB", 449, 449), "1x1": noise("RGB", 1, 1),
    "1xN": noise("RGB", 1, 300), "Nx1": noise("RGB", 300, 1), "odd": noise("RGB", 101, 64),
    "rgba": noise("RGBA", 90, 60),
    "rgba 1xN": noise("RGBA", 1, 77), "clear": Image.new("RGBA", (50, 20), (255, 0, 0, 0)), "grey": noise("L", 61, 33),
    "grey alpha": noise("LA", 61, 33), "palette": palette(70, 71), "clear palette": palette(70, 31, clear=3),
    "two colours": noise("L", 64, 40).convert("1"), "16 bit": deep(80, 50), "16 bit 1xN": deep(1, 90),
    "large": noise("RGBA", 1500, 900),
}  # fmt: skip


def on_white(image):
    """[height, width, 3] of 0 to 255, unrounded: what each mode's numbers mean, transparent ones on white."""
    if image.mode.startswith("I"):
        grey = np.asarray(image, np.float64) / 257
        return np.repeat(grey[..., None], 3, -1)
    pixels = np.asarray(image.convert("RGBA"), np.float64)
    alpha = pixels[..., 3:] / 255
    return pixels[..., :3] * alpha + 255 * (1 - alpha)


def by_hand(rgb):
    """White square, bicubic, blue first, of bytes [height, width, 3]."""
    height, width = rgb.shape[:2]
    side = max(height, width)
    square = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = rgb
    planes = [
        Image.fromarray(np.ascontiguousarray(square[..., plane])).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        if side != SIDE
        else square[..., plane]
        for plane in (2, 1, 0)
    ]
    return np.stack([np.asarray(plane, np.float32) for plane in planes], -1)


@pytest.mark.parametrize("name", ODD)
def test_a_picture_is_read_as_the_arithmetic_says(name, tmp_path):
    image = ODD[name]
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    storage = Storage(tmp_path, min_free_bytes=0)
    stored = storage.open(storage.put(buffer.getvalue(), kind="image").id)
    # The bytes: within the rounding of one.
    assert np.abs(np.asarray(stored, np.float64) - on_white(image)).max() <= 1
    read = tagger_input(stored, SIDE)
    assert read.shape == (SIDE, SIDE, 3) and read.dtype == np.float32 and read.flags.c_contiguous
    assert read.min() >= 0 and read.max() <= 255
    assert np.array_equal(read, by_hand(np.asarray(stored)))
    # And with no service between: the same of the picture in its own mode.
    assert np.array_equal(tagger_input(image, SIDE), read)


def test_there_are_twenty_odd_pictures():
    assert len(ODD) == 20


def test_the_mean_cut_is_the_middle_of_the_widest_gap():
    assert mean_cut(np.array([0.1, 0.95, 0.3, 0.9, 0.25])) == pytest.approx(0.6)
    assert mean_cut(np.array([0.4])) == 0.0


def test_scores_become_tags_by_their_category():
    scores = np.array([0.7, 0.2, 0.6, 0.34, 0.9, 0.8, 0.86, 0.5], np.float32)
    found = tagged(scores, LABELS, Wish())
    assert found.tags == {
        "general": [("^_^", 0.9), ("long hair", 0.6)],
        "character": [("rin (fate)", 0.86)],
        "3": [("some series", 0.5)],
    }
    assert found.rating == "general" and found.ratings == {"general": 0.7, "explicit": 0.2}
    assert found.caption == "rin (fate), ^_^, long hair, some series"


def test_a_caption_is_written_as_it_is_wished():
    scores = np.array([0.7, 0.2, 0.6, 0.4, 0.9, 0.8, 0.86, 0.1], np.float32)
    wish = Wish(character_threshold=0.5, escape=True, exclude=("Long Hair",), prepend=("mystyle", "hat"), rating=True)
    assert tagged(scores, LABELS, wish).caption == "mystyle, hat, rin \\(fate\\), saber \\(fate\\), ^_^, general"
    assert tagged(scores, LABELS, Wish(underscores=True)).caption == "rin_(fate), ^_^, long_hair, hat"
    assert written("a_(b)", underscores=False, escape=True) == "a \\(b\\)"


def test_the_mean_cut_lets_no_stranger_in():
    scores = np.array([0.7, 0.2, 0.9, 0.85, 0.2, 0.09, 0.01, 0.1], np.float32)
    found = tagged(scores, LABELS, Wish(threshold=None, character_threshold=None))
    assert [name for name, _ in found.tags["general"]] == ["long hair", "hat"] and "character" not in found.tags
