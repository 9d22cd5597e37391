"""A whole Qwen-Image-Edit of random weights: a tiny Qwen2.5-VL, network and autoencoder, in diffusers' layout."""

import json
import math

import diffusers
import torch
from transformers import Qwen2Tokenizer, Qwen2VLImageProcessor, Qwen2VLProcessor, Qwen2VLVideoProcessor

from tests.models.tiny_language import PATCHES, SPECIAL, build_language_model, learn_pairs

WIDTH = 64
"""Of the language model's hidden states."""
HEADS, HEAD = 4, 32
WORDS = (
    "Describe the key features of the input image (color, shape, size, texture, objects, background), then explain how "
    "the user's text instruction should alter or modify the image. Picture 1: make the car green and the sky blue"
)
SCHEDULER = {
    "base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 8192, "max_shift": 0.9, "shift_terminal": 0.02,
    "time_shift_type": "exponential", "use_dynamic_shifting": True,
}  # fmt: skip
"""As it is published with every version."""


def make_tokenizer():
    """Byte-level pairs learned from a few words."""
    pairs = json.loads(learn_pairs([WORDS], 360).to_str())["model"]
    tokenizer = Qwen2Tokenizer(vocab=pairs["vocab"], merges=[tuple(pair) for pair in pairs["merges"]])
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    return tokenizer


def make_processor(tokenizer):
    """What turns words and pictures into the language model's inputs."""
    return Qwen2VLProcessor(
        image_processor=Qwen2VLImageProcessor(**PATCHES),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(**PATCHES),
    )


def make_language_model(tokenizer, seed=0):
    """A Qwen2.5-VL of one layer."""
    return build_language_model(tokenizer, WIDTH, inner=128, sections=[2, 3, 3], spare=8, seed=seed)


def make_network(*, zero_cond_t=False, seed=1, layers=2):
    """A network of the published arrangement, narrow; its widths are multiples of what formats of few bits group."""
    torch.manual_seed(seed)
    network = diffusers.QwenImageTransformer2DModel(
        in_channels=16, out_channels=4, num_layers=layers, attention_head_dim=HEAD, num_attention_heads=HEADS,
        joint_attention_dim=WIDTH, axes_dims_rope=(4, 14, 14), zero_cond_t=zero_cond_t,
    ).eval()  # fmt: skip
    with torch.no_grad():
        # Fresh weights hardly listen to words; here they and what they lead to are heard.
        network.txt_in.weight.mul_(8)
        network.proj_out.weight.mul_(6)
        for block in network.transformer_blocks:
            block.attn.add_k_proj.weight.mul_(4)
            block.attn.add_v_proj.weight.mul_(8)
            block.attn.to_out[0].weight.mul_(4)
            block.img_mod[1].bias.add_(0.7)
    return network


def make_autoencoder(seed=2):
    """A picture eight times as large as its latents, of which there are four."""
    torch.manual_seed(seed)
    vae = diffusers.AutoencoderKLQwenImage(
        base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.1, 0.9, 1.0, 1.2],
    ).eval()  # fmt: skip
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(12)
    return vae


def make_folder(folder, *, plus=False, zero_cond_t=False):
    """A whole checkpoint of either pipeline; answers the folder."""
    tokenizer = make_tokenizer()
    kind = diffusers.QwenImageEditPlusPipeline if plus else diffusers.QwenImageEditPipeline
    kind(
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(**SCHEDULER),
        vae=make_autoencoder(),
        text_encoder=make_language_model(tokenizer),
        tokenizer=tokenizer,
        processor=make_processor(tokenizer),
        transformer=make_network(zero_cond_t=zero_cond_t),
    ).save_pretrained(folder, safe_serialization=True)
    return folder


def smaller(area):
    """diffusers' `calculate_dimensions`, of which all three pipelines ask for a million pixels, for another area."""

    def calculate_dimensions(target_area, ratio):
        width = math.sqrt(area * ratio)
        return round(width / 32) * 32, round(width / ratio / 32) * 32

    return calculate_dimensions
