"""The networks of pocket: SDXL's classes and conditioning at a few million parameters."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, ModelMixin, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import save_file
from tokenizers import AddedToken
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from app.pocket.spec import Preset

POSITIONS = 77
UNKNOWN = "<|unknown|>"
LONGEST_UNKNOWN = 32
TIME_ID_CHANNELS = 16


def build_tokenizer(words: list[str]) -> CLIPTokenizer:
    """A plain CLIPTokenizer of whole words, in which any other word is one token that says nothing.

    Every known word is an added token. The byte-pair model below holds no letter, so a letter of any other word
    is the unknown token; its merges join n of them to one token, the same for every word of n letters, and the
    text encoders learn to pass over it. So the rule survives saving and loading, which keep no normalizer.
    """
    vocabulary = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    for length in range(1, LONGEST_UNKNOWN + 1):
        vocabulary[UNKNOWN * length] = len(vocabulary)
    merges = [
        (UNKNOWN * first, UNKNOWN * (length - first))
        for length in range(2, LONGEST_UNKNOWN + 1)
        for first in range(1, length)
    ]
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, unk_token=UNKNOWN, model_max_length=POSITIONS)
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=True) for word in words])
    return tokenizer


def build_autoencoder(preset: Preset) -> AutoencoderKL:
    """Four latent channels at an eighth of the size, as SDXL's; without attention, so that it learns from crops."""
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=preset.autoencoder_channels,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=preset.size,
        mid_block_add_attention=False,
        force_upcast=False,
    )


def build_unet(preset: Preset) -> UNet2DConditionModel:
    """SDXL's UNet: no attention at full size, then one transformer layer a block; pooled text and time ids added."""
    heads = tuple(max(1, channels // 32) for channels in preset.unet_channels)
    return UNet2DConditionModel(
        sample_size=preset.size // 8,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=preset.unet_channels,
        layers_per_block=preset.unet_layers,
        transformer_layers_per_block=1,
        attention_head_dim=heads,
        cross_attention_dim=sum(preset.text_widths),
        use_linear_projection=True,
        norm_num_groups=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_ID_CHANNELS,
        projection_class_embeddings_input_dim=6 * TIME_ID_CHANNELS + preset.text_widths[1],
    )


def build_text_encoders(preset: Preset, vocabulary: int) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """SDXL's two text encoders; both give their hidden states before the last layer, the second the pooled text."""

    def config(width: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=preset.text_layers,
            num_attention_heads=max(1, width // 32),
            max_position_embeddings=POSITIONS,
            hidden_act="gelu",
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )

    first, second = preset.text_widths
    return CLIPTextModel(config(first)), CLIPTextModelWithProjection(config(second))


def build_scheduler() -> DDIMScheduler:
    """v-prediction with zero terminal SNR and trailing steps: without them a flat background comes out gray
    (Lin et al. 2023, "Common Diffusion Noise Schedules and Sample Steps are Flawed")."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
    )


def build_pipeline(preset: Preset, words: list[str]) -> StableDiffusionXLPipeline:
    """The whole untrained pipeline."""
    tokenizer = build_tokenizer(words)
    text_encoder, text_encoder_2 = build_text_encoders(preset, len(tokenizer))
    return StableDiffusionXLPipeline(
        vae=build_autoencoder(preset),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=build_tokenizer(words),
        unet=build_unet(preset),
        scheduler=build_scheduler(),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def encode_tokens(first: CLIPTextModel, second: CLIPTextModelWithProjection, tokens: torch.Tensor):
    """(hidden states of both [n, 77, widths], pooled text [n, width]) as StableDiffusionXLPipeline computes them."""
    one = first(tokens, output_hidden_states=True)
    two = second(tokens, output_hidden_states=True)
    return torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1), two.text_embeds


def save_network(network: ModelMixin, folder: Path) -> None:
    """diffusers' folder of one network, float16."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: tensor.detach().half().contiguous() for key, tensor in network.state_dict().items()}
    save_file(state, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    config = json.loads(network.to_json_string())
    config.pop("_name_or_path", None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
