"""What is put on a model for one borrow: LoRAs and textual inversions, as an outfit that is worn and taken off.

Several borrows of one model may have different outfits at once; whoever works on the device wears its own, and putting
one on is a few hundred assignments. Whatever happened, an undressed model is bit for bit what it was before. The layers
of the last sets of LoRAs stay on a shelf beside the model, so that the next borrow with the same set need not read and
build them again (a second for SDXL); the price is the memory of those layers.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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
MATRIX = re.compile(r"(?P<module>.+)\.lora_(?P<side>A|B)\.weight")
UNREADABLE = (
    AssertionError, AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""What diffusers' parsing stumbles over where key names or shapes are foreign."""


@dataclass(frozen=True)
class Addition:
    """An installed addition: its id, its file, how strongly it acts, and the word that calls a textual inversion.

    `shift` is that of the noise schedule which a distilled LoRA knows.
    """

    id: str
    file: Path
    weight: float = 1.0
    token: str | None = None
    shift: float | None = None


Place = tuple[torch.nn.Module, str, torch.nn.Module]
"""A parent module, the name of its child, and the layer with LoRAs that stands there in the child's place."""

Vectors = tuple[dict[str, tuple[int, ...]], ...]
"""For each text encoder: the token of a textual inversion -> the ids of its rows."""


@dataclass(frozen=True, eq=False)
class Outfit:
    """What one borrow has on; two with one `key` have the same effect. `vectors` is for the prompt encoder."""

    key: tuple[Any, ...] = ()
    places: tuple[Place, ...] = ()
    vectors: Vectors = ({}, {})

    def put_on(self) -> None:
        """Put every layer in its child's place."""
        for parent, name, layer in self.places:
            setattr(parent, name, layer)

    def take_off(self) -> None:
        """Put every child back in its place."""
        for parent, name, layer in self.places:
            setattr(parent, name, layer.base_layer if isinstance(layer, BaseTunerLayer) else layer.table)


PLAIN = Outfit()
"""Nothing on."""


@dataclass
class Wardrobe:
    """The outfits of one checkpoint, of which it wears at most one; used by whoever works on the device.

    At most `capacity` sets of LoRA layers stay when nobody borrows them. `layers` makes them, which `building` lets it
    do while the model stands as they need it; `on_change` hears that another outfit is worn.
    """

    capacity: int = 2
    worn: Outfit | None = None
    layers: Callable[[Any, Sequence[Addition]], list[Place]] = lambda pipeline, loras: lora_layers(pipeline, loras)
    building: Callable[[Callable[[], list[Place]]], list[Place]] = lambda make: make()
    on_change: Callable[[], None] = lambda: None
    _sets: dict[tuple[Any, ...], list[Place]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._sets)

    def wear(self, outfit: Outfit | None) -> None:
        """Change into this outfit; None undresses."""
        if outfit is self.worn:
            return
        if self.worn is not None:
            self.worn.take_off()
            self.worn = None
        if outfit is not None:
            outfit.put_on()
            self.worn = outfit
        self.on_change()

    def make(self, pipeline: Any, loras: Sequence[Addition] = (), inversions: Sequence[Addition] = ()) -> Outfit:
        """The outfit of these additions for the pipeline's modules; nothing is worn afterwards.

        `InvalidRequest` for an addition that was made for another model.
        """
        self.wear(None)
        encoders = [getattr(pipeline, name, None) for name in ("text_encoder", "text_encoder_2")]
        vectors, tables = extended_tables([encoder for encoder in encoders if encoder is not None], inversions)
        lora_key = tuple((one.file, one.file.stat().st_mtime_ns, one.weight) for one in loras)
        key = (lora_key, tuple((one.file, one.file.stat().st_mtime_ns, one.token) for one in inversions))
        return Outfit(key, (*self._layers(pipeline, loras, lora_key), *tables), vectors)

    def clear(self) -> bool:
        """Undress and throw away what nobody borrows; whether there was anything."""
        had_any = bool(self._sets)
        self._sets.clear()
        return had_any

    def _layers(self, pipeline: Any, additions: Sequence[Addition], key: tuple[Any, ...]) -> list[Place]:
        if not additions:
            return []
        places = self._sets.pop(key, None) or self.building(lambda: self.layers(pipeline, additions))
        self._sets[key] = places
        while len(self._sets) > self.capacity:
            self._sets.pop(next(iter(self._sets)))
        return places


def lora_layers(pipeline: Any, additions: Sequence[Addition]) -> list[Place]:
    """The layers with these LoRAs for the pipeline's UNet and text encoders; they are not in their places."""
    try:
        names = [f"addition_{number}" for number in range(len(additions))]
        for name, addition in zip(names, additions, strict=True):
            _put_on(pipeline, name, addition)
        pipeline.set_adapters(names, [addition.weight for addition in additions])
        return list(_places(pipeline))
    finally:
        pipeline.unload_lora_weights()


def _places(pipeline: Any) -> Iterator[Place]:
    for component in COMPONENTS:
        root = pipeline.components.get(component)
        for path, layer in root.named_modules() if root is not None else ():
            if isinstance(layer, BaseTunerLayer):
                parent, _, name = path.rpartition(".")
                yield root.get_submodule(parent), name, layer


def _put_on(pipeline: Any, name: str, addition: Addition) -> None:
    is_xl = getattr(pipeline, "text_encoder_2", None) is not None
    more = {"unet_config": pipeline.unet.config} if is_xl else {}
    state, alphas, metadata = read_lora(pipeline, addition, **more)
    _check_fit(pipeline, state, addition)
    shared = {"network_alphas": alphas, "metadata": metadata, "adapter_name": name, "_pipeline": pipeline}
    pipeline.load_lora_into_unet(state, unet=pipeline.unet, **shared)
    for component in ("text_encoder", "text_encoder_2"):
        module = getattr(pipeline, component, None)
        if module is not None and any(key.startswith(component + ".") for key in state):
            pipeline.load_lora_into_text_encoder(
                state, text_encoder=module, prefix=component, lora_scale=pipeline.lora_scale, **shared
            )


def read_lora(pipeline: Any, addition: Addition, **more: Any) -> tuple[Any, ...]:
    """What the pipeline's own `lora_state_dict` makes of a file: matrices, alphas where it has any, metadata.

    `more` are further arguments of it. `InvalidRequest` where it is no LoRA of the pipeline's family.
    """
    refuse_dora(addition)
    try:
        return pipeline.lora_state_dict(
            str(addition.file.parent),
            weight_name=addition.file.name,
            return_lora_metadata=True,
            use_safetensors=True,
            local_files_only=True,
            **more,
        )
    except (OSError, SafetensorError) as error:
        raise InvalidRequest(f"The LoRA {addition.id!r} cannot be read.", lora=addition.id) from error
    except UNREADABLE as error:
        raise misfit(addition) from error


def refuse_dora(addition: Addition) -> None:
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
            found = MATRIX.fullmatch(key)
            if found is None:
                continue
            layer = _find(modules, found["module"])
            weight = getattr(getattr(layer, "base_layer", layer), "weight", None)
            axis = 1 if found["side"] == "A" else 0
            if weight is None or weight.shape[axis] != matrix.shape[axis]:
                raise misfit(addition)
            seen += 1
    if not seen:
        raise misfit(addition)


def _find(modules: Mapping[str, Any], path: str) -> Any:
    """CLIPTextModel is flat in new versions of transformers and wraps a `text_model` in older ones."""
    flat = path.removeprefix("text_model.")
    return next((modules[name] for name in (path, flat, f"text_model.{flat}") if name in modules), None)


def misfit(addition: Addition) -> InvalidRequest:
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
        added = self.rows.to(embedded.device)[(ids - own).clamp(min=0)]
        return torch.where((ids >= own)[..., None], added, embedded)


def extended_tables(text_encoders: Sequence[Any], additions: Sequence[Addition]) -> tuple[Vectors, list[Place]]:
    """Where the rows of these textual inversions are found, and the encoders' embedding tables with those rows.

    The token is the addition's, else the one in the file, else the id.
    """
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
    places: list[Place] = []
    for model, parts in zip(text_encoders, rows, strict=True):
        if parts:
            table = _embeddings(model).token_embedding
            places.append(
                (_embeddings(model), "token_embedding", ExtendedEmbedding(table, torch.cat(parts).to(table.weight)))
            )
    return vectors, places


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
