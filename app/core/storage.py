"""Pictures in and out by reference: the one place that knows where they lie.

Invariant: a file at its final path is whole. It is written as `.part`, synced, renamed, and the folder is synced, so
that a kill at any moment leaves either the whole picture or a `.part` that `sweep` removes; readers never see less.
The price is two syncs for each picture. Several processes may use one home at once: ids are random, files are never
changed after the rename. Which of them belong to nobody is `app.core.sweeping`'s to say; a process whose pictures have
no row in the home's store says so with `working_unrecorded`. With a shared store (`app.core.picture_store`) a file has
its final name only after the store has it, and one that is not here is fetched.
"""

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import string
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from PIL import Image

from app.core import crash_points
from app.core.engine_options import EngineOptions
from app.core.picture_store import PictureStore, open_picture_store
from app.errors import InvalidRequest, StorageFull, Unavailable, UnknownImage
from app.imaging.decode import decode_to_png
from app.imaging.metadata import MEDIA_TYPES, Origin, encode, read_origin
from app.imaging.on_white import flat
from app.on_disk import sync

_ALPHABET = string.digits + string.ascii_lowercase
_REFERENCE = re.compile(r"[0-9a-z]{26}")
SEVERAL = "several"
THUMBNAIL_SIZES = (64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class StoredImage:
    """A picture that lies in the storage. `created` is Unix seconds; `media_type` is what was handed in."""

    id: str
    width: int
    height: int
    bytes: int
    sha256: str
    media_type: str
    created: float


class Storage:
    """The pictures under one home folder.

    `max_pixels` and `decode_seconds` bound what is taken from strangers; with less than `min_free_bytes` on the disk
    nothing is stored. `checkpoint(name)` is called after `temp_write`, `fsync` and `rename` of a result, so that a
    proof can end the process there. `shared` is the store that other machines read and write too.
    """

    def __init__(
        self,
        home: Path,
        *,
        max_pixels: int = 32_000_000,
        decode_seconds: float = 15.0,
        min_free_bytes: int = 0,
        checkpoint: Callable[[str], None] | None = None,
        shared: PictureStore | None = None,
    ) -> None:
        self.shared = shared
        self._folder = Path(home) / "images"
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._max_pixels = max_pixels
        self._decode_seconds = decode_seconds
        self._min_free_bytes = min_free_bytes
        self._checkpoint = checkpoint or (lambda name: None)
        # Each child may take as much memory as the largest picture needs, so only a few decode at once.
        self._decoding = threading.BoundedSemaphore(max(2, os.cpu_count() or 2))

    def put(self, data: bytes, *, kind: Literal["image", "mask"] = "image") -> StoredImage:
        """Store a stranger's picture: decoded in a child, turned upright, stripped, as PNG.

        Pictures become RGB, or RGBA where something is transparent, masks grey (see `decode_child.to_mask`). An
        infotext or a recipe inside stays readable. `UnreadableImage`, `TooLarge`, `StorageFull`, `Unavailable`.
        """
        if not data:
            raise InvalidRequest("The picture is empty: it has no bytes.")
        self.check_room()
        reference = new_reference()
        with self._new_file(reference) as file:
            with self._decoding_slot():
                decoded = decode_to_png(
                    data, file, kind=kind, max_pixels=self._max_pixels, seconds=self._decode_seconds
                )
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.tell()
        return StoredImage(reference, decoded.width, decoded.height, size, digest, decoded.media_type, time.time())

    def save_result(self, image: Image.Image, *, recipe: dict[str, Any], infotext: str) -> StoredImage:
        """Store a picture that a run made, with its recipe and infotext inside. `StorageFull`."""
        data = encode(image, "image/png", Origin(infotext, recipe))
        reference = new_reference()
        with self._new_file(reference, self._checkpoint) as file:
            file.write(data)
        digest = hashlib.sha256(data).hexdigest()
        return StoredImage(reference, image.width, image.height, len(data), digest, "image/png", time.time())

    def path(self, reference: str) -> Path:
        """The picture's PNG file; `UnknownImage` if there is none, `TransferFailed` if the shared store is silent."""
        path = self._place(reference)
        if self.shared is not None:
            return self.shared.bring(reference, path)
        if not path.is_file():
            raise UnknownImage("There is no picture with this id.")
        return path

    def open(self, reference: str) -> Image.Image:
        """The picture as PIL RGB; what is transparent shows white."""
        with self._reading(reference) as image:
            return flat(image)

    def alpha(self, reference: str) -> Image.Image | None:
        """How opaque each pixel of the picture is, as PIL L; None where all of it is."""
        with self._reading(reference) as image:
            return image.getchannel("A") if image.mode == "RGBA" else None

    def open_mask(self, reference: str) -> Image.Image:
        """The picture as PIL L: white is repainted."""
        with self._reading(reference) as image:
            return flat(image).convert("L") if image.mode == "RGBA" else image.convert("L")

    def size(self, reference: str) -> tuple[int, int]:
        """(width, height) of a stored picture, from its header alone."""
        with self._reading(reference) as image:
            return image.size

    def metadata(self, reference: str) -> dict[str, Any]:
        """What the file says: size, bytes, time, `infotext` and `recipe` (None where it has none)."""
        status = self.path(reference).stat()
        with self._reading(reference) as image:
            origin = read_origin(image)
            width, height = image.size
        return {
            "width": width,
            "height": height,
            "bytes": status.st_size,
            "media_type": "image/png",
            "created": status.st_mtime,
            "infotext": origin.infotext,
            "recipe": origin.recipe,
        }

    def encode(self, reference: str, media_type: str = "image/png") -> bytes:
        """The picture as a file of this media type with its origin inside; PNG is the stored file itself."""
        if media_type not in MEDIA_TYPES:
            raise InvalidRequest(f"Pictures are answered as {', '.join(MEDIA_TYPES)}.")
        path = self.path(reference)
        if media_type == "image/png":
            return path.read_bytes()
        with self._reading(reference) as image:
            kept = image.mode == "RGBA" and media_type == "image/webp"
            return encode(image if kept else flat(image), media_type, read_origin(image))

    def thumbnail(self, reference: str, size: int = 256) -> bytes:
        """A small WebP that fits into size x size (the next of THUMBNAIL_SIZES), made once and kept."""
        size = next((known for known in THUMBNAIL_SIZES if known >= size), THUMBNAIL_SIZES[-1])
        cached = self._place(reference).with_name(f"{reference}-{size}.webp")
        if self.shared is None:
            self.path(reference)
        with suppress(FileNotFoundError):
            return cached.read_bytes()
        with self._reading(reference) as image:
            small = flat(image)
        small.thumbnail((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
        data = encode(small, "image/webp")
        part = cached.with_name(f"{cached.name}.{secrets.token_hex(4)}.part")
        with _room_errors():
            part.write_bytes(data)
            part.replace(cached)
        return data

    def delete(self, reference: str) -> None:
        """Remove a picture and its thumbnails; `UnknownImage` if there is none, `TransferFailed` as `path`."""
        path = self._place(reference)
        is_shared = self.shared is not None and self.shared.holds(reference)
        if not is_shared and not path.is_file():
            raise UnknownImage("There is no picture with this id.")
        if is_shared:
            self.shared.drop(reference)
        self.remove_copy(reference)

    def remove_copy(self, reference: str) -> None:
        """Remove what lies here of a picture, and nothing from the shared store."""
        path = self._place(reference)
        path.unlink(missing_ok=True)
        self.end_trust(reference)
        for thumbnail in path.parent.glob(f"{reference}-*.webp"):
            thumbnail.unlink(missing_ok=True)

    def clock(self) -> float:
        """The time by the clock that dates the files (Unix seconds): a shared folder's may be another machine's."""
        os.utime(self._folder)
        return self._folder.stat().st_mtime

    def share(self, reference: str) -> None:
        """Put a picture that lies only here into the shared store, where there is one."""
        if self.shared is not None and not self.shared.holds(reference):
            self.shared.keep(reference, self._place(reference))

    def sweep(self, older_than_seconds: float) -> int:
        """Remove unfinished files that nobody has touched for this long; answers how many."""
        limit = self.clock() - older_than_seconds
        removed = 0
        for part in self._folder.glob("*/*.part"):
            with suppress(FileNotFoundError):
                if part.stat().st_mtime <= limit:
                    part.unlink()
                    removed += 1
        return removed

    def claim(self, store: str) -> None:
        """Note that this job store keeps the rows of these pictures; a second store makes the home nobody's."""
        note = self._folder.with_suffix(".store")
        held = note.read_text() if note.exists() else None
        if held not in {store, SEVERAL}:
            part = note.with_suffix(".claim")
            part.write_text(store if held is None else SEVERAL)
            part.replace(note)

    def claimed_since(self, store: str) -> float | None:
        """Since when (Unix seconds) every picture of this home is this store's; None where another store shares it."""
        note = self._folder.with_suffix(".store")
        return note.stat().st_mtime if note.read_text() == store else None

    def finished(self, after: float, before: float) -> list[str]:
        """The pictures that were written between these times (Unix seconds)."""
        found = []
        for path in self._folder.glob("*/*.png"):
            with suppress(FileNotFoundError):
                if _REFERENCE.fullmatch(path.stem) and after <= path.stat().st_mtime <= before:
                    found.append(path.stem)
        return found

    def leave_in_trust(self, stored: StoredImage, kind: str) -> None:
        """Leave a picture without a row to whoever serves this home next, who gives it one."""
        self._trust(stored.id).write_text(json.dumps({"kind": kind, **asdict(stored)}))

    def in_trust(self) -> Iterator[tuple[StoredImage, str]]:
        """The pictures that were left without a row, and their kinds."""
        for note in self._folder.glob("*/*.trust"):
            facts = json.loads(note.read_text())
            kind = facts.pop("kind")
            yield StoredImage(**facts), kind

    def end_trust(self, reference: str) -> None:
        """The picture has its row, or is gone."""
        self._trust(reference).unlink(missing_ok=True)

    @contextmanager
    def working_unrecorded(self) -> Iterator[None]:
        """While this is open no picture of this home is taken for one that belongs to nobody; a death closes it."""
        with self._lock_file() as handle:
            fcntl.flock(handle, fcntl.LOCK_SH)
            yield

    @contextmanager
    def undisturbed(self) -> Iterator[bool]:
        """Whether no process works unrecorded; if so, none begins to before this closes."""
        with self._lock_file() as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def check_room(self) -> None:
        """`StorageFull` when the disk has less room than is reserved."""
        free = shutil.disk_usage(self._folder).free
        if free < self._min_free_bytes:
            raise StorageFull(
                f"The disk has {free / 2**20:,.0f} MiB free; {self._min_free_bytes / 2**20:,.0f} MiB are reserved."
            )

    @contextmanager
    def _decoding_slot(self) -> Iterator[None]:
        """One of the few decodings that run at once; `Unavailable` when none comes free in time."""
        if not self._decoding.acquire(timeout=2 * self._decode_seconds):
            raise Unavailable("Too many pictures are being read at once; try again.")
        try:
            yield
        finally:
            self._decoding.release()

    def _place(self, reference: str) -> Path:
        if not isinstance(reference, str) or not _REFERENCE.fullmatch(reference):
            raise UnknownImage("There is no picture with this id.")
        return self._folder / reference[:2] / f"{reference}.png"

    def _trust(self, reference: str) -> Path:
        return self._place(reference).with_suffix(".trust")

    @contextmanager
    def _lock_file(self) -> Iterator[int]:
        handle = os.open(self._folder.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            yield handle
        finally:
            os.close(handle)

    @contextmanager
    def _reading(self, reference: str) -> Iterator[Image.Image]:
        """The stored file, opened; only files that this class wrote come here, so they are decoded in place."""
        data = self.path(reference).read_bytes()
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            yield image

    @contextmanager
    def _new_file(self, reference: str, checkpoint: Callable[[str], None] = lambda name: None) -> Iterator[IO[bytes]]:
        """An open `.part` file that takes its final name, synced, when the block ends without an error."""
        final = self._place(reference)
        part = final.with_suffix(".part")
        with _room_errors():
            if not final.parent.is_dir():
                final.parent.mkdir(exist_ok=True, mode=0o700)
                sync(self._folder)
            try:
                with part.open("xb+") as file:
                    yield file
                    file.flush()
                    checkpoint("temp_write")
                    os.fsync(file.fileno())
                checkpoint("fsync")
                if self.shared is not None:
                    self._keep_and_rename(self.shared, reference, part, final)
                else:
                    part.rename(final)
                checkpoint("rename")
                sync(final.parent)
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    def _keep_and_rename(self, shared: PictureStore, reference: str, part: Path, final: Path) -> None:
        """The shared store has it first; then the copy here may even have been swept, if the store took very long."""
        size = part.stat().st_size
        shared.keep(reference, part)
        shared.note_copy(self._folder, size)
        with suppress(FileNotFoundError):
            part.rename(final)


def open_storage(options: EngineOptions) -> Storage:
    """The pictures as the service and every worker open them."""
    return Storage(
        options.home,
        max_pixels=options.max_image_pixels,
        decode_seconds=options.image_decode_seconds,
        min_free_bytes=options.min_free_bytes,
        checkpoint=crash_points.reach,
        shared=open_picture_store(options.pictures_url, cache_bytes=options.picture_cache_bytes),
    )


def new_reference() -> str:
    """An opaque random id of 26 characters (134 bits)."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(26))


@contextmanager
def _room_errors() -> Iterator[None]:
    """A full disk is said as `StorageFull`."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StorageFull("The disk is full.") from error
        raise
