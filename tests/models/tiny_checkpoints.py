"""Tiny random Stable Diffusion 1.5 and SDXL checkpoints, LoRAs and textual inversions, laid out as people publish them.

Same classes, same key names, same file layout as the real ones; only the sizes are small. Everything is drawn from
`seed`, so two calls with one seed write the same weights. A picture of 64x64 takes a fraction of a second.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.models.original_layout import original_unet_key, single_file_state

WORDS = (
    "a an the of on in and with at by photo painting red green blue car cat dog house tree background left right big "
    "small star heart lamp flower boat bottle snow night light dark very masterpiece blurry BREAK style old young face"
).lower().split()

PUBLISHED_SCHEDULE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}

TEXT_WIDTH = 32
TEXT_WIDTH_2 = 48


def _byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(code) for code in printable]
    letters += [chr(256 + number) for number in range(256 - len(printable))]
    return letters


def write_tokenizer(folder: Path, *, pad_token: str = "<|endoftext|>") -> CLIPTokenizer:
    """A CLIP tokenizer with a few dozen words: vocab.json, merges.txt and the two small JSON files, as published."""
    letters = _byte_alphabet()
    vocabulary = letters + [letter + "</w>" for letter in letters]
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        while len(pieces) > 1:
            pair = (pieces[0], pieces[1])
            joined = "".join(pair)
            if pair not in merges:
                merges.append(pair)
            if joined not in vocabulary:
                vocabulary.append(joined)
            pieces[:2] = [joined]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(f"{first} {second}" for first, second in merges)]) + "\n", encoding="utf-8"
    )
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": pad_token,
        "unk_token": "<|endoftext|>",
    }
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True, **special})
    )
    return CLIPTokenizer.from_pretrained(folder, local_files_only=True)


def _text_config(tokenizer: CLIPTokenizer, width: int, **more: object) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=77,
        # Published checkpoints say 0 and 2 although the tokens have other ids; pooling then goes by the largest id.
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        **more,
    )


def _vae(scaling_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=4,
        sample_size=64,
        scaling_factor=scaling_factor,
    )


def _spread(module: torch.nn.Module, gain: float = 1.6) -> torch.nn.Module:
    """Larger random weights, so that pictures have contrast and a test can see a difference."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.mul_(gain)
    return module.eval()


def _uneven_norms(encoder: torch.nn.Module) -> torch.nn.Module:
    """Norms with random gains and offsets, as training leaves them: an embedding's mean is not zero then."""
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.add_(torch.randn_like(module.weight) * 0.2)
                module.bias.add_(torch.randn_like(module.bias) * 0.2 + 0.1)
    return encoder.eval()


def build_sd15(folder: Path, seed: int = 0, *, in_channels: int = 4) -> StableDiffusionPipeline:
    """The pipeline that `make_sd15` writes (the tokenizer's files go to `folder`)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = write_tokenizer(folder / "tokenizer")
        text_encoder = _uneven_norms(CLIPTextModel(_text_config(tokenizer, TEXT_WIDTH)))
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=in_channels,
            block_out_channels=(32, 64),
            layers_per_block=2,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            attention_head_dim=4,
            norm_num_groups=8,
            cross_attention_dim=TEXT_WIDTH,
        )
        vae = _vae(0.18215)
        _spread(unet), _spread(vae, 2.0)
    scheduler = PNDMScheduler.from_config(PUBLISHED_SCHEDULE)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def build_sdxl(
    folder: Path,
    seed: int = 0,
    *,
    in_channels: int = 4,
    text_widths: tuple[int, int] = (TEXT_WIDTH, TEXT_WIDTH_2),
) -> StableDiffusionXLPipeline:
    """The pipeline that `make_sdxl` writes (the tokenizers' files go to `folder`)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = write_tokenizer(folder / "tokenizer")
        tokenizer_2 = write_tokenizer(folder / "tokenizer_2", pad_token="!")
        first, second = text_widths
        text_encoder = _uneven_norms(CLIPTextModel(_text_config(tokenizer, first)))
        text_encoder_2 = _uneven_norms(
            CLIPTextModelWithProjection(_text_config(tokenizer_2, second, projection_dim=second, hidden_act="gelu"))
        )
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=in_channels,
            block_out_channels=(32, 64),
            layers_per_block=2,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=(1, 2),
            attention_head_dim=(2, 4),
            norm_num_groups=8,
            cross_attention_dim=first + second,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + second,
        )
        vae = _vae(0.13025)
        _spread(unet), _spread(vae, 2.0)
    scheduler = EulerDiscreteScheduler.from_config(
        {**PUBLISHED_SCHEDULE, "timestep_spacing": "leading", "use_karras_sigmas": False, "prediction_type": "epsilon"}
    )
    return StableDiffusionXLPipeline(
        vae=vae,
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )


def make_sd15(folder: Path, seed: int = 0, *, in_channels: int = 4) -> Path:
    """Write a tiny Stable Diffusion 1.5 in the diffusers layout; answers the folder."""
    build_sd15(folder, seed, in_channels=in_channels).save_pretrained(folder, safe_serialization=True)
    return folder


def make_sdxl(folder: Path, seed: int = 0, *, in_channels: int = 4) -> Path:
    """Write a tiny SDXL in the diffusers layout; answers the folder."""
    build_sdxl(folder, seed, in_channels=in_channels).save_pretrained(folder, safe_serialization=True)
    return folder


def _single_file(build: Callable[..., object], file: Path, seed: int) -> Path:
    return write_single_file(build(file.parent / "config", seed), file)


def write_single_file(pipeline: object, file: Path) -> Path:
    """The pipeline's weights as one file with the original key names, and `config/` beside it with its tokenizers."""
    config = file.parent / "config"
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(single_file_state(pipeline), file, metadata={"format": "pt"})
    pipeline.save_config(config)
    for name, component in pipeline.components.items():
        if component is None:
            continue
        if name.startswith("tokenizer"):
            if not (config / name).is_dir():
                component.save_pretrained(config / name)
        elif name.startswith("text_encoder"):
            component.config.save_pretrained(config / name)
        else:
            component.save_config(config / name)
    return file


def make_sd15_single_file(file: Path, seed: int = 0) -> Path:
    """The weights of `make_sd15(seed)` as one file with the original key names, and `config/` beside it."""
    return _single_file(build_sd15, file, seed)


def make_sdxl_single_file(file: Path, seed: int = 0) -> Path:
    """The weights of `make_sdxl(seed)` as one file with the original key names, and `config/` beside it."""
    return _single_file(build_sdxl, file, seed)


def _lora_targets(pipeline: object) -> dict[str, dict[str, tuple[int, ...]]]:
    """Component -> module path -> shape of the weights of the modules that published LoRAs train."""
    text = ("q_proj", "k_proj", "v_proj", "out_proj", "mlp.fc1", "mlp.fc2")
    endings = {
        "unet": ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out"),
        "text_encoder": text,
        "text_encoder_2": text,
    }
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for component, names in endings.items():
        module = getattr(pipeline, component, None)
        if module is None:
            continue
        found[component] = {
            path: tuple(layer.weight.shape)
            for path, layer in module.named_modules()
            if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d) and path.endswith(names)
        }
    return found


def _lora_matrices(shape: tuple[int, ...], rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Down and up; those of a 1x1 convolution are 1x1 convolutions."""
    outward, inward, *kernel = shape
    return torch.randn(rank, inward, *kernel) * 0.3, torch.randn(outward, rank, *kernel) * 0.3


def make_lora_diffusers(
    file: Path, checkpoint: Path, seed: int = 0, *, rank: int = 4, text_encoders: bool = True
) -> Path:
    """A LoRA for the tiny checkpoint at `checkpoint` with diffusers' keys (`unet.….lora_A.weight`)."""
    pipeline = _open(checkpoint)
    state: dict[str, torch.Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for component, targets in _lora_targets(pipeline).items():
            if component != "unet" and not text_encoders:
                continue
            for path, shape in targets.items():
                down, up = _lora_matrices(shape, rank)
                named = path if component == "unet" or path.startswith("text_model.") else f"text_model.{path}"
                state[f"{component}.{named}.lora_A.weight"] = down
                state[f"{component}.{named}.lora_B.weight"] = up
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, file, metadata={"format": "pt"})
    return file


def make_lora_kohya(
    file: Path,
    checkpoint: Path,
    seed: int = 0,
    *,
    rank: int = 4,
    alpha: float = 2.0,
    text_encoders: bool = True,
    original_blocks: bool = False,
) -> Path:
    """A LoRA for the tiny checkpoint with kohya's keys (`lora_unet_…`, `lora_te_…`, `lora_te1_…`, `.alpha`).

    `original_blocks` names the UNet's blocks as the single files do (`input_blocks_4_1`): published SDXL LoRAs do.
    """
    pipeline = _open(checkpoint)
    targets = _lora_targets(pipeline)
    two_encoders = "text_encoder_2" in targets
    prefixes = {
        "unet": "lora_unet_",
        "text_encoder": "lora_te1_" if two_encoders else "lora_te_",
        "text_encoder_2": "lora_te2_",
    }
    state: dict[str, torch.Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for component, paths in targets.items():
            if component != "unet" and not text_encoders:
                continue
            for path, shape in paths.items():
                down, up = _lora_matrices(shape, rank)
                named = path if component == "unet" or path.startswith("text_model.") else f"text_model.{path}"
                if component == "unet" and original_blocks:
                    named = original_unet_key(pipeline.unet, f"{path}.weight").removesuffix(".weight")
                key = prefixes[component] + named.replace(".", "_")
                state[f"{key}.lora_down.weight"] = down
                state[f"{key}.lora_up.weight"] = up
                state[f"{key}.alpha"] = torch.tensor(alpha)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, file, metadata={"format": "pt", "ss_network_module": "networks.lora"})
    return file


def make_lora_processors(file: Path, checkpoint: Path, seed: int = 0, *, text_encoders: bool = True) -> Path:
    """The attention's part of `make_lora_diffusers` with diffusers' first keys (`….processor.to_k_lora.down…`)."""
    state = load_file(make_lora_diffusers(file, checkpoint, seed, text_encoders=text_encoders))
    projections = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out", "to_out.0": "to_out"}
    older = {}
    for key, matrix in state.items():
        found = re.fullmatch(r"(.+\.(?:attn[12]|self_attn))\.(.+)\.lora_([AB])\.weight", key)
        if found is None:
            continue
        attention, projection, side = found.groups()
        attention += ".processor" if key.startswith("unet.") else ""
        name = projections.get(projection, projection)
        older[f"{attention}.{name}_lora.{'down' if side == 'A' else 'up'}.weight"] = matrix
    save_file(older, file, metadata={"format": "pt"})
    return file


def make_embedding_sd15(file: Path, seed: int = 0, *, vectors: int = 1, token: str | None = None) -> Path:
    """A textual inversion for SD 1.5: `{token: vectors}` where a token is named, else A1111's `emb_params`."""
    generator = torch.Generator().manual_seed(seed)
    embedding = torch.randn(vectors, TEXT_WIDTH, generator=generator) * 0.5
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({token or "emb_params": embedding}, file, metadata={"format": "pt"})
    return file


def make_embedding_sdxl(file: Path, seed: int = 0, *, vectors: int = 1) -> Path:
    """A textual inversion for SDXL: `clip_l` and `clip_g`."""
    generator = torch.Generator().manual_seed(seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(
        {
            "clip_l": torch.randn(vectors, TEXT_WIDTH, generator=generator) * 0.5,
            "clip_g": torch.randn(vectors, TEXT_WIDTH_2, generator=generator) * 0.5,
        },
        file,
        metadata={"format": "pt"},
    )
    return file


def _open(folder: Path) -> StableDiffusionPipeline | StableDiffusionXLPipeline:
    two_encoders = (folder / "text_encoder_2").is_dir()
    pipeline_class = StableDiffusionXLPipeline if two_encoders else StableDiffusionPipeline
    return pipeline_class.from_pretrained(folder, use_safetensors=True, local_files_only=True)
