"""What is known of a file by its header: names and shapes as read, and what they were recognised as."""

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.errors import InvalidRequest
from app.models.spec import Family, Kind, Licence, Recommended

MAX_HEADER = 32 * 2**20
MAX_TENSORS = 100_000
WEIGHTS = ".safetensors"
_DTYPES = re.compile(r"^[A-Z][A-Z0-9_]{0,15}$")


@dataclass(frozen=True)
class Header:
    """Names, shapes and metadata of a `.safetensors` file."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


@dataclass(frozen=True)
class Inspection:
    """What was recognised; `options` are those of `app.models.catalog`.

    `loader` is given where it is not that of a checkpoint, `licence` where it limits use. `renamed` is under which
    names the tensors are stored where they bear others; `stands_for` is the row of the catalog that a face stack or an
    image encoder takes, because other rows name it as their part; `files` are the only ones of a folder that belong to
    it; `written` are small files that stand beside the weights and did not come with them.
    """

    kind: Kind
    family: Family
    tasks: tuple[str, ...] = ()
    recommended: Recommended | None = None
    options: dict[str, str] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    loader: str | None = None
    licence: Licence | None = None
    renamed: Mapping[str, str] | None = None
    stands_for: str | None = None
    files: tuple[str, ...] | None = None
    written: dict[str, str] = field(default_factory=dict)


def read_header(path: Path) -> Header:
    """The header of a `.safetensors` file; `InvalidRequest` where it is malformed or the file is cut short."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER, size - 8):
            raise _malformed(path)
        text = file.read(length)
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        raise _malformed(path) from None
    if not isinstance(data, dict) or not 1 <= len(data) <= MAX_TENSORS:
        raise _malformed(path)
    metadata = data.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise _malformed(path)
    shapes, end = {}, 0
    for name, entry in data.items():
        shapes[name], stop = _tensor(path, entry)
        end = max(end, stop)
    if end != size - 8 - length:
        raise InvalidRequest(f"{path.name!r} is cut short or has bytes too many: its header speaks of another size.")
    return Header(shapes, {str(key): value for key, value in metadata.items() if isinstance(value, str)})


def _tensor(path: Path, entry: Any) -> tuple[tuple[int, ...], int]:
    if not isinstance(entry, dict) or not _DTYPES.match(str(entry.get("dtype"))):
        raise _malformed(path)
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(number) is int and number >= 0 for number in numbers):
            raise _malformed(path)
    if len(shape) > 16 or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _malformed(path)
    return tuple(shape), offsets[1]


def _malformed(path: Path) -> InvalidRequest:
    return InvalidRequest(f"{path.name!r} is not a sound .safetensors file.")


def lora_options(header: Header) -> dict[str, str]:
    """What a LoRA's row says of it; `InvalidRequest` for a DoRA."""
    if any(name.endswith("dora_scale") for name in header.shapes):
        raise InvalidRequest("The file is a DoRA, whose magnitudes would be left out; plain LoRAs are served.")
    options = {"format": "kohya" if any(name.startswith("lora_") for name in header.shapes) else "diffusers"}
    trigger = header.metadata.get("modelspec.trigger_phrase")
    return options | ({"trigger": trigger[:200]} if trigger else {})
