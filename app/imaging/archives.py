"""What a stranger's zip or tar holds, read into memory entry by entry: nothing is ever written where a name says.

What must never happen: an archive that names a place outside itself, or that unfolds into more than the machine holds.
It cannot, because names are only labels here, links and devices are refused, and every read is counted: the list of a
zip before it is parsed, the stream behind a tar's compression as it is unfolded, and each entry as it comes. The price
is that an archive of things which compress well, as no picture does, is refused.
"""

import bz2
import gzip
import io
import lzma
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any

from app.errors import InvalidRequest

EXPANSION_LIMIT = 20
"""Unfolded bytes for each byte of the archive; pictures and captions come to two at most."""
SLACK_BYTES = 2 * 2**20
"""What even a tiny archive may unfold to: the blocks that tar pads with compress to nothing."""
LIST_BYTES_PER_ENTRY = 1024
LONGEST_NAME = 512
_ZIP_TAIL = 1 << 17
_DRIVE = re.compile(r"[A-Za-z]:")
_UNFOLD: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}


@dataclass(frozen=True)
class ArchiveLimits:
    """How many entries an archive may have, and how many bytes they may unfold to, one and all."""

    entries: int
    entry_bytes: int
    total_bytes: int


@dataclass(frozen=True)
class Entry:
    """A file of an archive: its name, with `/` between folders, and its bytes."""

    name: str
    data: bytes


def read_archive(data: bytes, limits: ArchiveLimits) -> Iterator[Entry]:
    """The files of a zip or a tar (plain, gzip, bzip2, xz), in its order; folders are passed over.

    `InvalidRequest` where it is no archive, is broken, or holds a link, a device, an encrypted entry, a name twice or a
    name that leads outside, or where it is beyond the limits. What was yielded before that means nothing.
    """
    allowed = min(limits.total_bytes, len(data) * EXPANSION_LIMIT + SLACK_BYTES)
    seen: set[str] = set()
    total = 0
    with _readable():
        for name, size, read in _zip_entries(data, limits) if data[:2] == b"PK" else _tar_entries(data, allowed):
            if len(seen) >= limits.entries:
                raise InvalidRequest(f"The archive has more than {limits.entries} entries.", field="archive")
            checked = safe_name(name)
            if checked in seen:
                raise InvalidRequest("The archive has two entries of one name.", field="archive")
            seen.add(checked)
            if read is None:
                continue
            if size > limits.entry_bytes:
                raise InvalidRequest(
                    f"An entry of the archive is larger than {limits.entry_bytes} bytes.", field="archive"
                )
            if total + size > allowed:
                raise _unfolds_too_far(allowed)
            content = read()
            total += len(content)
            if len(content) != size:
                raise InvalidRequest("The archive is broken: an entry has another size than it says.", field="archive")
            yield Entry(checked, content)


def safe_name(name: str) -> str:
    """The name of an entry; `InvalidRequest` where it is absolute, climbs out, or is none."""
    plain = name.rstrip("/")
    parts = plain.split("/")
    climbs = any(part in {"", "..", "."} for part in (parts[1:] if parts[0] == "." and len(parts) > 1 else parts))
    if climbs or _DRIVE.match(plain) or "\\" in plain or "\0" in plain or len(plain) > LONGEST_NAME:
        raise InvalidRequest("The archive has an entry whose name leads outside of it, or is none.", field="archive")
    return str(PurePosixPath(plain))


Found = tuple[str, int, Callable[[], bytes] | None]
"""An entry's name and stated size, and what reads it: None for a folder."""


def _zip_entries(data: bytes, limits: ArchiveLimits) -> Iterator[Found]:
    most = max(_ZIP_TAIL, limits.entries * LIST_BYTES_PER_ENTRY)
    with zipfile.ZipFile(_ShortReads(data, most)) as archive:
        for info in archive.infolist():
            mode = info.external_attr >> 16
            if mode and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or not stat.S_IFMT(mode)):
                raise InvalidRequest("The archive holds a link or a device.", field="archive")
            if info.flag_bits & 1:
                raise InvalidRequest("The archive is encrypted.", field="archive")
            # zipfile cuts a name at its first zero byte.
            name = info.orig_filename if "\0" in info.orig_filename else info.filename
            yield name, info.file_size, None if info.is_dir() else lambda info=info: _read_zip(archive, info)


def _read_zip(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    with archive.open(info) as file:
        return file.read(info.file_size + 1)


def _tar_entries(data: bytes, allowed: int) -> Iterator[Found]:
    unfold = next((opener for magic, opener in _UNFOLD.items() if data.startswith(magic)), None)
    plain: IO[bytes] = unfold(io.BytesIO(data), "rb") if unfold else io.BytesIO(data)
    counted: Any = _Counted(plain, allowed + SLACK_BYTES)
    with tarfile.open(fileobj=counted, mode="r|", bufsize=1 << 16) as archive:
        while (member := archive.next()) is not None:
            # What was read stays in a list that nobody needs here.
            archive.members.clear()
            if member.isdir():
                yield member.name, 0, None
                continue
            if not member.isreg() or member.issparse():
                raise InvalidRequest("The archive holds a link or a device.", field="archive")
            yield member.name, member.size, lambda member=member: _read_tar(archive, member)


def _read_tar(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read() if file is not None else b""


class _ShortReads(io.BytesIO):
    """A zip's bytes; its list of entries is read at once, and one too long is refused before it is parsed."""

    def __init__(self, data: bytes, most: int) -> None:
        super().__init__(data)
        self._most = most

    def read(self, size: int | None = -1, /) -> bytes:
        """At most as many bytes as a list of entries may have; asked for more, `InvalidRequest`."""
        wanted = len(self.getbuffer()) - self.tell() if size is None or size < 0 else size
        if wanted > self._most:
            raise InvalidRequest("The archive's list of entries is too long.", field="archive")
        return super().read(wanted)


class _Counted:
    """A stream that ends in `InvalidRequest` where it gives more bytes than allowed."""

    def __init__(self, stream: IO[bytes], allowed: int) -> None:
        self._stream = stream
        self._left = allowed
        self._allowed = allowed

    def read(self, size: int) -> bytes:
        """So many bytes, or those that are left."""
        data = self._stream.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise _unfolds_too_far(self._allowed)
        return data


@contextmanager
def _readable() -> Iterator[None]:
    broken = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError)
    try:
        yield
    except (*broken, NotImplementedError, RuntimeError) as error:
        raise InvalidRequest("The archive is no zip or tar, or is broken.", field="archive") from error


def _unfolds_too_far(allowed: int) -> InvalidRequest:
    return InvalidRequest(
        f"The archive unfolds to more than {allowed} bytes, which is more than pictures would.", field="archive"
    )
