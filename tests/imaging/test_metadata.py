"""Infotext and recipe in the file: whatever text they hold, in each of the three formats."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from app.errors import InvalidRequest
from app.imaging.metadata import MEDIA_TYPES, NO_ORIGIN, Origin, encode, read_origin

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=200).filter(
    str.strip
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


def read(data):
    with Image.open(io.BytesIO(data), formats=tuple(MEDIA_TYPES.values())) as image:
        image.load()
        return read_origin(image)


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
@given(infotext=TEXT, request=JSON)
@settings(max_examples=40, deadline=None)
def test_what_is_written_is_read(media_type, infotext, request):
    origin = Origin(infotext, {"capability": "x", "request": request})
    assert read(encode(Image.new("RGB", (8, 8)), media_type, origin)) == origin


def test_a_picture_that_is_wider_than_its_type_can_hold_is_refused():
    assert read(encode(Image.new("RGB", (16_383, 1)), "image/webp", Origin("a", None))).infotext == "a"
    for size in ((16_384, 1), (1, 16_384)):
        with pytest.raises(InvalidRequest, match=r"16384.*16383"):
            encode(Image.new("RGB", size), "image/webp")
        for media_type in ("image/png", "image/jpeg"):
            assert encode(Image.new("RGB", size), media_type)


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
def test_many_letters_whose_lower_byte_is_zero_do_not_turn_the_byte_order(media_type):
    infotext = "\u4e00\u4e00" * 500 + "\nSteps: 1, Sampler: Euler, Seed: 3"
    assert read(encode(Image.new("RGB", (8, 8)), media_type, Origin(infotext, None))).infotext == infotext


def test_a_comment_that_a_viewer_turned_to_little_endian_is_read():
    text = "a car\nSteps: 1, Sampler: Euler, Seed: 3"
    for comment in (b"UNICODE\0" + text.encode("utf-16-le"), b"ASCII\0\0\0" + text.encode(), text.encode()):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9286] = comment
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=exif)
        assert read(buffer.getvalue()) == Origin(text, None)


@pytest.mark.parametrize(
    "recipe",
    [
        "[1]",
        "{",
        '{"capability": NaN}',
        '{"a": 1}',
        "[" * 100_000,
        '{"capability": "\\ud800"}',
        '{"capability": ' + "9" * 30 + "}",
        '{"capability": -9223372036854775809}',
        '{"capability": 1e999}',
        '{"capability": ' + "[" * 400 + "]" * 400 + "}",
        '{"capability": 1, "capability": 2}',
    ],
)
def test_a_text_that_is_no_recipe_is_none(recipe):
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("eis_recipe", recipe)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "PNG", pnginfo=info)
    assert read(buffer.getvalue()) == NO_ORIGIN


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
def test_a_picture_without_an_origin_has_none(media_type):
    assert read(encode(Image.new("RGB", (8, 8)), media_type)) == NO_ORIGIN
