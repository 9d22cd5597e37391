"""The models that come with the service: where they lie, their bytes and the hash that tells them apart."""

import functools
from dataclasses import dataclass
from pathlib import Path

from app.models.checksums import sha256_of
from app.models.spec import ModelSpec

WEIGHTS = frozenset({".safetensors", ".onnx"})
FOLDERS = frozenset({"diffusers", "folder"})


@dataclass(frozen=True)
class EmbeddedFacts:
    """An embedded model's folder, its largest weights file and that file's SHA-256, and the bytes of all its files."""

    folder: Path
    largest: Path
    bytes: int
    sha256: str


def is_folder(spec: ModelSpec) -> bool:
    """Whether the row's path is a folder rather than the one weights file."""
    return spec.options.get("layout") in FOLDERS


def is_left_out(spec: ModelSpec, root: Path) -> bool:
    """Whether it is a module for the embedded model that the copy at `root` comes without: nothing fetches one."""
    return bool(spec.embedded and spec.parts) and embedded_facts(root / str(spec.embedded)) is None


def embedded_facts(folder: Path) -> EmbeddedFacts | None:
    """The facts of an embedded model; None where this copy of the service comes without its weights."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()] if folder.is_dir() else []
    weights = [path for path in files if path.suffix in WEIGHTS]
    if not weights:
        return None
    largest = max(weights, key=lambda path: path.stat().st_size)
    signature = (largest.stat().st_size, largest.stat().st_mtime_ns)
    return EmbeddedFacts(folder, largest, sum(path.stat().st_size for path in files), _sha256(largest, signature))


@functools.cache
def _sha256(path: Path, signature: tuple[int, int]) -> str:
    return sha256_of(path)
