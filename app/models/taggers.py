"""The WD14 taggers through onnxruntime: pictures in, a probability for each tag out, several pictures a pass.

An ONNX file says what it reads: [pictures, side, side, 3] of 0 to 255, blue first (`app.imaging.tag_input`), and
answers [pictures, tags], sigmoid applied. `calls` counts passes.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from app.errors import InvalidRequest
from app.imaging.tag_input import tagger_input
from app.imaging.tags import CATEGORIES, Label
from app.models.catalog_taggers import LABELS, NETWORK
from app.models.onnx_sessions import ONNX_DAMAGED, open_session, providers_for
from app.models.spec import ModelSpec
from app.models.tag_labels import read_labels

PREPARING = 2
BATCH = 8
"""Pictures a pass; one takes 2.4 MB as it is read, and a large ViT some hundred MB on its way."""

Turn = Callable[[], AbstractContextManager[None]]


class OnnxTagger:
    """One tagger's folder; see `app.core.model_offload.Model`. Parked, it holds no session."""

    def __init__(self, folder: Path, device: Any) -> None:
        place = device.torch_device
        self._file = folder / NETWORK
        self._providers = providers_for(place.type, place.index)
        self._leaves = len(self._providers) > 1
        rows = read_labels(folder / LABELS)
        self.labels = tuple(Label(name, CATEGORIES.get(number, str(number))) for name, number in rows)
        self.bytes = self._file.stat().st_size
        self.calls: Counter[str] = Counter()
        self._session: Any = None
        self.place()
        inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        shape, told = inputs[0].shape, outputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or shape[3] != 3 or shape[1] != shape[2] or type(shape[1]) is not int:
            raise InvalidRequest(f"The tagger's {NETWORK} reads {shape}, not squares of three colours, colours last.")
        if len(told) != 2 or (type(told[1]) is int and told[1] != len(self.labels)):
            raise InvalidRequest(
                f"The tagger's {NETWORK} answers {told} and its {LABELS} names {len(self.labels)} tags; "
                "they are not of one model."
            )
        self.side: int = shape[1]
        self._has_fixed_batch = type(shape[0]) is int
        self.batch = shape[0] if self._has_fixed_batch else BATCH
        self._input, self._output = inputs[0].name, outputs[0].name

    def plan(self, available: int) -> int:
        """It stands whole."""
        return self.bytes

    def place(self) -> None:
        """Open the session, where none is open."""
        if self._session is None:
            try:
                self._session = open_session(self._file, self._providers)
            except ONNX_DAMAGED as error:
                raise InvalidRequest(f"The tagger's {NETWORK} is damaged; fetch it again.") from error

    def park(self) -> None:
        """Give the GPU's memory back; onnxruntime keeps no copy in RAM, so the next pass reads the file again."""
        if self._leaves:
            self._session = None

    def at_work(self, turn: Turn, check: Callable[[], None]) -> "Tagging":
        """What a run is handed: every pass waits for its `turn` at the device."""
        return Tagging(self, turn, check)

    def pass_of(self, pictures: np.ndarray) -> np.ndarray:
        """Probabilities [n, tags] of pictures [n, side, side, 3], n at most `batch`."""
        count = len(pictures)
        if count < self.batch and self._has_fixed_batch:
            pictures = np.concatenate([pictures, np.zeros((self.batch - count, *pictures.shape[1:]), np.float32)])
        self.calls["passes"] += 1
        return self._session.run([self._output], {self._input: pictures})[0][:count]


class Tagging:
    """One run's tagger; see `app.core.capability.Tagger`."""

    def __init__(self, tagger: OnnxTagger, turn: Turn, check: Callable[[], None]) -> None:
        self._tagger, self._turn, self._check = tagger, turn, check

    @property
    def labels(self) -> Sequence[Label]:
        """What each score is about."""
        return self._tagger.labels

    def scores(self, images: Iterator[Image.Image]) -> Iterator[np.ndarray]:
        """Probabilities [tags] of each picture in turn, several a pass; raises `JobCancelled` between two passes."""
        # While one batch goes through the network the next is made ready, on two cores: that takes longer than a small
        # network does. Pictures are opened where the caller's iterator opens them, one after the other.
        with ThreadPoolExecutor(PREPARING, thread_name_prefix="tag") as pool:
            coming = self._begun(images, pool)
            while coming:
                ready = [future.result() for future in coming]
                coming = self._begun(images, pool)
                yield from self._passed(ready)

    def _begun(self, images: Iterator[Image.Image], pool: ThreadPoolExecutor) -> "list[Future[np.ndarray]]":
        """The next batch on its way, empty at the end."""
        return [pool.submit(tagger_input, image, self._tagger.side) for image in islice(images, self._tagger.batch)]

    def _passed(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        self._check()
        with self._turn():
            return self._tagger.pass_of(np.stack(pictures))


def load(spec: ModelSpec, path: Path, device: Any, parts: Sequence[Any] = ()) -> OnnxTagger:
    """Open a folder of model.onnx and selected_tags.csv; `InvalidRequest` says what does not fit."""
    return OnnxTagger(path, device)
