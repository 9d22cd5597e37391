"""Qwen-Image's network out of a single file, GGUF or safetensors; what it looks like, its shapes say.

diffusers' own QwenImageTransformer2DModel takes the published names as they are. A GGUF file's linear layers stay in
its few bits and are widened one at a time, when they work.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import GGUFQuantizationConfig, QwenImageTransformer2DModel
from diffusers.models.model_loading_utils import load_gguf_checkpoint
from diffusers.quantizers.gguf.utils import GGML_QUANT_SIZES
from safetensors.torch import load_file

from app.models.machine import check_package

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "transformer.")
PATCH = 2


def load_single_file(path: Path, *, dtype: torch.dtype, zero_cond_t: bool) -> QwenImageTransformer2DModel:
    """The network of one file, computing in `dtype`; `zero_cond_t` is what no shape tells (2511 has it).

    A safetensors file in eight-bit floats is widened to `dtype` as it is read.
    """
    is_gguf = path.suffix == ".gguf"
    if is_gguf:
        check_package("gguf")
    state = plain_names(load_gguf_checkpoint(str(path)) if is_gguf else load_file(path))
    with tempfile.TemporaryDirectory() as folder:
        configuration = config_of(state) | {"zero_cond_t": zero_cond_t, "_class_name": "QwenImageTransformer2DModel"}
        (Path(folder) / "config.json").write_text(json.dumps(configuration), "utf-8")
        network = QwenImageTransformer2DModel.from_single_file(
            state,
            config=folder,
            dtype=dtype,
            local_files_only=True,
            **({"quantization_config": GGUFQuantizationConfig(compute_dtype=dtype)} if is_gguf else {}),
        )
    missing = [name for name, tensor in network.state_dict().items() if tensor.is_meta]
    if missing:
        raise ValueError(f"the file lacks {missing[0]}")
    return network


def plain_names(state: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors under diffusers' names: other programs put a prefix before them."""
    prefix = next((one for one in PREFIXES if f"{one}img_in.weight" in state), "")
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def config_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """diffusers' configuration of a network with these tensors."""
    width, channels = shape_of(state["img_in.weight"])
    (head,) = shape_of(state["transformer_blocks.0.attn.norm_q.weight"])
    layers = {int(name.split(".")[1]) for name in state if name.startswith("transformer_blocks.")}
    return {
        "in_channels": channels,
        "out_channels": shape_of(state["proj_out.weight"])[0] // PATCH**2,
        "num_layers": max(layers) + 1,
        "attention_head_dim": head,
        "num_attention_heads": width // head,
        "joint_attention_dim": shape_of(state["txt_in.weight"])[1],
        # Of 128 numbers a head, 16 turn with time and 56 each with row and column.
        "axes_dims_rope": [head // 8, head * 7 // 16, head * 7 // 16],
    }


def shape_of(tensor: torch.Tensor) -> tuple[int, ...]:
    """The shape that a tensor has once it is widened: a GGUF file stores rows of bytes."""
    kind = getattr(tensor, "quant_type", None)
    if kind is None:
        return tuple(tensor.shape)
    numbers, stored = GGML_QUANT_SIZES[kind]
    return (*tensor.shape[:-1], tensor.shape[-1] // stored * numbers)


def is_few_bits(network: Any) -> bool:
    """Whether the network's file was in fewer bits already."""
    return any(isinstance(tensor, diffusers.quantizers.gguf.utils.GGUFParameter) for tensor in network.parameters())
