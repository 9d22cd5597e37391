"""The Context that a run is handed: pictures, models, noise, progress, the guarded client; and nothing else."""

import base64
import io
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from app.core.attachments import Attachment
from app.core.belongings import Belongings
from app.core.capability import (
    Editor,
    Eraser,
    FaceReader,
    FaceRestorer,
    MapMaker,
    Pipeline,
    Segmenter,
    Tagger,
    Trainer,
    Upscaler,
)
from app.core.fields import SEED_LIMIT, WeightedModel
from app.core.storage import Storage
from app.core.training_fields import TrainingPlan
from app.errors import JobCancelled, NoDevice, SearchOff
from app.guarded_http import GuardedClient
from app.models.library import ModelLibrary
from app.models.licences import licence_notes
from app.search_providers import OFF, Query, SearchProvider

PREVIEW_SECONDS = 0.4
PREVIEW_SIDE = 512
SHOW_SECONDS = 2.0

Report = Callable[[str, dict[str, Any]], None]


class RunContext:
    """One run's window on the service.

    `report(kind, data)` sends a message to the front. `cancelled` is set, from another thread, when the job is to end;
    `previewed` while somebody watches. `runtime` is None in a worker whose catalog needs no models.
    """

    def __init__(
        self,
        *,
        storage: Storage,
        models: ModelLibrary,
        runtime: Any,
        client: GuardedClient,
        report: Report,
        cancelled: threading.Event,
        previewed: threading.Event,
        options: Mapping[str, Any] | None = None,
        priority: int = 5,
        search: SearchProvider | None = None,
        job: str = "",
        belongings: Belongings | None = None,
        give_way: Callable[[], None] = lambda: None,
    ) -> None:
        self.job = job
        self._give_way = give_way
        self._belongings = belongings
        self.options: Mapping[str, Any] = options or {}
        self.step = 0
        self.steps = 0
        self.notes: list[str] = []
        self.stages: list[dict[str, Any]] = []
        self._storage = storage
        self._models = models
        self._runtime = runtime
        self._client = client
        self._report = report
        self._cancelled = cancelled
        self._previewed = previewed
        self._priority = priority
        self._search = search
        self._expected = 0
        self._before_this_pass = 0
        self._next_preview = 0.0

    def image(self, reference: str) -> Image.Image:
        """The stored picture as PIL RGB; `UnknownImage` if it is gone."""
        return self._storage.open(reference)

    def alpha(self, reference: str) -> Image.Image | None:
        """How opaque the stored picture's pixels are, as PIL L; None where all of it is opaque."""
        return self._storage.alpha(reference)

    def mask(self, reference: str) -> Image.Image:
        """The stored picture as PIL L: white is repainted."""
        return self._storage.open_mask(reference)

    def borrow(
        self,
        model: str,
        *,
        task: str,
        loras: Sequence[WeightedModel] = (),
        textual_inversions: Sequence[str] = (),
        scheduler: str | None = None,
        vae_tiling: bool = False,
        attachments: Sequence[Attachment] = (),
    ) -> AbstractContextManager[Pipeline]:
        """A pipeline of this model for this task, with its additions and attachments; on leaving, all of it is off."""
        self.check_cancelled()
        return self._noting(
            self._require_runtime().borrow(
                model,
                task=task,
                loras=tuple(loras),
                textual_inversions=tuple(textual_inversions),
                scheduler=scheduler,
                vae_tiling=vae_tiling,
                attachments=tuple(attachments),
                priority=self._priority,
                check=self.check_cancelled,
            )
        )

    def faces(self, model: str) -> AbstractContextManager[FaceReader]:
        """The face models that belong to an identity model."""
        self.check_cancelled()
        return self._require_runtime().face_reader(model, priority=self._priority, check=self.check_cancelled)

    def map_maker(self, task: str) -> AbstractContextManager[MapMaker]:
        """The best installed model that draws such maps; the device is held meanwhile."""
        self.check_cancelled()
        return self._require_runtime().map_maker(task, priority=self._priority, check=self.check_cancelled)

    def segmenter(self, model: str) -> AbstractContextManager[Segmenter]:
        """The segmenter of this row, which keeps what it has seen of the last pictures."""
        return self._alone(model, "segment")

    def eraser(self, model: str) -> AbstractContextManager[Eraser]:
        """The eraser of this row."""
        return self._alone(model, "erase")

    def upscaler(self, model: str) -> AbstractContextManager[Upscaler]:
        """What makes pictures larger, of this row."""
        return self._alone(model, "upscale")

    def tagger(self, model: str) -> AbstractContextManager[Tagger]:
        """The tagger of this row."""
        return self._alone(model, "tag")

    def face_restorer(self, model: str) -> AbstractContextManager[FaceRestorer]:
        """The face restorer of this row."""
        return self._alone(model, "restore-face")

    @contextmanager
    def _alone(self, model: str, task: str) -> Iterator[Any]:
        """What a row opens that serves by itself; a licence that limits the result's use goes to the notes."""
        self.check_cancelled()
        runtime = self._require_runtime()
        with runtime.alone(model, task=task, priority=self._priority, check=self.check_cancelled) as opened:
            yield opened
        notes = licence_notes([self._models.get(model).spec])
        self.notes.extend(note for note in notes if note not in self.notes)

    def editor(self, model: str, *, task: str, loras: Sequence[WeightedModel] = ()) -> AbstractContextManager[Editor]:
        """A model that edits by instructions, with its LoRAs."""
        self.check_cancelled()
        runtime = self._require_runtime()
        settings = {"loras": tuple(loras), "priority": self._priority, "check": self.check_cancelled}
        return self._noting(runtime.editor(model, task=task, **settings))

    @contextmanager
    def _noting(self, borrowed: AbstractContextManager[Pipeline]) -> Iterator[Pipeline]:
        """The borrowed pipeline; what it says it had to change goes to the notes of the run."""
        with borrowed as pipeline:
            yield pipeline
            self.notes.extend(note for note in getattr(pipeline, "notes", ()) if note not in self.notes)

    def generators(self, seed: int, count: int = 1) -> list[Any]:
        """One noise source for each picture, with seeds seed, seed + 1, ... (modulo 2**32)."""
        return self._require_runtime().generators(seed % SEED_LIMIT, count)

    def expect_steps(self, count: int) -> None:
        """Say how many steps the whole run will take, when it calls more than one pipeline."""
        self._expected = count

    def on_step(self, pipeline: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """diffusers' `callback_on_step_end`: reports progress, may send a preview, raises `JobCancelled`."""
        if index == 0:
            self._before_this_pass = self.step
        step = self._before_this_pass + index + 1
        of_this_pass = getattr(pipeline, "num_timesteps", 0) or 0
        # A scheduler of second order takes almost twice as many steps as were asked for.
        self.progress(step, max(step, self._expected, self._before_this_pass + of_this_pass))
        if self._previewed.is_set() and "latents" in tensors:
            self._send_preview(pipeline, tensors["latents"])
        return tensors

    def progress(self, step: int, steps: int) -> None:
        """Report step i of n without a pipeline; raises `JobCancelled` as `on_step` does."""
        self.check_cancelled()
        self.step, self.steps = step, steps
        self._report("step", {"step": step, "steps": steps})

    def tell_stage(self, stage: str, text: str, **facts: Any) -> None:
        """Say what a stage of the run came to; raises `JobCancelled` as `on_step` does, after it was told."""
        self.stages.append({"stage": stage, "text": text, **facts})
        self._report("stages", {"stages": list(self.stages)})
        self.check_cancelled()

    def trainer(self, model: str, plan: TrainingPlan) -> AbstractContextManager[Trainer]:
        """A model with a LoRA on it that learns."""
        self.check_cancelled()
        return self._require_runtime().trainer(model, plan, priority=self._priority, check=self.check_cancelled)

    def give_way(self) -> None:
        """Let jobs of a higher priority run whole first; raises `JobCancelled` as `on_step` does."""
        self._give_way()
        self.check_cancelled()

    @property
    def is_watched(self) -> bool:
        """Whether somebody looks at previews, and the last one is old enough."""
        return self._previewed.is_set() and time.monotonic() >= self._next_preview

    def show(self, image: Image.Image) -> None:
        """Send a picture as a preview."""
        began = time.monotonic()
        self._report_preview(image)
        self._next_preview = began + max(SHOW_SECONDS, 5 * (time.monotonic() - began))

    def belongings(self, job: str | None = None) -> Path:
        """A folder of this job's own, or of an earlier one's, that outlives an attempt."""
        return self._require_belongings().of(job or self.job, make=job is None)

    def fetch(self, url: str, *, limit: int) -> bytes:
        """The guarded client's GET: public hosts only, at most `limit` bytes."""
        return self._client.get_bytes(url, limit=limit)

    def search(
        self, words: str, *, kind: Any, count: int, safe: bool = True, language: str | None = None
    ) -> list[dict[str, Any]]:
        """What the operator's search provider finds; `SearchOff` where there is none."""
        self.check_cancelled()
        if self._search is None:
            raise SearchOff(OFF)
        return self._search.search(Query(words, kind, count, safe, language))

    def register_model(self, path: str, *, kind: str, title: str, **facts: Any) -> str:
        """Add a file that this run made to the installed models; answers its id."""
        return self._models.add(Path(path), kind=kind, title=title, **facts).spec.id

    def check_cancelled(self) -> None:
        """Raise `JobCancelled` if the job is to end."""
        if self._cancelled.is_set():
            raise JobCancelled

    def _require_belongings(self) -> Belongings:
        if self._belongings is None:
            raise NoDevice("This worker keeps nothing between attempts.")
        return self._belongings

    def _require_runtime(self) -> Any:
        if self._runtime is None:
            raise NoDevice("This worker was opened without a runtime for models.")
        return self._runtime

    def _send_preview(self, pipeline: Any, latents: Any) -> None:
        now = time.monotonic()
        if self._runtime is None or now < self._next_preview:
            return
        picture = self._runtime.preview(pipeline, latents)
        picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
        self._report_preview(picture)
        # Drawing previews takes at most a fifth of the time, however slow the decoder is.
        took = time.monotonic() - now
        self._next_preview = now + max(PREVIEW_SECONDS, 5 * took)

    def _report_preview(self, picture: Image.Image) -> None:
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=80)
        self._report("preview", {"image": f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"})
