"""Tiny random ControlNets for the tiny random checkpoints, in the layouts that published ones come in."""

from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, ControlNetUnionModel, UNet2DConditionModel

COND_EMBEDDING = (8, 16, 16, 32)

UNION = {
    "num_control_type": 8,
    "num_trans_channel": 32,
    "num_trans_head": 4,
    "num_trans_layer": 1,
    "num_proj_channel": 32,
}


def make_controlnet(folder: Path, checkpoint: Path, seed: int = 0) -> Path:
    """Write a ControlNet for the checkpoint in diffusers' layout; answers the folder. Its weights act."""
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet", local_files_only=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ControlNetModel.from_unet(
            unet, load_weights_from_unet=False, conditioning_embedding_out_channels=COND_EMBEDDING
        )
        wake(network)
    network.save_pretrained(folder, safe_serialization=True)
    return folder


def make_union(folder: Path, checkpoint: Path, seed: int = 0) -> Path:
    """Write a union ControlNet with eight types for the checkpoint; answers the folder."""
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet", local_files_only=True)
    wanted: dict[str, Any] = {
        name: unet.config[name]
        for name in (
            "block_out_channels",
            "down_block_types",
            "layers_per_block",
            "cross_attention_dim",
            "attention_head_dim",
            "transformer_layers_per_block",
            "use_linear_projection",
            "norm_num_groups",
            "addition_embed_type",
            "addition_time_embed_dim",
            "projection_class_embeddings_input_dim",
        )
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = ControlNetUnionModel(**wanted, conditioning_embedding_out_channels=COND_EMBEDDING, **UNION)
        wake(network)
    network.save_pretrained(folder, safe_serialization=True)
    return folder


def wake(network: torch.nn.Module) -> None:
    """Random weights where a new ControlNet has zeros, and larger ones elsewhere."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim > 1:
                if parameter.abs().max() == 0:
                    torch.nn.init.normal_(parameter, std=0.05)
                else:
                    parameter.mul_(1.4)
