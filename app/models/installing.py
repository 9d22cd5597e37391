"""How a model's folder comes and goes: staged beside its place, brought in by one rename, taken out by one rename.

Readers in other processes see the whole model or none. What a killed process leaves is a staging folder, with which the
next pull goes on, or a folder in the bin, which the next change empties. One change of a model happens at a time.
"""

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from app.errors import Conflict, StorageFull, TransferFailed
from app.models import tensor_files
from app.models.checksums import BLOCK, sha256_of
from app.models.conversion import Converted, landing
from app.models.download import BY_NAME, GGUF, STORED, WEIGHTS, Hub, RemoteFile, Stop
from app.models.installed import FILES, RECORD, Installed, InstalledFile, dump
from app.models.spec import ModelSpec
from app.on_disk import sync

RESERVED_BYTES = 256 * 2**20
SECONDS_BETWEEN_KNOCKS = 0.2
BYTES_BETWEEN_CHECKS = 64 * 2**20
SINGLE_FILE = "weights.safetensors"
_HASHED = (WEIGHTS, GGUF, *BY_NAME)


class Workshop:
    """The hidden folders beside the models: staging, bin, locks, pins."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._staging = folder / ".staging"
        self._bin = folder / ".bin"
        self._locks = folder / ".locks"
        self._pins = folder / ".pins"
        self._incoming = folder / ".incoming"

    @contextmanager
    def incoming(self) -> Iterator["Incoming"]:
        """A place for a file that is being sent in; it goes with the block, a killed process's with the next one."""
        with self.changing(".incoming"):
            self._incoming.mkdir(parents=True, exist_ok=True)
            for left in self._incoming.iterdir():
                with _held(left) as is_nobodys:
                    if is_nobodys:
                        shutil.rmtree(left, ignore_errors=True)
            folder = self._incoming / secrets.token_hex(8)
            folder.mkdir()
            holding = ExitStack()
            holding.enter_context(_held(folder))
        with holding:
            try:
                yield Incoming(folder, self.check_room)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def changing(self, model: str, *, wait: bool = True, stop: Stop | None = None) -> Iterator[None]:
        """Hold the model's lock against every other process and thread; `Conflict` where waiting is not wanted."""
        self._locks.mkdir(parents=True, exist_ok=True)
        with (self._locks / model).open("a") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX if wait and stop is None else fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if stop is None:
                        raise Conflict(f"The model {model!r} is being pulled or changed.", model=model) from None
                    stop.wait(SECONDS_BETWEEN_KNOCKS)
            yield

    def staging(self, model: str, name: str) -> Path:
        """The staging folder of this name; others of the model, left by an older commit, are thrown away."""
        mine = self._staging / model / name
        if mine.parent.is_dir():
            for other in mine.parent.iterdir():
                if other != mine:
                    shutil.rmtree(other)
        (mine / FILES).mkdir(parents=True, exist_ok=True)
        return mine

    def install(self, staged: Path, installed: Installed) -> None:
        """Write the record into the staged folder and bring it to its place."""
        write_record(staged, installed)
        place = self.folder / installed.spec.id
        self.discard(place)
        staged.rename(place)
        sync(self.folder)
        shutil.rmtree(self._staging / installed.spec.id, ignore_errors=True)

    def discard(self, path: Path) -> None:
        """Take a folder out of sight with one rename, then give its bytes back."""
        if path.exists():
            self._bin.mkdir(parents=True, exist_ok=True)
            path.rename(self._bin / secrets.token_hex(8))
            sync(path.parent)
        for left in self._bin.iterdir() if self._bin.is_dir() else ():
            shutil.rmtree(left, ignore_errors=True)

    def discard_staging(self, model: str) -> bool:
        """Throw away what an unfinished pull left; whether there was any."""
        there = (self._staging / model).exists()
        self.discard(self._staging / model)
        return there

    def pin(self, model: str) -> tuple[str, dict[str, str]] | None:
        """The commit and the SHA-256 of its files that an earlier pull met."""
        try:
            data = json.loads((self._pins / f"{model}.json").read_text("utf-8"))
            return str(data["commit"]), dict(data["sha256"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def write_pin(self, model: str, commit: str, files: dict[str, InstalledFile]) -> None:
        """Remember what was pulled; it outlives the model's removal, so that a later pull brings the same bytes."""
        self._pins.mkdir(parents=True, exist_ok=True)
        hashes = {name: file.sha256 for name, file in files.items()}
        _write(self._pins / f"{model}.json", json.dumps({"commit": commit, "sha256": hashes}))

    def check_room(self, needed: int) -> None:
        """`StorageFull` unless so many bytes and the reserve fit on the disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        if needed + RESERVED_BYTES > free:
            raise StorageFull(
                f"The model needs {needed / 1e9:.2f} GB and {RESERVED_BYTES / 1e9:.2f} GB must stay free; "
                f"the disk has {free / 1e9:.2f} GB.",
                needed=needed,
                free=free,
            )


class Incoming:
    """A folder that takes one file as it arrives: written once, on the disk of the models."""

    def __init__(self, folder: Path, check_room: Callable[[int], None]) -> None:
        self._folder = folder
        self._check_room = check_room

    def open(self, name: str) -> "IncomingFile":
        """The file, empty; it can be opened once."""
        return IncomingFile(self._folder / name, self._check_room)


class IncomingFile:
    """A file to write from front to end. `StorageFull` as soon as the disk's reserve is touched."""

    def __init__(self, path: Path, check_room: Callable[[int], None]) -> None:
        self.path = path
        self._check_room = check_room
        self._unchecked = 0
        self._file = path.open("xb", buffering=BLOCK)

    def write(self, data: bytes) -> int:
        """Append."""
        self._unchecked += len(data)
        if self._unchecked >= BYTES_BETWEEN_CHECKS:
            self._check_room(0)
            self._unchecked = 0
        with full_disk_said("The disk filled up on the way; nothing was kept."):
            return self._file.write(data)

    def seek(self, offset: int) -> None:
        """The end of the writing, as a form's reader says it: what was written is on the disk."""
        with full_disk_said("The disk filled up on the way; nothing was kept."):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close it; what could not be written is of no interest any more."""
        with suppress(OSError):
            self._file.close()


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Hold a folder against other processes for as long as this one lives; false where another holds it."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_held = True
        except BlockingIOError:
            is_held = False
        yield is_held
    finally:
        os.close(descriptor)


@contextmanager
def full_disk_said(said: str = "The disk filled up on the way; what has arrived is kept.") -> Iterator[None]:
    """A disk that fills up on the way is `StorageFull`, not a fault of the service."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise StorageFull(said) from error


def missing_bytes(spec: ModelSpec, staged: Path, files: tuple[RemoteFile, ...]) -> int:
    """How many bytes of these files are not yet in the staging folder."""
    missing, converted = 0, Converted(staged)
    for file in files:
        if converted.fetched(file.path):
            continue
        target = landing(spec, staged, file.path)
        for there in (target, target.with_name(target.name + ".part")):
            if there.is_file():
                missing -= min(file.size, there.stat().st_size)
                break
        missing += file.size
    return missing


def fetch_all(
    hub: Hub,
    spec: ModelSpec,
    commit: str,
    files: tuple[RemoteFile, ...],
    staged: Path,
    on_bytes: Callable[[int], None],
    stop: Stop,
    known: dict[str, str],
) -> dict[str, InstalledFile]:
    """Bring all files into the staging folder; those that an earlier attempt finished are not asked for again.

    `TransferFailed` where a file's SHA-256 is not the known one; the file is deleted.
    """
    fetched, before, converted = {}, 0, Converted(staged)
    for file in files:
        target = landing(spec, staged, file.path)
        done = converted.fetched(file.path)
        if done is not None:
            sha256 = done.sha256
        elif target.is_file() and target.stat().st_size == file.size:
            sha256 = file.sha256 or sha256_of(target)
        else:
            report = lambda count, base=before: on_bytes(base + count)  # noqa: E731
            sha256 = hub.fetch(spec.repo or "", commit, file, target, report, stop)
        if known.get(file.path, sha256) != sha256:
            target.unlink(missing_ok=True)
            raise TransferFailed(
                f"{file.path} has other bytes than are known; it was deleted.",
                file=file.path,
                expected=known[file.path],
            )
        before += file.size
        on_bytes(before)
        fetched[file.path] = InstalledFile(file.size, sha256)
    return fetched


def check_stated(files: tuple[RemoteFile, ...], known: dict[str, str], model: str) -> None:
    """`TransferFailed` before a byte is pulled: other contents are stated than are known, or weights without a hash."""
    for file in files:
        expected = known.get(file.path)
        if not (expected or file.sha256 or file.git_sha1) and file.path.endswith(_HASHED):
            raise TransferFailed(
                f"The hub states no hash for {file.path} of {model!r} and none is known; nothing was pulled.",
                file=file.path,
            )
        if expected and file.sha256 and file.sha256 != expected:
            raise TransferFailed(
                f"The hub offers other bytes for {file.path} of {model!r} than are known; nothing was pulled.",
                file=file.path,
                expected=expected,
                offered=file.sha256,
            )


def bytes_to_copy(sources: dict[str, Path], folder: Path) -> int:
    """How many bytes a user's files will take that are not on this disk already."""
    folder.mkdir(parents=True, exist_ok=True)
    here = folder.stat().st_dev
    return sum(found.st_size for path in sources.values() if (found := path.stat()).st_dev != here)


def bring_in(
    sources: dict[str, Path],
    staged: Path,
    on_bytes: Callable[[int], None],
    renamed: Mapping[str, str] | None = None,
) -> dict[str, InstalledFile]:
    """Put a user's files into the staging folder: hard links on the same disk, copies from another; hash them all.

    Where the tensors of a file are `renamed` it is written anew.
    """
    brought, before = {}, 0
    for name, source in sources.items():
        target = staged / FILES / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if renamed is not None:
            tensor_files.rewrite(source, target, named=renamed.__getitem__)
        else:
            _link_or_copy(source.resolve(), target)
        size = target.stat().st_size
        brought[name] = InstalledFile(size, sha256_of(target, lambda count, base=before: on_bytes(base + count)))
        before += size
    return brought


def single_file(file: Path) -> str:
    """The name under which a model of one file is kept; what opens it tells a GGUF file by its ending."""
    return str(Path(SINGLE_FILE).with_suffix(GGUF)) if file.suffix.lower() == GGUF else SINGLE_FILE


def sources_of(file: Path) -> dict[str, Path]:
    """Name inside the model's folder -> file to take: weights and configurations, nothing else."""
    if file.is_dir():
        found = {path.relative_to(file).as_posix(): path for path in sorted(file.rglob("*")) if path.is_file()}
    else:
        found = {single_file(file): file}
        if (file.parent / "config" / "model_index.json").is_file():
            beside = sorted((file.parent / "config").rglob("*"))
            found |= {path.relative_to(file.parent).as_posix(): path for path in beside if path.is_file()}
    return {name: path for name, path in found.items() if path.suffix in STORED and "/." not in f"/{name}"}


def is_slug(id: str) -> bool:
    """Whether this may be a model's id."""
    return re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,79}", id) is not None


def slug(name: str) -> str:
    """An id made of a file's name; empty where nothing of it can stay."""
    return re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-._")[:80].rstrip("-._")


def write_record(folder: Path, installed: Installed) -> None:
    """Write `model.json` by rename."""
    _write(folder / RECORD, dump(installed))


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        # Another disk, a file system without links, or somebody else's file: a copy is what is left.
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP):
            raise
        with source.open("rb") as reader, target.open("wb") as writer:
            shutil.copyfileobj(reader, writer, BLOCK)
            writer.flush()
            os.fsync(writer.fileno())


def _write(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync(path.parent)
