"""Archives of strangers: what is read, and what is refused before it can do harm."""

import gzip
import io
import struct
import tarfile
import zipfile

import pytest

from app.errors import InvalidRequest
from app.imaging.archives import ArchiveLimits, read_archive

LIMITS = ArchiveLimits(entries=100, entry_bytes=1 << 20, total_bytes=4 << 20)
FILES = {"a.png": b"not looked at here", "set/b.jpg": bytes(range(256)) * 40, "set/b.txt": b"a cat"}


def zipped(files, *, compression=zipfile.ZIP_DEFLATED, **attributes):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.writestr(info, data)
    return buffer.getvalue()


def tarred(files, mode="w", **attributes):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            for key, value in attributes.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


KINDS = {
    "zip": zipped,
    "stored zip": lambda files: zipped(files, compression=zipfile.ZIP_STORED),
    "tar": tarred,
    "tar.gz": lambda files: tarred(files, "w:gz"),
    "tar.bz2": lambda files: tarred(files, "w:bz2"),
    "tar.xz": lambda files: tarred(files, "w:xz"),
}


def read(data, limits=LIMITS):
    return {entry.name: entry.data for entry in read_archive(data, limits)}


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_read_whole(kind):
    assert read(KINDS[kind](FILES)) == FILES


def test_a_leading_dot_folder_is_no_part_of_a_name():
    assert set(read(tarred({"./set/a.png": b"x"}))) == {"set/a.png"}


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize(
    "name", ["../a.png", "set/../../a.png", "/etc/a.png", "C:/a.png", "C:a.png", "..\\a.png", "set//a.png", "..", "a/."]
)
def test_names_that_lead_outside_are_refused(pack, name):
    with pytest.raises(InvalidRequest, match="leads outside"):
        read(pack({name: b"x"}))


@pytest.mark.parametrize("type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_of_a_tar_are_refused(type):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = type, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(InvalidRequest, match="link or a device"):
        read(buffer.getvalue())


def test_links_of_a_zip_are_refused():
    with pytest.raises(InvalidRequest, match="link or a device"):
        read(zipped({"a.png": b"/etc/passwd"}, external_attr=0o120777 << 16))


def test_two_entries_of_one_name_are_refused():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for _ in range(2):
            archive.addfile(tarfile.TarInfo("a.png"), io.BytesIO())
    with pytest.raises(InvalidRequest, match="one name"):
        read(buffer.getvalue())


@pytest.mark.parametrize("kind", KINDS)
def test_more_entries_than_allowed_are_refused(kind):
    with pytest.raises(InvalidRequest, match="more than 100 entries"):
        read(KINDS[kind]({f"{number}.txt": b"x" for number in range(101)}))


def listing_of_a_million() -> bytes:
    """A ZIP's list of 1,000,000 entries and nothing else."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    return entry * 1_000_000


def zip_of_a_million() -> bytes:
    """The list with its ends: 47 MB."""
    count, listed = 1_000_000, listing_of_a_million()
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(listed), 0)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, len(listed), 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    return listed + end64 + locator + end


def tar_of_a_million() -> bytes:
    """Headers of empty files: 512 MB."""
    return b"".join(tarfile.TarInfo(str(number)).tobuf() for number in range(20_000)) * 50


def test_a_zip_of_a_million_entries_is_refused_before_its_list_is_parsed(monkeypatch):
    parsed = []
    original = zipfile.ZipInfo.__init__
    monkeypatch.setattr(
        zipfile.ZipInfo, "__init__", lambda self, *a, **k: (parsed.append(1), original(self, *a, **k))[1]
    )
    with pytest.raises(InvalidRequest, match="list of entries"):
        read(zip_of_a_million())
    listed = listing_of_a_million()
    # The first record too must not lie: the reader goes by the list's bytes, and not by the count that is claimed.
    few = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, len(listed), 0, 0)
    with pytest.raises(InvalidRequest, match="list of entries"):
        read(b"PK" + listed[2:] + few)
    assert not parsed


def test_a_tar_of_a_million_entries_is_left_early(monkeypatch):
    """Not even two hundred headers of it are looked at, packed or not."""
    looked = []
    original = tarfile.TarFile.next
    monkeypatch.setattr(tarfile.TarFile, "next", lambda self: (looked.append(1), original(self))[1])
    whole = tar_of_a_million()
    for data in (whole, gzip.compress(whole, 1)):
        with pytest.raises(InvalidRequest):
            read(data)
    assert 0 < len(looked) <= 2 * (LIMITS.entries + 2)


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.bz2", "tar.xz"])
def test_what_unfolds_a_hundredfold_is_refused(kind):
    packed = KINDS[kind]({"a.png": bytes(8 << 20)})
    assert len(packed) < (8 << 20) / 100
    with pytest.raises(InvalidRequest, match="unfolds"):
        read(packed, ArchiveLimits(100, 1 << 30, 1 << 40))


def test_a_zip_that_lies_about_sizes_is_refused():
    data = bytearray(zipped({"a.png": bytes(1 << 20)}))
    for mark, offset in ((b"PK\1\2", 24), (b"PK\3\4", 22)):
        place = data.find(mark) + offset
        data[place : place + 4] = struct.pack("<L", 10)
    with pytest.raises(InvalidRequest):
        read(bytes(data))


@pytest.mark.parametrize(
    "data", [b"", b"PK", b"hello", b"PK\3\4 cut off", zipped(FILES)[:-30], tarred(FILES, "w:gz")[:200]]
)
def test_what_is_no_archive_is_refused(data):
    with pytest.raises(InvalidRequest):
        assert read(data), "an empty answer must not count as read"


def test_an_entry_beyond_its_limit_is_refused():
    with pytest.raises(InvalidRequest, match="An entry"):
        read(zipped({"a.png": bytes(range(256)) * 5000}, compression=zipfile.ZIP_STORED))


def test_an_encrypted_zip_is_refused():
    data = bytearray(zipped({"a.png": b"x" * 40}))
    data[data.find(b"PK\1\2") + 8] |= 1
    with pytest.raises(InvalidRequest, match="encrypted"):
        read(bytes(data))
