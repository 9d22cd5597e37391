"""The contract: a Request, a Capability, the Context that a run is handed, and the Result that it answers.

A capability knows nothing of HTTP, the queue or torch. All that it may do to the world stands in `Context`; all that it
may ask before the wish becomes a job stands in `Door`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image
from pydantic import BaseModel, ConfigDict

from app.core.attachments import Attachment
from app.core.borrowed_models import (
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
from app.core.fields import (
    SEED_LIMIT,
    ClipSkip,
    GuidanceScale,
    ImagesPerPrompt,
    Loras,
    Model,
    NegativePrompt,
    Prompt,
    Scheduler,
    Seed,
    Steps,
    TextualInversions,
    VaeTiling,
    WeightedModel,
)
from app.core.training_fields import TrainingPlan


class Request(BaseModel):
    """The typed wish: frozen, unknown fields refused, pictures as references."""

    # Its validator is built when the first wish of its kind comes: three dozen of them would delay every start.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


class ModelRequest(Request):
    """What every wish to a diffusion model may say.

    The service fills what is null (`seed`, `num_inference_steps`, `guidance_scale`, `scheduler`, sizes) from the
    model's row before a Job is born, so a run never meets a null there and the recipe repeats the picture.
    """

    prompt: Prompt
    negative_prompt: NegativePrompt = None
    model: Model = "auto"
    loras: Loras = ()
    textual_inversions: TextualInversions = ()
    scheduler: Scheduler = None
    num_inference_steps: Steps = None
    guidance_scale: GuidanceScale = None
    clip_skip: ClipSkip = None
    num_images_per_prompt: ImagesPerPrompt = 1
    seed: Seed = None
    vae_tiling: VaeTiling = False

    @property
    def seeds(self) -> list[int]:
        """The seed of each picture: seed, seed + 1, ... (modulo 2**32)."""
        return [((self.seed or 0) + number) % SEED_LIMIT for number in range(self.num_images_per_prompt)]

    def additions(self) -> dict[str, Any]:
        """What `Context.borrow` is told beside the model and the task."""
        return {
            "loras": self.loras,
            "textual_inversions": self.textual_inversions,
            "scheduler": self.scheduler,
            "vae_tiling": self.vae_tiling,
        }

    def arguments(self) -> dict[str, Any]:
        """What every call of a diffusers pipeline is told, by diffusers' own names."""
        return {
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "num_inference_steps": self.num_inference_steps,
            "guidance_scale": self.guidance_scale,
            "clip_skip": self.clip_skip,
        }


@dataclass
class Result:
    """What a run made.

    `images` are PIL RGB, or RGBA; `seeds` holds one seed for each of them (empty where none was used); `data` is
    JSON-able and goes into the answer as it is; `notes` are sentences for a person about what differs from the wish.
    """

    images: list[Image.Image] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    data: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Context(Protocol):
    """The few things a run may do."""

    @property
    def job(self) -> str:
        """The id of the job."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The operator's options of this capability."""

    def image(self, reference: str) -> Image.Image:
        """The stored picture as PIL RGB; `UnknownImage` if it is gone."""

    def alpha(self, reference: str) -> Image.Image | None:
        """How opaque the stored picture's pixels are, as PIL L; None where all of it is opaque."""

    def mask(self, reference: str) -> Image.Image:
        """The stored picture as PIL L: white is repainted."""

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

    def faces(self, model: str) -> AbstractContextManager[FaceReader]:
        """The face models that belong to an identity model, or the pack itself (the id of its row)."""

    def map_maker(self, task: str) -> AbstractContextManager[MapMaker]:
        """The best installed model for this task (`depth-map`); `WeightsMissing` names the line that fetches one."""

    def segmenter(self, model: str) -> AbstractContextManager[Segmenter]:
        """The segmenter of this row, which keeps what it has seen of the last pictures."""

    def eraser(self, model: str) -> AbstractContextManager[Eraser]:
        """The eraser of this row."""

    def upscaler(self, model: str) -> AbstractContextManager[Upscaler]:
        """What makes pictures larger, of this row."""

    def face_restorer(self, model: str) -> AbstractContextManager[FaceRestorer]:
        """The face restorer of this row."""

    def tagger(self, model: str) -> AbstractContextManager[Tagger]:
        """The tagger of this row."""

    def editor(self, model: str, *, task: str, loras: Sequence[WeightedModel] = ()) -> AbstractContextManager[Editor]:
        """A model that edits by instructions, with its LoRAs; on leaving they are off."""

    def trainer(self, model: str, plan: TrainingPlan) -> AbstractContextManager[Trainer]:
        """A model with a LoRA on it that learns, as the plan says."""

    def give_way(self) -> None:
        """Let jobs of a higher priority run whole first; raises `JobCancelled` as `on_step` does."""

    @property
    def is_watched(self) -> bool:
        """Whether a picture that is shown now would be seen."""

    def show(self, image: Image.Image) -> None:
        """Send watchers a picture of how things stand."""

    def belongings(self, job: str | None = None) -> Path:
        """This job's own folder, which outlives an attempt, or an earlier job's; `InvalidRequest`: it is gone."""

    def generators(self, seed: int, count: int = 1) -> list[Any]:
        """One noise source for each picture, with seeds seed, seed + 1, ... (modulo 2**32)."""

    def expect_steps(self, count: int) -> None:
        """Say how many steps the whole run will take, when it calls more than one pipeline."""

    @property
    def on_step(self) -> Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]:
        """diffusers' `callback_on_step_end`: reports progress, may send a preview, raises `JobCancelled`."""

    def progress(self, step: int, steps: int) -> None:
        """Report step i of n without a pipeline; raises `JobCancelled` as `on_step` does."""

    def tell_stage(self, stage: str, text: str, **facts: Any) -> None:
        """Say what a stage of the run came to: watchers read it at once, and it stays readable however the run ends."""

    @property
    def stages(self) -> Sequence[Mapping[str, Any]]:
        """What was told so far, each with `stage`, `text` and the facts beside them."""

    def fetch(self, url: str, *, limit: int) -> bytes:
        """The guarded client's GET: public hosts only, at most `limit` bytes."""

    def search(
        self, words: str, *, kind: str, count: int, safe: bool = True, language: str | None = None
    ) -> list[dict[str, Any]]:
        """What the operator's search provider finds (`app.search_providers.Found`); `SearchOff` where there is none."""

    def register_model(self, path: str, *, kind: str, title: str, **facts: Any) -> str:
        """Add a file that this run made to the installed models; answers its id."""


class Door(Protocol):
    """What a capability's `check` may ask; nothing of it opens weights or imports torch."""

    @property
    def size_multiple(self) -> int | None:
        """What the model's family makes widths and heights multiples of (pixels); None where its row cannot tell."""

    def serves(self, task: str) -> bool:
        """Whether the request's model is for this task too."""

    @property
    def devices(self) -> Collection[str] | None:
        """The names of the devices that the job may run on; None where others than this service's may take it."""

    def size(self, reference: str) -> tuple[int, int]:
        """(width, height) of the stored picture, from its header alone."""

    def mask(self, reference: str) -> Image.Image:
        """The stored picture as PIL L: white is repainted."""

    def ended_request(self, job: str) -> Mapping[str, Any]:
        """The request of an ended job of the same owner, and its `capability`; `UnknownJob`, `Conflict`."""


@dataclass(frozen=True)
class Capability:
    """One thing the service can do, declared as data.

    `name` is the last part of its route (`inpaint`, `pulid/generate`); those that share the part before `/`, or the
    same `tab`, are sub-tabs of one tab. `summary` is one sentence. `needs` names the tasks that the request's model
    must serve (any of them, an earlier rather than a later; empty: no model). `example` validates as a Request once its
    picture fields are filled with references.
    `check` refuses, before there is a job, a resolved request that could only fail: it raises what the caller is told.
    `additions` names, for each field that holds the id of a model which goes on the request's model, the task that it
    must serve; in a request without a model they serve by themselves. `additions_for` does so for fields that count
    only where another is filled: for each, the task and the name of that other field. `additions_if_installed` names
    the task of each field that becomes null, instead of a refusal, where nothing that fits is installed.
    `listed_additions` names fields that hold a list of such ids, each with the field whose list says what an id is for,
    and with how such a task's name begins. `advise` says, from the request's values and the rows' specs, what null
    fields mean here, before the model's row is asked. One that `gives_way` works for long: its worker takes more urgent
    jobs meanwhile, and the run lets them go first (`Context.give_way`). One that does not give pictures has no result
    that a follow-up could work on. `unserved` says which words of which fields cannot be served on devices of these
    names (None: they are not known), each with what is lacking: the form says it, and the door refuses them.
    """

    name: str
    title: str
    summary: str
    request: type[Request]
    run: Callable[[Any, Context], Result]
    needs: tuple[str, ...] = ()
    example: Mapping[str, Any] = field(default_factory=dict)
    group_title: str | None = None
    tab: str | None = None
    check: Callable[[Any, Door], None] | None = None
    gives_way: bool = False
    gives_pictures: bool = True
    additions: Mapping[str, str] = field(default_factory=dict)
    listed_additions: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    additions_for: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    additions_if_installed: Mapping[str, str] = field(default_factory=dict)
    advise: Callable[[Mapping[str, Any], Any, Mapping[str, Any]], Mapping[str, Any]] | None = None
    unserved: Callable[[Collection[str] | None], Mapping[str, Mapping[str, str]]] = lambda devices: {}

    def wanted_additions(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Field -> task of every addition that a request with these values needs."""
        more = {name: task for name, (task, other) in self.additions_for.items() if values.get(other)}
        return {**self.additions, **more}

    @property
    def optional_additions(self) -> dict[str, str]:
        """Field -> task of every addition that a wish may do without."""
        return {name: task for name, (task, _) in self.additions_for.items()} | dict(self.additions_if_installed)

    @property
    def group(self) -> str:
        """What capabilities that share a tab have in common: `tab`, else the part of the name before `/`."""
        return self.tab or self.name.partition("/")[0]


def image_fields(request: type[BaseModel]) -> dict[str, str]:
    """Name -> kind (`image` or `mask`, `images` for a tuple of them) of the picture fields of a Request class."""
    found = {}
    for name, info in request.model_fields.items():
        extra = info.json_schema_extra
        kind = extra.get("kind") if isinstance(extra, dict) else None
        if kind in {"image", "mask", "images"}:
            found[name] = kind
    return found
