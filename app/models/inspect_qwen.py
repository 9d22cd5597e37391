"""What of Qwen-Image-Edit a file or folder is, from its names and shapes alone.

Nothing in a network's tensors tells one version from another, nor from Qwen-Image, which only draws: a single file says
it by its name, a folder by its index.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.errors import InvalidRequest
from app.models.catalog_qwen import (
    EDIT,
    EDIT_2509,
    EDIT_2511,
    LIGHTNING_SHIFT,
    NETWORK_PARAMETERS,
    PARTS,
    QWEN_LOADER,
    recommended,
)
from app.models.inspection import WEIGHTS, Header, Inspection, lora_options, read_header
from app.models.machine import check_package
from app.models.spec import ModelSpec

GGUF = ".gguf"
NETWORK = "transformer_blocks.0.img_mod.1.weight"
SHARED = ("processor", "scheduler", "text_encoder", "tokenizer", "vae")
PLUS = "QwenImageEditPlusPipeline"
PIPELINES = {"QwenImageEditPipeline", "QwenImageEditInpaintPipeline", PLUS}
MOST_TENSORS = 100_000
_LORA = re.compile(r"transformer_blocks[._]\d+[._](attn[._](to|add)_|img_mlp|txt_mlp|img_mod|txt_mod)")
_STEPS = re.compile(r"lightning.*?(\d+)[-_ ]?steps?", re.IGNORECASE)


def recognise_index(folder: Path, index: Mapping[str, Any]) -> Inspection | None:
    """A folder of the diffusers layout, whole or without the network; None where it is another pipeline's."""
    name = str(index.get("_class_name"))
    if name not in PIPELINES:
        return None
    missing = [part for part in SHARED if not (folder / part).is_dir()]
    if missing:
        raise InvalidRequest(f"The folder lacks {', '.join(missing)}.")
    files = sorted((folder / "transformer").glob("*" + WEIGHTS))
    if not files:
        return Inspection("other", "qwen-image", options={"layout": "folder"}, loader=QWEN_LOADER, stands_for=PARTS)
    if NETWORK not in {tensor for file in files for tensor in read_header(file).shapes}:
        raise InvalidRequest("The folder's transformer is no Qwen-Image.")
    row = EDIT if name != PLUS else EDIT_2511 if "2511" in folder.name else EDIT_2509
    return _checkpoint(row, {"layout": "diffusers"}, whole=True)


def recognise(header: Header, stem: str) -> Inspection | None:
    """A network or a LoRA in one safetensors file; None where it is neither."""
    if any(name.endswith(NETWORK) for name in header.shapes):
        if any(name.endswith(("scale_weight", "weight_scale", "comfy_quant")) for name in header.shapes):
            raise InvalidRequest(
                "The file is a Qwen-Image in scaled eight-bit numbers, which only the program that wrote it reads; "
                "the bfloat16, plain float8 and GGUF versions are served."
            )
        return _checkpoint(_row_named(stem), {"layout": "single-file"})
    if not any(_LORA.search(name) and "lora" in name for name in header.shapes):
        return None
    options, steps = lora_options(header), _STEPS.search(stem)
    if steps is None:
        return Inspection("lora", "qwen-image", options=options)
    return Inspection(
        "lora",
        "qwen-image",
        recommended=recommended(int(steps[1]), 1.0),
        options=options | {"shift": LIGHTNING_SHIFT},
    )


def recognise_gguf(file: Path) -> Inspection:
    """A network in a GGUF file; `InvalidRequest` where it is something else."""
    if NETWORK not in gguf_names(file):
        raise InvalidRequest(f"{file.name!r} is no Qwen-Image network; of GGUF files only those are served.")
    return _checkpoint(_row_named(file.stem), {"layout": "single-file", "format": "gguf"})


def gguf_names(file: Path) -> set[str]:
    """The names of a GGUF file's tensors, each wholly there."""
    check_package("gguf")
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(file).tensors
        if not 1 <= len(tensors) <= MOST_TENSORS:
            raise ValueError("a number of tensors that no network has")
        return {tensor.name for tensor in tensors}
    except (ValueError, KeyError, IndexError, OSError, OverflowError, MemoryError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{file.name!r} is not a sound .gguf file, or is cut short.") from error


def _row_named(stem: str) -> ModelSpec:
    name = stem.lower()
    if "edit" not in name:
        raise InvalidRequest(
            "The file is a Qwen-Image network, and its name does not say that it edits. Where it does, name it "
            "qwen-image-edit, qwen-image-edit-2509 or qwen-image-edit-2511: nothing else tells these apart."
        )
    return EDIT_2511 if "2511" in name else EDIT_2509 if "2509" in name else EDIT


def _checkpoint(row: ModelSpec, options: dict[str, str], *, whole: bool = False) -> Inspection:
    """A network of this version; what a GGUF file stores in few bits already is stored in no fewer."""
    if "format" not in options:
        options["denoiser_parameters"] = NETWORK_PARAMETERS
    if not whole and "zero_cond_t" in row.options:
        options["zero_cond_t"] = row.options["zero_cond_t"]
    return Inspection(
        "checkpoint",
        "qwen-image",
        row.tasks,
        row.recommended,
        options=options,
        parts=() if whole else (PARTS,),
        loader=QWEN_LOADER,
    )
