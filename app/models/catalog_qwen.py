"""The rows of Qwen-Image-Edit: three versions, whole and as GGUF files, what all of them share, and Lightning LoRAs.

Every version has a network of its own; the language model that reads instructions, the autoencoder and the
configurations are the same files for all of them and stand in one row.
"""

from app.models.licences import APACHE
from app.models.spec import ModelSpec, Recommended

QWEN_TASK = "qwen-edit"
PLUS_TASK = "qwen-edit-plus"
"""Served by the versions that were trained on several pictures at once."""
PARTS_TASK = "qwen-image-edit-parts"
QWEN_LOADER = "app.models.qwen:load"
PARTS = "qwen-image-edit-parts"
NETWORK_PARAMETERS = "20.4e9"
LANGUAGE_PARAMETERS = "6.5e9"
"""Of the linear layers that a format of fewer bits reaches in the language model."""
WHOLE_STEPS, PLUS_STEPS = 50, 40
LIGHTNING_SHIFT = "3"
"""Of the noise schedule that the Lightning LoRAs were distilled under, whatever the picture's size."""


def recommended(steps: int, true_cfg_scale: float = 4.0) -> Recommended:
    """What the publishers draw with; the scheduler is the checkpoint's own."""
    return Recommended(steps, true_cfg_scale, "Euler", 1024, 1024)


def _network(id: str, title: str, repo: str, steps: int, rank: int, *, plus: bool, zero: bool, said: str) -> ModelSpec:
    return ModelSpec(
        id=id,
        title=title,
        kind="checkpoint",
        family="qwen-image",
        licence=APACHE,
        bytes=40_900_000_000,
        loader=QWEN_LOADER,
        repo=repo,
        files=("transformer/*.json", "transformer/*.safetensors"),
        tasks=(QWEN_TASK, PLUS_TASK) if plus else (QWEN_TASK,),
        recommended=recommended(steps),
        parts=(PARTS,),
        rank=rank,
        options={"layout": "folder", "denoiser_parameters": NETWORK_PARAMETERS}
        | ({"zero_cond_t": "1"} if zero else {}),
        description=said,
    )


def _gguf(base: ModelSpec, quantisation: str, repo: str, file: str, size: int) -> ModelSpec:
    kept = {"zero_cond_t": "1"} if "zero_cond_t" in base.options else {}
    return ModelSpec(
        id=f"{base.id}-{quantisation.lower().replace('_', '-')}",
        title=f"{base.title}, GGUF {quantisation}",
        kind="checkpoint",
        family="qwen-image",
        licence=APACHE,
        bytes=size,
        loader=QWEN_LOADER,
        repo=repo,
        files=(file,),
        tasks=base.tasks,
        recommended=base.recommended,
        parts=(PARTS,),
        rank=base.rank - (1 if quantisation.startswith("Q4") else 2),
        options={"layout": "single-file", "format": "gguf", **kept},
        description="The same network in fewer bits, from a GGUF file.",
    )


def _lightning(id: str, title: str, steps: int, repo: str, file: str, base: ModelSpec) -> ModelSpec:
    return ModelSpec(
        id=id,
        title=title,
        kind="lora",
        family="qwen-image",
        licence=APACHE,
        bytes=849_608_296,
        repo=repo,
        files=(file,),
        recommended=recommended(steps, 1.0),
        options={"format": "diffusers", "shift": LIGHTNING_SHIFT, "best_on": base.id},
        description=f"Edits in {steps} steps without guidance; put it in `loras`.",
    )


EDIT_2511 = _network(
    "qwen-image-edit-2511", "Qwen-Image-Edit 2511", "Qwen/Qwen-Image-Edit-2511", PLUS_STEPS, 60, plus=True, zero=True,
    said="The newest version: up to three pictures, keeps people and geometry best.",
)  # fmt: skip
EDIT_2509 = _network(
    "qwen-image-edit-2509", "Qwen-Image-Edit 2509", "Qwen/Qwen-Image-Edit-2509", PLUS_STEPS, 50, plus=True, zero=False,
    said="The first version for up to three pictures.",
)  # fmt: skip
EDIT = _network(
    "qwen-image-edit", "Qwen-Image-Edit", "Qwen/Qwen-Image-Edit", WHOLE_STEPS, 40, plus=False, zero=False,
    said="The first version: one picture.",
)  # fmt: skip

QWEN: tuple[ModelSpec, ...] = (
    EDIT_2511,
    _gguf(EDIT_2511, "Q4_K_M", "unsloth/Qwen-Image-Edit-2511-GGUF", "qwen-image-edit-2511-Q4_K_M.gguf",
          13_244_758_624),
    _gguf(EDIT_2511, "Q3_K_M", "unsloth/Qwen-Image-Edit-2511-GGUF", "qwen-image-edit-2511-Q3_K_M.gguf",
          9_920_805_472),
    EDIT_2509,
    _gguf(EDIT_2509, "Q4_K_M", "QuantStack/Qwen-Image-Edit-2509-GGUF", "Qwen-Image-Edit-2509-Q4_K_M.gguf",
          13_065_746_976),
    EDIT,
    _gguf(EDIT, "Q4_K_M", "QuantStack/Qwen-Image-Edit-GGUF", "Qwen_Image_Edit-Q4_K_M.gguf", 13_065_746_976),
    ModelSpec(
        id=PARTS,
        title="Qwen-Image-Edit: language model and autoencoder",
        kind="other",
        family="qwen-image",
        licence=APACHE,
        bytes=16_850_000_000,
        loader=QWEN_LOADER,
        repo="Qwen/Qwen-Image-Edit-2511",
        files=(
            "model_index.json",
            "processor/*",
            "scheduler/scheduler_config.json",
            "text_encoder/*.json",
            "text_encoder/*.safetensors",
            "tokenizer/*",
            "vae/config.json",
            "vae/*.safetensors",
        ),
        tasks=(PARTS_TASK,),
        options={"layout": "folder", "denoiser_parameters": LANGUAGE_PARAMETERS},
        description="What every version of Qwen-Image-Edit needs beside its network.",
    ),
    _lightning(
        "qwen-image-edit-2511-lightning-4", "Lightning for Qwen-Image-Edit 2511, 4 steps", 4,
        "lightx2v/Qwen-Image-Edit-2511-Lightning", "Qwen-Image-Edit-2511-Lightning-4steps-V1.0-bf16.safetensors",
        EDIT_2511,
    ),
    _lightning(
        "qwen-image-edit-2511-lightning-8", "Lightning for Qwen-Image-Edit 2511, 8 steps", 8,
        "lightx2v/Qwen-Image-Edit-2511-Lightning", "Qwen-Image-Edit-2511-Lightning-8steps-V1.0-bf16.safetensors",
        EDIT_2511,
    ),
    _lightning(
        "qwen-image-edit-2509-lightning-4", "Lightning for Qwen-Image-Edit 2509, 4 steps", 4,
        "lightx2v/Qwen-Image-Lightning",
        "Qwen-Image-Edit-2509/Qwen-Image-Edit-2509-Lightning-4steps-V1.0-bf16.safetensors",
        EDIT_2509,
    ),
    _lightning(
        "qwen-image-edit-2509-lightning-8", "Lightning for Qwen-Image-Edit 2509, 8 steps", 8,
        "lightx2v/Qwen-Image-Lightning",
        "Qwen-Image-Edit-2509/Qwen-Image-Edit-2509-Lightning-8steps-V1.0-bf16.safetensors",
        EDIT_2509,
    ),
    _lightning(
        "qwen-image-edit-lightning-4", "Lightning for Qwen-Image-Edit, 4 steps", 4,
        "lightx2v/Qwen-Image-Lightning", "Qwen-Image-Edit-Lightning-4steps-V1.0-bf16.safetensors", EDIT,
    ),
    _lightning(
        "qwen-image-edit-lightning-8", "Lightning for Qwen-Image-Edit, 8 steps", 8,
        "lightx2v/Qwen-Image-Lightning", "Qwen-Image-Edit-Lightning-8steps-V1.0-bf16.safetensors", EDIT,
    ),
)  # fmt: skip
