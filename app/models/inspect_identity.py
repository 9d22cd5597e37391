"""What an identity model, an IP-Adapter, a face stack or an image encoder is, from its names and shapes alone.

The published files tell themselves apart: PuLID by the names of its encoder, InstantID by a resampler that reads a
face's vector, IP-Adapters by their projection and by the width of what it reads.
"""

import json
from collections.abc import Mapping
from pathlib import Path

from app.errors import InvalidRequest
from app.models.catalog_faces import EVA_LOADER
from app.models.catalog_identity import IDENTITYNET as IDENTITYNET_CONFIG
from app.models.inspection import WEIGHTS, Header, Inspection, read_header
from app.models.licences import FACEID, INSTANTID
from app.models.spec import Family

FACE_VECTOR = 512
PULID_PARTS = ("antelopev2", "facexlib", "eva02-clip-l-336")
IDENTITYNET = "ControlNetModel"
_FAMILIES: Mapping[int, Family] = {768: "sd15", 2048: "sdxl"}
_POOLED = {1024: "clip-vit-h", 1280: "clip-vit-bigg"}
"""The image encoder by the width of the one vector that it makes of a picture."""
_HIDDEN = {1280: "clip-vit-h", 1664: "clip-vit-bigg"}
"""The image encoder by the width of its tokens."""
_PACKS = {"glintr100.onnx": "antelopev2", "w600k_r50.onnx": "buffalo_l"}
_PACK_FILES = {
    "antelopev2": ("glintr100.onnx", "scrfd_10g_bnkps.onnx", "1k3d68.onnx", "2d106det.onnx", "genderage.onnx"),
    "buffalo_l": ("w600k_r50.onnx", "det_10g.onnx", "1k3d68.onnx", "2d106det.onnx", "genderage.onnx"),
}
_FACEXLIB = ("retinaface_resnet50.safetensors", "parsing_bisenet.safetensors", "parsing_parsenet.safetensors")
_SINGLE = {"layout": "single-file"}


def recognise(header: Header, stem: str) -> Inspection | None:
    """The file as one of these; None where it is none of them, `InvalidRequest` where it is one that is not served."""
    shapes = header.shapes
    if any(name.startswith("pulid_ca.") for name in shapes):
        raise InvalidRequest("The file is a PuLID for FLUX; those for SDXL (v1 and v1.1) are served.")
    if "visual.blocks.0.attn.inner_attn_ln.weight" in shapes:
        return _eva_clip(shapes)
    if any(name.startswith("id_adapter.") for name in shapes):
        return _pulid(shapes, None)
    if not any(name.startswith("image_proj.") for name in shapes):
        return None
    if "image_proj.body.0.weight" in shapes or "image_proj.id_embedding_mapping.0.weight" in shapes:
        return _pulid(shapes, {name: _pulid_name(name) for name in shapes})
    return _ip_adapter(shapes, stem)


def recognise_folder(folder: Path) -> Inspection | None:
    """The folder as a face stack, an image encoder or InstantID; None where it is none of them."""
    return _face_pack(folder) or _facexlib(folder) or _clip(folder) or _instantid(folder)


def _pulid(shapes: Mapping[str, tuple[int, ...]], renamed: Mapping[str, str] | None) -> Inspection:
    names = {renamed[name] if renamed else name for name in shapes}
    is_first, is_second = "id_adapter.body.0.weight" in names, "id_adapter.latents" in names
    if is_first == is_second:
        raise InvalidRequest("The file has PuLID's names and is neither its v1 nor its v1.1.")
    needed = {"id_adapter.mapping_patch_0.0.weight"} if is_first else {"id_adapter.proj_out"}
    if not needed <= names or not any(name.endswith(".id_to_k.weight") for name in names):
        raise InvalidRequest("The file holds only a part of a PuLID.")
    return Inspection(
        "identity",
        "sdxl",
        ("pulid",),
        options=_SINGLE | {"version": "1" if is_first else "1.1"},
        parts=PULID_PARTS,
        loader="app.models.pulid:load",
        renamed=renamed,
    )


def _pulid_name(name: str) -> str:
    """PuLID's own name for one in the form that IP-Adapters are published in."""
    start, _, rest = name.partition(".")
    if start == "image_proj":
        return f"id_adapter.{rest}"
    return f"id_adapter_attn_layers.{rest.replace('to_k_ip', 'id_to_k').replace('to_v_ip', 'id_to_v')}"


def _ip_adapter(shapes: Mapping[str, tuple[int, ...]], stem: str) -> Inspection:
    keys = [shape for name, shape in shapes.items() if name.endswith(".to_k_ip.weight")]
    family = _FAMILIES.get(keys[0][-1]) if keys else None
    if family is None:
        raise InvalidRequest(
            "The IP-Adapter is for another family than Stable Diffusion 1.5 and SDXL, or a part of one."
        )
    projection, width, widths = _projection(shapes)
    if width == FACE_VECTOR and projection == "plus":
        raise InvalidRequest(
            "The file is InstantID's adapter, which works with a ControlNet of its own: add a folder that holds it as "
            f"ip-adapter.safetensors beside {IDENTITYNET}."
        )
    options = _SINGLE | {"projection": projection}
    parts: tuple[str, ...] = ()
    if projection.startswith("faceid"):
        parts, options["faces"] = ("buffalo_l",), "buffalo_l"
    if projection == "faceid":
        options["encoder"] = "buffalo_l"
    elif width in widths:
        parts, options["encoder"] = (*parts, widths[width]), widths[width]
    else:
        raise InvalidRequest(f"The IP-Adapter reads an image encoder of width {width}, which is not known.")
    if projection == "faceid-plus" and "v2" in stem.lower():
        options["shortcut"] = "true"
    return Inspection(
        "ip-adapter",
        family,
        ("ip-adapter",),
        options=options,
        parts=parts,
        loader="app.models.ip_adapter:load",
        licence=FACEID if "faces" in options else None,
    )


def _projection(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, int, Mapping[int, str]]:
    """How features become tokens, the width of what is read, and the encoders that have such widths."""
    forms = (
        ("plain", "proj.weight", _POOLED),
        ("faceid-plus", "perceiver_resampler.proj_in.weight", _HIDDEN),
        ("plus", "proj_in.weight", _HIDDEN),
        ("full", "proj.0.weight", _HIDDEN),
    )
    for projection, name, widths in forms:
        shape = shapes.get(f"image_proj.{name}")
        if shape is not None and len(shape) == 2:
            if projection == "full" and shape[1] == FACE_VECTOR:
                return "faceid", shape[1], {}
            return projection, shape[1], widths
    raise InvalidRequest("The IP-Adapter's projection is of no form that is known.")


def _eva_clip(shapes: Mapping[str, tuple[int, ...]]) -> Inspection:
    if any(not name.startswith("visual.") for name in shapes):
        raise InvalidRequest(
            "The file holds a whole CLIP; `eis models pull eva02-clip-l-336` brings the half that sees."
        )
    if shapes.get("visual.cls_token") != (1, 1, 1024) or shapes.get("visual.pos_embed") != (1, 577, 1024):
        raise InvalidRequest("The file is an EVA-CLIP of another size than L/14 with 336 pixels.")
    return Inspection(
        "image-encoder",
        "other",
        options=_SINGLE | {"head_dim": "64"},
        loader=EVA_LOADER,
        stands_for="eva02-clip-l-336",
    )


def _face_pack(folder: Path) -> Inspection | None:
    found = {path.name: path for path in sorted(folder.rglob("*.onnx"))}
    if not found:
        return None
    pack = next((pack for name, pack in _PACKS.items() if name in found), None)
    if pack is None:
        raise InvalidRequest("The folder's ONNX files are neither insightface's antelopev2 nor its buffalo_l.")
    missing = [name for name in _PACK_FILES[pack][:3] if name not in found]
    if missing:
        raise InvalidRequest(f"The folder's {pack} lacks {', '.join(missing)}.")
    files = tuple(found[name].relative_to(folder).as_posix() for name in _PACK_FILES[pack] if name in found)
    return Inspection(
        "faces",
        "other",
        options={"layout": "folder"},
        loader="app.models.faces:load",
        stands_for=pack,
        files=files,
    )


def _facexlib(folder: Path) -> Inspection | None:
    if not (folder / _FACEXLIB[0]).is_file():
        return None
    missing = [name for name in _FACEXLIB if not (folder / name).is_file()]
    if missing:
        raise InvalidRequest(f"The folder's facexlib lacks {', '.join(missing)}.")
    for name in _FACEXLIB:
        read_header(folder / name)
    return Inspection(
        "faces",
        "other",
        options={"layout": "folder"},
        loader="app.models.faces:load",
        stands_for="facexlib",
        files=_FACEXLIB,
    )


def _clip(folder: Path) -> Inspection | None:
    weights = folder / f"model{WEIGHTS}"
    if not weights.is_file() or not (folder / "config.json").is_file():
        return None
    shapes = read_header(weights).shapes
    projection = shapes.get("visual_projection.weight")
    if projection is None or len(projection) != 2:
        return None
    encoder = _POOLED.get(projection[0])
    if (
        encoder is None
        or _HIDDEN.get(projection[1]) != encoder
        or any(name.startswith("text_model.") for name in shapes)
    ):
        raise InvalidRequest("The folder's image encoder is neither CLIP's ViT-H nor its ViT-bigG.")
    return Inspection(
        "image-encoder",
        "other",
        options={"layout": "folder"},
        loader="app.models.image_encoders:load",
        stands_for=encoder,
        files=("config.json", weights.name),
    )


def as_ecomid(found: Inspection) -> Inspection:
    """An SDXL ControlNet as EcomID's, which nothing in the file tells from another: its owner says so."""
    if found.family != "sdxl":
        raise InvalidRequest("EcomID's ControlNet is one for SDXL; this is one for Stable Diffusion 1.5.")
    return Inspection(
        "identity",
        "sdxl",
        ("ecomid",),
        options={"layout": "folder"},
        parts=("pulid-v1", "instantid"),
        loader="app.models.ecomid:load",
        written={"config.json": json.dumps(IDENTITYNET_CONFIG, indent=1)},
    )


def _instantid(folder: Path) -> Inspection | None:
    adapter, network = folder / f"ip-adapter{WEIGHTS}", folder / IDENTITYNET
    if not adapter.is_file():
        return None
    shapes = read_header(adapter).shapes
    projection = shapes.get("image_proj.proj_in.weight")
    if projection is None or projection[-1] != FACE_VECTOR:
        return None
    weights = network / f"diffusion_pytorch_model{WEIGHTS}"
    if not weights.is_file() or not (network / "config.json").is_file():
        raise InvalidRequest(f"The folder's InstantID lacks {IDENTITYNET} with its config.json and weights.")
    if "controlnet_cond_embedding.conv_in.weight" not in read_header(weights).shapes:
        raise InvalidRequest(f"The folder's {IDENTITYNET} is no ControlNet.")
    return Inspection(
        "identity",
        "sdxl",
        ("instantid",),
        options={"layout": "folder"},
        parts=("antelopev2",),
        loader="app.models.instantid:load",
        licence=INSTANTID,
        files=(adapter.name, f"{IDENTITYNET}/config.json", f"{IDENTITYNET}/{weights.name}"),
    )
