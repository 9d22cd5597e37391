"""The ordered tuple of checkpoints that the service knows by name. Plain data: nothing is opened or fetched here.

How a row with `parts` is put together: a part of kind `checkpoint` is the base whose components serve wherever the row
brings none of its own; a part of kind `vae` takes the place of the base's autoencoder. `options` speaks to the loader:

    layout      diffusers (a folder with model_index.json) | single-file | component (the weights of one component)
    component   which one, for layout `component`: unet
    variant     the infix of the weight files' names in a diffusers folder: fp16
    token       what stands in the prompt for a textual inversion
    trigger     the words that a LoRA's author asks for; `format`: whose key names it has, kohya or diffusers
    timestep_spacing, prediction_type    what the weights were trained for, where their scheduler does not say so

A row's path is a folder where the layout is diffusers, else the one weights file. What a LoRA recommends of steps,
guidance and scheduler goes before what its base does; the size is always the base's.
"""

from app.models.spec import Licence, ModelSpec, Recommended
from app.pocket import spec as pocket

OPENRAIL_M = Licence(
    "CreativeML OpenRAIL-M",
    "https://huggingface.co/spaces/CompVis/stable-diffusion-license",
    commercial=True,
    ask=True,
)
OPENRAIL_PLUS = Licence(
    "CreativeML Open RAIL++-M",
    "https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0/blob/main/LICENSE.md",
    commercial=True,
    ask=True,
)
MIT = Licence("MIT", "https://opensource.org/license/mit", commercial=True)
APACHE = Licence("Apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0", commercial=True)

CHECKPOINT_TASKS = ("text-to-image", "image-to-image", "inpaint")


_SD15_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "tokenizer/*",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
)
_SDXL_FILES = (
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "text_encoder_2/config.json",
    "text_encoder_2/model.fp16.safetensors",
    "tokenizer/*",
    "tokenizer_2/*",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
)
"""Without the autoencoder: `sdxl-vae-fp16-fix` takes its place."""

CATALOG: tuple[ModelSpec, ...] = (
    ModelSpec(
        id="pocket",
        title=pocket.TITLE,
        kind="checkpoint",
        family="sdxl",
        licence=APACHE,
        bytes=40_800_000,
        embedded="app/pocket/weights",
        tasks=CHECKPOINT_TASKS,
        recommended=Recommended(
            pocket.NUM_INFERENCE_STEPS, pocket.GUIDANCE_SCALE, pocket.SCHEDULER, pocket.WIDTH, pocket.HEIGHT
        ),
        rank=0,
        options={"layout": "diffusers"},
        description="The embedded model: an SDXL in miniature that draws a small world of things and portraits.",
    ),
    ModelSpec(
        id="sd15",
        title="Stable Diffusion 1.5",
        kind="checkpoint",
        family="sd15",
        licence=OPENRAIL_M,
        bytes=2_134_000_000,
        repo="stable-diffusion-v1-5/stable-diffusion-v1-5",
        revision="451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
        files=_SD15_FILES,
        tasks=CHECKPOINT_TASKS,
        recommended=Recommended(25, 7.0, "DPM++ 2M Karras", 512, 512),
        rank=10,
        options={"layout": "diffusers", "variant": "fp16"},
        description="The classic 512-pixel model: small, fast, with the largest stock of LoRAs.",
    ),
    ModelSpec(
        id="sdxl",
        title="Stable Diffusion XL 1.0",
        kind="checkpoint",
        family="sdxl",
        licence=OPENRAIL_PLUS,
        bytes=6_773_852_194,
        repo="stabilityai/stable-diffusion-xl-base-1.0",
        revision="462165984030d82259a11f4367a4eed129e94a7b",
        files=_SDXL_FILES,
        tasks=CHECKPOINT_TASKS,
        recommended=Recommended(30, 6.0, "DPM++ 2M Karras", 1024, 1024),
        parts=("sdxl-vae-fp16-fix",),
        rank=30,
        options={"layout": "diffusers", "variant": "fp16"},
        sha256={
            "text_encoder/model.fp16.safetensors": "660c6f5b1abae9dc498ac2d21e1347d2abdb0cf6c0c0c8576cd796491d9a6cdd",
            "text_encoder_2/model.fp16.safetensors": "ec310df2af79c318e24d20511b601a591ca8cd4f1fce1d8dff822a356bcdb1f4",
            "unet/diffusion_pytorch_model.fp16.safetensors": (
                "83e012a805b84c7ca28e5646747c90a243c65c8ba4f070e2d7ddc9d74661e139"
            ),
        },
        description="The 1024-pixel base model, with the autoencoder that stays finite in half precision.",
    ),
    ModelSpec(
        id="sdxl-lightning-4step",
        title="SDXL-Lightning, 4 steps",
        kind="checkpoint",
        family="sdxl",
        licence=OPENRAIL_PLUS,
        bytes=5_135_149_760,
        repo="ByteDance/SDXL-Lightning",
        revision="c9a24f48e1c025556787b0c58dd67a091ece2e44",
        files=("sdxl_lightning_4step_unet.safetensors",),
        tasks=CHECKPOINT_TASKS,
        recommended=Recommended(4, 0.0, "Euler", 1024, 1024),
        parts=("sdxl", "sdxl-vae-fp16-fix"),
        rank=20,
        options={"layout": "component", "component": "unet", "timestep_spacing": "trailing"},
        description="SDXL distilled to four steps without guidance; uses the base model's text encoders.",
    ),
    ModelSpec(
        id="sdxl-inpainting",
        title="SDXL inpainting 0.1",
        kind="checkpoint",
        family="sdxl",
        licence=OPENRAIL_PLUS,
        bytes=6_773_875_000,
        repo="diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
        revision="115134f363124c53c7d878647567d04daf26e41e",
        files=_SDXL_FILES,
        tasks=("inpaint",),
        recommended=Recommended(25, 8.0, "Euler", 1024, 1024),
        parts=("sdxl-vae-fp16-fix",),
        rank=60,
        options={"layout": "diffusers", "variant": "fp16"},
        description="SDXL with a nine-channel UNet that sees the mask; serves inpainting and outpainting only.",
    ),
    ModelSpec(
        id="realvisxl-v5",
        title="RealVisXL V5.0",
        kind="checkpoint",
        family="sdxl",
        licence=OPENRAIL_PLUS,
        bytes=6_938_065_488,
        repo="SG161222/RealVisXL_V5.0",
        revision="ac93e0dda1f6d448cae19bbfab8c5e720a5e48bc",
        files=("RealVisXL_V5.0_fp16.safetensors",),
        tasks=CHECKPOINT_TASKS,
        recommended=Recommended(30, 6.0, "DPM++ SDE Karras", 1024, 1024),
        parts=("sdxl-vae-fp16-fix",),
        rank=40,
        options={"layout": "single-file"},
        sha256={"RealVisXL_V5.0_fp16.safetensors": "6a35a7855770ae9820a3c931d4964c3817b6d9e3c6f9c4dabb5b3a94e5643b80"},
        description="A community SDXL base tuned for photographs.",
    ),
    ModelSpec(
        id="sdxl-vae-fp16-fix",
        title="SDXL autoencoder, safe in half precision",
        kind="vae",
        family="sdxl",
        licence=MIT,
        bytes=334_644_000,
        repo="madebyollin/sdxl-vae-fp16-fix",
        revision="207b116dae70ace3637169f1ddd2434b91b3a8cd",
        files=("config.json", "diffusion_pytorch_model.safetensors"),
        options={"layout": "diffusers"},
        sha256={
            "diffusion_pytorch_model.safetensors": "1b909373b28f2137098b0fd9dbc6f97f8410854f31f84ddc9fa04b077b0ace2c"
        },
        description="The SDXL autoencoder with activations scaled down, so that float16 does not overflow.",
    ),
    ModelSpec(
        id="lcm-lora-sdxl",
        title="LCM-LoRA for SDXL",
        kind="lora",
        family="sdxl",
        licence=OPENRAIL_PLUS,
        bytes=393_854_592,
        repo="latent-consistency/lcm-lora-sdxl",
        revision="a18548dd4956b174ec5b0d78d340c8dae0a129cd",
        files=("pytorch_lora_weights.safetensors",),
        recommended=Recommended(6, 1.5, "LCM", 1024, 1024),
        sha256={"pytorch_lora_weights.safetensors": "a764e6859b6e04047cd761c08ff0cee96413a8e004c9f07707530cd776b19141"},
        description="Put on an SDXL model it draws in four to eight steps: scheduler LCM, guidance 1 to 2.",
    ),
    ModelSpec(
        id="lcm-lora-sd15",
        title="LCM-LoRA for SD 1.5",
        kind="lora",
        family="sd15",
        licence=OPENRAIL_PLUS,
        bytes=134_621_556,
        repo="latent-consistency/lcm-lora-sdv1-5",
        revision="cf2fced511dbe7e26c8d1d397e728fbab875db4b",
        files=("pytorch_lora_weights.safetensors",),
        recommended=Recommended(6, 1.5, "LCM", 512, 512),
        sha256={"pytorch_lora_weights.safetensors": "8f90d840e075ff588a58e22c6586e2ae9a6f7922996ee6649a7f01072333afe4"},
        description="Put on an SD 1.5 model it draws in four to eight steps: scheduler LCM, guidance 1 to 2.",
    ),
)
