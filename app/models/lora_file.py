"""The file that a training writes: a LoRA under names that A1111, ComfyUI and diffusers read, and what it says of it.

SD 1.5, SDXL and Qwen-Image have kohya's names for diffusers' blocks (`lora_unet_down_blocks_...`,
`lora_unet_transformer_blocks_...`), which all three know for SD 1.5 and SDXL, and the latter two for Qwen-Image. FLUX
has diffusers' own (`transformer.transformer_blocks...lora_A.weight`), which the latter two know: kohya's names for it
are those of the original layers, where query, key and value are one matrix, and diffusers has no way to write them.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.utils import convert_state_dict_to_kohya
from safetensors.torch import save_file

BASES = {
    "sd15": ("sd_v1", "stable-diffusion-v1/lora"),
    "sdxl": ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base/lora"),
    "qwen-image": ("qwen_image_edit", "Qwen-Image-Edit/lora"),
    "flux": ("step1x_edit", "Step1X-Edit/lora"),
}
"""Family -> what kohya calls its base, or would, and the modelspec's word for such a LoRA."""


def kohya_names(
    family: str, networks: Mapping[str, Mapping[str, torch.Tensor]], alpha: float
) -> dict[str, torch.Tensor]:
    """peft's matrices of each component (`unet`, `text_encoder`, `text_encoder_2`) under kohya's names, with alpha.

    A `transformer` is called a UNet there too.
    """
    state: dict[str, torch.Tensor] = {}
    for component, matrices in networks.items():
        prefix = component
        if component == "transformer":
            prefix = "unet"
        elif component != "unet":
            # Files name CLIP's layers under a `text_model`, whether the installed transformers has one or not.
            prefix += "" if any(name.startswith("text_model.") for name in matrices) else ".text_model"
        state |= {f"{prefix}.{name}": tensor for name, tensor in matrices.items()}
    named = convert_state_dict_to_kohya(state)
    found = {}
    for name, tensor in named.items():
        if family == "sd15":
            name = name.replace("lora_te1_", "lora_te_", 1)
        found[name] = torch.tensor(float(alpha)) if name.endswith(".alpha") else tensor.contiguous()
    return found


def diffusers_names(networks: Mapping[str, Mapping[str, torch.Tensor]], scale: float) -> dict[str, torch.Tensor]:
    """peft's matrices of each component under diffusers' names, the LoRA's strength `scale` multiplied into `lora_B`.

    So it acts alike wherever it is read: there is no place for an alpha that every reader of these names knows.
    """
    return {
        f"{component}.{name}": (tensor * scale if ".lora_B." in name else tensor).contiguous()
        for component, matrices in networks.items()
        for name, tensor in matrices.items()
    }


def metadata_of(family: str, *, rank: int, alpha: float, told: Mapping[str, str]) -> dict[str, str]:
    """What the file says of itself: kohya's `ss_*` keys and the modelspec's; `told` wins."""
    base, architecture = BASES[family]
    return {
        "format": "pt",
        **network_facts(family, rank, alpha),
        "ss_base_model_version": base,
        "ss_v2": "False",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "diffusers",
        **told,
    }


def network_facts(family: str, rank: int, alpha: float) -> dict[str, str]:
    """kohya's keys on the matrices; where alpha is multiplied into them, they act as if it were the rank."""
    if family != "flux":
        return {"ss_network_module": "networks.lora", "ss_network_dim": str(rank), "ss_network_alpha": f"{alpha:g}"}
    trained = json.dumps({"lora_alpha": alpha})
    return {
        "ss_network_module": "peft",
        "ss_network_dim": str(rank),
        "ss_network_alpha": str(rank),
        "ss_network_args": trained,
    }


def write_lora(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write the file; texts that are no JSON strings are refused by the format itself."""
    save_file(dict(tensors), path, metadata={name: str(value) for name, value in metadata.items()})


def tag_frequency(captions: list[str]) -> str:
    """kohya's `ss_tag_frequency`: how often each comma-separated tag stands in the captions."""
    counts: dict[str, int] = {}
    for caption in captions:
        for tag in caption.split(","):
            if tag.strip():
                counts[tag.strip()] = counts.get(tag.strip(), 0) + 1
    return json.dumps({"dataset": counts}, ensure_ascii=True)
