"""LoRAs on an editor's transformer (Qwen-Image's, FLUX's), as layers that are worn; see `app.models.adapters`.

What a file's keys mean is for diffusers' own converters to say: a stock pipeline of the family reads the file.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer

from app.models.adapters import MATRIX, Addition, Place, misfit, read_lora

PREFIX = "transformer."


def lora_layers(pipeline: Any, additions: Sequence[Addition]) -> list[Place]:
    """The layers with these LoRAs for the pipeline's network; they are not in their places."""
    network = pipeline.transformer
    try:
        names = [f"addition_{number}" for number in range(len(additions))]
        for name, addition in zip(names, additions, strict=True):
            state, more = read(pipeline, addition)
            check_fit(network, state, addition)
            try:
                pipeline.load_lora_into_transformer(
                    state, transformer=network, adapter_name=name, _pipeline=pipeline, **more
                )
            except (TypeError, ValueError) as error:
                raise misfit(addition) from error
        pipeline.set_adapters(names, [addition.weight for addition in additions])
        return [
            (network.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], layer)
            for path, layer in network.named_modules()
            if isinstance(layer, BaseTunerLayer)
        ]
    finally:
        pipeline.unload_lora_weights()


def read(pipeline: Any, addition: Addition) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The matrices of a LoRA under diffusers' names, whoever wrote it, and what else the pipeline's loader is told.

    That is the rank and alpha in the file's own metadata, and the alphas beside its matrices where the family has such
    files. `InvalidRequest` where it is no LoRA of this family.
    """
    takes_alphas = "network_alphas" in inspect.signature(pipeline.load_lora_into_transformer).parameters
    state, *alphas, metadata = read_lora(pipeline, addition, **({"return_alphas": True} if takes_alphas else {}))
    if not takes_alphas:
        return state, {"metadata": metadata}
    found = {name: float(alpha) for name, alpha in (alphas[0] or {}).items()}
    return state, {"metadata": metadata, "network_alphas": found or None}


def check_fit(network: torch.nn.Module, state: Mapping[str, torch.Tensor], addition: Addition) -> None:
    """Every matrix of the LoRA belongs to a linear layer of the network and has its width."""
    layers = dict(network.named_modules())
    for key, matrix in state.items():
        # Without the prefix it belongs to another component, and diffusers would leave it out unsaid.
        found = MATRIX.fullmatch(key.removeprefix(PREFIX)) if key.startswith(PREFIX) else None
        layer = layers.get(found["module"]) if found else None
        layer = getattr(layer, "base_layer", layer)
        # Not the weight's shape: in fewer bits it is another.
        width = getattr(layer, "in_features" if found and found["side"] == "A" else "out_features", None)
        if width != matrix.shape[1 if found and found["side"] == "A" else 0]:
            raise misfit(addition)
    if not state:
        raise misfit(addition)
