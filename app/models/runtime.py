"""The one entry point that a worker loads by name: a device, its model cache, and pipelines to borrow.

A borrow leaves the model as it found it: additions and tiling are undone in reverse order, whatever happened in
between, and every call puts the number formats back.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import diffusers
import torch
import transformers
from PIL import Image

from app.core.model_offload import ModelCache, ModelState
from app.errors import InvalidRequest, OutOfMemory, ServiceError
from app.models import adapters, previews
from app.models.adapters import Addition
from app.models.device import TorchDevice, parked_default
from app.models.library import ModelLibrary, ModelRow
from app.models.pipelines import Checkpoint
from app.models.prompts import Encoder, PromptEncoder

PROMPT_ARGUMENTS = ("prompt", "negative_prompt", "clip_skip")
OUT_OF_MEMORY = (
    "The device's memory did not suffice for this run, also after other models were moved away and with the picture "
    "decoded in tiles. Lower the width and height, or choose a smaller model or number format (EIS_PRECISION)."
)


class BorrowedPipeline:
    """A stock diffusers pipeline, called with diffusers' argument names; prompts are understood by `prompts`.

    When a call runs out of memory it is repeated, from the same noise, after one measure of `_measures` after the
    other. `notes` says in sentences what such a measure changed about the picture.
    """

    def __init__(
        self,
        stock: Any,
        prompts: PromptEncoder,
        task: str,
        *,
        device: TorchDevice,
        park_others: Callable[[], bool] = lambda: False,
    ) -> None:
        self.stock = stock
        self.task = task
        self.notes: list[str] = []
        self._prompts = prompts
        self._device = device
        self._park_others = park_others

    @property
    def size_multiple(self) -> int:
        """Width and height must be multiples of this (pixels)."""
        return self.stock.vae_scale_factor

    @property
    def default_size(self) -> tuple[int, int]:
        """(width, height) that the model was trained at."""
        sample = self.stock.unet.config.sample_size
        width, height = (sample[1], sample[0]) if isinstance(sample, list | tuple) else (sample, sample)
        return width * self.stock.vae_scale_factor, height * self.stock.vae_scale_factor

    @property
    def num_inference_timesteps(self) -> int:
        """How many steps the running call takes; 0 before the first."""
        return getattr(self.stock, "_num_timesteps", 0) or 0

    def count_timesteps(self, num_inference_steps: int, strength: float | None = None) -> int:
        """How many steps a call will take: some schedulers take two for one, and `strength` leaves the first out.

        `InvalidRequest` where the scheduler cannot take that many.
        """
        scheduler = type(self.stock.scheduler).from_config(self.stock.scheduler.config)
        try:
            scheduler.set_timesteps(num_inference_steps)
        except ValueError as error:
            limit = scheduler.config.get("original_inference_steps")
            most = f" at most {limit}" if limit else " fewer"
            raise InvalidRequest(
                f"This scheduler takes{most} steps, not {num_inference_steps}.", field="num_inference_steps"
            ) from error
        if strength is None:
            return len(scheduler.timesteps)
        first = max(num_inference_steps - min(int(num_inference_steps * strength), num_inference_steps), 0)
        return max(0, len(scheduler.timesteps) - first * scheduler.order)

    def __call__(self, **arguments: Any) -> Any:
        """Run the stock pipeline; the answer has `.images`, a list of PIL RGB pictures."""
        steps, strength = arguments.get("num_inference_steps"), arguments.get("strength")
        if steps is not None and not self.count_timesteps(steps, strength):
            raise InvalidRequest(
                f"{steps} steps at strength {strength:g} are less than one step; raise one of them.", field="strength"
            )
        sources = _as_sources(arguments.get("generator"))
        states = [source.get_state() for source in sources]
        for relieve in (None, *self._measures()):
            if relieve is not None and not relieve():
                continue
            for source, state in zip(sources, states, strict=True):
                source.set_state(state)
            try:
                with torch.no_grad(), _kept_format(self.stock.vae):
                    return self.stock(**self._with_embeddings(arguments))
            except Exception as error:
                if not self._device.is_out_of_memory(error):
                    raise
            # Outside the handler, whose traceback would keep the failed call's tensors alive.
            self._device.empty_cache()
        raise OutOfMemory(OUT_OF_MEMORY)

    def _measures(self) -> tuple[Callable[[], bool], ...]:
        """What is tried against a lack of memory, mildest first; each answers whether it could do anything."""
        return self._park_others, self._decode_in_tiles

    def _decode_in_tiles(self) -> bool:
        if self.stock.vae.use_tiling:
            return False
        self.stock.vae.enable_tiling()
        self.notes.append("The device's memory did not suffice, so the picture was decoded in tiles.")
        return True

    def _with_embeddings(self, arguments: dict[str, Any]) -> dict[str, Any]:
        rest = {name: value for name, value in arguments.items() if name not in PROMPT_ARGUMENTS}
        if "prompt" not in arguments:
            return rest
        prompts = _as_list(arguments["prompt"])
        negative = arguments.get("negative_prompt")
        negatives = None if negative is None else _as_list(negative)
        if negatives is not None and len(negatives) == 1:
            negatives *= len(prompts)
        guidance = arguments.get("guidance_scale", _default(self.stock, "guidance_scale"))
        embeddings = self._prompts.arguments(
            prompts,
            negatives,
            guided=guidance > 1 and self.stock.unet.config.time_cond_proj_dim is None,
            clip_skip=arguments.get("clip_skip"),
        )
        return rest | embeddings


class Runtime:
    """One device with its models.

    Borrows of one model may overlap unless one of them has additions; calls of its pipelines may not.
    """

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
    ) -> Iterator[BorrowedPipeline]:
        """A pipeline of this model for this task, with its additions on; on leaving, they are off again.

        `loras` have `.model` (an id) and `.weight`.
        """
        row = self._library.require(model, task=task)
        parts = [self._library.require(part) for part in row.spec.parts]
        lora_parts = [Addition(part.spec.id, part.path) for part in parts if part.spec.kind == "lora"]
        lora_additions = lora_parts + [self._addition(lora.model, "lora", row, lora.weight) for lora in loras]
        inversions = [self._addition(id, "embedding", row) for id in textual_inversions]
        key = _key(row, parts)

        def load() -> Checkpoint:
            module, _, name = row.spec.loader.partition(":")
            return getattr(importlib.import_module(module), name)(row.spec, row.path, self.device, parts=parts)

        self._drop_replaced(row.spec.id, key)
        with ExitStack() as stack:
            checkpoint = stack.enter_context(self._cache.borrow(key, load, estimate=self._estimate(row, parts)))
            stock = checkpoint.view(task, scheduler)
            stack.enter_context(previews.watching(stock.scheduler))
            stack.enter_context(adapters.loras(stock, lora_additions, checkpoint.lora_shelf))
            models = [part for name in ("text_encoder", "text_encoder_2") if (part := checkpoint.components.get(name))]
            vectors = stack.enter_context(adapters.textual_inversions(models, inversions))
            stack.callback(setattr, stock.vae, "use_tiling", stock.vae.use_tiling)
            if vae_tiling:
                stock.vae.enable_tiling()
            prompts = _prompt_encoder(checkpoint, vectors, plain=not lora_additions and not inversions)

            def park_others() -> bool:
                return self._cache.park_unpinned() | checkpoint.lora_shelf.clear()

            yield BorrowedPipeline(stock, prompts, task, device=self.device, park_others=park_others)

    def generators(self, seed: int, count: int) -> list[torch.Generator]:
        """One noise source for each picture, on the CPU: a seed means the same picture on every device."""
        return self.device.generators(seed, count)

    def preview(self, pipeline: Any, latents: torch.Tensor) -> Image.Image:
        """A cheap picture of what the last step foretells; `pipeline` is the borrowed one or the stock one in it."""
        stock = getattr(pipeline, "stock", pipeline)
        return previews.preview(stock.vae, previews.estimate(stock.scheduler, latents))

    def memory(self) -> dict[str, Any]:
        """The device's bytes and every model's place, as plain data."""
        return {
            "device": self.device.name,
            "total_bytes": self.device.total_bytes(),
            "free_bytes": self.device.free_bytes(),
            "used_bytes": self.device.used_bytes(),
            "placed_bytes": self._cache.bytes_in(ModelState.PLACED),
            "parked_bytes": self._cache.bytes_in(ModelState.PARKED),
            "models": [{"model": _model_of(entry.pop("key")), **entry} for entry in self._cache.describe()],
        }

    def resident(self) -> list[str]:
        """Ids of the models on the device, most recently used first."""
        return [
            _model_of(entry["key"]) for entry in self._cache.describe() if entry["state"] == ModelState.PLACED.value
        ]

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
        return Addition(id, found.path, weight, found.spec.options.get("token"))

    def _drop_replaced(self, id: str, key: str) -> None:
        """Drop what was read from files that have been replaced since."""
        known = [entry["key"] for entry in self._cache.describe()]
        if any(_model_of(other) == id and other != key for other in known):
            self._cache.keep_only(lambda other: _model_of(other) != id or other == key)

    def _estimate(self, row: ModelRow, parts: Sequence[ModelRow]) -> int:
        """Bytes by the files, as if they held the device's number format or half of a 32-bit one."""
        stored = row.bytes_on_disk + sum(part.bytes_on_disk for part in parts if part.spec.kind != "lora")
        is_half = row.spec.options.get("variant") == "fp16"
        return stored * 2 if is_half and self.device.dtype is torch.float32 else stored


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
    precision: str = "auto",
    model_memory_bytes: int | None = None,
    parked_memory_bytes: int | None = None,
) -> Runtime:
    """Open a device for a worker."""
    for library_logging in (diffusers.utils.logging, transformers.utils.logging):
        library_logging.set_verbosity_error()
        library_logging.disable_progress_bar()
    return Runtime(
        TorchDevice(device, precision),
        library,
        model_memory_bytes=model_memory_bytes,
        parked_memory_bytes=parked_memory_bytes,
    )


@contextmanager
def _kept_format(vae: Any) -> Iterator[None]:
    """The VAE's number format comes back: SDXL decodes in float32 and is left there when a run breaks off."""
    dtype = vae.dtype
    try:
        yield
    finally:
        if vae.dtype != dtype:
            vae.to(dtype=dtype)


def _key(row: ModelRow, parts: Sequence[ModelRow]) -> str:
    """Id and what the files were when they were read, so that a replaced model is loaded anew."""
    stamps = [str(part.path.stat().st_mtime_ns) for part in (row, *parts) if part.path]
    return "@".join([row.spec.id, ".".join(stamps)])


def _model_of(key: str) -> str:
    return key.partition("@")[0]


def _as_sources(generator: Any) -> list[torch.Generator]:
    if generator is None:
        return []
    return list(generator) if isinstance(generator, list | tuple) else [generator]


def _as_list(text: str | Sequence[str]) -> list[str]:
    return [text] if isinstance(text, str) else list(text)


def _default(stock: Any, name: str) -> Any:
    return inspect.signature(type(stock).__call__).parameters[name].default
