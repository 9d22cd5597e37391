"""The child process that turns a stranger's bytes into a clean PNG; started by `decode.py`, imports Pillow alone.

Invariant: no byte of a stranger's picture meets a decoder outside this process, and this process cannot harm the one
that asked: its memory, time and file size are limited before Pillow is imported, its environment is empty, and its only
ways out are one open file and one line of JSON. The price is the start of an interpreter for each picture.
"""

import contextlib
import json
import os
import resource
import sys

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF")
LONGEST_SIDE = 16_384
BYTES_PER_PIXEL = 24
BASE_MEMORY = 384 * 2**20


class Refused(Exception):
    """The picture is not taken; `code` is the error's slug, the text a sentence for a person."""

    def __init__(self, code: str, message: str, **details: str) -> None:
        super().__init__(message)
        self.code = code
        self.details = details


def limit_resources(max_pixels: int, seconds: int) -> None:
    """Bound what this process may use, for good."""
    for kind, amount in (
        (resource.RLIMIT_AS, BASE_MEMORY + BYTES_PER_PIXEL * max_pixels),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 8 * max_pixels + 2**20),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 32),
    ):
        resource.setrlimit(kind, (amount, amount))


def decode(data: bytes, output: int, *, kind: str, max_pixels: int) -> dict:
    """Write the picture in `data` to the open file `output` as PNG; answer its size, format and origin."""
    import io
    import warnings

    from PIL import Image, ImageOps

    from app.imaging.metadata import PNG_LEVEL, png_texts, read_origin

    warnings.simplefilter("error", Image.DecompressionBombWarning)
    Image.MAX_IMAGE_PIXELS = max_pixels
    register_formats(data)
    too_many = f"The picture has more than {max_pixels:,} pixels, the most that is taken."
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise Refused("too_large", too_many) from error
    except MemoryError:
        raise
    except Exception as error:
        raise Refused("unreadable_image", "The bytes are no PNG, JPEG, WebP or AVIF picture.") from error
    if image.width * image.height > max_pixels:
        raise Refused("too_large", too_many)
    if max(image.size) > LONGEST_SIDE:
        raise Refused("too_large", f"The picture is longer than {LONGEST_SIDE:,} pixels on one side.")
    media_type = {"MPO": "image/jpeg"}.get(image.format, Image.MIME[image.format])
    try:
        image.load()
        origin = read_origin(image)
        image = ImageOps.exif_transpose(image)
        image = to_mask(image) if kind == "mask" else to_colours(image)
    except MemoryError:
        raise
    except Exception as error:
        raise Refused("unreadable_image", "The picture is broken or cut off.", reason="broken") from error
    try:
        with os.fdopen(output, "wb", closefd=False) as file:
            image.save(file, "PNG", pnginfo=png_texts(origin), compress_level=PNG_LEVEL, icc_profile=None, exif=b"")
    except OSError as error:
        raise Refused("storage_full", "The disk is full.") from error
    return {"width": image.width, "height": image.height, "media_type": media_type}


def register_formats(data: bytes) -> None:
    """Import what reads WebP and AVIF when it is needed; left to itself, Pillow would import its forty formats."""
    if data[:4] == b"RIFF":
        from PIL import WebPImagePlugin  # noqa: F401
    elif data[4:8] == b"ftyp":
        from PIL import AvifImagePlugin

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # each thread would reserve address space that the limit counts


def to_eight_bits(image):
    """The picture as L, RGB, RGBA or CMYK of 8 bits; Pillow's own conversion would clip 16-bit greys to white."""
    if image.mode.startswith("I"):
        deep = image.getextrema()[1] > 255
        return (image.point(lambda value: value * (1 / 257)) if deep else image).convert("L")
    if image.mode == "F":
        return image.point(lambda value: value * 255).convert("L")
    if image.mode in {"LA", "La", "PA", "RGBa"} or "transparency" in image.info:
        return image.convert("RGBA")
    if image.mode in {"L", "RGB", "RGBA", "CMYK"}:
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def to_colours(image):
    """RGB in the sRGB colour space, RGBA where something is transparent."""
    image = to_eight_bits(image)
    alpha = image.getchannel("A") if image.mode == "RGBA" else None
    image = to_srgb(image).convert("RGB")
    if alpha is not None and alpha.getextrema() != (255, 255):
        image.putalpha(alpha)
    return image


def to_srgb(image):
    """The colours that the picture's own profile means; a profile that cannot be read is ignored."""
    profile = image.info.get("icc_profile")
    if not profile:
        return image
    import io

    from PIL import ImageCms

    with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError):
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        # A picture that is sRGB already must keep its bytes: the engine's rounding would change some by one.
        if "srgb" not in ImageCms.getProfileDescription(source).lower():
            flat = image.convert("RGB") if image.mode == "RGBA" else image
            return ImageCms.profileToProfile(flat, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    return image


def to_mask(image):
    """Grey where white is repainted, from a mask with or without transparency.

    An opaque mask is its brightness. With transparency there are two customs. A brush leaves strokes of one colour
    on nothing, as canvases and A1111's clients send it: the strokes are repainted. OpenAI's clients send the picture,
    or plain black, with a hole: the hole is repainted. What stands in the opaque part tells which one it is.
    """
    image = to_eight_bits(image)
    if image.mode != "RGBA":
        return image.convert("L")
    alpha = image.getchannel("A")
    lowest, highest = alpha.getextrema()
    if lowest == 255:
        return image.convert("L")
    if highest == 0:
        return alpha  # nothing was painted on this canvas
    opaque = alpha.point(lambda value: 255 if 2 * value >= highest else 0)
    ranges = [channel_range(channel.histogram(opaque)) for channel in image.convert("RGB").split()]
    one_colour = all(high - low <= 16 for low, high in ranges)
    black = all(high <= 16 for low, high in ranges)
    return alpha if one_colour and not black else alpha.point(lambda value: 255 - value)


def channel_range(histogram):
    """The lowest and highest value that a histogram counts; (0, 0) for an empty one."""
    counted = [value for value, count in enumerate(histogram) if count]
    return (counted[0], counted[-1]) if counted else (0, 0)


def main() -> None:
    """Arguments: kind, most pixels, CPU seconds, file descriptor of the output. Picture on stdin, JSON on stdout."""
    kind, max_pixels, seconds, output = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    limit_resources(max_pixels, seconds)
    try:
        answer = decode(sys.stdin.buffer.read(), output, kind=kind, max_pixels=max_pixels)
    except Refused as error:
        answer = {"code": error.code, "message": str(error), "details": error.details}
    except MemoryError:
        answer = {"code": "too_large", "message": "The picture needs more memory than one picture may take."}
    sys.stdout.write(json.dumps(answer))
    sys.stdout.flush()
    os._exit(0)  # nothing is left to tidy, and tearing down an interpreter takes time
