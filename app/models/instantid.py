"""InstantID: a face to tokens that cross-attention looks at, and IdentityNet, a ControlNet that looks at them alone.

Source: Wang et al., "InstantID: Zero-shot Identity-Preserving Generation in Seconds" (arXiv 2401.07519) and the key
names of its published files: `image_proj.*` and `ip_adapter.N.to_k_ip|to_v_ip.weight` beside a ControlNet's folder.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from app.core.attachments import InstantIdIdentity
from app.models.attached import Attached, mask_tensor
from app.models.controls import Control, ControlWeights, open_network
from app.models.device import TorchDevice
from app.models.library import ModelRow
from app.models.opening import refusing
from app.models.perceiver import Resampler
from app.models.row_attention import Branch, Halves, heads_of, layers_from, require_fit
from app.models.spec import ModelSpec
from app.models.weights import Weights

ADAPTER = "ip-adapter.safetensors"
NETWORK = "ControlNetModel"
PROJECTION = "image_proj."
KEY, VALUE = "ip_adapter.{}.to_k_ip.weight", "ip_adapter.{}.to_v_ip.weight"


class FaceTokens(Weights):
    """InstantID's adapter file: `image_proj` turns ArcFace's vector into tokens, the layers are for the UNet."""

    def __init__(self, id: str, state: Mapping[str, torch.Tensor], device: TorchDevice, head_dim: int = 64) -> None:
        self.id = id
        projection = {
            name.removeprefix(PROJECTION): tensor.float()
            for name, tensor in state.items()
            if name.startswith(PROJECTION)
        }
        self.projection = build_projection(projection, head_dim)
        self.projection.load_state_dict(projection, strict=True, assign=True)
        self.projection.eval().requires_grad_(False)
        super().__init__(device, [self.projection], layers_from(state, KEY, VALUE))

    def tokens(self, arcface: torch.Tensor) -> Halves:
        """Tokens [1, 16, width] of ArcFace's raw vector [512]; the negative prompt's are those of zeros."""
        with torch.no_grad():
            vector = self._moved(arcface)[None, None]
            return Halves(self.projection(vector), self.projection(torch.zeros_like(vector)))


class InstantId(Weights):
    """InstantID, opened: its adapter and IdentityNet."""

    def __init__(self, id: str, adapter: FaceTokens, network: Any, device: TorchDevice) -> None:
        self.id = id
        self.adapter = adapter
        self.control = ControlWeights(id, network, device)
        super().__init__(device, [adapter.projection, network], adapter.layers)

    def check_fit(self, unet: Any, model: str) -> None:
        """`InvalidRequest` where these files were made for another UNet."""
        require_fit(self.id, self.layers, unet, model)
        self.control.check_fit(unet, model)


def build_projection(state: Mapping[str, torch.Tensor], head_dim: int = 64) -> Resampler:
    """An empty `image_proj` (on torch's meta device) of the sizes in this state dict, whose keys have no prefix."""
    _, num_queries, dim = state["latents"].shape
    with torch.device("meta"):
        return Resampler(
            dim=dim,
            depth=1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers.")),
            head_dim=head_dim,
            heads=heads_of(state["layers.0.0.to_q.weight"].shape[0], head_dim),
            num_queries=num_queries,
            embedding_dim=state["proj_in.weight"].shape[1],
            output_dim=state["proj_out.weight"].shape[0],
        )


def load(spec: ModelSpec, path: Path, device: TorchDevice, parts: Sequence[ModelRow] = ()) -> InstantId:
    """Open InstantID's folder: the adapter's file and IdentityNet's folder."""
    with refusing(spec, "its files are no whole InstantID"):
        adapter = open_adapter(spec, path, device)
        return InstantId(spec.id, adapter, open_network(path / NETWORK, spec, device), device)


def open_adapter(spec: ModelSpec, path: Path, device: TorchDevice) -> FaceTokens:
    """The adapter's file of InstantID's folder, which EcomID uses too."""
    return FaceTokens(spec.id, load_file(path / ADAPTER), device, int(spec.options.get("head_dim", 64)))


def attach(opened: InstantId, wish: InstantIdIdentity, *, faces: Any, **more: Any) -> Attached:
    """The face's tokens beside the text, and IdentityNet with them in the text's place."""
    vectors = [faces.arcface(face) for face in wish.faces]
    tokens = opened.adapter.tokens(torch.stack(vectors).mean(0))
    region = mask_tensor(wish.region)
    branch = Branch(tokens, opened.layers, wish.ip_adapter_scale, region, wish.start, wish.end)
    network = opened.control.network
    control = Control(network, wish.controlnet_conditioning_scale, wish.start, wish.end, tokens, region)
    return Attached((branch,), (control,))
