"""LoRAs on Qwen-Image's network, as layers that are worn; see `app.models.adapters`."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError

from app.errors import InvalidRequest
from app.models.adapters import MATRIX, Addition, Place, misfit, refuse_dora


def lora_layers(pipeline: Any, additions: Sequence[Addition]) -> list[Place]:
    """The layers with these LoRAs for the pipeline's network; they are not in their places."""
    network = pipeline.transformer
    try:
        names = [f"addition_{number}" for number in range(len(additions))]
        for name, addition in zip(names, additions, strict=True):
            state = read(pipeline, addition)
            check_fit(network, state, addition)
            pipeline.load_lora_into_transformer(state, transformer=network, adapter_name=name, _pipeline=pipeline)
        pipeline.set_adapters(names, [addition.weight for addition in additions])
        return [
            (network.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], layer)
            for path, layer in network.named_modules()
            if isinstance(layer, BaseTunerLayer)
        ]
    finally:
        pipeline.unload_lora_weights()


def read(pipeline: Any, addition: Addition) -> dict[str, torch.Tensor]:
    """The matrices of a LoRA under diffusers' names, whoever wrote it; `InvalidRequest` where it is none."""
    refuse_dora(addition)
    try:
        state = pipeline.lora_state_dict(
            str(addition.file.parent), weight_name=addition.file.name, use_safetensors=True, local_files_only=True
        )
    except (OSError, SafetensorError) as error:
        raise InvalidRequest(f"The LoRA {addition.id!r} cannot be read.", lora=addition.id) from error
    except (ValueError, KeyError, IndexError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise misfit(addition) from error
    return state


def check_fit(network: torch.nn.Module, state: Mapping[str, torch.Tensor], addition: Addition) -> None:
    """Every matrix of the LoRA belongs to a linear layer of the network and has its width."""
    layers = dict(network.named_modules())
    for key, matrix in state.items():
        found = MATRIX.fullmatch(key.removeprefix("transformer."))
        layer = layers.get(found["module"]) if found else None
        layer = getattr(layer, "base_layer", layer)
        # Not the weight's shape: in fewer bits it is another.
        width = getattr(layer, "in_features" if found and found["side"] == "A" else "out_features", None)
        if width != matrix.shape[1 if found and found["side"] == "A" else 0]:
            raise misfit(addition)
    if not state:
        raise misfit(addition)
