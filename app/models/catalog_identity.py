"""The rows that keep one face through many pictures: PuLID, InstantID, EcomID, and the embedded model's miniatures."""

import json

from app.models.catalog_faces import EVA_LOADER, FACE_PARTS
from app.models.licences import APACHE, INSTANTID
from app.models.spec import Kind, ModelSpec
from app.pocket import spec as pocket

_PULID = "d58b3ba191be1280c37ace0656a2e65cd9b8c8d8"

IDENTITYNET = {
    "_class_name": "ControlNetModel",
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "conditioning_channels": 3,
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
    "controlnet_conditioning_channel_order": "rgb",
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "projection_class_embeddings_input_dim": 2816,
    "transformer_layers_per_block": [1, 2, 10],
    "use_linear_projection": True,
}
"""The shape of InstantID's ControlNet, which is EcomID's as well: it comes without a configuration of its own."""

IDENTITY: tuple[ModelSpec, ...] = (
    ModelSpec(
        id="pulid",
        title="PuLID v1.1",
        kind="identity",
        family="sdxl",
        licence=APACHE,
        bytes=984_405_232,
        loader="app.models.pulid:load",
        repo="guozinan/PuLID",
        revision=_PULID,
        files=("pulid_v1.1.safetensors",),
        tasks=("pulid",),
        parts=("antelopev2", "facexlib", "eva02-clip-l-336"),
        rank=20,
        options={"layout": "single-file"},
        sha256={"pulid_v1.1.safetensors": "4cb8ceec1078e0165399b88332ab3c5971619111b8e1730e6bae64144aabae41"},
        description="Keeps a face's identity through prompts and styles; better than v1 on community bases.",
    ),
    ModelSpec(
        id="pulid-v1",
        title="PuLID v1",
        kind="identity",
        family="sdxl",
        licence=APACHE,
        bytes=1_583_000_000,
        loader="app.models.pulid:load",
        repo="guozinan/PuLID",
        revision=_PULID,
        files=("pulid_v1.bin",),
        tasks=("pulid",),
        parts=("antelopev2", "facexlib", "eva02-clip-l-336"),
        rank=10,
        options={"layout": "single-file", "best_on": "sdxl-lightning-4step"},
        description="The paper's model: a part of EcomID, and the better one on SDXL-Lightning.",
    ),
    ModelSpec(
        id="instantid",
        title="InstantID",
        kind="identity",
        family="sdxl",
        licence=INSTANTID,
        bytes=4_193_274_649,
        loader="app.models.instantid:load",
        repo="InstantX/InstantID",
        revision="57b32dfee076092ad2930c71fd6d439c2c3b1820",
        files=(
            "ip-adapter.bin",
            "ControlNetModel/config.json",
            "ControlNetModel/diffusion_pytorch_model.safetensors",
        ),
        tasks=("instantid",),
        parts=("antelopev2",),
        rank=10,
        options={"layout": "folder", "store": "fp16"},
        sha256={
            "ip-adapter.bin": "02b3618e36d803784166660520098089a81388e61a93ef8002aa79a5b1c546e1",
            "ControlNetModel/config.json": "2480c42f363d712faae8d0e17cb850a5d1e4cafc232fbd022b1d43eee45234eb",
            "ControlNetModel/diffusion_pytorch_model.safetensors": (
                "c8127be9f174101ebdafee9964d856b49b634435cf6daa396d3f593cf0bbbb05"
            ),
        },
        description="Identity from the face's vector, pose from five keypoints through a ControlNet.",
    ),
    ModelSpec(
        id="ecomid",
        title="EcomID",
        kind="identity",
        family="sdxl",
        licence=APACHE,
        bytes=5_004_000_000,
        loader="app.models.ecomid:load",
        repo="alimama-creative/SDXL-EcomID",
        files=("diffusion_pytorch_model.safetensors",),
        tasks=("ecomid",),
        parts=("pulid-v1", "instantid"),
        rank=10,
        options={"layout": "folder", "store": "fp16"},
        stored_as={"diffusion_pytorch_model.safetensors": "diffusion_pytorch_model.safetensors"},
        written={"config.json": json.dumps(IDENTITYNET, indent=1)},
        description="PuLID v1's identity with a keypoint ControlNet trained on two million portraits.",
    ),
)


def _embedded(
    id: str,
    title: str,
    kind: Kind,
    loader: str,
    description: str,
    *,
    tasks: tuple[str, ...] = (),
    parts: tuple[str, ...] = (),
    options: dict[str, str] | None = None,
    layout: str = "single-file",
) -> ModelSpec:
    """A miniature for the embedded model, in the layout of its published namesake."""
    return ModelSpec(
        id=id,
        title=title,
        kind=kind,
        family="other" if kind == "faces" or not tasks else "sdxl",
        licence=APACHE,
        bytes=15_000_000,
        loader=loader,
        embedded=f"app/pocket/identity/{id}",
        tasks=tasks,
        parts=parts,
        options={"layout": layout, "base": pocket.NAME} | (options or {}),
        description=description,
    )


_OWN_SETTINGS = {"id_scale": "1.0", "num_zero": "0", "ortho": "off"}
"""What the miniatures were trained with."""

_CALIBRATED = {"same_face": "0.66", "similar_face": "0.5"}
"""Of 19,900 pairs of people whom no training saw, one in a thousand reaches the first and one in a hundred the second;
of 200 pairs of one person's pictures nineteen in twenty reach the first."""

EMBEDDED: tuple[ModelSpec, ...] = (
    _embedded(
        "pocket-faces",
        "Pocket faces",
        "faces",
        "app.models.faces:load",
        "Finds and describes the faces of pocket's world.",
        tasks=("faces", FACE_PARTS),
        layout="folder",
        options=_CALIBRATED,
    ),
    _embedded(
        "pocket-clip",
        "Pocket image encoder",
        "image-encoder",
        EVA_LOADER,
        "Reads pictures of pocket's world.",
        options={"head_dim": "32"},
    ),
    _embedded(
        "pocket-pulid",
        "Pocket PuLID v1.1",
        "identity",
        "app.models.pulid:load",
        "PuLID v1.1 in miniature.",
        tasks=("pulid",),
        parts=("pocket-faces", "pocket-clip", "pocket-pulid-lora"),
        options=_OWN_SETTINGS,
    ),
    _embedded(
        "pocket-pulid-lora",
        "Pocket PuLID's LoRA",
        "lora",
        "app.models.pipelines:load",
        "Lets pocket follow what a face's tokens say; worn with pocket's PuLID, InstantID and EcomID, and never else.",
        tasks=("pulid-lora",),
    ),
    _embedded(
        "pocket-pulid-v1",
        "Pocket PuLID v1",
        "identity",
        "app.models.pulid:load",
        "PuLID v1 in miniature: a part of pocket's EcomID.",
        tasks=("pulid",),
        parts=("pocket-faces", "pocket-clip", "pocket-pulid-lora"),
        options=_OWN_SETTINGS,
    ),
    _embedded(
        "pocket-instantid",
        "Pocket InstantID",
        "identity",
        "app.models.instantid:load",
        "InstantID in miniature.",
        tasks=("instantid",),
        parts=("pocket-faces", "pocket-pulid-lora"),
        layout="folder",
    ),
    _embedded(
        "pocket-ecomid",
        "Pocket EcomID",
        "identity",
        "app.models.ecomid:load",
        "EcomID in miniature.",
        tasks=("ecomid",),
        parts=("pocket-pulid-v1", "pocket-instantid"),
        layout="folder",
        options={"id_scale": _OWN_SETTINGS["id_scale"]},
    ),
    _embedded(
        "pocket-image-encoder",
        "Pocket image encoder for prompts",
        "image-encoder",
        EVA_LOADER,
        "Reads what pictures of pocket's world show; a part of pocket's IP-Adapter.",
        options={"head_dim": "32"},
    ),
    _embedded(
        "pocket-ip-adapter",
        "Pocket IP-Adapter",
        "ip-adapter",
        "app.models.ip_adapter:load",
        "IP-Adapter in miniature: pictures of pocket's world as a prompt.",
        tasks=("ip-adapter",),
        parts=("pocket-image-encoder",),
        options={"encoder": "pocket-image-encoder", "projection": "plus"},
    ),
)
