"""Step1X-Edit in plain words, as `derivation` has the identity models: a connector by hand, and diffusers' own FLUX."""

import math
from collections.abc import Mapping

import torch
from diffusers import FluxTransformer2DModel
from torch.nn.functional import layer_norm, linear, silu

from tests.parity.cases import ParityCase

Weights = Mapping[str, torch.Tensor]
FLUX_NAMES = {
    "time_embed.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_embed.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vec_embed.in_layer": "time_text_embed.text_embedder.linear_1",
    "vec_embed.out_layer": "time_text_embed.text_embedder.linear_2",
}
"""What the published folder calls otherwise than FLUX's."""


def layer(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """The linear layer of this name."""
    return linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def normed(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """The layer norm of this name."""
    return layer_norm(x, (x.shape[-1],), weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-6)


def connected(
    weights: Weights, heads: int, depth: int, hidden: torch.Tensor, mask: torch.Tensor, timestep: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and pooled vector, row by row: the tokens that the mask leaves out take no part in the mean."""
    tokens, pooled = [], []
    for row, seen, time in zip(hidden, mask.bool(), timestep, strict=True):
        mean = row[seen].mean(0)
        angles = 1000 * time * torch.exp(-math.log(10_000) * torch.arange(128) / 128)
        waves = torch.cat([angles.cos(), angles.sin()])
        when = layer(weights, "S.t_embedder.mlp.2", silu(layer(weights, "S.t_embedder.mlp.0", waves)))
        what = layer(weights, "S.c_embedder.linear_2", silu(layer(weights, "S.c_embedder.linear_1", mean)))
        pairs = seen[:, None] & seen[None, :]
        pairs[:, 0] = True
        x = layer(weights, "S.input_embedder", row)
        for number in range(depth):
            x = refined(weights, f"S.individual_token_refiner.blocks.{number}.", heads, x, when + what, pairs)
        tokens.append(x)
        pooled.append(layer(weights, "global_proj_out", mean))
    return torch.stack(tokens), torch.stack(pooled)


def refined(
    weights: Weights, block: str, heads: int, x: torch.Tensor, condition: torch.Tensor, pairs: torch.Tensor
) -> torch.Tensor:
    """One block on tokens [tokens, width]: `pairs` says which token looks at which."""
    looking, feeding = layer(weights, block + "adaLN_modulation.1", silu(condition)).chunk(2)
    query, key, value = layer(weights, block + "self_attn_qkv", normed(weights, block + "norm1", x)).chunk(3, -1)
    answers = []
    for q, k, v in zip(*(part.chunk(heads, -1) for part in (query, key, value)), strict=True):
        scores = (q @ k.T / math.sqrt(q.shape[-1])).masked_fill(~pairs, -math.inf)
        answers.append(scores.softmax(-1) @ v)
    x = x + looking * layer(weights, block + "self_attn_proj", torch.cat(answers, -1))
    hidden = silu(layer(weights, block + "mlp.fc1", normed(weights, block + "norm2", x)))
    return x + feeding * layer(weights, block + "mlp.fc2", hidden)


def flux(case: ParityCase, weights: Weights) -> FluxTransformer2DModel:
    """diffusers' FLUX with the case's weights under its own names."""
    sizes = case.config["config"]
    module = FluxTransformer2DModel(
        in_channels=sizes["in_channels"],
        num_layers=sizes["num_layers"],
        num_single_layers=sizes["num_single_layers"],
        attention_head_dim=sizes["attention_head_dim"],
        num_attention_heads=sizes["num_attention_heads"],
        joint_attention_dim=sizes["joint_attention_dim"],
        pooled_projection_dim=sizes["vector_in_dim"],
        axes_dims_rope=tuple(sizes["axes_dims_rope"]),
        guidance_embeds=False,
    )
    state = {}
    for key, value in weights.items():
        stem, _, kind = key.rpartition(".")
        if not key.startswith(("connector.", "text_token_mapping.")):
            state[f"{FLUX_NAMES.get(stem, stem)}.{kind}"] = value
    module.load_state_dict(state, strict=True)
    return module.eval()


def step1x_edit(case: ParityCase) -> dict[str, torch.Tensor]:
    """What the case of this name expects: v1.2 adds to the tokens what the letters in quotes say, v1.1 does not."""
    weights, sizes = case.tensors(case.config["keys"]), case.config["config"]
    connector = {key.removeprefix("connector."): value for key, value in weights.items() if "connector." in key}
    hidden, timestep = case.inputs("vlm_hidden", (2, 11, 80)), torch.tensor(case.config["inputs"]["timestep"])
    mask = torch.ones(2, 11)
    mask[1, 8:] = 0
    tokens, pooled = connected(
        connector, sizes["connector_heads_num"], sizes["connector_depth"], hidden, mask, timestep
    )
    letters = layer(weights, "text_token_mapping", case.inputs("text_embeddings", (2, 11, 80)))
    marked = (case.inputs("text_mask", (2, 11)) > 0)[..., None]
    places = torch.tensor([[of, y, x] for of in (0, 1) for y in range(4) for x in range(4)], dtype=torch.float32)
    network = flux(case, weights)

    def velocity(text: torch.Tensor) -> torch.Tensor:
        return network(
            hidden_states=case.inputs("latent_tokens", (2, 32, 16)),
            encoder_hidden_states=text,
            pooled_projections=pooled,
            timestep=timestep,
            img_ids=places,
            txt_ids=torch.zeros(11, 3),
            return_dict=False,
        )[0]

    return {
        "connector.tokens": tokens,
        "connector.pooled": pooled,
        "v1p1.velocity": velocity(tokens),
        "v1p2.velocity": velocity(tokens + letters * marked),
    }
