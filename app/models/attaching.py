"""How plain wishes become what a borrowed pipeline has on: rows are opened, faces read, and all of it is pinned.

Weights beside a checkpoint are opened in the number format that the checkpoint computes in; face models are on the
device only while something is made out of a face.
"""

import functools
import importlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from app.core.attachments import Attachment
from app.core.model_offload import ModelCache
from app.errors import InvalidRequest
from app.imaging.opencv import load_opencv
from app.models.catalog_faces import EVA_LOADER
from app.models.device import TorchDevice
from app.models.library import ModelLibrary, ModelRow
from app.models.pipelines import Checkpoint
from app.models.spec import NO_FILES
from app.models.step_batching import Session, StepBatcher


class Attacher:
    """Opens what stands beside checkpoints, out of the same cache and in the same turns."""

    def __init__(self, library: ModelLibrary, cache: ModelCache, batcher: StepBatcher) -> None:
        self._library = library
        self._cache = cache
        self._batcher = batcher

    def fitting(self, id: str, base: ModelRow) -> ModelRow:
        """The installed row of this id; `InvalidRequest` where it is known to be made for another model."""
        row = self._library.require(id)
        if row.spec.family not in {base.spec.family, "other"}:
            raise InvalidRequest(
                f"{id!r} was made for {row.spec.family}; the model {base.spec.id!r} is {base.spec.family}.", model=id
            )
        return row

    def all_parts(self, row: ModelRow) -> list[ModelRow]:
        """The rows that this one needs, and those that they need; each once."""
        found: dict[str, ModelRow] = {}
        for id in row.spec.parts:
            part = self._library.require(id)
            found |= {other.spec.id: other for other in self.all_parts(part)} | {id: part}
        return list(found.values())

    @contextmanager
    def attached(
        self, wish: Attachment, row: ModelRow, checkpoint: Checkpoint, model: str, turn: Session
    ) -> Iterator[Any]:
        """What carries this wish out on the checkpoint of this id, its weights pinned for the block."""
        parts = self.all_parts(row)
        module, _, name = wish.attach.partition(":")
        attach = getattr(importlib.import_module(module), name)
        with self.opened(row, parts, checkpoint.device) as opened:
            unet = checkpoint.components["unet"]
            opened.check_fit(unet, model)
            with self.faces(parts, checkpoint.device) as faces, self._batcher.turn(turn):
                made = attach(opened, wish, faces=faces, unet=unet)
            yield made

    @contextmanager
    def face_reader(self, model: str, device: TorchDevice, turn: Session) -> Iterator[Any]:
        """The face models that belong to an identity model, or that a row of faces is; the device is held meanwhile."""
        row = self._library.require(model)
        with self.faces([*self.all_parts(row), row], device) as faces, self._batcher.turn(turn):
            if faces is None:
                raise InvalidRequest(f"The model {model!r} has no face models beside it.", model=model)
            yield faces

    @contextmanager
    def map_maker(self, task: str, device: TorchDevice, turn: Session) -> Iterator[Any]:
        """The best installed model that serves this task by itself; the device is held meanwhile."""
        row = self._library.choose((task,))
        with self.opened(row, self.all_parts(row), device) as opened, self._batcher.turn(turn):
            yield opened

    @contextmanager
    def alone(self, row: ModelRow, device: TorchDevice) -> Iterator[Any]:
        """What a row that stands beside no checkpoint opens; where it has no files there is nothing to keep."""
        if row.spec.embedded == NO_FILES:
            yield _loader(row)(row.spec, None, device)
            return
        with self.opened(row, self.all_parts(row), device) as opened:
            yield opened

    @contextmanager
    def faces(self, parts: Sequence[ModelRow], device: TorchDevice) -> Iterator[Any]:
        """The face models among these rows as one stack; None where there are none."""
        mine = [part for part in parts if part.spec.kind == "faces" or part.spec.loader == EVA_LOADER]
        if not any(part.spec.kind == "faces" for part in mine):
            yield None
            return
        load = functools.partial(_open_face_stack, mine, device)
        estimate = sum(part.bytes_on_disk for part in mine)
        with self._cache.borrow(key_of(mine[0], mine[1:], device), load, estimate=estimate) as stack:
            yield stack

    def opened(self, row: ModelRow, parts: Sequence[ModelRow], device: TorchDevice) -> AbstractContextManager[Any]:
        """What the row's loader makes of its files, pinned for the block."""

        def load() -> Any:
            return _loader(row)(row.spec, row.path, device, parts=parts)

        key = key_of(row, parts, device)
        drop_replaced(self._cache, row.spec.id, key)
        own = [part for part in parts if part.spec.kind not in {"faces", "lora"}]
        return self._cache.borrow(key, load, estimate=row.bytes_on_disk + sum(part.bytes_on_disk for part in own))


def _loader(row: ModelRow) -> Any:
    module, _, name = row.spec.loader.partition(":")
    return getattr(importlib.import_module(module), name)


def key_of(row: ModelRow, parts: Sequence[ModelRow], device: TorchDevice) -> str:
    """Id, what the files were when they were read, and under which settings: what has changed is loaded anew."""
    stamps = [str(part.path.stat().st_mtime_ns) for part in (row, *parts) if part.path]
    format_ = str(device.dtype).removeprefix("torch.")
    return "@".join([row.spec.id, ".".join(stamps), format_]) + settings_of(device)


def settings_of(device: TorchDevice) -> str:
    """The end of every key of a model that was opened under these settings."""
    return f"@{device.precision}/{device.offload or 'auto'}"


def model_of(key: str) -> str:
    """The id in a key."""
    return key.partition("@")[0]


def drop_replaced(cache: ModelCache, id: str, key: str) -> None:
    """Drop what was read from files that have been replaced since, or under other settings.

    The same files in another number format stay: a checkpoint beside which they stand may compute in that.
    """

    def is_wanted(other: str) -> bool:
        return model_of(other) != id or _origin_of(other) == _origin_of(key)

    if not all(is_wanted(entry["key"]) for entry in cache.describe()):
        cache.keep_only(is_wanted)


def _origin_of(key: str) -> tuple[str, str]:
    """The stamps of the files, and the settings: all of a key but its id and its number format."""
    _, stamps, _, settings = key.split("@")
    return stamps, settings


def _open_face_stack(rows: Sequence[ModelRow], device: TorchDevice) -> Any:
    """Opened by name: what face models stand on takes seconds to import, and machines without it draw all the rest."""
    load_opencv()
    return importlib.import_module("app.models.face_stack").open_stack(rows, device)
