"""PuLID for SDXL: a face to tokens (v1 and v1.1), and the layers that let cross-attention look at them.

Source: Guo et al., "PuLID: Pure and Lightning ID Customization via Contrastive Alignment" (arXiv 2404.16022), and the
key names of the published files. Everything of the encoder is computed in float32, as the authors do.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import nn

from app.core.attachments import PulidIdentity
from app.errors import InvalidRequest
from app.models.attached import Attached, mask_tensor
from app.models.device import TorchDevice
from app.models.library import ModelRow
from app.models.opening import refusing
from app.models.perceiver import perceiver_layers
from app.models.row_attention import Halves, IdentityBranch, Ortho, heads_of, layers_from, require_fit
from app.models.spec import ModelSpec
from app.models.weights import Weights

SCALES = 5
"""Depths of the picture encoder whose hidden states are looked at."""
INNER = 1024
"""Width inside the mappings, whatever goes in and out."""
ENCODER = "id_adapter."
KEY, VALUE = "id_adapter_attn_layers.{}.id_to_k.weight", "id_adapter_attn_layers.{}.id_to_v.weight"
COMMUNITY_KEY, COMMUNITY_VALUE = "ip_adapter.{}.to_k_ip.weight", "ip_adapter.{}.to_v_ip.weight"


def mapping(width: int, output: int, inner: tuple[int, int] = (INNER, INNER)) -> nn.Sequential:
    """Three linear layers with norms between."""
    first, second = inner
    return nn.Sequential(
        nn.Linear(width, first), nn.LayerNorm(first), nn.LeakyReLU(),
        nn.Linear(first, second), nn.LayerNorm(second), nn.LeakyReLU(),
        nn.Linear(second, output),
    )  # fmt: skip


class IDEncoder(nn.Module):
    """v1: five tokens from the identity vector and one from each depth of the picture encoder."""

    def __init__(
        self, width: int = 1280, context_dim: int = 2048, num_token: int = 5, clip_dim: int = 1024, inner: int = INNER
    ) -> None:
        super().__init__()
        self.num_token = num_token
        self.width = width
        whole = context_dim * num_token
        self.body = mapping(width, whole, (min(whole // 4, inner), min(whole // 2, inner)))
        for depth in range(SCALES):
            setattr(self, f"mapping_{depth}", mapping(clip_dim, context_dim, (inner, inner)))
            setattr(self, f"mapping_patch_{depth}", mapping(clip_dim, context_dim, (inner, inner)))

    def forward(self, identity: torch.Tensor, hidden: Sequence[torch.Tensor]) -> torch.Tensor:
        """[n, width] and five [n, 1 + patches, clip width] to [n, 10, context width]."""
        tokens = [self.body(identity).unflatten(-1, (self.num_token, -1))]
        for depth, states in enumerate(hidden):
            whole = getattr(self, f"mapping_{depth}")(states[:, 0])
            patches = getattr(self, f"mapping_patch_{depth}")(states[:, 1:])
            tokens.append((whole + patches.mean(1))[:, None])
        return torch.cat(tokens, 1)


class IDFormer(nn.Module):
    """v1.1: latent queries look at the identity vectors and, depth by depth, at the picture encoder's states."""

    def __init__(
        self,
        dim: int = 1024,
        depth: int = 10,
        head_dim: int = 64,
        heads: int = 16,
        num_id_token: int = 5,
        num_queries: int = 32,
        output_dim: int = 2048,
        width: int = 1280,
        clip_dim: int = 1024,
        inner: int = INNER,
    ) -> None:
        super().__init__()
        self.num_id_token = num_id_token
        self.num_queries = num_queries
        self.width = width
        self.latents = nn.Parameter(torch.randn(1, num_queries, dim) * dim**-0.5)
        self.proj_out = nn.Parameter(torch.randn(dim, output_dim) * dim**-0.5)
        self.layers = perceiver_layers(depth, dim, head_dim, heads)
        for number in range(SCALES):
            setattr(self, f"mapping_{number}", mapping(clip_dim, dim, (inner, inner)))
        self.id_embedding_mapping = mapping(width, dim * num_id_token, (inner, inner))

    def forward(self, identity: torch.Tensor, hidden: Sequence[torch.Tensor]) -> torch.Tensor:
        """[n, pictures, width] (or [n, width]) and five [n, pictures x places, clip width] to [n, queries, width]."""
        identity = identity[:, None] if identity.ndim == 2 else identity
        tokens = self.id_embedding_mapping(identity).reshape(identity.shape[0], -1, self.latents.shape[-1])
        latents = torch.cat((self.latents.repeat(identity.shape[0], 1, 1), tokens), 1)
        each = len(self.layers) // SCALES
        for number, states in enumerate(hidden):
            context = torch.cat((tokens, getattr(self, f"mapping_{number}")(states)), 1)
            for attend, feed in self.layers[number * each : (number + 1) * each]:
                latents = attend(context, latents) + latents
                latents = feed(latents) + latents
        return latents[:, : self.num_queries] @ self.proj_out


def version_of(names: Mapping[str, Any]) -> Literal["v1", "v1.1"] | None:
    """Which PuLID these keys are of; None: none."""
    if f"{ENCODER}latents" in names:
        return "v1.1"
    return "v1" if f"{ENCODER}body.0.weight" in names else None


def build_encoder(state: Mapping[str, torch.Tensor], head_dim: int = 64) -> IDEncoder | IDFormer:
    """An empty encoder (on torch's meta device) of the sizes in this state dict, whose keys have no prefix."""
    with torch.device("meta"):
        if "latents" not in state:
            inner, clip_dim = state["mapping_0.0.weight"].shape
            context_dim = state["mapping_0.6.weight"].shape[0]
            return IDEncoder(
                width=state["body.0.weight"].shape[1],
                context_dim=context_dim,
                num_token=state["body.6.weight"].shape[0] // context_dim,
                clip_dim=clip_dim,
                inner=inner,
            )
        _, num_queries, dim = state["latents"].shape
        inner, clip_dim = state["mapping_0.0.weight"].shape
        return IDFormer(
            dim=dim,
            depth=1 + max(int(name.split(".")[1]) for name in state if name.startswith("layers.")),
            head_dim=head_dim,
            heads=heads_of(state["layers.0.0.to_q.weight"].shape[0], head_dim),
            num_id_token=state["id_embedding_mapping.6.weight"].shape[0] // dim,
            num_queries=num_queries,
            output_dim=state["proj_out"].shape[1],
            width=state["id_embedding_mapping.0.weight"].shape[1],
            clip_dim=clip_dim,
            inner=inner,
        )


class Pulid(Weights):
    """A PuLID file, opened: the encoder and the layers of cross-attention, whichever version it is of."""

    def __init__(self, id: str, state: Mapping[str, torch.Tensor], device: TorchDevice, head_dim: int = 64) -> None:
        version = version_of(state)
        if version is None:
            raise InvalidRequest(f"The model {id!r} is no PuLID for SDXL.", model=id)
        self.id = id
        self.version = version
        encoder = {
            name.removeprefix(ENCODER): tensor.float() for name, tensor in state.items() if name.startswith(ENCODER)
        }
        self.encoder = build_encoder(encoder, head_dim)
        self.encoder.load_state_dict(encoder, strict=True, assign=True)
        self.encoder.eval().requires_grad_(False)
        super().__init__(device, [self.encoder], layers_from(state, KEY, VALUE))

    def tokens(self, faces: Sequence[tuple[torch.Tensor, torch.Tensor, Sequence[torch.Tensor]]]) -> Halves:
        """Tokens of one person's pictures.

        Each face: ArcFace's raw vector [512], the picture encoder's pooled vector [768] of unit length, and its five
        hidden states [1 + patches, width]. Where there are several pictures, v1 hands on the tokens of all of them and
        v1.1 looks at all of them at once.
        """
        identity = self._moved(torch.stack([torch.cat((arcface, pooled)) for arcface, pooled, _ in faces]))
        hidden = [self._moved(torch.stack(states)) for states in zip(*(states for _, _, states in faces), strict=True)]
        with torch.no_grad():
            nobody = torch.zeros_like(identity[:1])
            nothing = [torch.zeros_like(states[:1]) for states in hidden]
            if self.version == "v1":
                found = self.encoder(identity, hidden).flatten(0, 1)[None]
            else:
                found = self.encoder(identity[None], [states.flatten(0, 1)[None] for states in hidden])
            return Halves(found, self.encoder(nobody, nothing))

    def mean_tokens(self, faces: Sequence[tuple[torch.Tensor, torch.Tensor, Sequence[torch.Tensor]]]) -> Halves:
        """Tokens of one person's pictures, averaged: EcomID's way with several of them."""
        each = [self.tokens([face]) for face in faces]
        return Halves(torch.stack([halves.prompt for halves in each]).mean(0), each[0].negative)

    def branch(
        self,
        tokens: Halves,
        *,
        scale: float,
        num_zero: int,
        ortho: Ortho,
        mask: torch.Tensor | None = None,
        start: float = 0.0,
        end: float = 1.0,
    ) -> IdentityBranch:
        """These tokens as cross-attention is to look at them."""
        return IdentityBranch(tokens, self.layers, scale, mask, start, end, num_zero=num_zero, ortho=ortho)

    def check_fit(self, unet: Any, model: str) -> None:
        """`InvalidRequest` where this file was made for another UNet."""
        require_fit(self.id, self.layers, unet, model)


def load(spec: ModelSpec, path: Path, device: TorchDevice, parts: Sequence[ModelRow] = ()) -> Pulid:
    """Open a PuLID file of either version, under the published names or those of the community's copies."""
    with refusing(spec, "its file is no whole PuLID for SDXL"):
        return Pulid(spec.id, published_names(load_file(path)), device, int(spec.options.get("head_dim", 64)))


def attach(opened: Pulid, wish: PulidIdentity, *, faces: Any, **more: Any) -> Attached:
    """The face's tokens as one more thing that cross-attention looks at."""
    found = [faces.identify(face) for face in wish.faces]
    branch = opened.branch(
        opened.tokens([(one.arcface, one.clip_pooled, one.clip_hidden) for one in found]),
        scale=wish.id_scale,
        num_zero=wish.num_zero,
        ortho=wish.ortho,
        mask=mask_tensor(wish.mask),
        start=wish.start,
        end=wish.end,
    )
    # v1's own reference begins with diffusers' noise.
    return Attached((branch,), starts_at_sigma=opened.version == "v1.1")


def published_names(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The state under the published names; copies for ComfyUI call the encoder `image_proj`."""
    if "image_proj.body.0.weight" not in state and "image_proj.latents" not in state:
        return dict(state)
    renamed = {}
    for name, tensor in state.items():
        part, _, rest = name.partition(".")
        if part == "ip_adapter":
            number, side, _ = rest.split(".")
            name = (KEY if side == "to_k_ip" else VALUE).format(number)
        elif part == "image_proj":
            name = ENCODER + rest
        renamed[name] = tensor
    return renamed
