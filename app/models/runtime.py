"""The one entry point that a worker loads by name: a device, its model cache, and pipelines to borrow.

A borrow leaves the model as it found it: additions and tiling are undone in reverse order, whatever happened in
between, and every call puts the number formats back.
"""

import functools
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image

from app.core.attachments import Attachment
from app.core.model_offload import AUTO, ModelCache, ModelState, Offload
from app.core.training_fields import TrainingPlan
from app.errors import InvalidRequest, OutOfMemory, ServiceError
from app.models import adapters, compiling, previews
from app.models.adapters import Addition
from app.models.attached import Attached
from app.models.attaching import Attacher, drop_replaced, key_of, model_of, settings_of
from app.models.borrowed import BorrowedPipeline
from app.models.device import TorchDevice, parked_default
from app.models.library import ModelLibrary, ModelRow
from app.models.licences import licence_notes
from app.models.machine import check_package
from app.models.pipelines import Checkpoint
from app.models.prompts import Encoder, PromptEncoder
from app.models.relief import OUT_OF_MEMORY, Room
from app.models.schedulers import start_at_sigma
from app.models.spec import EDITORS
from app.models.step_batching import Session, StepBatcher
from app.models.trainers import LoraTrainer, open_trainer
from app.models.training_lessons import UNetLessons

ATTACHED = adapters.Outfit(("attached",))
"""Nothing on, but blocks must not run compiled: a compiler would write them anew for every face."""


class Runtime:
    """One device with its models; borrows may overlap, and calls of their pipelines share forwards where they fit."""

    def __init__(
        self,
        device: TorchDevice,
        library: ModelLibrary,
        *,
        model_memory_bytes: int | None,
        parked_memory_bytes: int | None,
    ) -> None:
        self.device = device
        self._library = library
        parked = parked_default() if parked_memory_bytes is None else parked_memory_bytes
        self._cache = ModelCache(device, budget=model_memory_bytes, parked_budget=parked)
        self.batcher = StepBatcher(device.is_out_of_memory)
        self._attacher = Attacher(library, self._cache, self.batcher)

    @contextmanager
    def borrow(
        self,
        model: str,
        *,
        task: str,
        loras: Sequence[Any] = (),
        textual_inversions: Sequence[str] = (),
        scheduler: str | None = None,
        vae_tiling: bool = False,
        attachments: Sequence[Attachment] = (),
        priority: int = 5,
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[BorrowedPipeline]:
        """A pipeline of this model for this task, with its additions and attachments; on leaving, they are off again.

        `loras` have `.model` (an id) and `.weight`. `check` raises when the borrower is to end; it is asked while a
        call waits for others, of which those of the higher `priority` go first.
        """
        row = self._library.require(model, task=task)
        parts = [self._library.require(part) for part in row.spec.parts]
        attacher, turn = self._attacher, Session(priority, check=check)
        attached_rows = [attacher.fitting(wish.model, row) for wish in attachments]
        beside = [part for other in attached_rows for part in (other, *attacher.all_parts(other))]
        lora_parts = [Addition(part.spec.id, part.path) for part in (*parts, *beside) if part.spec.kind == "lora"]
        lora_additions = lora_parts + [self._addition(lora.model, "lora", row, lora.weight) for lora in loras]
        inversions = [self._addition(id, "embedding", row) for id in textual_inversions]
        at = self.device
        key = key_of(row, parts, at)
        load = functools.partial(self._load, row, parts, at)
        drop_replaced(self._cache, row.spec.id, key)
        with ExitStack() as stack:
            checkpoint = stack.enter_context(self._cache.borrow(key, load, estimate=self._estimate(row, parts)))
            attached = Attached.of(
                [
                    stack.enter_context(attacher.attached(wish, other, checkpoint, row.spec.id, turn))
                    for wish, other in zip(attachments, attached_rows, strict=True)
                ]
            )
            lora_additions += attached.loras
            stock = checkpoint.view(task, scheduler, [control.network for control in attached.controls])
            if attached.starts_at_sigma:
                start_at_sigma(stock.scheduler)
            stack.enter_context(previews.watching(stock.scheduler))
            wardrobe = checkpoint.wardrobe
            plain = ATTACHED if attached.branches and checkpoint.is_compiled else adapters.PLAIN
            outfit = stack.enter_context(self._dressed(checkpoint, stock, lora_additions, inversions, turn, plain))
            session = Session(priority, outfit.key, check, functools.partial(wardrobe.wear, outfit))
            prompts = _prompt_encoder(checkpoint, outfit.vectors, plain=not lora_additions and not inversions)

            yield BorrowedPipeline(
                stock,
                prompts,
                task,
                device=checkpoint.device,
                batcher=self.batcher,
                session=session,
                room=self._room(key, checkpoint),
                vae_tiling=vae_tiling or checkpoint.placement.strategy.decodes_in_tiles,
                sliced_attention=checkpoint.placement.strategy is Offload.ATTENTION,
                compiled=checkpoint.is_compiled and not attached.branches,
                attached=attached,
                notes=licence_notes(part.spec for part in beside),
            )

    @contextmanager
    def face_reader(self, model: str, *, priority: int = 5, check: Callable[[], None] = lambda: None) -> Iterator[Any]:
        """The face models that belong to an identity model, or are this one, while the device is held."""
        with self._attacher.face_reader(model, self.device, Session(priority, check=check)) as faces:
            yield faces

    @contextmanager
    def map_maker(self, task: str, *, priority: int = 5, check: Callable[[], None] = lambda: None) -> Iterator[Any]:
        """The best installed model that draws maps for this task, while the device is held."""
        with self._attacher.map_maker(task, self.device, Session(priority, check=check)) as maker:
            yield maker

    @contextmanager
    def alone(
        self, model: str, *, task: str, priority: int = 5, check: Callable[[], None] = lambda: None
    ) -> Iterator[Any]:
        """What a row that serves by itself opens, ready for one run; each of its passes waits for a turn."""
        row = self._library.require(model, task=task)
        turn = functools.partial(self.batcher.turn, Session(priority, check=check))
        with self._attacher.alone(row, self.device) as opened:
            yield opened.at_work(turn, check)

    @contextmanager
    def editor(
        self,
        model: str,
        *,
        task: str,
        loras: Sequence[Any] = (),
        priority: int = 5,
        check: Callable[[], None] = lambda: None,
    ) -> Iterator[Any]:
        """What edits pictures by instructions with this model and its LoRAs, its weights pinned for the block.

        It takes turns on the device by itself; `check` raises when the borrower is to end.
        """
        row = self._library.require(model, task=task)
        parts = self._attacher.all_parts(row)
        device = self.device.for_model(self._stored(row, parts))
        with ExitStack() as stack:
            opened = stack.enter_context(self._attacher.opened(row, parts, device))
            room = self._room(key_of(row, parts, device), opened)
            editor = opened.editor(self.batcher, priority=priority, check=check, room=room)
            if loras:
                additions = [self._addition(lora.model, "lora", row, lora.weight) for lora in loras]
                stack.enter_context(editor.wearing(additions))
            yield editor

    @contextmanager
    def trainer(
        self, model: str, plan: TrainingPlan, *, priority: int = 5, check: Callable[[], None] = lambda: None
    ) -> Iterator[LoraTrainer]:
        """A LoRA that learns on this model, whose weights stay pinned for the block and serve other borrowers too."""
        row = self._library.require(model)
        family, turns = row.spec.family, {"batcher": self.batcher, "session": Session(priority, check=check)}
        if family in EDITORS:
            beside = self._attacher.all_parts(row)
            device = self.device.for_model(self._stored(row, beside))
            with (
                self._attacher.opened(row, beside, device) as opened,
                open_trainer(opened, family, opened.lessons(plan, self.batcher), plan, **turns) as trainer,
            ):
                yield trainer
            return
        parts = [self._library.require(part) for part in row.spec.parts]
        key = key_of(row, parts, self.device)
        drop_replaced(self._cache, row.spec.id, key)
        load = functools.partial(self._load, row, parts, self.device)
        with self._cache.borrow(key, load, estimate=self._estimate(row, parts)) as checkpoint:

            def pipeline_for(session: Session, scheduler: str | None) -> BorrowedPipeline:
                prompts = _prompt_encoder(checkpoint, adapters.PLAIN.vectors, plain=False)
                stock = checkpoint.view("text-to-image", scheduler)
                more = {"device": checkpoint.device, "batcher": self.batcher, "session": session}
                return BorrowedPipeline(stock, prompts, "text-to-image", **more)

            lessons = UNetLessons(checkpoint, family, plan, pipeline_for)
            with open_trainer(checkpoint, family, lessons, plan, **turns) as trainer:
                yield trainer

    def _room(self, key: str, opened: Any) -> Room:
        """How a borrower of this model gets more of the device's memory."""

        def park_others() -> bool:
            return self._cache.park_unpinned() | opened.wardrobe.clear()

        def stream() -> bool:
            needs = opened.stream()
            if needs is not None:
                self._cache.note_needs(key, needs)
            return needs is not None

        return Room(park_others, stream)

    def _load(self, row: ModelRow, parts: Sequence[ModelRow], at: TorchDevice) -> Checkpoint:
        """What the row's loader makes of its files and parts."""
        module, _, name = row.spec.loader.partition(":")
        device = at.for_model(self._stored(row, parts))
        return getattr(importlib.import_module(module), name)(row.spec, row.path, device, parts=parts)

    @contextmanager
    def _dressed(
        self,
        checkpoint: Checkpoint,
        stock: Any,
        loras: Sequence[Addition],
        inversions: Sequence[Addition],
        turn: Session,
        plain: adapters.Outfit,
    ) -> Iterator[adapters.Outfit]:
        """The outfit of these additions; on leaving it comes off, unless another borrow has changed clothes since."""
        if not loras and not inversions:
            yield plain
            return
        with self.batcher.turn(turn):
            outfit = checkpoint.wardrobe.make(stock, loras, inversions)
        try:
            yield outfit
        finally:
            with self.batcher.turn(Session(turn.priority)):
                if checkpoint.wardrobe.worn is outfit:
                    checkpoint.wardrobe.wear(None)

    def nudge(self) -> None:
        """Let calls that wait for others look whether their job is to end."""
        self.batcher.nudge()

    def generators(self, seed: int, count: int) -> list[torch.Generator]:
        """One noise source for each picture, on the CPU: a seed means the same picture on every device."""
        return self.device.generators(seed, count)

    def preview(self, pipeline: Any, latents: torch.Tensor) -> Image.Image:
        """A cheap picture of what the last step foretells; `pipeline` is the borrowed one, the stock one in it, or an
        editor that draws its own.
        """
        if hasattr(pipeline, "preview"):
            return pipeline.preview(latents)
        stock = getattr(pipeline, "stock", pipeline)
        return previews.preview(stock.vae, previews.estimate(stock.scheduler, latents))

    def memory(self) -> dict[str, Any]:
        """The device's bytes, every model's place, and what forwards served how many calls, as plain data."""
        device, models = self.device, self._cache.models()
        return {
            "device": device.name,
            "precision": device.precision if device.precision != AUTO else str(device.dtype).removeprefix("torch."),
            "total_bytes": device.total_bytes(),
            "free_bytes": device.free_bytes(),
            "reserved_bytes": device.used_bytes(),
            "allocated_bytes": device.allocated_bytes(),
            "placed_bytes": self._cache.bytes_in(ModelState.PLACED),
            "parked_bytes": self._cache.bytes_in(ModelState.PARKED) + self._cache.visiting_bytes(),
            "forwards": vars(self.batcher.counts).copy(),
            "models": [_described(entry, models.get(entry["key"])) for entry in self._cache.describe()],
        }

    def configure(
        self, *, offload: str, precision: str, model_memory_bytes: int | None, parked_memory_bytes: int | None
    ) -> None:
        """Other settings from now on; a model that is borrowed stays as it is until it is given back.

        Models that were opened under another strategy or precision are dropped, and opened anew when they are next
        asked for. `InvalidRequest`, `DependencyMissing`: nothing has changed.
        """
        check_package(precision)
        device = TorchDevice(self.device.name, precision, offload=offload, compiles=self.device.compiles)
        self.device = device
        parked = parked_default() if parked_memory_bytes is None else parked_memory_bytes
        self._cache.set_budgets(model_memory_bytes, parked)
        self._cache.keep_only(lambda key: key.endswith(settings_of(device)))

    def clean_up(self) -> None:
        """Drop every model that no job uses, also those parked in RAM, and give freed memory back to the machine."""
        self._cache.clear()
        self.device.trim()

    def resident(self) -> list[str]:
        """Ids of the models on the device, most recently used first."""
        return [model_of(entry["key"]) for entry in self._cache.describe() if entry["state"] == ModelState.PLACED.value]

    def translate(self, error: BaseException) -> ServiceError | None:
        """What a caller may be told of this error; None where it means nothing to one."""
        if isinstance(error, ServiceError):
            return error
        if self.device.is_out_of_memory(error):
            self.device.empty_cache()
            return OutOfMemory(OUT_OF_MEMORY)
        return None

    def close(self) -> None:
        """Drop every model."""
        self._cache.clear()

    def _addition(self, id: str, kind: str, row: ModelRow, weight: float = 1.0) -> Addition:
        found = self._library.require(id)
        if found.spec.kind != kind:
            wanted = "LoRA" if kind == "lora" else "textual inversion"
            raise InvalidRequest(f"The model {id!r} is no {wanted}.", model=id)
        if found.spec.family not in {row.spec.family, "other"}:
            raise InvalidRequest(
                f"{id!r} was made for {found.spec.family}; the model {row.spec.id!r} is {row.spec.family}.", model=id
            )
        shift = found.spec.options.get("shift")
        return Addition(id, found.path, weight, found.spec.options.get("token"), float(shift) if shift else None)

    def _estimate(self, row: ModelRow, parts: Sequence[ModelRow]) -> int:
        """Bytes by the files, as if they held the device's number format or half of a 32-bit one."""
        stored = self._stored(row, parts)
        is_half = row.spec.options.get("variant") == "fp16"
        return stored * 2 if is_half and self.device.for_model(stored).dtype is torch.float32 else stored

    def _stored(self, row: ModelRow, parts: Sequence[ModelRow]) -> int:
        return row.bytes_on_disk + sum(part.bytes_on_disk for part in parts if part.spec.kind != "lora")


def _prompt_encoder(checkpoint: Checkpoint, vectors: adapters.Vectors, plain: bool) -> PromptEncoder:
    """Remembers the last texts as long as the checkpoint is as it was loaded; additions change what texts mean."""
    if not plain:
        return build_prompt_encoder(checkpoint, vectors)
    if checkpoint.prompt_encoder is None:
        checkpoint.prompt_encoder = build_prompt_encoder(checkpoint, vectors)
    return checkpoint.prompt_encoder


def build_prompt_encoder(checkpoint: Checkpoint, vectors: adapters.Vectors) -> PromptEncoder:
    """The prompt encoder of a checkpoint with the given textual inversions."""
    parts = checkpoint.components
    is_xl = "text_encoder_2" in parts
    encoders = [Encoder(parts["tokenizer"], parts["text_encoder"], is_xl, vectors[0])]
    if is_xl:
        encoders.append(Encoder(parts["tokenizer_2"], parts["text_encoder_2"], True, vectors[1]))
    return PromptEncoder(encoders, zero_empty=is_xl and checkpoint.flags["force_zeros_for_empty_prompt"])


def open_runtime(
    *,
    device: str,
    library: ModelLibrary,
    precision: str = AUTO,
    offload: str = AUTO,
    compile: bool = False,
    model_memory_bytes: int | None = None,
    parked_memory_bytes: int | None = None,
) -> Runtime:
    """Open a device for a worker."""
    for library_logging in (diffusers.utils.logging, transformers.utils.logging):
        library_logging.set_verbosity_error()
        library_logging.disable_progress_bar()
    check_package(precision)
    if compile:
        compiling.prepare(library.folder.parent)
    return Runtime(
        TorchDevice(device, precision, offload=offload, compiles=compile),
        library,
        model_memory_bytes=model_memory_bytes,
        parked_memory_bytes=parked_memory_bytes,
    )


def _described(entry: dict[str, Any], model: Any) -> dict[str, Any]:
    """A model's account with the strategy it stands under; an entry's key is the cache's own affair.

    What stands beside checkpoints (face models, identity weights) knows no strategy: it is placed whole.
    """
    placement = getattr(model, "placement", None) if entry["state"] == ModelState.PLACED else None
    strategy = placement.strategy.value if placement is not None else None
    return {"model": model_of(entry["key"]), **{k: v for k, v in entry.items() if k != "key"}, "strategy": strategy}
