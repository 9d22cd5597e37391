"""The original single-file key names of a tiny diffusers pipeline: the inverse of what diffusers' loader does."""

import re
from typing import Any

import torch

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def original_unet_key(unet: torch.nn.Module, key: str) -> str:
    """The name that a UNet's weight has in the original layout."""
    layers = unet.config.layers_per_block
    has_attention = {f"up_blocks.{number}": hasattr(block, "attentions") for number, block in enumerate(unet.up_blocks)}
    module, _, kind = key.rpartition(".")
    if module in UNET_ENDS:
        return f"{UNET_ENDS[module]}.{kind}"
    found = re.match(r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", key)
    if found:
        side, block, part, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
        if part == "downsamplers":
            return f"input_blocks.{(block + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
        if part == "upsamplers":
            position = 2 if has_attention[f"up_blocks.{block}"] else 1
            return f"output_blocks.{block * (layers + 1) + layers}.{position}.{rest}"
        number = block * (layers + 1) + layer
        stem = f"input_blocks.{number + 1}" if side == "down_blocks" else f"output_blocks.{number}"
        return f"{stem}.1.{rest}" if part == "attentions" else f"{stem}.0.{_resnet_rest(rest)}"
    found = re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", key)
    if found is None:
        raise ValueError(f"no original name for {key}")
    if found[1] == "attentions":
        return f"middle_block.1.{found[3]}"
    return f"middle_block.{2 * int(found[2])}.{_resnet_rest(found[3])}"


def _resnet_rest(rest: str) -> str:
    module, _, kind = rest.rpartition(".")
    return f"{RESNET[module]}.{kind}"


def _vae_key(key: str, blocks: int) -> str:
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", key)
    key = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", key)
    key = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{blocks - 1 - int(m[1])}.block.{m[2]}", key)
    key = re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", key)
    key = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    found = re.match(r"(.*)mid_block\.attentions\.0\.(.+)\.(weight|bias)", key)
    return f"{found[1]}mid.attn_1.{VAE_ATTENTION[found[2]]}.{found[3]}" if found else key


def _open_clip_state(module: torch.nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    state = {key.removeprefix("text_model."): value for key, value in module.state_dict().items()}
    answer = {
        prefix + "token_embedding.weight": state.pop("embeddings.token_embedding.weight"),
        prefix + "positional_embedding": state.pop("embeddings.position_embedding.weight"),
        prefix + "ln_final.weight": state.pop("final_layer_norm.weight"),
        prefix + "ln_final.bias": state.pop("final_layer_norm.bias"),
        prefix + "text_projection": state.pop("text_projection.weight").T,
        prefix + "logit_scale": torch.tensor(4.6),
    }
    state.pop("embeddings.position_ids", None)
    for layer in range(module.config.num_hidden_layers):
        source, target = f"encoder.layers.{layer}.", f"{prefix}transformer.resblocks.{layer}."
        for kind in ("weight", "bias"):
            parts = [state.pop(f"{source}self_attn.{name}_proj.{kind}") for name in "qkv"]
            answer[f"{target}attn.in_proj_{kind}"] = torch.cat(parts)
            for old, new in OPEN_CLIP.items():
                answer[f"{target}{new}.{kind}"] = state.pop(f"{source}{old}.{kind}")
    if state:
        raise ValueError(f"no original name for {sorted(state)[0]}")
    return answer


def single_file_state(pipeline: Any) -> dict[str, torch.Tensor]:
    """Every weight of the pipeline under the name that the original single files use."""
    unet, vae = pipeline.unet, pipeline.vae
    answer = {}
    for key, value in unet.state_dict().items():
        answer["model.diffusion_model." + original_unet_key(unet, key)] = value
    for key, value in vae.state_dict().items():
        name = _vae_key(key, len(vae.config.block_out_channels))
        if ".mid.attn_1." in name and value.ndim == 2:
            value = value[:, :, None, None]
        answer["first_stage_model." + name] = value
    two_encoders = getattr(pipeline, "text_encoder_2", None) is not None
    prefix = "conditioner.embedders.0.transformer." if two_encoders else "cond_stage_model.transformer."
    for key, value in pipeline.text_encoder.state_dict().items():
        answer[prefix + "text_model." + key.removeprefix("text_model.")] = value
    if two_encoders:
        answer |= _open_clip_state(pipeline.text_encoder_2, "conditioner.embedders.1.model.")
    return {key: value.clone().contiguous() for key, value in answer.items()}
