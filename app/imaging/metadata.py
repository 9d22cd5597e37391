"""How a picture's origin is written into its file and read back: an A1111 infotext and a JSON recipe.

PNG holds them as text chunks `parameters` and `eis_recipe`; JPEG and WebP hold the infotext as EXIF UserComment, as
A1111 does, and the recipe as ImageDescription. An EXIF block ends at 64 KiB: what does not fit there stays in the PNG.
Reading meets files of strangers: whatever cannot be understood, or could not be answered as JSON, is absent.
"""

import io
import json
from typing import Any, NamedTuple

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app import strict_json
from app.errors import InvalidRequest

INFOTEXT_KEY = "parameters"
RECIPE_KEY = "eis_recipe"
MEDIA_TYPES = {"image/png": "PNG", "image/jpeg": "JPEG", "image/webp": "WEBP"}
TEXT_LIMIT = 256 * 1024
EXIF_LIMIT = 65_000
WEBP_SIDE = 16_383
PNG_LEVEL = 2

_EXIF_IFD = 0x8769
_USER_COMMENT = 0x9286
_IMAGE_DESCRIPTION = 0x010E
_UNICODE = b"UNICODE\0"
_ASCII = b"ASCII\0\0\0"


class Origin(NamedTuple):
    """What a file says about how its picture was made."""

    infotext: str | None = None
    recipe: dict[str, Any] | None = None


NO_ORIGIN = Origin()


def read_origin(image: Image.Image) -> Origin:
    """What an opened picture says; a field is None where it says nothing readable.

    A stranger's PNG must have been loaded: its texts may stand behind the pixels. Ours stand before them.
    """
    infotext, recipe = image.info.get(INFOTEXT_KEY), image.info.get(RECIPE_KEY)
    if infotext is None and recipe is None:
        try:
            exif = image.getexif()
            infotext = _decode_user_comment(exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT))
            recipe = exif.get(_IMAGE_DESCRIPTION)
        except Exception:  # EXIF is whatever a camera or an attacker wrote; none of it is worth a refusal
            return NO_ORIGIN
    return Origin(_clean_text(infotext), _parse_recipe(recipe))


def can_hold(media_type: str, size: tuple[int, int]) -> bool:
    """Whether a file of this media type can be so large: WebP has 14 bits for a side."""
    return media_type != "image/webp" or max(size) <= WEBP_SIDE


def encode(image: Image.Image, media_type: str, origin: Origin = NO_ORIGIN) -> bytes:
    """The picture as a file of this media type with its origin inside and no other metadata.

    `InvalidRequest` where the picture is larger than the type can hold.
    """
    if not can_hold(media_type, image.size):
        raise InvalidRequest(
            f"The picture is {image.width}x{image.height} and WebP ends at {WEBP_SIDE} pixels a side; "
            "ask for PNG or JPEG."
        )
    buffer = io.BytesIO()
    match media_type:
        case "image/png":
            image.save(buffer, "PNG", pnginfo=png_texts(origin), compress_level=PNG_LEVEL, icc_profile=None)
        case "image/jpeg":
            image.save(buffer, "JPEG", quality=95, subsampling=0, exif=_exif(origin), icc_profile=None)
        case "image/webp":
            image.save(buffer, "WEBP", quality=90, method=4, exif=_exif(origin), icc_profile=None)
        case _:
            raise ValueError(f"no encoder for {media_type}")
    return buffer.getvalue()


def png_texts(origin: Origin) -> PngInfo:
    """The text chunks of a PNG file with this origin."""
    info = PngInfo()
    if origin.infotext:
        info.add_itxt(INFOTEXT_KEY, origin.infotext)
    if origin.recipe:
        info.add_itxt(RECIPE_KEY, json.dumps(origin.recipe, ensure_ascii=False, separators=(",", ":")))
    return info


def _exif(origin: Origin) -> bytes:
    """An EXIF block with as much of the origin as 64 KiB hold, the infotext first."""
    block = b""
    exif = Image.Exif()
    if origin.infotext:
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = _UNICODE + origin.infotext.encode("utf-16-be")
        if len(written := exif.tobytes()) > EXIF_LIMIT:
            return block
        block = written
    if origin.recipe:
        exif[_IMAGE_DESCRIPTION] = json.dumps(origin.recipe, separators=(",", ":"))
        if len(written := exif.tobytes()) <= EXIF_LIMIT:
            block = written
    return block


def _decode_user_comment(value: object) -> str | None:
    if not isinstance(value, bytes):
        return value if isinstance(value, str) else None
    if value.startswith(_UNICODE):
        body = value[len(_UNICODE) :]
        # The standard leaves the byte order open; A1111 writes big-endian, some viewers rewrite it little-endian.
        big, little = (body.decode(order, errors="replace") for order in ("utf-16-be", "utf-16-le"))
        return little if "Steps: " in little and "Steps: " not in big else big
    if value.startswith(_ASCII):
        value = value[len(_ASCII) :]
    return value.decode("utf-8", errors="replace")


def _clean_text(value: object) -> str | None:
    """A text as UTF-8 can carry it; None for no text, or more than a file of this service would hold."""
    if not isinstance(value, str) or not value.strip("\0 \n") or len(value) > TEXT_LIMIT:
        return None
    return value.encode("utf-8", errors="replace").decode("utf-8").replace("\0", "")


def _parse_recipe(value: object) -> dict[str, Any] | None:
    if not isinstance(value, str) or len(value) > TEXT_LIMIT:
        return None
    try:
        recipe = strict_json.loads(value.encode("utf-8"))
    except ValueError:
        return None
    return recipe if isinstance(recipe, dict) and "capability" in recipe else None
