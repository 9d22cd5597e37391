"""ControlNets beside a UNet: stock networks in stock pipelines, each with the tokens, scale and window it needs.

An identity network looks at a face's tokens where others look at the text: its stand-in puts them in the text's place
before the call parks, so any pipeline with ControlNets serves it. A union network follows maps of several types in one
call: its controls are gathered before it is called, so a pipeline treats each of them as a network of its own.
"""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, ControlNetUnionModel, MultiControlNetModel
from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
from safetensors.torch import load_file
from torch.nn import functional

from app.core.attachments import ControlNet
from app.errors import InvalidRequest
from app.models.catalog_controls import SHAPES, UNION_MODES
from app.models.device import TorchDevice
from app.models.library import ModelRow
from app.models.opening import refusing
from app.models.row_attention import Halves
from app.models.spec import ModelSpec
from app.models.step_batching import Session, StepBatcher
from app.models.weights import Weights

CONFIG = Path("config", "controlnet", "config.json")
"""Where a single file of another shape than the published ones says its own: from the folder that it lies in."""


@dataclass(eq=False)
class Control:
    """One network of a call. `tokens` stand in the text's place; `region` [height, width] weighs what it answers.

    `mode` is which of its types a union network is to follow.
    """

    network: Any
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    tokens: Halves | None = None
    region: torch.Tensor | None = None
    mode: int | None = None


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
    with refusing(spec, "its files are no whole ControlNet"):
        return ControlWeights(spec.id, open_network(path, spec, device), device)


def open_network(path: Path, spec: ModelSpec, device: TorchDevice) -> Any:
    """The network of a folder with config.json, or of a single file in its own or in diffusers' names."""
    if path.is_dir():
        network_class = ControlNetModel
        if json.loads((path / "config.json").read_text("utf-8")).get("_class_name") == "ControlNetUnionModel":
            network_class = ControlNetUnionModel
        return network_class.from_pretrained(
            path, dtype=device.dtype, variant=spec.options.get("variant"), use_safetensors=True, local_files_only=True
        )
    return _open_file(path, spec, device)


def _open_file(path: Path, spec: ModelSpec, device: TorchDevice) -> Any:
    """A single file of the published shape, or of the one that is told beside it."""
    beside = path.parent / CONFIG
    own = json.loads(beside.read_text("utf-8")) if beside.is_file() else None
    config = own or SHAPES[spec.options.get("shape", spec.family)]
    state = load_file(path)
    if config["_class_name"] == "ControlNetUnionModel":
        types = state["task_embedding"].shape[0]
        network = ControlNetUnionModel.from_config(config | {"num_control_type": types})
    else:
        if not any(name.startswith("controlnet_cond_embedding.") for name in state):
            state = convert_controlnet_checkpoint(state, config)
        network = ControlNetModel.from_config(config)
    network.load_state_dict(state)
    return network.to(device.dtype)


def standing(controls: Sequence[Control], batcher: StepBatcher, session: Session) -> Any:
    """What stands as `controlnet` in a pipeline for one call: a stand-in for each network that parks its calls."""
    nets = [_stand_in(control, batcher, session) for control in controls]
    return nets[0] if _is_alone(controls) else _Several(nets, controls)


def _is_alone(controls: Sequence[Control]) -> bool:
    """Whether a pipeline has to do with one network of the plain form."""
    return len(controls) == 1 and controls[0].mode is None


class _Several(MultiControlNetModel):
    """The stand-ins of a call, one for each control picture; what they answer is added up in their order.

    Pictures for one union network go to it together, as its own pipeline hands them over.
    """

    def __init__(self, nets: Sequence[Any], controls: Sequence[Control]) -> None:
        super().__init__(nets)
        self.gathered: list[list[int]] = []
        for place, control in enumerate(controls):
            same = [
                places
                for places in self.gathered
                if control.mode is not None and controls[places[0]].network is control.network
            ]
            if same:
                same[0].append(place)
            else:
                self.gathered.append([place])
        self.modes = [control.mode for control in controls]

    def forward(
        self,
        sample: torch.Tensor,
        timestep: Any,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: Sequence[torch.Tensor],
        conditioning_scale: Sequence[float],
        **more: Any,
    ) -> Any:
        """The sum of the networks' answers: for the UNet's down blocks, and for its middle."""
        down, mid = None, None
        for places in self.gathered:
            first = places[0]
            if self.modes[first] is None:
                told: dict[str, Any] = {
                    "controlnet_cond": controlnet_cond[first],
                    "conditioning_scale": conditioning_scale[first],
                }
            else:
                told = self._told_to_union(places, sample, controlnet_cond, conditioning_scale)
            parts, middle = self.nets[first](
                sample=sample, timestep=timestep, encoder_hidden_states=encoder_hidden_states, **told, **more
            )
            if down is None:
                down, mid = parts, middle
            else:
                down = [before + part for before, part in zip(down, parts, strict=True)]
                mid = mid + middle
        return down, mid

    def _told_to_union(
        self, places: Sequence[int], sample: torch.Tensor, pictures: Sequence[torch.Tensor], scales: Sequence[float]
    ) -> dict[str, Any]:
        modes = [self.modes[place] for place in places]
        kinds = sample.new_zeros(self.nets[places[0]].config.num_control_type)
        kinds[modes] = 1
        return {
            "controlnet_cond": [pictures[place] for place in places],
            "conditioning_scale": [float(scales[place]) for place in places],
            "control_type": kinds.expand(sample.shape[0], -1),
            "control_type_idx": modes,
        }


def arguments_for(controls: Sequence[Control], images: Sequence[Any], task: str) -> dict[str, Any]:
    """What a pipeline call is told of these networks; `images` has a control picture for each."""
    if len(images) != len(controls):
        raise InvalidRequest(f"{len(controls)} ControlNets need as many control pictures, not {len(images)}.")
    listed: Mapping[str, list[Any]] = {
        "image" if task == "text-to-image" else "control_image": list(images),
        "controlnet_conditioning_scale": [float(control.scale) for control in controls],
        "control_guidance_start": [control.start for control in controls],
        "control_guidance_end": [control.end for control in controls],
    }
    return {name: values[0] if _is_alone(controls) else values for name, values in listed.items()}


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
    """A ControlNet as a call uses it; `InvalidRequest` where a union network does not know the wished type."""
    mode = None
    if isinstance(opened.network, ControlNetUnionModel):
        mode = UNION_MODES.get(wish.control_type)
        if mode is None or mode >= opened.network.config.num_control_type:
            raise InvalidRequest(f"{opened.id!r} does not follow {wish.control_type}.", model=opened.id)
    return Control(opened.network, wish.controlnet_conditioning_scale, wish.start, wish.end, mode=mode)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
