"""The record of one installed model: `model.json` beside its files, written last and read fresh when it changed.

A model counts as installed when its record stands. The record arrives with the folder in one rename, so another process
sees either nothing or the whole model.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from app.models.catalog_editing import STEP1X_LOADER
from app.models.spec import Licence, ModelSpec, Recommended, Source

RECORD = "model.json"
FILES = "files"
FORMAT = 1


@dataclass(frozen=True)
class InstalledFile:
    """One file of a model: its size and SHA-256 as checked when it was installed."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Installed:
    """What `model.json` holds.

    `origin` is `catalog` or `added`; `path` is the folder or file to open, relative to the model's folder; `commit` is
    the revision that the hub resolved; `as_part` says that the model came along as a part of another one.
    """

    spec: ModelSpec
    origin: str
    path: str
    files: dict[str, InstalledFile]
    commit: str | None = None
    as_part: bool = False
    licence_accepted: bool = False
    installed: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.bytes for file in self.files.values())

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of the largest file: the weights that tell one model from another."""
        if not self.files:
            return None
        return max(self.files.values(), key=lambda file: file.bytes).sha256


def dump(installed: Installed) -> str:
    """The record as JSON text."""
    return json.dumps({"format": FORMAT, **asdict(installed)}, indent=1)


def load(text: str) -> Installed:
    """The record out of JSON text; `ValueError`, `KeyError` or `TypeError` where it is not one."""
    data = json.loads(text)
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT or not isinstance(data.get("spec"), dict):
        raise ValueError("a model record of another format")
    spec = data.pop("spec")
    if spec.get("loader") == STEP1X_LOADER:
        # Records from before Step1X-Edit's family had a name call it "other".
        spec["family"] = "flux"
    recommended = spec.pop("recommended")
    return Installed(
        spec=ModelSpec(
            **{
                **spec,
                "licence": Licence(**spec["licence"]),
                "recommended": Recommended(**recommended) if recommended else None,
                "files": tuple(spec["files"]),
                "tasks": tuple(spec["tasks"]),
                "parts": tuple(spec["parts"]),
                "sources": tuple(Source(**source) for source in spec.get("sources", ())),
            }
        ),
        files={name: InstalledFile(**file) for name, file in data.pop("files").items()},
        **data,
    )


class InstalledModels:
    """Reads the records under a models folder, each anew only when its file changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen: dict[str, tuple[tuple[int, int, int], Installed]] = {}

    def get(self, model: str) -> Installed | None:
        """The record of this id; None where none stands or it cannot be read."""
        path = self.folder / model / RECORD
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            self._seen.pop(model, None)
            return None
        signature = (status.st_ino, status.st_mtime_ns, status.st_size)
        seen = self._seen.get(model)
        if seen and seen[0] == signature:
            return seen[1]
        try:
            installed = load(path.read_text("utf-8"))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        self._seen[model] = (signature, installed)
        return installed

    def ids(self) -> list[str]:
        """The ids of all folders that may hold a record, sorted."""
        if not self.folder.is_dir():
            return []
        return sorted(entry.name for entry in self.folder.iterdir() if not entry.name.startswith("."))
