"""A whole Step1X-Edit of random weights in either published layout: a tiny Qwen2.5-VL, network and autoencoder."""

import json
import shutil

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from app.models.single_files import LAYOUTS
from app.models.step1x_text import V1_1, V1_2, prefix_of
from tests.parity import weights

SPECIAL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
]  # fmt: skip
WIDTH = 80
"""Of the vision-language model's hidden states, as the parity case's connector takes them."""


def make_tokenizer(folder):
    """Byte-level pairs learned from the prefixes, so that these take as few tokens as with the published tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([prefix_of(version) for version in (V1_1, V1_2)], trainer)
    whole = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, additional_special_tokens=SPECIAL, pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    whole.save_pretrained(folder)
    preprocessing = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "size": {"shortest_edge": 3136, "longest_edge": 802816},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing))
    return whole


def make_language_model(folder, tokenizer, seed=0):
    """A Qwen2.5-VL of one layer, whose answers are noise of a few tokens."""
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 96, "num_hidden_layers": 1,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
            "bos_token_id": ids["<|im_start|>"], "eos_token_id": ids["<|im_end|>"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 4, 4]},
        },
        vision_config={
            "depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": WIDTH,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
            "fullatt_block_indexes": [0],
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
    )  # fmt: skip
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        # One number that all hidden states share, and that the end of an answer is likely by.
        model.get_input_embeddings().weight[:, 0] = 0.1
        model.lm_head.weight[ids["<|im_end|>"], 0] = 0.8
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
