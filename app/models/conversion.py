"""What a pull stores of the files that it fetched: pickles as safetensors, 32-bit tensors in 16 bits where so wished.

A pickle is opened in a child process (`pickles.py`) that is given nothing but two paths. A file bears its stored name
only once it is whole; then a line in `converted.json` says so and the fetched one is deleted. Whatever is killed on the
way, the next pull converts what was fetched and does not fetch it again.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path, PurePosixPath

from app.errors import InvalidRequest, TransferFailed
from app.models import tensor_files
from app.models.checksums import sha256_of
from app.models.download import PICKLES, WEIGHTS, RemoteFile, Stop
from app.models.installed import FILES, InstalledFile
from app.models.spec import ModelSpec

CONVERTED = "converted.json"
FETCHED = "fetched"
DRAFT = ".draft"
SECONDS_BETWEEN_LOOKS = 0.1
_START = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from app.models.pickles import main
main()
"""
_ROOT = str(Path(__file__).resolve().parents[2])


class Converted:
    """The files of a staging folder that stand under their stored names: by what was fetched, what is stored."""

    def __init__(self, staged: Path) -> None:
        self._path = staged / CONVERTED
        try:
            self._known = json.loads(self._path.read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            self._known = {}

    def fetched(self, name: str) -> InstalledFile | None:
        """Bytes and SHA-256 of a file as it came; None where it still waits to be stored."""
        return InstalledFile(**self._known[name]["fetched"]) if name in self._known else None

    def stored(self, name: str) -> tuple[str, InstalledFile]:
        """Name, bytes and SHA-256 of what a fetched file was stored as."""
        entry = self._known[name]
        return entry["name"], InstalledFile(**entry["stored"])

    def note(self, name: str, fetched: InstalledFile, stored_name: str, stored: InstalledFile) -> None:
        """Write down that this file is stored."""
        self._known[name] = {"fetched": asdict(fetched), "name": stored_name, "stored": asdict(stored)}
        draft = self._path.with_suffix(DRAFT)
        with draft.open("w", encoding="utf-8") as file:
            json.dump(self._known, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._path)


def is_pickle(name: str) -> bool:
    """Whether a published file must be converted before anything opens it."""
    return PurePosixPath(name).suffix in PICKLES


def is_converted(spec: ModelSpec, name: str) -> bool:
    """Whether this file of a row is stored in another form than it is published in."""
    return is_pickle(name) or name in spec.stored_as


def landing(spec: ModelSpec, staged: Path, name: str) -> Path:
    """Where a fetched file comes down: at its place, or aside where it is converted."""
    return staged / (FETCHED if is_converted(spec, name) else FILES) / name


def room_to_convert(spec: ModelSpec, files: tuple[RemoteFile, ...]) -> int:
    """Bytes that conversion takes beside what is fetched: one file at a time, which grows no larger than its source."""
    return max((file.size for file in files if is_converted(spec, file.path)), default=0)


def store_all(
    spec: ModelSpec, staged: Path, fetched: Mapping[str, InstalledFile], stop: Stop
) -> dict[str, InstalledFile]:
    """Bring what was fetched into the form that is stored; answers the files that stand afterwards.

    `InvalidRequest` where a pickle holds code or is no checkpoint.
    """
    stored: dict[str, InstalledFile] = {}
    converted = Converted(staged)
    for name, file in fetched.items():
        if not is_converted(spec, name):
            stored[name] = file
            continue
        source = landing(spec, staged, name)
        if converted.fetched(name) is None:
            place = spec.stored_as.get(name, str(PurePosixPath(name).with_suffix(WEIGHTS)))
            target = staged / FILES / place
            target.parent.mkdir(parents=True, exist_ok=True)
            _convert(spec, source, target, stop)
            converted.note(name, file, place, InstalledFile(target.stat().st_size, sha256_of(target)))
        source.unlink(missing_ok=True)
        place, kept = converted.stored(name)
        stored[place] = kept
    for name, text in spec.written.items():
        target = staged / FILES / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")
        stored[name] = InstalledFile(target.stat().st_size, sha256_of(target))
    return stored


def tidy(folder: Path) -> None:
    """Take away what conversion kept beside an installed model's files."""
    (folder / CONVERTED).unlink(missing_ok=True)
    shutil.rmtree(folder / FETCHED, ignore_errors=True)


def _convert(spec: ModelSpec, source: Path, target: Path, stop: Stop) -> None:
    to_16_bits = spec.options.get("store") == "fp16"
    draft = target.with_name(target.name + DRAFT)
    try:
        if is_pickle(source.name):
            _unpickle(source, draft, spec.options.get("keep", ""), to_16_bits, stop)
        else:
            tensor_files.rewrite(source, draft, to_16_bits=to_16_bits, stop=stop)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _unpickle(source: Path, target: Path, keep: str, to_16_bits: bool, stop: Stop) -> None:
    command = [sys.executable, "-I", "-c", _START, _ROOT, str(source), str(target), f"--keep={keep}"]
    command += ["--to-16-bits"] if to_16_bits else []
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={}, cwd="/"
    ) as child:
        try:
            while child.poll() is None:
                stop.wait(SECONDS_BETWEEN_LOOKS)
        finally:
            child.kill()
        assert child.stdout is not None
        said = child.stdout.read()
    try:
        answer = json.loads(said)
    except ValueError:
        raise TransferFailed(
            f"The process that converts {source.name} died; what was fetched is kept. Pull again.", file=source.name
        ) from None
    if "errno" in answer:
        raise OSError(answer["errno"], "a converted file could not be written")
    if "message" in answer:
        raise InvalidRequest(f"{source.name} was not taken: {answer['message']}", file=source.name)
