"""ControlNets beside a UNet: stock networks in stock pipelines, each with the tokens, scale and window it needs.

An identity network looks at a face's tokens where others look at the text: its stand-in puts them in the text's place
before the call parks, so any pipeline with ControlNets serves it.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, MultiControlNetModel
from safetensors import SafetensorError
from torch.nn import functional

from app.core.attachments import ControlNet
from app.errors import InvalidRequest
from app.models.device import TorchDevice
from app.models.library import ModelRow
from app.models.row_attention import Halves
from app.models.single_files import config_folder
from app.models.spec import ModelSpec
from app.models.step_batching import Session, StepBatcher
from app.models.weights import Weights


@dataclass(eq=False)
class Control:
    """One network of a call. `tokens` stand in the text's place; `region` [height, width] weighs what it answers."""

    network: Any
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    tokens: Halves | None = None
    region: torch.Tensor | None = None


class ControlWeights(Weights):
    """A ControlNet's weights."""

    def __init__(self, id: str, network: Any, device: TorchDevice) -> None:
        self.id = id
        self.network = network.eval().requires_grad_(False)
        super().__init__(device, [network])

    def check_fit(self, unet: Any, model: str) -> None:
        """`InvalidRequest` where it was made for another UNet."""
        for name in ("block_out_channels", "layers_per_block", "cross_attention_dim", "in_channels"):
            own, wanted = self.network.config.get(name), unet.config.get(name)
            if name == "in_channels" and wanted == 9:
                wanted = 4
            if _plain(own) != _plain(wanted):
                raise InvalidRequest(
                    f"{self.id!r} was not made for the model {model!r}: {name} {_plain(own)}, not {_plain(wanted)}.",
                    model=self.id,
                )


def load(spec: ModelSpec, path: Path, device: TorchDevice, parts: Sequence[ModelRow] = ()) -> ControlWeights:
    """Open a ControlNet: a diffusers folder or a single file."""
    try:
        return ControlWeights(spec.id, open_network(path, spec, device), device)
    except (OSError, SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise InvalidRequest(
            f"The model {spec.id!r} cannot be opened: its files are no whole ControlNet.", model=spec.id
        ) from error


def open_network(path: Path, spec: ModelSpec, device: TorchDevice) -> Any:
    """The network of a folder with config.json, or of a single file in its own or in diffusers' names."""
    if path.is_dir():
        return ControlNetModel.from_pretrained(
            path, dtype=device.dtype, variant=spec.options.get("variant"), use_safetensors=True, local_files_only=True
        )
    return ControlNetModel.from_single_file(
        str(path), config=str(config_folder(path, spec.family)), dtype=device.dtype, local_files_only=True
    )


def standing(controls: Sequence[Control], batcher: StepBatcher, session: Session) -> Any:
    """What stands as `controlnet` in a pipeline for one call: a stand-in for each network that parks its calls."""
    nets = [_stand_in(control, batcher, session) for control in controls]
    return nets[0] if len(nets) == 1 else MultiControlNetModel(nets)


def arguments_for(controls: Sequence[Control], images: Sequence[Any], task: str) -> dict[str, Any]:
    """What a pipeline call is told of these networks; `images` has a control picture for each."""
    if len(images) != len(controls):
        raise InvalidRequest(f"{len(controls)} ControlNets need as many control pictures, not {len(images)}.")
    alone = len(controls) == 1
    listed: Mapping[str, list[Any]] = {
        "image" if task == "text-to-image" else "control_image": list(images),
        "controlnet_conditioning_scale": [float(control.scale) for control in controls],
        "control_guidance_start": [control.start for control in controls],
        "control_guidance_end": [control.end for control in controls],
    }
    return {name: values[0] if alone else values for name, values in listed.items()}


def _stand_in(control: Control, batcher: StepBatcher, session: Session) -> Any:
    parked = batcher.view(control.network, session)
    stand_in = copy.copy(control.network)

    def forward(
        sample: torch.Tensor,
        timestep: Any,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: torch.Tensor,
        **more: Any,
    ) -> Any:
        if control.tokens is not None:
            encoder_hidden_states = _for_rows(control.tokens, sample.shape[0], session.guided, encoder_hidden_states)
        down, mid = parked.forward(
            sample,
            timestep,
            encoder_hidden_states=encoder_hidden_states,
            controlnet_cond=controlnet_cond,
            **{name: value for name, value in more.items() if value is not None},
        )
        if control.region is not None:
            down, mid = [_within(part, control.region) for part in down], _within(mid, control.region)
        return down, mid

    stand_in.__dict__["forward"] = forward
    return stand_in


def _for_rows(tokens: Halves, rows: int, guided: bool, like: torch.Tensor) -> torch.Tensor:
    halves = tokens.of(guided)
    return torch.cat([half.expand(rows // len(halves), -1, -1) for half in halves]).to(like)


def _within(states: torch.Tensor, region: torch.Tensor) -> torch.Tensor:
    return states * functional.interpolate(region[None, None].to(states), states.shape[-2:], mode="nearest")


def attach(opened: ControlWeights, wish: ControlNet, **more: Any) -> Control:
    """A ControlNet as a call uses it."""
    return Control(opened.network, wish.controlnet_conditioning_scale, wish.start, wish.end)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
