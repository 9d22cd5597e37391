"""A whole Step1X-Edit of random weights in either published layout: a tiny Qwen2.5-VL, network and autoencoder."""

import json
import shutil

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from tokenizers import decoders
from transformers import PreTrainedTokenizerFast

from app.models.single_files import LAYOUTS
from app.models.step1x_text import V1_1, V1_2, prefix_of
from tests.models.tiny_language import PATCHES, SPECIAL, build_language_model, learn_pairs, special_ids
from tests.parity import weights

WIDTH = 80
"""Of the vision-language model's hidden states, as the parity case's connector takes them."""


def make_tokenizer(folder):
    """Byte-level pairs learned from the prefixes, so that these take as few tokens as with the published tokenizer."""
    tokenizer = learn_pairs([prefix_of(version) for version in (V1_1, V1_2)], 700)
    tokenizer.decoder = decoders.ByteLevel()
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=SPECIAL, pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    whole.save_pretrained(folder)
    preprocessing = {"image_processor_type": "Qwen2VLImageProcessor", **PATCHES}
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return whole


def make_language_model(folder, tokenizer, seed=0):
    """A Qwen2.5-VL of one layer, whose answers are noise of a few tokens."""
    model = build_language_model(tokenizer, WIDTH, inner=96, sections=[2, 4, 4], seed=seed)
    with torch.no_grad():
        # One number that all hidden states share, and that the end of an answer is likely by.
        model.get_input_embeddings().weight[:, 0] = 0.1
        model.lm_head.weight[special_ids(tokenizer)["<|im_end|>"], 0] = 0.8
    model.save_pretrained(folder, safe_serialization=True)
    return model


def make_autoencoder(folder, seed=0):
    """FLUX's autoencoder, narrow: a picture eight times as large as its latents, of which there are four."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=4, latent_channels=4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        use_quant_conv=False, use_post_quant_conv=False, scaling_factor=0.3611, shift_factor=0.1159, sample_size=64,
    )  # fmt: skip
    vae.save_pretrained(folder, safe_serialization=True)
    return vae


def make_folder(folder, keys, config, *, version, tensor=weights.tensor):
    """The diffusers layout; `keys` are the network's, filled by `tensor`, `config` its sizes."""
    own = {key: shape for key, shape in keys.items() if version == "1.2" or not key.startswith("text_token_mapping.")}
    part = folder / "transformer"
    part.mkdir(parents=True)
    save_file(
        {key: tensor(key, tuple(shape)) for key, shape in own.items()}, part / "diffusion_pytorch_model.safetensors"
    )
    (part / "config.json").write_text(json.dumps({"_class_name": "Step1XEditTransformer2DModel", **config}))
    (folder / "processor").mkdir()
    make_language_model(folder / "text_encoder", make_tokenizer(folder / "processor"))
    make_autoencoder(folder / "vae")
    shutil.copytree(LAYOUTS / "step1x" / "scheduler", folder / "scheduler")
    kind = "Step1XEditPipelineV1P2" if version == "1.2" else "Step1XEditPipeline"
    index = {
        "_class_name": kind,
        "processor": ["transformers", "Qwen2_5_VLProcessor"],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
        "transformer": ["diffusers", "Step1XEditTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
