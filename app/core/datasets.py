"""Pictures and captions for a training, out of an archive or a folder of the operator's, taken in whole or not at all.

Each picture is checked and stored as an upload is; what is refused half-way leaves no picture behind. A caption is the
text file beside a picture, of the same name but for its ending.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from PIL import Image

from app.core.storage import StoredImage
from app.errors import InvalidRequest, NotFound, NotPermitted
from app.imaging.archives import ArchiveLimits, Entry, read_archive, safe_name
from app.imaging.near_duplicates import near_duplicates, picture_hash

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".avif"})
CAPTION = ".txt"
LONGEST_CAPTION = 10_000
ENTRIES_PER_PICTURE = 3
"""A picture, its caption, and what other programs leave beside them."""
LARGEST_ENTRY = 64 * 2**20


class Shelf(Protocol):
    """Where pictures are put, looked at and taken away again."""

    def upload(self, data: bytes, *, owner: str) -> StoredImage:
        """Check and store a picture."""

    def delete_image(self, image_id: str, owner: str) -> None:
        """Take it away again."""


@dataclass(frozen=True)
class DatasetPicture:
    """A picture of a dataset as it is stored, the name that it came under and its caption ("" where it has none)."""

    image: StoredImage
    name: str
    caption: str


@dataclass(frozen=True)
class Dataset:
    """What was taken in. `duplicates` are groups of positions that look alike; `ignored` are names of other files."""

    pictures: tuple[DatasetPicture, ...]
    duplicates: tuple[tuple[int, ...], ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class DatasetLimits:
    """How many pictures a dataset may have, how many bytes in all, and the operator's folder (None: there is none)."""

    pictures: int = 1000
    bytes: int = 2**30
    folder: Path | None = None


def read_dataset(
    entries: Iterable[Entry],
    shelf: Shelf,
    look: Callable[[str], Image.Image],
    *,
    owner: str,
    limits: DatasetLimits,
) -> Dataset:
    """Take these files in; `look` opens a stored picture. `InvalidRequest`: nothing of them is kept."""
    files = sorted(entries, key=lambda entry: entry.name)
    captions = {_stem(entry.name): _text(entry) for entry in files if _ending(entry.name) == CAPTION}
    pictures = [entry for entry in files if _ending(entry.name) in PICTURES and not _is_hidden(entry.name)]
    if not pictures:
        raise InvalidRequest("There is no picture in it: PNG, JPEG, WebP and AVIF are read.", field="archive")
    if len(pictures) > limits.pictures:
        raise InvalidRequest(
            f"A dataset may have {limits.pictures} pictures; these are {len(pictures)}.", field="archive"
        )
    named = {_stem(entry.name) for entry in pictures}
    ignored = [
        entry.name
        for entry in files
        if entry not in pictures and not (_ending(entry.name) == CAPTION and _stem(entry.name) in named)
    ]
    kept: list[DatasetPicture] = []
    try:
        for entry in pictures:
            kept.append(_taken_in(entry, captions.get(_stem(entry.name), ""), shelf, owner))
        hashes = [picture_hash(look(picture.image.id)) for picture in kept]
    except BaseException:
        for picture in kept:
            shelf.delete_image(picture.image.id, owner)
        raise
    groups = tuple(tuple(group) for group in near_duplicates(hashes))
    return Dataset(tuple(kept), groups, tuple(name for name in ignored if not _is_hidden(name)))


def entries_of_archive(data: bytes, limits: DatasetLimits) -> list[Entry]:
    """Every file of an archive, all of it read and counted before anything is made of it."""
    entries = limits.pictures * ENTRIES_PER_PICTURE
    return list(read_archive(data, ArchiveLimits(entries, LARGEST_ENTRY, limits.bytes)))


def entries_of_folder(name: str, limits: DatasetLimits) -> list[Entry]:
    """Every file of a folder under the operator's; links are not followed, and nothing outside is named.

    `NotPermitted` where the operator named none, `NotFound` where there is none of this name.
    """
    if limits.folder is None:
        raise NotPermitted("Folders of the server are read where the operator names one (EIS_DATASET_FOLDER).")
    root = limits.folder.resolve()
    folder = root / safe_name(name)
    if folder.resolve() != folder or not folder.is_dir():
        raise NotFound("There is no such folder under EIS_DATASET_FOLDER.")
    return list(_files_under(folder, limits))


def _files_under(folder: Path, limits: DatasetLimits) -> Iterator[Entry]:
    total = count = 0
    for parent, _, names in os.walk(folder, followlinks=False):
        for name in sorted(names):
            path = Path(parent) / name
            status = path.lstat()
            if not stat.S_ISREG(status.st_mode) or _ending(name) not in PICTURES | {CAPTION}:
                continue
            total, count = total + status.st_size, count + 1
            if total > limits.bytes or count > limits.pictures * ENTRIES_PER_PICTURE:
                raise InvalidRequest(f"The folder holds more than {limits.pictures} pictures or {limits.bytes} bytes.")
            yield Entry(path.relative_to(folder).as_posix(), path.read_bytes())


def _taken_in(entry: Entry, caption: str, shelf: Shelf, owner: str) -> DatasetPicture:
    try:
        return DatasetPicture(shelf.upload(entry.data, owner=owner), PurePosixPath(entry.name).name[:200], caption)
    except InvalidRequest as error:
        name = PurePosixPath(entry.name).name[:80]
        raise InvalidRequest(f"{name!r}: {error.message}", field="archive", name=name) from None


def _text(entry: Entry) -> str:
    try:
        text = entry.data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise InvalidRequest(f"The caption {entry.name[:80]!r} is not UTF-8.", field="archive") from None
    if len(text) > LONGEST_CAPTION or "\0" in text:
        raise InvalidRequest(f"The caption {entry.name[:80]!r} is too long, or no text.", field="archive")
    return " ".join(text.split())


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _ending(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
