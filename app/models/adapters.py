"""What is put on a model for one borrow: LoRAs and textual inversions, each a context manager that takes it off again.

Whatever happens inside the block, the model is afterwards bit for bit what it was before. The layers of the last sets
of LoRAs stay on a shelf beside the model, so that the next borrow with the same set need not read and build them again
(a second for SDXL); the price is the memory of those layers.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import (
    convert_state_dict_to_diffusers,
    convert_state_dict_to_peft,
    convert_unet_state_dict_to_peft,
)
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from app.errors import InvalidRequest

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
_MATRIX = re.compile(r"(?P<module>.+)\.lora_(?P<side>A|B)\.weight")


@dataclass(frozen=True)
class Addition:
    """An installed addition: its id, its file, how strongly it acts, and the word that calls a textual inversion."""

    id: str
    file: Path
    weight: float = 1.0
    token: str | None = None


Place = tuple[torch.nn.Module, str, torch.nn.Module]
"""A parent module, the name of its child, and the layer with LoRAs that stood there in the child's place."""


class LoraShelf:
    """The layers of the last few sets of LoRAs that were on one checkpoint."""

    def __init__(self, capacity: int = 2) -> None:
        self._capacity = capacity
        self._sets: dict[tuple[Any, ...], list[Place]] = {}

    def __len__(self) -> int:
        return len(self._sets)

    def take(self, key: tuple[Any, ...]) -> list[Place] | None:
        """The layers of this set; they are off the shelf then."""
        return self._sets.pop(key, None)

    def keep(self, key: tuple[Any, ...], places: list[Place]) -> None:
        """Lay a set there; the oldest goes when there are too many."""
        self._sets[key] = places
        while len(self._sets) > self._capacity:
            self._sets.pop(next(iter(self._sets)))

    def clear(self) -> bool:
        """Throw everything away; whether there was anything."""
        had_any = bool(self._sets)
        self._sets.clear()
        return had_any


@contextmanager
def loras(pipeline: Any, additions: Sequence[Addition], shelf: LoraShelf | None = None) -> Iterator[None]:
    """These LoRAs on the pipeline's UNet and text encoders, together; off again on leaving.

    `InvalidRequest` for a LoRA that was made for another model; nothing is put on then.
    """
    if not additions:
        yield
        return
    shelf = LoraShelf() if shelf is None else shelf
    key = tuple((addition.file, addition.file.stat().st_mtime_ns, addition.weight) for addition in additions)
    places = shelf.take(key)
    try:
        if places is None:
            names = [f"addition_{number}" for number in range(len(additions))]
            for name, addition in zip(names, additions, strict=True):
                _put_on(pipeline, name, addition)
            pipeline.set_adapters(names, [addition.weight for addition in additions])
            places = list(_places(pipeline))
        else:
            for parent, name, layer in places:
                setattr(parent, name, layer)
        yield
    finally:
        pipeline.unload_lora_weights()
        if places:
            shelf.keep(key, places)


def _places(pipeline: Any) -> Iterator[Place]:
    for component in COMPONENTS:
        root = pipeline.components.get(component)
        for path, layer in root.named_modules() if root is not None else ():
            if isinstance(layer, BaseTunerLayer):
                parent, _, name = path.rpartition(".")
                yield root.get_submodule(parent), name, layer


def _put_on(pipeline: Any, name: str, addition: Addition) -> None:
    _refuse_dora(addition)
    is_xl = getattr(pipeline, "text_encoder_2", None) is not None
    more = {"unet_config": pipeline.unet.config} if is_xl else {}
    try:
        state, alphas, metadata = pipeline.lora_state_dict(
            str(addition.file.parent),
            weight_name=addition.file.name,
            return_lora_metadata=True,
            use_safetensors=True,
            local_files_only=True,
            **more,
        )
    except (OSError, SafetensorError) as error:
        raise InvalidRequest(f"The LoRA {addition.id!r} cannot be read.", lora=addition.id) from error
    except (ValueError, KeyError, IndexError, AttributeError, RuntimeError, NotImplementedError) as error:
        # diffusers meets foreign key names with whatever its parsing stumbles over.
        raise _misfit(addition) from error
    _check_fit(pipeline, state, addition)
    shared = {"network_alphas": alphas, "metadata": metadata, "adapter_name": name, "_pipeline": pipeline}
    pipeline.load_lora_into_unet(state, unet=pipeline.unet, **shared)
    for component in ("text_encoder", "text_encoder_2"):
        module = getattr(pipeline, component, None)
        if module is not None and any(key.startswith(component + ".") for key in state):
            pipeline.load_lora_into_text_encoder(
                state, text_encoder=module, prefix=component, lora_scale=pipeline.lora_scale, **shared
            )


def _refuse_dora(addition: Addition) -> None:
    """diffusers leaves a DoRA's magnitudes out with a warning in the log, and draws another picture than it says."""
    try:
        with safe_open(addition.file, "pt") as weights:
            names = list(weights.keys())
    except (OSError, SafetensorError) as error:
        raise InvalidRequest(f"The LoRA {addition.id!r} cannot be read.", lora=addition.id) from error
    if any(name.endswith("dora_scale") for name in names):
        raise InvalidRequest(f"{addition.id!r} is a DoRA, which is not served; plain LoRAs are.", lora=addition.id)


def _check_fit(pipeline: Any, state: Mapping[str, torch.Tensor], addition: Addition) -> None:
    """Every matrix of the LoRA belongs to a module of the model and has its shape."""
    seen = 0
    for component in COMPONENTS:
        prefix = component + "."
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if not part:
            continue
        if component == "unet":
            part = convert_unet_state_dict_to_peft(part)
        else:
            part = convert_state_dict_to_peft(convert_state_dict_to_diffusers(part))
        modules = dict(pipeline.components[component].named_modules()) if component in pipeline.components else {}
        for key, matrix in part.items():
            found = _MATRIX.fullmatch(key)
            if found is None:
                continue
            layer = _find(modules, found["module"])
            weight = getattr(getattr(layer, "base_layer", layer), "weight", None)
            axis = 1 if found["side"] == "A" else 0
            if weight is None or weight.shape[axis] != matrix.shape[axis]:
                raise _misfit(addition)
            seen += 1
    if not seen:
        raise _misfit(addition)


def _find(modules: Mapping[str, Any], path: str) -> Any:
    """CLIPTextModel is flat in new versions of transformers and wraps a `text_model` in older ones."""
    flat = path.removeprefix("text_model.")
    return next((modules[name] for name in (path, flat, f"text_model.{flat}") if name in modules), None)


def _misfit(addition: Addition) -> InvalidRequest:
    return InvalidRequest(f"The LoRA {addition.id!r} was not made for this model.", lora=addition.id)


class ExtendedEmbedding(torch.nn.Module):
    """A token embedding with further rows behind its own; the own table is shared, not copied."""

    def __init__(self, table: torch.nn.Embedding, rows: torch.Tensor) -> None:
        super().__init__()
        self.table = table
        self.rows = rows

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """[..., width] for ids below the number of all rows."""
        own = self.table.num_embeddings
        embedded = self.table(ids.clamp(max=own - 1))
        added = self.rows[(ids - own).clamp(min=0)]
        return torch.where((ids >= own)[..., None], added, embedded)


Vectors = tuple[dict[str, tuple[int, ...]], ...]


@contextmanager
def textual_inversions(text_encoders: Sequence[Any], additions: Sequence[Addition]) -> Iterator[Vectors]:
    """These textual inversions in the encoders' embedding tables; out again on leaving.

    Yields, for each encoder, token -> the ids of its rows. The token is the addition's, else the one in the file, else
    the id.
    """
    if not additions:
        yield tuple({} for _ in text_encoders)
        return
    rows: list[list[torch.Tensor]] = [[] for _ in text_encoders]
    vectors: Vectors = tuple({} for _ in text_encoders)
    for addition in additions:
        token, tensors = _read_vectors(addition, text_encoders)
        if any(token.lower() == known.lower() for known in vectors[0]):
            raise InvalidRequest(f"Two textual inversions share the token {token[:80]!r}.", token=token[:80])
        for number, (model, tensor) in enumerate(zip(text_encoders, tensors, strict=True)):
            first = _embeddings(model).token_embedding.num_embeddings + sum(len(part) for part in rows[number])
            vectors[number][token] = tuple(range(first, first + len(tensor)))
            rows[number].append(tensor)
    with ExitStack() as undo:
        for model, parts in zip(text_encoders, rows, strict=True):
            holder = _embeddings(model)
            table = holder.token_embedding
            undo.callback(setattr, holder, "token_embedding", table)
            holder.token_embedding = ExtendedEmbedding(table, torch.cat(parts).to(table.weight))
        yield vectors


def _embeddings(model: Any) -> Any:
    return getattr(model, "text_model", model).embeddings


def _read_vectors(addition: Addition, text_encoders: Sequence[Any]) -> tuple[str, list[torch.Tensor]]:
    try:
        state = load_file(addition.file)
    except (OSError, SafetensorError) as error:
        raise InvalidRequest(f"The textual inversion {addition.id!r} cannot be read.", model=addition.id) from error
    token = addition.id
    if "clip_l" in state or "clip_g" in state:
        tensors = [state.get(name) for name in ("clip_l", "clip_g")]
    elif "emb_params" in state:
        tensors = [state["emb_params"]]
    elif len(state) == 1:
        token, tensor = next(iter(state.items()))
        tensors = [tensor]
    else:
        tensors = []
    widths = [_embeddings(model).token_embedding.embedding_dim for model in text_encoders]
    tensors = [tensor[None] if tensor is not None and tensor.ndim == 1 else tensor for tensor in tensors]
    if [tensor.shape[-1] if tensor is not None and tensor.ndim == 2 else None for tensor in tensors] != widths:
        raise InvalidRequest(f"The textual inversion {addition.id!r} was not made for this model.", model=addition.id)
    if any(len(tensor) > 75 for tensor in tensors):
        raise InvalidRequest(f"The textual inversion {addition.id!r} has more than 75 vectors.", model=addition.id)
    return addition.token or token, tensors
