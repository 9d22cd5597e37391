"""The rows of published ControlNets and of what draws their maps.

A ControlNet serves a task for each type of map that it follows, named `controlnet-TYPE`. Soft edges and lines are drawn
without weights: the published annotators for them (HED, PiDiNet, the line-drawing generators, `netG` for anime among
them) are in no library that is kept up, so they have no row.
"""

import json

from app.models.catalog_identity import IDENTITYNET
from app.models.licences import APACHE, FAIR_AI, MIT, OPENRAIL
from app.models.spec import Family, Licence, ModelSpec
from app.pocket import spec as pocket

LOADER = "app.models.controls:load"
MAP_LOADER = "app.models.preprocessors:load"

TYPES = (
    "canny",
    "depth",
    "openpose",
    "lineart",
    "lineart_anime",
    "softedge",
    "scribble",
    "segmentation",
    "normal",
    "tile",
    "inpaint",
)
"""What a control picture may be a map of."""

UNION_MODES: dict[str, int] = {
    "openpose": 0,
    "depth": 1,
    "softedge": 2,
    "scribble": 2,
    "canny": 3,
    "lineart": 3,
    "lineart_anime": 3,
    "normal": 4,
    "segmentation": 5,
    "tile": 6,
    "inpaint": 7,
}
"""Control type -> its number in a union network; the last two are those of networks with eight numbers."""

_SD15 = "diffusion_pytorch_model.fp16.safetensors"
_SDXL = "diffusion_pytorch_model.safetensors"
_PROMAX = "diffusion_pytorch_model_promax.safetensors"

UNION = IDENTITYNET | {
    "_class_name": "ControlNetUnionModel",
    "num_control_type": 8,
    "num_proj_channel": 320,
    "num_trans_channel": 320,
    "num_trans_head": 8,
    "num_trans_layer": 1,
}
"""The shape of the union network with eight types, whose repository names its configuration otherwise."""

SHAPES: dict[str, dict[str, object]] = {
    "sd15": {
        "_class_name": "ControlNetModel",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "conditioning_embedding_out_channels": [16, 32, 96, 256],
        "cross_attention_dim": 768,
        "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
        "layers_per_block": 2,
    },
    "sdxl": IDENTITYNET,
    "union": UNION,
}
"""The configurations of single files, which come without one."""


def task_of(kind: str) -> str:
    """The task of a ControlNet for this type of map."""
    return f"controlnet-{kind}"


def union_types(count: int) -> tuple[str, ...]:
    """The types that a union network with so many numbers follows."""
    return tuple(kind for kind in TYPES if UNION_MODES[kind] < count)


def _row(
    id: str,
    title: str,
    kind: str,
    family: Family,
    repo: str,
    description: str,
    *,
    licence: Licence,
    file: str,
    bytes: int,
    revision: str = "main",
    rank: int = 10,
) -> ModelSpec:
    variant = {"variant": "fp16"} if ".fp16." in file else {}
    return ModelSpec(
        id=id,
        title=title,
        kind="controlnet",
        family=family,
        licence=licence,
        bytes=bytes,
        loader=LOADER,
        repo=repo,
        revision=revision,
        files=("config.json", file),
        tasks=(task_of(kind),),
        rank=rank,
        options={"layout": "diffusers", **variant},
        description=description,
    )


def _sd15(name: str, kind: str, repo: str, what: str, revision: str = "main") -> ModelSpec:
    return _row(
        f"controlnet-{name}-sd15",
        f"ControlNet 1.1 {name}, SD 1.5",
        kind,
        "sd15",
        f"lllyasviel/{repo}",
        what,
        licence=OPENRAIL,
        file=_SD15,
        bytes=722_600_000,
        revision=revision,
    )


def _sdxl(name: str, kind: str, repo: str, what: str, licence: Licence = APACHE) -> ModelSpec:
    return _row(
        f"controlnet-{name}-sdxl",
        f"ControlNet {name}, SDXL",
        kind,
        "sdxl",
        repo,
        what,
        licence=licence,
        file=_SDXL,
        bytes=2_502_140_000,
        rank=20,
    )


CONTROLNETS: tuple[ModelSpec, ...] = (
    _sd15("canny", "canny", "control_v11p_sd15_canny", "Follows thin edges."),
    _sd15("depth", "depth", "control_v11f1p_sd15_depth", "Follows how near things are."),
    _sd15(
        "openpose",
        "openpose",
        "control_v11p_sd15_openpose",
        "Follows the pose of bodies.",
        "9ae9f970358db89e211b87c915f9535c6686d5ba",
    ),
    _sd15("lineart", "lineart", "control_v11p_sd15_lineart", "Follows drawn lines."),
    _sd15(
        "lineart-anime",
        "lineart_anime",
        "control_v11p_sd15s2_lineart_anime",
        "Follows the lines of anime; made for anime checkpoints with CLIP skip 2 (`clip_skip` 1 in diffusers' count).",
    ),
    _sd15("softedge", "softedge", "control_v11p_sd15_softedge", "Follows soft edges."),
    _sd15("scribble", "scribble", "control_v11p_sd15_scribble", "Follows broad strokes."),
    _sd15("segmentation", "segmentation", "control_v11p_sd15_seg", "Follows which class of thing is where (ADE20K)."),
    _sd15("normal", "normal", "control_v11p_sd15_normalbae", "Follows which way surfaces look."),
    _sd15("tile", "tile", "control_v11f1e_sd15_tile", "Keeps a picture and makes its detail anew."),
    _sd15("inpaint", "inpaint", "control_v11p_sd15_inpaint", "Sees what surrounds a masked part."),
    _sdxl("canny", "canny", "xinsir/controlnet-canny-sdxl-1.0", "Follows thin edges."),
    _sdxl("depth", "depth", "xinsir/controlnet-depth-sdxl-1.0", "Follows how near things are."),
    _sdxl("openpose", "openpose", "xinsir/controlnet-openpose-sdxl-1.0", "Follows the pose of bodies."),
    _sdxl("scribble", "scribble", "xinsir/controlnet-scribble-sdxl-1.0", "Follows broad strokes."),
    _sdxl("tile", "tile", "xinsir/controlnet-tile-sdxl-1.0", "Keeps a picture and makes its detail anew."),
    _sdxl(
        "softedge", "softedge", "alimama-creative/EcomXL_controlnet_softedge", "Follows soft edges; made for products."
    ),
    _sdxl(
        "inpaint",
        "inpaint",
        "alimama-creative/EcomXL_controlnet_inpaint",
        "Sees what surrounds a masked part; made to paint backgrounds around products.",
    ),
    _sdxl(
        "lineart-anime",
        "lineart_anime",
        "Eugeoter/noob-sdxl-controlnet-lineart_anime",
        "Follows the lines of anime; made for NoobAI and Illustrious checkpoints.",
        FAIR_AI,
    ),
    ModelSpec(
        id="controlnet-union-sdxl",
        title="ControlNet union (ProMax), SDXL",
        kind="controlnet",
        family="sdxl",
        licence=APACHE,
        bytes=2_513_342_000,
        loader=LOADER,
        repo="xinsir/controlnet-union-sdxl-1.0",
        revision="801a4a3fa3d4c936f4feea95b98607bc6726f80c",
        files=(_PROMAX,),
        tasks=tuple(task_of(kind) for kind in TYPES),
        rank=15,
        options={"layout": "folder"},
        stored_as={_PROMAX: _SDXL},
        written={"config.json": json.dumps(UNION, indent=1)},
        description="One network that follows every type of map, and several at once.",
    ),
    ModelSpec(
        id="pocket-controlnet",
        title="Pocket ControlNet",
        kind="controlnet",
        family="sdxl",
        licence=APACHE,
        bytes=15_000_000,
        loader=LOADER,
        embedded="app/pocket/control/pocket-controlnet",
        tasks=(task_of("canny"), task_of("lineart"), task_of("lineart_anime")),
        options={"layout": "folder", "base": pocket.NAME},
        description="ControlNet in miniature: follows edges and lines of pocket's world.",
    ),
)

_MAP_FILES = ("config.json", "preprocessor_config.json", "model.safetensors")


def _maker(
    id: str,
    title: str,
    task: str,
    repo: str,
    bytes: int,
    what: str,
    *,
    licence: Licence = APACHE,
    revision: str = "main",
    parts: tuple[str, ...] = (),
) -> ModelSpec:
    return ModelSpec(
        id=id,
        title=title,
        kind="preprocessor",
        family="other",
        licence=licence,
        bytes=bytes,
        loader=MAP_LOADER,
        repo=repo,
        revision=revision,
        files=_MAP_FILES,
        tasks=(task,) if task else (),
        rank=10,
        parts=parts,
        options={"layout": "folder"},
        description=what,
    )


PREPROCESSORS: tuple[ModelSpec, ...] = (
    _maker(
        "depth-anything-v2-small",
        "Depth Anything V2, small",
        "depth-map",
        "depth-anything/Depth-Anything-V2-Small-hf",
        99_174_000,
        "How near everything in a picture is: depth maps, and normal maps made of them.",
    ),
    _maker(
        "upernet-convnext-tiny",
        "UperNet with ConvNeXt, tiny",
        "segmentation-map",
        "openmmlab/upernet-convnext-tiny",
        241_000_000,
        "Which of ADE20K's 150 classes each part of a picture shows.",
        licence=MIT,
        revision="876ffc56b819a829448f7e81e9f8606deef6fb65",
    ),
    _maker(
        "vitpose-base",
        "ViTPose, base",
        "pose-map",
        "usyd-community/vitpose-base-simple",
        343_000_000,
        "The joints of every person in a picture.",
        parts=("rtdetr-r50vd",),
    ),
    _maker(
        "rtdetr-r50vd",
        "RT-DETR R50vd",
        "",
        "PekingU/rtdetr_r50vd_coco_o365",
        172_000_000,
        "Finds the people whose joints ViTPose looks for.",
    ),
)
