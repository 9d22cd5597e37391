"""What a model file or folder is, read from its names and shapes alone: no weight is loaded, nothing is executed.

A `.safetensors` file opens with a JSON header of tensor names, types and shapes; that header and the small JSON files
of a diffusers folder are all that is read. What is no kind that the service can open is refused in a sentence.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from app.errors import InvalidRequest
from app.models import (
    inspect_editing,
    inspect_identity,
    inspect_networks,
    inspect_qwen,
    inspect_segmenters,
    inspect_taggers,
)
from app.models.catalog_controls import LOADER as CONTROL_LOADER
from app.models.catalog_controls import task_of, union_types
from app.models.inspection import WEIGHTS, Header, Inspection, lora_options, read_header
from app.models.spec import Family, Kind, Recommended

MAX_CONFIG = 4 * 2**20
PICKLES = frozenset({".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle"})

ALL_TASKS = ("text-to-image", "image-to-image", "inpaint")
RECOMMENDED: Mapping[Family, Recommended] = {
    "sd15": Recommended(25, 7.0, "DPM++ 2M Karras", 512, 512),
    "sdxl": Recommended(30, 6.0, "DPM++ 2M Karras", 1024, 1024),
}
ZERO_SNR = (28, 5.0, "Euler")
"""Steps, guidance and scheduler for weights that begin at noise alone, where Karras' sigmas would spend most steps."""

_PIPELINES: Mapping[str, Family] = {
    "StableDiffusionPipeline": "sd15",
    "StableDiffusionImg2ImgPipeline": "sd15",
    "StableDiffusionInpaintPipeline": "sd15",
    "StableDiffusionInstructPix2PixPipeline": "sd15",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
    "StableDiffusionXLInpaintPipeline": "sdxl",
    "StableDiffusionXLInstructPix2PixPipeline": "sdxl",
}
_LIBRARIES = frozenset({"diffusers", "transformers", "stable_diffusion"})
_EDM = "The model was trained with EDM's noise (CosXL, Playground v2.5); of these, CosXL-edit alone is served."
COSXL_EDIT = Recommended(20, 7.0, "Euler", 1024, 1024)
_UNET = "model.diffusion_model."
# The last form is the one that diffusers wrote at first.
_LORA = re.compile(
    r"\.lora_(A|B|down|up)\b|\.lora\.(down|up)\.|\.lora_linear_layer\.(down|up)\."
    r"|^(unet|text_encoder(_2)?)\..*\.to_(q|k|v|out)_lora\.(down|up)\."
)
_CONTROL_NAMES = (
    (r"line_?art.*anime|anime.*line_?art", "lineart_anime"),
    (r"canny", "canny"),
    (r"depth|midas|zoe", "depth"),
    (r"open_?pose", "openpose"),
    (r"line_?art", "lineart"),
    (r"soft_?edge|hed|pidi", "softedge"),
    (r"scribble|sketch", "scribble"),
    (r"(^|_)seg(mentation|ment)?(_|$)", "segmentation"),
    (r"normal", "normal"),
    (r"(^|_)tile", "tile"),
    (r"inpaint", "inpaint"),
)
"""How published ControlNets' names tell what they follow; the first that fits counts."""
_WIDTHS: Mapping[int, Family] = {768: "sd15", 2048: "sdxl"}


def inspect(path: Path) -> Inspection:
    """Recognise a file or a diffusers folder; `InvalidRequest` says what it is not."""
    if path.is_dir():
        return _inspect_folder(path)
    if path.suffix.lower() == inspect_qwen.GGUF:
        return inspect_qwen.recognise_gguf(path)
    if path.suffix.lower() in PICKLES:
        raise InvalidRequest(
            f"{path.name!r} is a pickle, and opening a pickle can run whatever its author wrote into it. "
            "Get the .safetensors version, or convert it where you trust it."
        )
    if path.suffix.lower() != WEIGHTS:
        raise InvalidRequest(f"{path.name!r} is neither a .safetensors or .gguf file nor the folder of a model.")
    header = read_header(path)
    try:
        return _inspect_header(header, path.stem, _config_beside(path))
    except InvalidRequest:
        network = inspect_networks.recognise_by_opening(path, header)
        if network is None:
            raise
        return network


def _inspect_header(header: Header, stem: str, config: Path | None) -> Inspection:
    shapes = header.shapes
    modules = (inspect_segmenters, inspect_identity, inspect_editing, inspect_qwen, inspect_networks)
    beside = tuple(module.recognise for module in modules)
    for recognise in (*beside, _checkpoint, _controlnet, _lora, _embedding, _autoencoder):
        found = recognise(header, stem)
        if found is None:
            continue
        if found.kind == "checkpoint" and config is not None:
            return _with_size(found, config)
        return found
    if any(name.startswith((_UNET, "input_blocks.", "down_blocks.")) for name in shapes):
        raise InvalidRequest("The file holds a UNet alone; a checkpoint needs its text encoders and autoencoder too.")
    raise InvalidRequest(
        "The file is no Stable Diffusion 1.5 or SDXL checkpoint, LoRA, textual inversion, VAE, ControlNet, IP-Adapter, "
        "identity model, LaMa, Qwen-Image network, FLUX LoRA, upscaler or face restorer."
    )


def _checkpoint(header: Header, stem: str) -> Inspection | None:
    shapes = header.shapes
    first = shapes.get(_UNET + "input_blocks.0.0.weight")
    if first is None or len(first) != 4:
        return None
    starts = {name.split(".", 1)[0] for name in shapes}
    if "conditioner" in starts:
        if not any(name.startswith("conditioner.embedders.1.") for name in shapes):
            raise InvalidRequest("The file is an SDXL refiner, which needs another model before it and is not served.")
        family: Family = "sdxl"
    elif "cond_stage_model" in starts:
        family = "sd15"
        if any(name.startswith("cond_stage_model.model.") for name in shapes):
            raise InvalidRequest("The file is a Stable Diffusion 2 checkpoint, which is not served.")
    else:
        return None
    is_edm = _any(header, lambda name: name.startswith("edm_"))
    is_cosxl_edit = "edm_vpred.sigma_max" in shapes and family == "sdxl" and first[1] == 8
    if is_edm and not is_cosxl_edit:
        raise InvalidRequest(_EDM)
    parts: tuple[str, ...] = ()
    if "first_stage_model" not in starts:
        if family != "sdxl":
            raise InvalidRequest("The checkpoint comes without an autoencoder (VAE); get the version that has one.")
        parts = ("sdxl-vae-fp16-fix",)
    options = {"layout": "single-file"}
    if "v_pred" in shapes or header.metadata.get("modelspec.prediction_type") == "v":
        options["prediction_type"] = "v_prediction"
    advice = COSXL_EDIT if is_cosxl_edit else _recommended(family, is_zero_snr="ztsnr" in shapes)
    return Inspection("checkpoint", family, _tasks(first[1]), advice, options, parts)


def _recommended(family: Family, *, is_zero_snr: bool) -> Recommended:
    plain = RECOMMENDED[family]
    return Recommended(*ZERO_SNR, plain.width, plain.height) if is_zero_snr else plain


def _tasks(in_channels: int) -> tuple[str, ...]:
    if in_channels == 4:
        return ALL_TASKS
    if in_channels == 9:
        return ("inpaint",)
    if in_channels == 8:
        return ("instruct-pix2pix",)
    raise InvalidRequest(
        f"The UNet takes {in_channels} channels; checkpoints with 4, with 9 (inpainting) and with 8 (InstructPix2Pix) "
        "are served."
    )


def _controlnet(header: Header, stem: str) -> Inspection | None:
    if not _any(header, lambda name: name.startswith(("control_model.", "controlnet_cond_embedding."))):
        return None
    family: Family | None = "sdxl" if "add_embedding.linear_1.weight" in header.shapes else None
    family = family or _family_by_width(header, r"attn2\.to_k\.weight$") or "sd15"
    options = {"layout": "single-file"}
    numbers = header.shapes.get("task_embedding")
    if numbers:
        options["shape"] = "union"
        kinds = union_types(numbers[0])
    else:
        kinds = _control_types(stem)
    return Inspection(
        "controlnet", family, tuple(task_of(kind) for kind in kinds), options=options, loader=CONTROL_LOADER
    )


def _control_types(stem: str) -> tuple[str, ...]:
    """What a ControlNet follows, by its file's name: nothing in the file tells. Nothing where the name does not."""
    name = re.sub(r"[^a-z0-9]+", "_", stem.lower())
    for pattern, kind in _CONTROL_NAMES:
        if re.search(pattern, name):
            return (kind,)
    return ()


def _lora(header: Header, stem: str) -> Inspection | None:
    if _any(header, lambda name: re.search(r"\.(hada_w[12]|lokr_w[12]|oft_)", name) is not None):
        raise InvalidRequest(
            "The file is a LoHa, LoKr or OFT addition; LoRAs in diffusers' or kohya's form are served."
        )
    options = lora_options(header)
    names = [name for name in header.shapes if _LORA.search(name)]
    if not names:
        if _any(header, lambda name: re.search(r"\.processor\.to_\w+_lora\.", name) is not None):
            raise InvalidRequest("The LoRA is a bare set of attention processors, which diffusers loads no more.")
        return None
    if any(re.search(r"double_blocks|single_blocks|joint_transformer|transformer\.", name) for name in names):
        raise InvalidRequest("The LoRA is for another family than Stable Diffusion 1.5, SDXL, Qwen-Image and FLUX.")
    return Inspection("lora", _lora_family(header), options=options)


def _lora_family(header: Header) -> Family:
    said = header.metadata.get("ss_base_model_version", "")
    if said.startswith("sdxl_"):
        return "sdxl"
    if said.startswith("sd_v1"):
        return "sd15"
    by_width = _family_by_width(header, r"attn2[._](processor\.)?to_k[._]lora(_A|_down|\.down)\b")
    if by_width is not None:
        return by_width
    names = header.shapes
    if any(re.match(r"lora_te[12]_|text_encoder_2\.", name) for name in names):
        return "sdxl"
    if any(re.match(r"lora_te_", name) for name in names):
        return "sd15"
    # SDXL has no attention at its first and last resolution and several transformer blocks everywhere else.
    if any(
        re.search(r"down_blocks[._]0[._]attentions|up_blocks[._]3[._]attentions|input_blocks_[12]_1_", name)
        for name in names
    ):
        return "sd15"
    if any(re.search(r"transformer_blocks[._][1-9]", name) for name in names):
        return "sdxl"
    if any("unet" in name or "text_encoder" in name or "_blocks" in name for name in names):
        return "sd15"
    raise InvalidRequest("The LoRA fits neither Stable Diffusion 1.5 nor SDXL by its names.")


def _family_by_width(header: Header, pattern: str) -> Family | None:
    """The family by the width of what the cross attention reads; None where the width is nobody's."""
    for name, shape in header.shapes.items():
        if len(shape) >= 2 and re.search(pattern, name):
            if shape[1] == 1024:
                raise InvalidRequest("The file is for Stable Diffusion 2, which is not served.")
            if shape[1] in _WIDTHS:
                return _WIDTHS[shape[1]]
    return None


def _embedding(header: Header, stem: str) -> Inspection | None:
    shapes = header.shapes
    if set(shapes) == {"clip_l", "clip_g"}:
        return Inspection("embedding", "sdxl")
    if len(shapes) != 1:
        return None
    name, shape = next(iter(shapes.items()))
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[0] > 256):
        return None
    if shape[-1] in (1024, 1280):
        raise InvalidRequest("The textual inversion is for another text encoder than Stable Diffusion 1.5's or SDXL's.")
    return Inspection("embedding", "sd15", options={} if name == "emb_params" else {"token": name})


def _autoencoder(header: Header, stem: str) -> Inspection | None:
    names = {name.removeprefix("first_stage_model.") for name in header.shapes}
    if not {"encoder.conv_in.weight", "decoder.conv_out.weight"} <= names:
        return None
    # The two families' autoencoders have the same names and shapes; only the file's name tells them apart.
    return Inspection("vae", "sdxl" if "xl" in stem.lower() else "sd15", options={"layout": "single-file"})


def _any(header: Header, holds: Callable[[str], bool]) -> bool:
    return any(holds(name) for name in header.shapes)


def _inspect_folder(folder: Path) -> Inspection:
    if not (folder / "model_index.json").is_file():
        return (
            inspect_segmenters.recognise_folder(folder)
            or inspect_taggers.recognise_folder(folder)
            or inspect_identity.recognise_folder(folder)
            or inspect_editing.recognise_folder(folder)
            or _inspect_component(folder)
        )
    index = _config(folder / "model_index.json")
    editor = inspect_editing.recognise_index(folder, index) or inspect_qwen.recognise_index(folder, index)
    if editor is not None:
        return editor
    family = _PIPELINES.get(str(index.get("_class_name")))
    if family is None:
        raise InvalidRequest(
            "The folder's pipeline is neither Stable Diffusion 1.5 nor SDXL nor an editor that is served."
        )
    components = {name: value for name, value in index.items() if isinstance(value, list) and value[:1] != [None]}
    foreign = [name for name, value in components.items() if value[0] not in _LIBRARIES]
    if foreign:
        raise InvalidRequest(f"The folder's {foreign[0]} asks for code of its own, which is never run.")
    needed = {"unet", "vae", "text_encoder", "tokenizer", "scheduler"}
    if family == "sdxl":
        if "text_encoder" not in components:
            raise InvalidRequest(
                "The folder is an SDXL refiner, which needs another model before it and is not served."
            )
        needed |= {"text_encoder_2", "tokenizer_2"}
    missing = sorted(name for name in needed if name not in components or not (folder / name).is_dir())
    if missing:
        raise InvalidRequest(f"The folder lacks {', '.join(missing)}.")
    is_edm = str(components["scheduler"][-1]).startswith("EDM")
    if is_edm and index["_class_name"] != "StableDiffusionXLInstructPix2PixPipeline":
        raise InvalidRequest(_EDM)
    unet = _config(folder / "unet" / "config.json")
    if family == "sd15" and unet.get("cross_attention_dim") == 1024:
        raise InvalidRequest("The folder is a Stable Diffusion 2 checkpoint, which is not served.")
    options = {"layout": "diffusers"}
    variants = [_variant(folder / name, stem) for name, stem in _weighty(family)]
    if any(variants):
        options["variant"] = next(filter(None, variants))
    schedule = folder / "scheduler" / "scheduler_config.json"
    is_zero_snr = schedule.is_file() and _config(schedule).get("rescale_betas_zero_snr") is True
    advice = COSXL_EDIT if is_edm else _recommended(family, is_zero_snr=is_zero_snr)
    found = Inspection("checkpoint", family, _tasks(int(unet.get("in_channels", 0))), advice, options)
    return _with_size(found, folder)


def _weighty(family: Family) -> Iterable[tuple[str, str]]:
    yield from (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model"), ("text_encoder", "model"))
    if family == "sdxl":
        yield ("text_encoder_2", "model")


def _variant(folder: Path, stem: str) -> str | None:
    """The infix of a component's weight files (None: they have none); every file's header is checked on the way."""
    plain = folder / f"{stem}{WEIGHTS}"
    if plain.is_file():
        read_header(plain)
        return None
    for file in sorted(folder.glob(f"{stem}*{WEIGHTS}")):
        read_header(file)
        return file.name.removeprefix(stem).removesuffix(WEIGHTS).strip(".").split("-")[0] or None
    if any(file.suffix in PICKLES for file in folder.iterdir()):
        raise InvalidRequest(f"The folder's {folder.name} has its weights only as a pickle; .safetensors is asked for.")
    raise InvalidRequest(f"The folder's {folder.name} has no {stem}.safetensors.")


def _inspect_component(folder: Path) -> Inspection:
    weights = sorted(folder.glob("*" + WEIGHTS))
    config = _config(folder / "config.json") if (folder / "config.json").is_file() else {}
    kinds: Mapping[str, Kind] = {
        "AutoencoderKL": "vae",
        "ControlNetModel": "controlnet",
        "ControlNetUnionModel": "controlnet",
    }
    kind = kinds.get(str(config.get("_class_name")))
    if kind is not None and weights:
        header = read_header(weights[0])
        found = _controlnet(header, folder.name) if kind == "controlnet" else _autoencoder(header, folder.name)
        if found is None:
            raise InvalidRequest("The folder's weights are not what its config.json says.")
        options = {"layout": "diffusers"}
        variant = _variant(folder, "diffusion_pytorch_model")
        options |= {"variant": variant} if variant else {}
        return Inspection(found.kind, found.family, found.tasks, options=options, loader=found.loader)
    raise InvalidRequest("The folder is not in the diffusers layout: it has no model_index.json.")


def _config_beside(file: Path) -> Path | None:
    """A `config` folder beside a single file says its shape, where it differs from the published one."""
    beside = file.parent / "config"
    return beside if (beside / "model_index.json").is_file() else None


def _with_size(found: Inspection, folder: Path) -> Inspection:
    """The size that the model was trained at, by its own configuration."""
    sample = _config(folder / "unet" / "config.json").get("sample_size")
    levels = _config(folder / "vae" / "config.json").get("block_out_channels")
    if type(sample) is not int or not isinstance(levels, list) or found.recommended is None:
        return found
    pixels = min(4096, max(64, sample * 2 ** (len(levels) - 1)))
    best = found.recommended
    size = Recommended(best.num_inference_steps, best.guidance_scale, best.scheduler, pixels, pixels)
    return Inspection(found.kind, found.family, found.tasks, size, found.options, found.parts)


def _config(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_CONFIG:
            raise ValueError("too large")
        data = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        raise InvalidRequest(f"The folder's {file.parent.name}/{file.name} cannot be read.") from None
    if not isinstance(data, dict):
        raise InvalidRequest(f"The folder's {file.parent.name}/{file.name} is not a JSON object.")
    return data
