"""Strangers' pictures: what is taken comes out as people see it, what is not is a clear refusal."""

import io
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from app.core.storage import Storage
from app.errors import InvalidRequest, StorageFull, TooLarge, Unavailable, UnknownImage, UnreadableImage

RED, BLUE = (220, 50, 47), (45, 110, 220)


@pytest.fixture
def storage(tmp_path):
    return Storage(tmp_path, max_pixels=4_000_000, decode_seconds=10)


def two_halves(mode="RGB", size=(40, 24)):
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, *size))
    return image.convert(mode)


def file_of(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "AVIF"])
def test_the_four_formats_come_out_as_png(storage, format):
    stored = storage.put(file_of(two_halves(size=(64, 48)), format))
    image = storage.open(stored.id)
    assert (stored.width, stored.height) == image.size == (64, 48)
    assert stored.media_type == {"JPEG": "image/jpeg"}.get(format, f"image/{format.lower()}")
    assert storage.path(stored.id).read_bytes().startswith(b"\x89PNG")
    assert np.abs(pixels(image)[10, 10] - RED).max() <= 6
    assert np.abs(pixels(image)[10, 50] - BLUE).max() <= 6


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "1", "LA", "I;16", "CMYK"])
def test_every_mode_shows_what_it_showed(storage, mode):
    if mode in {"I;16"}:
        grey = np.asarray(two_halves("L")).astype(np.uint16) * 257
        source, expected = Image.fromarray(grey), two_halves("L").convert("RGB")
    else:
        source = two_halves(mode) if mode != "LA" else two_halves("L").convert("LA")
        expected = source.convert("RGB")
    data = file_of(source, "JPEG", quality=100) if mode == "CMYK" else file_of(source)
    image = storage.open(storage.put(data).id)
    assert np.abs(pixels(image) - pixels(expected)).max() <= (8 if mode == "CMYK" else 0)


def test_a_sixteen_bit_mask_keeps_its_greys(storage):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16)[None].repeat(4, axis=0)
    mask = storage.open_mask(storage.put(file_of(Image.fromarray(ramp)), kind="mask").id)
    assert np.abs(pixels(mask)[0] - np.arange(256)).max() <= 1


def test_transparency_shows_white(storage):
    image = two_halves("RGBA")
    image.putalpha(Image.new("L", image.size, 0))
    image.paste((*RED, 255), (0, 0, 10, 24))
    opened = pixels(storage.open(storage.put(file_of(image)).id))
    assert (opened[:, :10] == RED).all() and (opened[:, 10:] == 255).all()


def test_a_transparent_palette_shows_white(storage):
    image = two_halves().quantize(4)
    index = image.getpixel((30, 5))
    opened = pixels(storage.open(storage.put(file_of(image, transparency=index)).id))
    assert (opened[:, 20:] == 255).all()


def test_transparency_is_kept_beside_the_colours_that_are_read(storage):
    """Whoever asks for the colours reads white where nothing is; whoever asks for the alpha gets it whole."""
    image = two_halves("RGBA")
    alpha = Image.linear_gradient("L").resize(image.size)
    image.putalpha(alpha)
    stored = storage.put(file_of(image)).id
    assert storage.alpha(stored).tobytes() == alpha.tobytes()
    white = Image.new("RGB", image.size, "white")
    white.paste(image.convert("RGB"), mask=alpha)
    assert storage.open(stored).tobytes() == white.tobytes()
    assert storage.open_mask(stored).tobytes() == white.convert("L").tobytes()
    jpeg = Image.open(io.BytesIO(storage.encode(stored, "image/jpeg")))
    assert np.abs(pixels(jpeg) - pixels(white)).max() < 12
    assert Image.open(io.BytesIO(storage.encode(stored, "image/webp"))).mode == "RGBA"
    assert Image.open(io.BytesIO(storage.thumbnail(stored, 64))).convert("RGB").getpixel((10, 0))[1] > 200
    opaque = two_halves("RGBA")
    assert storage.alpha(storage.put(file_of(opaque)).id) is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_a_turned_photo_stands_upright(storage, orientation, format):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = two_halves(size=(48, 32))
    image.paste("white", (0, 0, 16, 16))
    data = file_of(image, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data), formats=[format]))
    opened = storage.open(storage.put(data).id)
    assert opened.size == ((32, 48) if orientation > 4 else (48, 32))
    assert (pixels(opened) == pixels(upright.convert("RGB"))).all()


def test_the_first_frame_of_an_animation_is_taken(storage):
    frames = [two_halves(), Image.new("RGB", (40, 24), "white")]
    for format in ("PNG", "WEBP"):
        data = file_of(frames[0], format, save_all=True, append_images=frames[1:], lossless=True, duration=50)
        assert (pixels(storage.open(storage.put(data).id)) == pixels(frames[0])).all()


def test_a_colour_profile_is_turned_into_srgb(storage):
    image = Image.new("RGB", (8, 8), (200, 30, 30))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert storage.open(storage.put(file_of(image, icc_profile=srgb)).id).getpixel((0, 0)) == (200, 30, 30)
    other = bytearray(srgb.replace("sRGB".encode("utf-16-be"), "Mine".encode("utf-16-be")))
    tags = {bytes(other[at : at + 4]): at + 4 for at in range(132, 132 + 12 * other[131], 12)}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    other[red : red + 8], other[blue : blue + 8] = other[blue : blue + 8], other[red : red + 8]
    swapped = storage.open(storage.put(file_of(image, icc_profile=bytes(other))).id).getpixel((0, 0))
    assert np.abs(np.array(swapped) - (30, 30, 200)).max() <= 2, "a profile whose red is blue"
    unknown = storage.put(file_of(image, icc_profile=b"no profile at all"))
    assert storage.open(unknown.id).getpixel((0, 0)) == (200, 30, 30)


def test_nothing_but_the_origin_survives(storage):
    info = PngImagePlugin.PngInfo()
    info.add_text("GPS", "52.5, 13.4")
    info.add_text("parameters", "a car\nSteps: 2, Sampler: Euler, Seed: 1")
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    data = file_of(two_halves(), pnginfo=info, exif=exif)
    stored = storage.put(data)
    with Image.open(storage.path(stored.id), formats=["PNG"]) as image:
        image.load()
        assert set(image.info) == {"parameters"} and not dict(image.getexif())
    assert storage.metadata(stored.id)["infotext"].startswith("a car\n")


# --- masks -----------------------------------------------------------------------------------------------------------


def mask_of(storage, image):
    return pixels(storage.open_mask(storage.put(file_of(image), kind="mask").id))


def hole():
    """Opaque everywhere but in a square."""
    alpha = Image.new("L", (40, 24), 255)
    alpha.paste(0, (8, 8, 16, 16))
    return alpha


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "1", "P"])
def test_an_opaque_mask_is_its_brightness(storage, mode):
    mask = Image.new("L", (40, 24), 0)
    mask.paste(255, (8, 8, 16, 16))
    assert (mask_of(storage, mask.convert(mode)) == pixels(mask)).all()


@pytest.mark.parametrize("colour", ["white", "red", (128, 128, 128)])
def test_brush_strokes_on_nothing_are_repainted(storage, colour):
    strokes = Image.new("RGB", (40, 24), colour)
    strokes.putalpha(ImageOps.invert(hole()))
    assert (mask_of(storage, strokes) == pixels(ImageOps.invert(hole()))).all()


def test_faint_strokes_are_strokes_and_an_untouched_canvas_is_empty(storage):
    strokes = Image.new("RGB", (40, 24), "white")
    strokes.putalpha(ImageOps.invert(hole()).point(lambda value: value * 90 // 255))
    assert (mask_of(storage, strokes) == pixels(strokes)[..., 3]).all()
    strokes.putalpha(0)
    assert mask_of(storage, strokes).max() == 0


@pytest.mark.parametrize("picture", [two_halves(), Image.new("RGB", (40, 24), "black")])
def test_a_hole_in_a_picture_is_repainted(storage, picture):
    picture = picture.copy()
    picture.putalpha(hole())
    assert (mask_of(storage, picture) == pixels(ImageOps.invert(hole()))).all()


# --- refusals --------------------------------------------------------------------------------------------------------


def flat_png(width, height):
    """A valid one-bit PNG of any size, a thousandth of a byte for each pixel."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    row = b"\0" * (1 + (width + 7) // 8)
    body = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect/></svg>'
GIF = file_of(two_halves("P"), "GIF")
PNG = file_of(two_halves(size=(300, 200)))
REFUSED = {
    "svg": SVG,
    "gif": GIF,
    "tiff": file_of(two_halves(), "TIFF"),
    "bmp": file_of(two_halves(), "BMP"),
    "pdf": b"%PDF-1.7\n" + PNG,
    "text": b"hello",
    "zeros": bytes(5000),
    "signature alone": PNG[:8],
    "cut png": PNG[: len(PNG) // 2],
    "cut jpeg": file_of(two_halves(size=(300, 200)), "JPEG")[:600],
    "cut webp": file_of(two_halves(size=(300, 200)), "WEBP")[:60],
    "cut avif": file_of(two_halves(size=(300, 200)), "AVIF")[:200],
    "broken png": PNG[:60] + bytes(20) + PNG[80:],
    "gif with a png inside": GIF + PNG,
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_whole_picture_of_the_four_formats_is_refused(storage, name):
    with pytest.raises(UnreadableImage) as caught:
        storage.put(REFUSED[name])
    assert caught.value.message.endswith(".") and "/" not in caught.value.message
    assert list(storage._folder.glob("*/*")) == []


def test_no_bytes_at_all(storage):
    with pytest.raises(InvalidRequest, match="empty"):
        storage.put(b"")


def test_what_hangs_behind_a_picture_is_left_behind(storage):
    stored = storage.put(PNG + b"PK\x03\x04<script>alert(1)</script>")
    assert b"script" not in storage.path(stored.id).read_bytes()
    assert storage.open(stored.id).size == (300, 200)


@pytest.mark.alone
def test_a_bomb_is_refused_before_its_pixels(tmp_path):
    data = flat_png(9400, 9400)
    assert len(data) < 300_000
    storage = Storage(tmp_path, max_pixels=32_000_000)
    began = time.monotonic()
    with pytest.raises(TooLarge, match="32,000,000 pixels"):
        storage.put(data)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("size", [(16_385, 2), (2, 16_385)])
def test_a_ribbon_is_refused(storage, size):
    with pytest.raises(TooLarge, match="16,384"):
        storage.put(flat_png(*size))


def test_the_largest_allowed_picture_is_taken(storage):
    assert storage.put(flat_png(2000, 2000)).bytes > 0
    with pytest.raises(TooLarge):
        storage.put(flat_png(2001, 2000))


def test_a_webp_larger_than_its_header_may_be(storage):
    data = bytearray(file_of(two_halves(), "WEBP", lossless=True, exif=b"Exif\0\0" + Image.Exif().tobytes()))
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = (16_383).to_bytes(3, "little") * 2
    with pytest.raises((TooLarge, UnreadableImage)):
        storage.put(bytes(data))


def test_a_text_bomb_in_a_png_is_refused_or_ignored(storage):
    info = PngImagePlugin.PngInfo()
    info.add_text("parameters", "x" * 5_000_000, zip=True)
    data = file_of(two_halves(), pnginfo=info)
    try:
        stored = storage.put(data)
    except UnreadableImage:
        return
    assert storage.metadata(stored.id)["infotext"] is None


def test_a_child_that_takes_too_long_is_ended(tmp_path):
    storage = Storage(tmp_path, max_pixels=64_000_000, decode_seconds=0.05)
    with pytest.raises(TooLarge, match=r"longer than 0\.05 seconds"):
        storage.put(flat_png(8000, 8000))
    assert list(storage._folder.glob("*/*")) == []


def test_a_child_that_needs_too_much_memory_is_an_answer(storage, monkeypatch):
    monkeypatch.setattr("app.imaging.decode._START", "bytearray(10**13)")
    with pytest.raises(UnreadableImage):
        storage.put(PNG)


def test_a_child_that_dies_is_an_answer(storage, monkeypatch):
    monkeypatch.setattr("app.imaging.decode._START", "import os; os.kill(os.getpid(), 11)")
    with pytest.raises(UnreadableImage):
        storage.put(PNG)


def test_the_child_cannot_take_more_memory_than_it_may(tmp_path):
    code = (
        "from app.imaging.decode_child import limit_resources\n"
        "limit_resources(1000, 5)\n"
        "try:\n    bytearray(600 * 2**20)\nexcept MemoryError:\n    print('refused')\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout == "refused\n"


def test_the_child_sees_no_environment(storage, monkeypatch):
    monkeypatch.setenv("EIS_API_KEYS", "secret")
    monkeypatch.setattr(
        "app.imaging.decode._START",
        "import os, json; print(json.dumps({'code': 'too_large', 'message': ','.join(os.environ)}))",
    )
    with pytest.raises(TooLarge) as caught:
        storage.put(PNG)
    assert "EIS" not in caught.value.message


def test_when_too_many_are_read_at_once_the_next_is_told_to_wait(tmp_path):
    storage = Storage(tmp_path, decode_seconds=0.01)
    while storage._decoding.acquire(blocking=False):
        pass
    with pytest.raises(Unavailable, match="try again"):
        storage.put(PNG)
    assert list(storage._folder.glob("*/*")) == []


def test_a_full_disk_is_said(storage, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("usage", (), {"free": 10})())
    storage._min_free_bytes = 100
    with pytest.raises(StorageFull):
        storage.put(PNG)


def test_a_reference_is_no_path(storage):
    for reference in ("../../../../etc/passwd", "", "a" * 25, "A" * 26, "a" * 26, "a" * 26 + "\n", "..", None):
        with pytest.raises(UnknownImage):
            storage.path(reference)
