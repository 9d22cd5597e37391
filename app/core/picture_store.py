"""The shared store behind the local pictures: a folder or an S3 bucket that several machines write to and read from.

Invariant: a picture that was answered lies in the shared store. It is put there, whole, before it takes its final name
under the home: a folder's file is written beside its place, synced and renamed; a bucket shows an object when all of it
has arrived. The price is that a store which does not answer stops every upload and every result; those are tried again.

What lies under the home is then a copy. Copies may take so many bytes; the ones that were used longest ago go first,
and only after the store has said that it holds them.
"""

import errno
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from app.errors import DependencyMissing, InvalidRequest, ServiceError, StorageFull, TransferFailed, UnknownImage
from app.on_disk import sync

logger = logging.getLogger(__name__)

EXTRA = "pip install 'edit-image-service[ray]'"
NAME = re.compile(r"([0-9a-z]{26})\.png")
PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"
IN_USE_SECONDS = 60.0
"""A copy that was asked for within this time stays: somebody may be about to open it."""
LOOKS_IN_A_LIMIT = 16
"""After so small a part of the limit has been added, the copies are counted again."""
BUCKET_TIMES = {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 3}}


class PictureStore:
    """The pictures that several homes share; `cache_bytes` bounds the copies under one home."""

    def __init__(self, url: str, *, cache_bytes: int) -> None:
        self._fs, self._root = _connect(url)
        self._is_folder = urlsplit(url).scheme == "file"
        self._limit = cache_bytes
        self._added = cache_bytes
        self._counting = threading.Lock()

    def check(self) -> None:
        """Write, read and remove a small object; `InvalidRequest` names the setting when that fails."""
        probe = f"{self._root}/stores/probe-{secrets.token_hex(8)}"
        try:
            self._make_notes_folder()
            self._fs.pipe_file(probe, b"probe")
            found = self._fs.cat_file(probe)
            self._fs.rm_file(probe)
        except Exception as error:
            raise InvalidRequest(f"EIS_PICTURES_URL: the store cannot be used: {str(error)[:300]}.") from error
        if found != b"probe":
            raise InvalidRequest("EIS_PICTURES_URL: the store does not give back what is written to it.")

    def keep(self, reference: str, path: Path) -> None:
        """Put the file into the store; then every machine can read it. `TransferFailed`, `StorageFull`."""
        with self._asking():
            if self._is_folder:
                self._keep_in_folder(path, Path(self._place(reference)))
            else:
                self._fs.put_file(str(path), self._place(reference))

    def bring(self, reference: str, path: Path) -> Path:
        """The copy at `path`, fetched if it is not there, and marked as used now. `UnknownImage`, `TransferFailed`."""
        status = _status(path)
        if status is None:
            self._fetch(reference, path)
            status = path.stat()
        # The time of writing is the picture's own; only the time of its last use is told anew.
        with suppress(FileNotFoundError):
            os.utime(path, ns=(time.time_ns(), status.st_mtime_ns))
        return path

    def holds(self, reference: str) -> bool:
        """Whether the store has this picture."""
        with self._asking():
            return bool(self._fs.exists(self._place(reference)))

    def drop(self, reference: str) -> None:
        """Remove it from the store; one that is not there is no trouble."""
        with self._asking(), suppress(FileNotFoundError):
            self._fs.rm_file(self._place(reference))

    def note_copy(self, folder: Path, size: int) -> None:
        """A copy of so many bytes was added under this folder; once enough were, the oldest go."""
        with self._counting:
            self._added += size
            if self._added < self._limit // LOOKS_IN_A_LIMIT:
                return
            self._added = 0
        self.trim(folder)

    def trim(self, folder: Path) -> int:
        """Remove the copies that were used longest ago until the rest is within the limit; answers how many."""
        found = []
        for path in (*folder.glob("*/*.png"), *folder.glob("*/*.webp")):
            if (status := _status(path)) is not None:
                found.append((status.st_atime, status.st_size, path))
        total, removed = sum(size for _, size, _ in found), 0
        for used, size, path in sorted(found):
            if total <= self._limit or used > time.time() - IN_USE_SECONDS:
                break
            name = NAME.fullmatch(path.name)
            if name is not None and not self.holds(name[1]):
                continue
            path.unlink(missing_ok=True)
            total, removed = total - size, removed + 1
        return removed

    # Which pictures of the store belong to nobody is for one job store to say, and only if no other one uses it.

    def claim(self, store: str) -> None:
        """Note, before the first picture, that this job store keeps rows of pictures here."""
        with self._asking():
            note = self._note(store)
            if not self._fs.exists(note):
                self._make_notes_folder()
                self._fs.pipe_file(note, b"")

    def claimed_since(self, store: str) -> float | None:
        """Since when (Unix seconds) every picture here is this job store's; None where another one shares the store."""
        with self._asking():
            notes = [path for path in self._fs.ls(f"{self._root}/stores", detail=False) if path.endswith(".store")]
            if [path.rsplit("/", 1)[-1] for path in notes] != [f"{store}.store"]:
                return None
            return self._fs.modified(self._note(store)).timestamp()

    def pictures(self) -> Iterator[dict[str, float]]:
        """The store's pictures with the time of their writing (Unix seconds), a part at a time."""
        for part in self._listed(f"{self._root}/images"):
            found = {}
            for entry in self._listed(part["name"]):
                name = NAME.fullmatch(entry["name"].rsplit("/", 1)[-1])
                if name is not None:
                    found[name[1]] = _written(entry)
            yield found

    def _make_notes_folder(self) -> None:
        # In a bucket there are no folders, and asking for one could make the bucket.
        if self._is_folder:
            self._fs.makedirs(f"{self._root}/stores", exist_ok=True)

    def _listed(self, folder: str) -> list[dict[str, Any]]:
        with self._asking():
            try:
                return self._fs.ls(folder, detail=True)
            except FileNotFoundError:
                return []

    def _place(self, reference: str) -> str:
        return f"{self._root}/images/{reference[:2]}/{reference}.png"

    def _note(self, store: str) -> str:
        return f"{self._root}/stores/{store}.store"

    def _keep_in_folder(self, path: Path, final: Path) -> None:
        final.parent.mkdir(parents=True, exist_ok=True)
        part = final.with_name(f"{final.name}.{secrets.token_hex(4)}.part")
        try:
            self._fs.put_file(str(path), str(part))
            sync(part)
            part.replace(final)
            sync(final.parent)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _fetch(self, reference: str, path: Path) -> None:
        path.parent.mkdir(exist_ok=True, mode=0o700)
        part = path.with_name(f"{path.name}.{secrets.token_hex(4)}.part")
        place = self._place(reference)
        try:
            with self._asking():
                try:
                    self._fs.get_file(place, str(part))
                    written = self._fs.modified(place).timestamp()
                except FileNotFoundError:
                    raise UnknownImage("There is no picture with this id.") from None
            if not _is_whole(part):
                raise TransferFailed("The picture store gave only a part of a picture; try again.")
            os.utime(part, (time.time(), written))
            sync(part)
            size = part.stat().st_size
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        self.note_copy(path.parent.parent, size)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """What goes wrong in the store's library, whose errors have no common base, as one of ours."""
        try:
            yield
        except ServiceError:
            raise
        except Exception as error:
            logger.warning("the picture store failed: %s: %s", type(error).__name__, error)
            if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise StorageFull("The picture store is full.") from error
            raise TransferFailed("The picture store does not answer as it should; try again.") from error


def open_picture_store(url: str | None, *, cache_bytes: int) -> PictureStore | None:
    """The store that the setting names; None where pictures stay under the home."""
    return None if url is None else PictureStore(url, cache_bytes=cache_bytes)


def _connect(url: str) -> tuple[Any, str]:
    """The file system behind the URL, and the path in it; `InvalidRequest` shows how a URL is written."""
    parts = urlsplit(url)
    root = f"{parts.netloc}{parts.path}".rstrip("/")
    is_folder = parts.scheme == "file" and not parts.netloc and parts.path.strip("/")
    is_bucket = parts.scheme == "s3" and parts.netloc and "@" not in parts.netloc
    if not (is_folder or is_bucket) or parts.query or parts.fragment:
        raise InvalidRequest("EIS_PICTURES_URL: write file:///a/shared/folder or s3://bucket/prefix.")
    try:
        # Not at the top: a service without a shared store does without the library.
        import fsspec

        # A list that was kept would hide what other machines have written since.
        kept: dict[str, Any] = {"use_listings_cache": False, "config_kwargs": BUCKET_TIMES} if is_bucket else {}
        return fsspec.filesystem(parts.scheme, skip_instance_cache=True, **kept), root
    except ImportError as error:
        raise DependencyMissing(f"EIS_PICTURES_URL: {parts.scheme}:// needs more packages: {EXTRA}") from error


def _status(path: Path) -> os.stat_result | None:
    with suppress(FileNotFoundError):
        return path.stat()
    return None


def _written(entry: dict[str, Any]) -> float:
    """When a listed picture was written: a folder tells seconds, a bucket a date."""
    return entry["mtime"] if "mtime" in entry else entry["LastModified"].timestamp()


def _is_whole(path: Path) -> bool:
    """Whether a PNG file has its end."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(PNG_END)))
        return file.read() == PNG_END
