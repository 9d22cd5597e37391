"""The models in plain words, straight from their description: what a case expects at a draw nobody was shown.

Nothing of the product is used here. At the published draw these functions agree with the references' own numbers; so
what they say of another draw may stand for the references there.
"""

import copy
import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from safetensors.torch import save_file
from torch.nn.functional import gelu, layer_norm, leaky_relu, linear, normalize

from tests.parity.cases import DATA, ParityCase
from tests.parity.derivation_step1x import step1x_edit

Weights = Mapping[str, torch.Tensor]
Numbers = dict[str, torch.Tensor]
ATTENTION = "id_adapter_attn_layers.{}.id_to_{}.weight"
IP_ATTENTION = "ip_adapter.{}.to_{}_ip.weight"
NEVER_SALTED = ("kps0", "kps1")
"""Drawings of points that stand in the case: the same at every draw."""

BESIDE = ("text.json", "ids.safetensors")
"""Files of a case that no weight has a say in: the same at every draw."""


def part_of(weights: Weights, prefix: str) -> dict[str, torch.Tensor]:
    """The weights under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}


def normed(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """A layer norm of this name."""
    return layer_norm(x, (x.shape[-1],), weights[f"{name}.weight"], weights[f"{name}.bias"])


def mapped(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    """Linear, norm, leaky ReLU, twice, and a last linear: layers 0, 1, 3, 4 and 6."""
    for number in (0, 3):
        x = linear(x, weights[f"{name}.{number}.weight"], weights[f"{name}.{number}.bias"])
        x = leaky_relu(normed(weights, f"{name}.{number + 1}", x), 0.01)
    return linear(x, weights[f"{name}.6.weight"], weights[f"{name}.6.bias"])


def perceived(weights: Weights, layer: int, heads: int, context: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """One layer of a perceiver: latents look at the context and at themselves, then feed forward."""
    attend, feed = f"layers.{layer}.0.", f"layers.{layer}.1."
    context, own = normed(weights, attend + "norm1", context), normed(weights, attend + "norm2", latents)
    query = linear(own, weights[attend + "to_q.weight"])
    key, value = linear(torch.cat([context, own], 1), weights[attend + "to_kv.weight"]).chunk(2, -1)
    query, key, value = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    looks = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
    latents = latents + linear((looks @ value).transpose(1, 2).flatten(2), weights[attend + "to_out.weight"])
    hidden = gelu(linear(normed(weights, feed + "0", latents), weights[feed + "1.weight"]))
    return latents + linear(hidden, weights[feed + "3.weight"])


def id_encoder(weights: Weights, identity: torch.Tensor, hidden: list[torch.Tensor]) -> torch.Tensor:
    """PuLID v1: five tokens of the identity, and one of each depth: its first place and the mean of the others."""
    tokens = [mapped(weights, "body", identity).unflatten(-1, (5, -1))]
    for depth, states in enumerate(hidden):
        whole = mapped(weights, f"mapping_{depth}", states[:, :1])
        patches = mapped(weights, f"mapping_patch_{depth}", states[:, 1:])
        tokens.append(whole + patches.mean(1, keepdim=True))
    return torch.cat(tokens, 1)


def id_former(
    weights: Weights, config: Mapping[str, int], identity: torch.Tensor, hidden: list[torch.Tensor]
) -> torch.Tensor:
    """PuLID v1.1; `identity` is [1, pictures, 1280]."""
    tokens = mapped(weights, "id_embedding_mapping", identity).reshape(1, -1, config["dim"])
    latents = torch.cat([weights["latents"], tokens], 1)
    each = config["depth"] // 5
    for depth, states in enumerate(hidden):
        context = torch.cat([tokens, mapped(weights, f"mapping_{depth}", states)], 1)
        for layer in range(depth * each, (depth + 1) * each):
            latents = perceived(weights, layer, config["heads"], context, latents)
    return latents[:, : config["num_queries"]] @ weights["proj_out"]


def resampler(weights: Weights, config: Mapping[str, int], vectors: torch.Tensor) -> torch.Tensor:
    """InstantID's `image_proj`: [n, 1, 512] to [n, 16, width]."""
    latents = weights["latents"].expand(len(vectors), -1, -1)
    context = linear(vectors, weights["proj_in.weight"], weights["proj_in.bias"])
    for layer in range(config["depth"]):
        latents = perceived(weights, layer, config["heads"], context, latents)
    return normed(weights, "norm_out", linear(latents, weights["proj_out.weight"], weights["proj_out.bias"]))


class PlainAttention:
    """Cross-attention that looks at more tokens beside the text: one row of `tokens` for each row of the call."""

    def __init__(
        self, key: torch.Tensor, value: torch.Tensor, tokens: torch.Tensor, scale: float, zeros: int, mode: str | None
    ) -> None:
        self.key, self.value, self.scale, self.mode = key, value, scale, mode
        self.tokens = torch.cat([tokens, torch.zeros(len(tokens), zeros, tokens.shape[-1])], 1)

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **more):
        def split(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

        def answer(key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            looks = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).softmax(-1)
            return (looks @ value).transpose(1, 2).flatten(2)

        query = split(attn.to_q(hidden_states))
        text = answer(split(attn.to_k(encoder_hidden_states)), split(attn.to_v(encoder_hidden_states)))
        key, value = split(linear(self.tokens, self.key)), split(linear(self.tokens, self.value))
        face = answer(key, value)
        # Along the text's own answer, channel by channel over all places.
        along = (text * face).sum(1, keepdim=True) / (text * text).sum(1, keepdim=True) * text
        if self.mode == "ortho":
            face = face - along
        elif self.mode == "ortho_v2":
            looks = (query @ key.transpose(-1, -2)).softmax(-1).mean(1)
            face = face + (looks[..., :5].sum(-1, keepdim=True) - 1) * along
        return attn.to_out[1](attn.to_out[0](text + self.scale * face))


class Scene:
    """A case's UNet and IdentityNet, and what both are told."""

    def __init__(self, case: ParityCase) -> None:
        self.case = case
        self.unet = case.fill_(UNet2DConditionModel(**case.config["unet"]))
        self.sample = case.inputs("latent", (2, 4, 16, 16))
        self.text = case.inputs("text", (2, 7, 64))
        self.added = {
            "text_embeds": case.inputs("pooled", (2, 32)),
            "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]] * 2),
        }

    def residuals(self, tokens: torch.Tensor, timestep: int, scale: float) -> dict[str, object]:
        """IdentityNet's say, with the face's tokens where the text would stand."""
        network = ControlNetModel.from_unet(
            self.unet,
            conditioning_channels=3,
            controlnet_conditioning_channel_order="rgb",
            conditioning_embedding_out_channels=tuple(self.case.config["controlnet_embedding_channels"]),
            load_weights_from_unet=False,
        )
        drawing = self.case.inputs("kps_image", (1, 3, 128, 128)).sigmoid().repeat(2, 1, 1, 1)
        down, mid = self.case.fill_(network, "identitynet.")(
            self.sample, timestep, tokens, drawing, added_cond_kwargs=self.added, return_dict=False
        )
        return {
            "down_block_additional_residuals": [scale * part for part in down],
            "mid_block_additional_residual": scale * mid,
        }

    def noise(
        self, processor_of: Callable[[int], PlainAttention], timestep: object, **residuals: object
    ) -> torch.Tensor:
        """What the UNet says with these processors; their numbers count down blocks, up blocks, mid block."""
        unet = copy.deepcopy(self.unet)
        stock = unet.attn_processors
        unet.set_attn_processor(
            {name: processor_of(n) if n % 2 else copy.copy(stock[name]) for n, name in enumerate(stock)}
        )
        more = {"added_cond_kwargs": self.added, "return_dict": False}
        return unet(self.sample, timestep, self.text, **more, **residuals)[0]


def identity_layers(case: ParityCase, unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    """PuLID's key and value of each cross-attention."""
    modules = [unet.get_submodule(name.removesuffix(".processor")) for name in unet.attn_processors]
    width = unet.config.cross_attention_dim
    return {
        ATTENTION.format(number, side): case.tensor(ATTENTION.format(number, side), (module.inner_dim, width))
        for number, module in enumerate(modules)
        if number % 2
        for side in "kv"
    }


def pulid_v1(case: ParityCase) -> Numbers:
    """What the case of this name expects."""
    weights = case.tensors(case.config["keys"])
    hidden = [case.inputs(f"vit{depth}", (2, 17, 1024)) for depth in range(5)]
    return {
        "idencoder": id_encoder(weights, case.inputs("id_cond", (2, 1280)), hidden),
        "idencoder.uncond": id_encoder(weights, torch.zeros(1, 1280), [torch.zeros(1, 17, 1024)] * 5),
    }


def pulid(case: ParityCase) -> Numbers:
    """What the case of this name expects."""
    weights, config = case.tensors(case.config["idformer_keys"]), case.config["idformer"]
    one = [case.inputs(f"vit{depth}", (1, 17, 1024)) for depth in range(5)]
    two = [case.inputs(f"vit2{depth}", (1, 34, 1024)) for depth in range(5)]
    found = {
        "idformer.one_image": id_former(weights, config, case.inputs("id_cond", (1, 1, 1280)), one),
        "idformer.two_images": id_former(weights, config, case.inputs("id_cond2", (1, 2, 1280)), two),
        "idformer.uncond": id_former(weights, config, torch.zeros(1, 1, 1280), [torch.zeros(1, 17, 1024)] * 5),
    }
    scene, layers = Scene(case), case.tensors(case.config["adapter_keys"])
    tokens = case.inputs("id_tokens", (2, 8, 64))
    for name in published(case):
        if name.startswith("unet."):
            _, mode, zeros, scale = name.split(".", 3)
            settings = (float(scale.removeprefix("scale")), int(zeros.removeprefix("num_zero")), mode)
            found[name] = scene.noise(
                lambda number, settings=settings: PlainAttention(
                    *(layers[ATTENTION.format(number, side)] for side in "kv"), tokens, *settings
                ),
                torch.tensor([500, 20]),
            )
    return found


def instantid(case: ParityCase) -> Numbers:
    """What the case of this name expects."""
    weights = part_of(case.tensors(case.config["image_proj_keys"]), "image_proj.")
    arcface = case.inputs("arcface", (1, 1, 512))
    tokens = resampler(weights, case.config["resampler"], torch.cat([torch.zeros_like(arcface), arcface]))
    found = {"image_tokens": tokens} | {name: published(case)[name] for name in NEVER_SALTED}
    scene, layers = Scene(case), case.tensors(case.config["ip_adapter_keys"])
    for name in published(case):
        if name.startswith("noise."):
            scale, control = (float(part) for part in name.removeprefix("noise.ip").split(".control"))
            found[name] = scene.noise(
                lambda number, scale=scale: PlainAttention(
                    *(layers[IP_ATTENTION.format(number, side)] for side in "kv"), tokens, scale, 0, None
                ),
                500,
                **scene.residuals(tokens, 500, control),
            )
    return found


def ecomid(case: ParityCase) -> Numbers:
    """What the case of this name expects."""
    encoder = part_of(case.tensors(case.config["id_encoder_keys"]), "id_adapter.")
    identity = torch.cat([case.inputs("arcface", (1, 512)), normalize(case.inputs("eva_pooled", (1, 768)))], -1)
    identity = torch.cat([torch.zeros_like(identity), identity])
    hidden = [case.inputs(f"vit{depth}", (1, 17, 1024)) for depth in range(5)]
    tokens = id_encoder(encoder, identity, [torch.cat([torch.zeros_like(states), states]) for states in hidden])
    projection = part_of(case.tensors(case.config["resampler_keys"]), "image_proj.")
    faces = resampler(projection, case.config["resampler"], identity[:, None, :512])
    scene = Scene(case)
    layers = identity_layers(case, scene.unet)
    found = {"id_tokens": tokens, "identitynet_tokens": faces}
    for method, said in case.config["methods"].items():
        settings = (said["ip_weight"], said["num_zero"], {"v1": "ortho", "v2": "ortho_v2"}.get(said["ortho"]))
        found[f"noise.{method}"] = scene.noise(
            lambda number, settings=settings: PlainAttention(
                *(layers[ATTENTION.format(number, side)] for side in "kv"), tokens, *settings
            ),
            500,
            **scene.residuals(faces, 500, said["cn_strength"]),
        )
    return found


DERIVED: Mapping[str, Callable[[ParityCase], Numbers]] = {
    "pulid_v1": pulid_v1,
    "pulid": pulid,
    "instantid": instantid,
    "ecomid": ecomid,
    "step1x_edit": step1x_edit,
}


def published(case: ParityCase) -> Mapping[str, torch.Tensor]:
    """The reference's own numbers at the published draw: their names say what is asked, at any draw."""
    return ParityCase(case.name, case.folder).expected


@torch.no_grad()
def derive(case: ParityCase) -> Numbers:
    """What the case's reference would give at the case's draw."""
    return {name: value.contiguous() for name, value in DERIVED[case.name](case).items()}


def write(case: ParityCase, folder: Path) -> None:
    """The case as a folder of EIS_PARITY holds it."""
    folder.mkdir(parents=True)
    (folder / "case.json").write_text(json.dumps(dict(case.config)), "utf-8")
    save_file(derive(case), folder / "expected.safetensors")
    for file in (DATA / case.name / name for name in BESIDE):
        if file.is_file():
            shutil.copyfile(file, folder / file.name)
