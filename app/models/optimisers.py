"""What turns gradients into steps: AdamW, its 8-bit form, Prodigy; and an optimiser's state as plain data."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from app.errors import InvalidRequest
from app.models.machine import check_package

BETAS = (0.9, 0.999)
WEIGHT_DECAY = 1e-4


def make_optimiser(name: str, groups: Sequence[Mapping[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    """The optimiser of this name over groups of `params` and `lr`; `DependencyMissing`, `InvalidRequest`."""
    told: dict[str, Any] = {"betas": BETAS, "weight_decay": WEIGHT_DECAY}
    listed = [dict(group) for group in groups]
    if name == "adamw":
        return torch.optim.AdamW(listed, **told)
    if name == "adamw-8bit" and device.type != "cuda":
        raise InvalidRequest("adamw-8bit works on CUDA devices alone; adamw works everywhere.", field="optimizer")
    check_package(name)
    if name == "adamw-8bit":
        return importlib.import_module("bitsandbytes").optim.AdamW8bit(listed, **told)
    # The settings that its authors advise for networks like these.
    return importlib.import_module("prodigyopt").Prodigy(
        listed, **told, decouple=True, use_bias_correction=True, safeguard_warmup=True
    )


def optimiser_state(optimiser: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The optimiser's state: its tensors by name, and the rest as JSON-able data.

    bitsandbytes keeps what belongs to eight bits as a mapping inside a parameter's state.
    """
    state = optimiser.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    rest: dict[str, Any] = {"groups": state["param_groups"], "state": {}}
    for number, values in state["state"].items():
        for name, value in values.items():
            inner = value.items() if isinstance(value, Mapping) else ()
            for path, tensor in [(name, value), *((f"{name}.{part}", one) for part, one in inner)]:
                if isinstance(tensor, torch.Tensor):
                    tensors[f"{number}.{path}"] = tensor.detach().cpu().clone().contiguous()
            if isinstance(value, Mapping):
                plain = {part: one for part, one in inner if not isinstance(one, torch.Tensor)}
                rest["state"].setdefault(str(number), {})[name] = plain
            elif not isinstance(value, torch.Tensor):
                rest["state"].setdefault(str(number), {})[name] = value
    return tensors, rest


def restore_optimiser(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], rest: Mapping[str, Any]
) -> None:
    """Give the optimiser back what `optimiser_state` told."""
    state: dict[int, dict[str, Any]] = {int(number): dict(values) for number, values in rest["state"].items()}
    for key, tensor in tensors.items():
        number, _, path = key.partition(".")
        name, _, part = path.partition(".")
        own = state.setdefault(int(number), {})
        if part:
            own[name] = {**own[name], part: tensor}
        else:
            own[name] = tensor
    groups = [{**group, "betas": tuple(group["betas"])} for group in rest["groups"]]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
