"""What a UNet learned, as a LoRA: the difference of two UNets, and the same put on one of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

FILE_NAME = "pytorch_lora_weights.safetensors"
LAYERS = nn.Linear | nn.Conv2d
DOWN, UP = "lora_A.weight", "lora_B.weight"
OVERSAMPLED, ITERATIONS = 8, 4
"""Of the randomised decomposition: with these it is exact to the digits that are kept."""


def difference(before: UNet2DConditionModel, after: UNet2DConditionModel, rank: int) -> tuple[dict, float]:
    """(peft's matrices of every linear and convolutional layer, the share of the squared change that they hold).

    Biases and norms stay as they were before. Layers that have fewer dimensions than `rank` are filled with zeros, so
    that all have one rank and act alike wherever the file is read.
    """
    state, changed, kept = {}, 0.0, 0.0
    layers = dict(before.named_modules())
    for name, layer in after.named_modules():
        if not isinstance(layer, LAYERS):
            continue
        delta = layer.weight.detach().float() - layers[name].weight.detach().float()
        flat = delta.flatten(1)
        found = min(rank, *flat.shape)
        torch.manual_seed(0)
        left, sizes, right = torch.svd_lowrank(flat, min(found + OVERSAMPLED, *flat.shape), ITERATIONS)
        half = sizes[:found].sqrt()
        up, down = left[:, :found] * half, (right[:, :found] * half).T
        changed, kept = changed + float(flat.square().sum()), kept + float(sizes[:found].square().sum())
        down = functional.pad(down, (0, 0, 0, rank - found)).reshape(rank, *delta.shape[1:])
        up = functional.pad(up, (0, rank - found))
        state[f"{name}.{DOWN}"] = down.contiguous()
        state[f"{name}.{UP}"] = up.reshape(*up.shape, *(1 for _ in delta.shape[2:])).contiguous()
    return state, kept / max(changed, 1e-30)


@torch.no_grad()
def press(before: UNet2DConditionModel, after: UNet2DConditionModel, rank: int) -> None:
    """Leave of what changed what a LoRA of this rank can say, in place."""
    state, _ = difference(before, after, rank)
    layers = dict(before.named_modules())
    for name, layer in after.named_modules():
        if isinstance(layer, LAYERS):
            layer.weight.copy_(layers[name].weight.to(layer.weight) + _change(state, name, layer.weight))


def _change(state: Mapping[str, torch.Tensor], name: str, weight: torch.Tensor) -> torch.Tensor:
    change = state[f"{name}.{UP}"].flatten(1) @ state[f"{name}.{DOWN}"].flatten(1)
    return change.view_as(weight).to(weight)


def save(state: Mapping[str, torch.Tensor], folder: Path) -> None:
    """Write the file that diffusers reads, in sixteen bits."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({f"unet.{name}": tensor.half() for name, tensor in state.items()}, folder / FILE_NAME)


@torch.no_grad()
def put_on(unet: UNet2DConditionModel, folder: Path) -> None:
    """Add what the folder's file holds to the weights themselves, for good."""
    state = {name.removeprefix("unet."): tensor.float() for name, tensor in load_file(folder / FILE_NAME).items()}
    layers = dict(unet.named_modules())
    for name in [name.removesuffix(f".{DOWN}") for name in state if name.endswith(DOWN)]:
        weight = layers[name].weight
        weight.add_(_change(state, name, weight))
