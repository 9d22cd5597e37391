"""Safetensors files written front to back: the header first, then the tensors, never a whole file in memory.

A file is read and written in blocks, so that a checkpoint of any size is rewritten in the memory of a few of them. The
largest numbers come first, which keeps every tensor aligned to the width of its own.
"""

import json
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy

from app.errors import InvalidRequest
from app.models.download import Stop
from app.models.inspect_file import read_header

BLOCK = 16 * 2**20
WIDTHS = {
    "F64": 8,
    "I64": 8,
    "U64": 8,
    "F32": 4,
    "I32": 4,
    "U32": 4,
    "F16": 2,
    "BF16": 2,
    "I16": 2,
    "U16": 2,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes of one number by the name of its type."""


@dataclass(frozen=True)
class Entry:
    """One tensor: its name, the name of its type, its shape, and where in a file its bytes begin."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int = 0

    @property
    def bytes(self) -> int:
        """How many bytes it takes."""
        count = WIDTHS[self.dtype]
        for side in self.shape:
            count *= side
        return count


def entries_of(path: Path) -> list[Entry]:
    """The tensors of a file; `InvalidRequest` where it is malformed or cut short."""
    read_header(path)
    with path.open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        data = json.loads(file.read(length))
    data.pop("__metadata__", None)
    found = []
    for name, entry in data.items():
        start, stop = entry["data_offsets"]
        tensor = Entry(name, entry["dtype"], tuple(entry["shape"]), 8 + length + start)
        if tensor.dtype not in WIDTHS or tensor.bytes != stop - start:
            raise InvalidRequest(f"{path.name!r} has a tensor whose size is not that of its shape.")
        found.append(tensor)
    return found


def ordered(entries: Iterable[Entry]) -> list[Entry]:
    """The order in which tensors are written: wide numbers first, else as they stand."""
    return sorted(entries, key=lambda entry: (-WIDTHS[entry.dtype], entry.start))


def header_of(entries: Iterable[Entry]) -> bytes:
    """What a file with these tensors, in this order, begins with."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for entry in entries:
        header[entry.name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (end, end + entry.bytes)}
        end += entry.bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def rewrite(
    source: Path,
    target: Path,
    *,
    to_16_bits: bool = False,
    named: Callable[[str], str] = str,
    stop: Stop | None = None,
) -> None:
    """Write `source` anew as `target`: tensors under the names that `named` gives, 32-bit floats in 16 bits if wished.

    `InvalidRequest` where 16 bits cannot hold a value; what was written is then deleted.
    """
    pairs = []
    for entry in ordered(entries_of(source)):
        dtype = "F16" if to_16_bits and entry.dtype == "F32" else entry.dtype
        pairs.append((entry, Entry(named(entry.name), dtype, entry.shape)))
    pairs.sort(key=lambda pair: -WIDTHS[pair[1].dtype])
    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            writer.write(header_of(new for _, new in pairs))
            for old, new in pairs:
                reader.seek(old.start)
                _copy(reader, writer, old, narrow=new.dtype != old.dtype, stop=stop)
            writer.flush()
            os.fsync(writer.fileno())
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def _copy(reader: IO[bytes], writer: IO[bytes], entry: Entry, *, narrow: bool, stop: Stop | None) -> None:
    left = entry.bytes
    while left:
        if stop is not None:
            stop.check()
        block = reader.read(min(BLOCK, left))
        if not block:
            raise InvalidRequest(f"The file ends in the midst of {entry.name[:100]!r}.")
        left -= len(block)
        writer.write(narrowed(block, entry.name) if narrow else block)


def narrowed(block: bytes | numpy.ndarray, name: str) -> bytes:
    """32-bit floats as 16-bit ones; `InvalidRequest` where one becomes infinite that was not."""
    wide = numpy.frombuffer(block, "<f4")
    with numpy.errstate(over="ignore"):
        half = wide.astype("<f2")
    if not numpy.array_equal(numpy.isinf(half), numpy.isinf(wide)):
        raise InvalidRequest(f"16 bits cannot hold the values of {name[:100]!r}.")
    return half.tobytes()
