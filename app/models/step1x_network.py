"""Step1X-Edit's network: a connector from a vision-language model's hidden states to FLUX's text, and FLUX itself.

Source: Liu et al., "Step1X-Edit: A Practical Framework for General Image Editing" (arXiv 2504.17761) and the key names
of its published files: the original single file's (v1.0, v1.1) and the diffusers folder's (v1.1, v1.2). Either becomes
the state of `Step1XTransformer`, whose `flux` is diffusers' own class, so that what works on FLUX works on it.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from torch import nn
from torch.nn.functional import scaled_dot_product_attention, silu

FREQUENCIES = 256
AXES = (16, 56, 56)
CONNECTOR_HEADS = 32
FLUX = "flux."
EMBEDDERS = {
    "time_embed.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_embed.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vec_embed.in_layer": "time_text_embed.text_embedder.linear_1",
    "vec_embed.out_layer": "time_text_embed.text_embedder.linear_2",
}
"""The diffusers folder's names that differ from FLUX's."""

TOP = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "final_layer.adaLN_modulation.1": "norm_out.linear",
}
DOUBLE = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
}
SINGLE = {
    "modulation.lin": "norm.linear",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
    "linear2": "proj_out",
}
SPLIT = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
}
"""One matrix of the original whose rows are several of diffusers'."""

State = Mapping[str, torch.Tensor]


class RefinerBlock(nn.Module):
    """Self-attention and a feed-forward, each behind a gate; no shift and no scale."""

    def __init__(self, hidden_size: int, heads: int, mlp_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(hidden_size, eps=1e-6)
        self.self_attn_qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.self_attn_proj = nn.Linear(hidden_size, hidden_size)
        self.norm2 = nn.LayerNorm(hidden_size, eps=1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(hidden_size, mlp_size), "fc2": nn.Linear(mlp_size, hidden_size)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 2 * hidden_size))

    def forward(self, x: torch.Tensor, condition: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`x` [rows, tokens, width], `condition` [rows, width], `mask` [rows, 1, tokens, tokens]: true is looked at."""
        gate_attention, gate_mlp = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        q, k, v = self.self_attn_qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        x = x + gate_attention * self.self_attn_proj(attended)
        return x + gate_mlp * self.mlp["fc2"](silu(self.mlp["fc1"](self.norm2(x))))


class TokenRefiner(nn.Module):
    """The tokens, refined under the timestep and the mean of what they say."""

    def __init__(self, in_channels: int, hidden_size: int, heads: int, depth: int, mlp_size: int) -> None:
        super().__init__()
        self.input_embedder = nn.Linear(in_channels, hidden_size)
        time = nn.Sequential(nn.Linear(FREQUENCIES, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))
        self.t_embedder = nn.ModuleDict({"mlp": time})
        self.c_embedder = nn.ModuleDict(
            {"linear_1": nn.Linear(in_channels, hidden_size), "linear_2": nn.Linear(hidden_size, hidden_size)}
        )
        blocks = nn.ModuleList(RefinerBlock(hidden_size, heads, mlp_size) for _ in range(depth))
        self.individual_token_refiner = nn.ModuleDict({"blocks": blocks})

    def forward(self, x: torch.Tensor, mean: torch.Tensor, timestep: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """`timestep` [rows] from 0 to 1000, `mask` [rows, tokens]."""
        time = self.t_embedder["mlp"]
        condition = time(sinusoid(timestep).to(time[0].weight.dtype))
        condition = condition + self.c_embedder["linear_2"](silu(self.c_embedder["linear_1"](mean)))
        seen = mask.bool()
        pairs = seen[:, None, :, None] & seen[:, None, None, :]
        # A row that looks at nothing would be NaN.
        pairs[..., 0] = True
        x = self.input_embedder(x)
        for block in self.individual_token_refiner["blocks"]:
            x = block(x, condition, pairs)
        return x


class Connector(nn.Module):
    """Hidden states of the vision-language model to FLUX's text tokens and its pooled vector.

    `scale_factor` is v1.0's alone: it makes the mean smaller before it is pooled.
    """

    def __init__(
        self, in_channels: int, hidden_size: int, heads: int, depth: int, mlp_size: int, pooled: int, *, scaled: bool
    ) -> None:
        super().__init__()
        self.S = TokenRefiner(in_channels, hidden_size, heads, depth, mlp_size)
        self.global_proj_out = nn.Linear(in_channels, pooled)
        if scaled:
            self.scale_factor = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, timestep: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [rows, tokens, width] and pooled vector [rows, pooled]; `timestep` [rows] from 0 to 1."""
        weight = mask[..., None].to(x.dtype)
        mean = (x * weight).sum(1) / weight.sum(1)
        pooled = mean * (1 + self.scale_factor.to(x.dtype)) if hasattr(self, "scale_factor") else mean
        return self.S(x, mean, timestep * 1000, mask), self.global_proj_out(pooled)


class Step1XTransformer(nn.Module):
    """The connector, v1.2's mapping of the letters in quotes, and FLUX's transformer."""

    def __init__(
        self, connector: Connector, flux: FluxTransformer2DModel, text_token_mapping: nn.Linear | None
    ) -> None:
        super().__init__()
        self.connector = connector
        self.flux = flux
        self.text_token_mapping = text_token_mapping

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        encoder_hidden_states: torch.Tensor,
        prompt_embeds_mask: torch.Tensor,
        timestep: torch.Tensor,
        img_ids: torch.Tensor,
        txt_ids: torch.Tensor,
        text_embeddings: torch.Tensor | None = None,
        text_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The velocity [rows, places, channels] at target and reference places.

        `encoder_hidden_states` [rows, tokens, width] are the vision-language model's last, `timestep` [rows] is from 0
        to 1, ids are [places, 3]. `text_embeddings` are the embeddings of the tokens, of which only those count that
        `text_mask` marks: v1.2 alone uses them.
        """
        tokens, pooled = self.connector(encoder_hidden_states, timestep, prompt_embeds_mask)
        if self.text_token_mapping is not None:
            tokens = tokens + self.text_token_mapping(text_embeddings) * text_mask[..., None].to(tokens.dtype)
        return self.flux(
            hidden_states=hidden_states,
            encoder_hidden_states=tokens,
            pooled_projections=pooled,
            timestep=timestep,
            img_ids=img_ids,
            txt_ids=txt_ids,
            return_dict=False,
        )[0]


def sinusoid(timestep: torch.Tensor) -> torch.Tensor:
    """[rows, 256] in float32: cosines first."""
    half = FREQUENCIES // 2
    steps = torch.arange(half, dtype=torch.float32, device=timestep.device)
    angles = timestep.float()[:, None] * torch.exp(-math.log(10_000) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def build(state: State, config: Mapping[str, Any]) -> Step1XTransformer:
    """An empty network (on torch's meta device) of the sizes in this state, whose keys are ours.

    `config` may say what shapes do not tell: `axes_dims_rope` and `connector_heads_num`; the published ones else.
    """
    shape = {name: tuple(tensor.shape) for name, tensor in state.items()}
    inner, channels = shape["flux.x_embedder.weight"]
    head = shape["flux.transformer_blocks.0.attn.norm_q.weight"][0]
    hidden, width = shape["connector.S.input_embedder.weight"]
    mlp_size = shape["connector.S.individual_token_refiner.blocks.0.mlp.fc1.weight"][0]
    pooled = shape["connector.global_proj_out.weight"][0]
    with torch.device("meta"):
        connector = Connector(
            width,
            hidden,
            int(config.get("connector_heads_num", CONNECTOR_HEADS)),
            _count(state, "connector.S.individual_token_refiner.blocks."),
            mlp_size,
            pooled,
            scaled="connector.scale_factor" in state,
        )
        flux = FluxTransformer2DModel(
            in_channels=channels,
            out_channels=shape["flux.proj_out.weight"][0],
            num_layers=_count(state, "flux.transformer_blocks."),
            num_single_layers=_count(state, "flux.single_transformer_blocks."),
            attention_head_dim=head,
            num_attention_heads=inner // head,
            joint_attention_dim=hidden,
            pooled_projection_dim=pooled,
            guidance_embeds=False,
            axes_dims_rope=tuple(config.get("axes_dims_rope", AXES)),
        )
        mapping = nn.Linear(width, hidden) if "text_token_mapping.weight" in state else None
        return Step1XTransformer(connector, flux, mapping)


def ours(state: State) -> dict[str, torch.Tensor]:
    """A published state, of either layout, under our keys; `KeyError` names a key that belongs to neither."""
    renamed: dict[str, torch.Tensor] = {}
    original = "img_in.weight" in state
    for name, tensor in state.items():
        if name.startswith(("connector.", "text_token_mapping.")):
            renamed[name] = tensor
        elif original:
            renamed |= {FLUX + new: part for new, part in _from_original(name, tensor).items()}
        else:
            stem, _, kind = name.rpartition(".")
            renamed[f"{FLUX}{EMBEDDERS.get(stem, stem)}.{kind}"] = tensor
    return renamed


def _from_original(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    stem, _, kind = name.rpartition(".")
    kind = "weight" if kind == "scale" else kind
    for blocks, prefix, names in (
        ("double_blocks.", "transformer_blocks.", DOUBLE),
        ("single_blocks.", "single_transformer_blocks.", SINGLE),
    ):
        if not stem.startswith(blocks):
            continue
        number, _, rest = stem.removeprefix(blocks).partition(".")
        if rest in SPLIT:
            parts = _split(tensor, SPLIT[rest], tensor.shape[-1] if tensor.ndim == 2 else None)
            return {f"{prefix}{number}.{new}.{kind}": part for new, part in parts.items()}
        return {f"{prefix}{number}.{names[rest]}.{kind}": tensor}
    if stem == "final_layer.adaLN_modulation.1":
        # The original says shift and then scale, diffusers scale and then shift.
        tensor = torch.cat(tensor.chunk(2)[::-1])
    return {f"{TOP[stem]}.{kind}": tensor}


def _split(tensor: torch.Tensor, names: tuple[str, ...], width: int | None) -> dict[str, torch.Tensor]:
    """The rows of each name: as many as the network is wide, the last one's the rest."""
    if len(names) == 3:
        return dict(zip(names, tensor.chunk(3), strict=True))
    # Query, key and value of the network's width and a feed-forward of four times as much; a bias has no width to read.
    width = width or tensor.shape[0] // 7
    return dict(zip(names, tensor.split([width] * 3 + [tensor.shape[0] - 3 * width]), strict=True))


def _count(state: State, prefix: str) -> int:
    return len({name.removeprefix(prefix).partition(".")[0] for name in state if name.startswith(prefix)})
