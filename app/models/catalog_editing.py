"""The rows of instruction editors: Step1X-Edit and the language model that its first version needs."""

from app.models.licences import APACHE
from app.models.spec import ModelSpec, Recommended

STEP1X_TASK = "step1x-edit"
STEP1X_LOADER = "app.models.step1x:load"
LANGUAGE_MODEL = "qwen2.5-vl-7b"
AUTOENCODER = "vae.safetensors"
FLUX_PARAMETERS = "11.9e9"
"""Of the network without its connector."""
RECOMMENDED = Recommended(28, 6.0, "Euler", 1024, 1024)

_FOLDER = (
    "model_index.json",
    "processor/*",
    "scheduler/scheduler_config.json",
    "text_encoder/*.json",
    "text_encoder/*.safetensors",
    "transformer/*.json",
    "transformer/*.safetensors",
    "vae/config.json",
    "vae/*.safetensors",
)

EDITING: tuple[ModelSpec, ...] = (
    ModelSpec(
        id="step1x-edit-v1p2",
        title="Step1X-Edit v1.2",
        kind="checkpoint",
        family="flux",
        licence=APACHE,
        bytes=41_800_000_000,
        loader=STEP1X_LOADER,
        repo="stepfun-ai/Step1X-Edit-v1p2",
        files=_FOLDER,
        tasks=(STEP1X_TASK,),
        recommended=RECOMMENDED,
        rank=30,
        options={"layout": "diffusers", "denoiser_parameters": FLUX_PARAMETERS},
        description="Edits by instructions; its language model was trained to rewrite them and to judge the result.",
    ),
    ModelSpec(
        id="step1x-edit-v1p1",
        title="Step1X-Edit v1.1",
        kind="checkpoint",
        family="flux",
        licence=APACHE,
        bytes=41_800_000_000,
        loader=STEP1X_LOADER,
        repo="stepfun-ai/Step1X-Edit-v1p1-diffusers",
        files=_FOLDER,
        tasks=(STEP1X_TASK,),
        recommended=RECOMMENDED,
        rank=20,
        options={"layout": "diffusers", "denoiser_parameters": FLUX_PARAMETERS},
        description="The version before, which some prefer for plain edits.",
    ),
    ModelSpec(
        id="step1x-edit-v1p0",
        title="Step1X-Edit v1.0",
        kind="checkpoint",
        family="flux",
        licence=APACHE,
        bytes=25_220_000_000,
        loader=STEP1X_LOADER,
        repo="stepfun-ai/Step1X-Edit",
        files=("step1x-edit-i1258.safetensors", AUTOENCODER),
        tasks=(STEP1X_TASK,),
        recommended=RECOMMENDED,
        parts=(LANGUAGE_MODEL,),
        rank=10,
        options={
            "layout": "folder",
            "weights": "step1x-edit-i1258.safetensors",
            "denoiser_parameters": FLUX_PARAMETERS,
        },
        description="The first version, in its original single file.",
    ),
    ModelSpec(
        id=LANGUAGE_MODEL,
        title="Qwen2.5-VL 7B",
        kind="other",
        family="other",
        licence=APACHE,
        bytes=16_600_000_000,
        repo="Qwen/Qwen2.5-VL-7B-Instruct",
        files=("*.json", "model-*.safetensors"),
        tasks=("qwen2.5-vl",),
        options={"layout": "folder"},
        description="The vision-language model that reads Step1X-Edit's instructions.",
    ),
)
