"""What turns gradients into steps: AdamW, its 8-bit form, Prodigy; and an optimiser's state as plain data."""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from app.errors import DependencyMissing, InvalidRequest

BETAS = (0.9, 0.999)
WEIGHT_DECAY = 1e-4


def make_optimiser(name: str, groups: Sequence[Mapping[str, Any]], device: torch.device) -> torch.optim.Optimizer:
    """The optimiser of this name over groups of `params` and `lr`; `DependencyMissing`, `InvalidRequest`."""
    told: dict[str, Any] = {"betas": BETAS, "weight_decay": WEIGHT_DECAY}
    listed = [dict(group) for group in groups]
    if name == "adamw":
        return torch.optim.AdamW(listed, **told)
    if name == "adamw-8bit":
        if device.type != "cuda":
            raise InvalidRequest("adamw-8bit works on CUDA devices alone; adamw works everywhere.", field="optimizer")
        return _package("bitsandbytes").optim.AdamW8bit(listed, **told)
    # The settings that its authors advise for networks like these.
    return _package("prodigyopt").Prodigy(
        listed, **told, decouple=True, use_bias_correction=True, safeguard_warmup=True
    )


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DependencyMissing(
            f"This optimizer needs {name}: pip install 'edit-image-service[train]'", package=name
        ) from error


def optimiser_state(optimiser: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The optimiser's state: its tensors by name, and the rest as JSON-able data."""
    state = optimiser.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    rest: dict[str, Any] = {"groups": state["param_groups"], "state": {}}
    for number, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{number}.{name}"] = value.detach().cpu().clone().contiguous()
            else:
                rest["state"].setdefault(str(number), {})[name] = value
    return tensors, rest


def restore_optimiser(
    optimiser: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor], rest: Mapping[str, Any]
) -> None:
    """Give the optimiser back what `optimiser_state` told."""
    state: dict[int, dict[str, Any]] = {int(number): dict(values) for number, values in rest["state"].items()}
    for key, tensor in tensors.items():
        number, _, name = key.partition(".")
        state.setdefault(int(number), {})[name] = tensor
    groups = [{**group, "betas": tuple(group["betas"])} for group in rest["groups"]]
    optimiser.load_state_dict({"state": state, "param_groups": groups})
