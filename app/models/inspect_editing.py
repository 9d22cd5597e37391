"""What of Step1X-Edit a file or folder is, from its names and shapes alone: either published layout, and LoRAs.

Its network is FLUX's, and so are its LoRAs: nothing in one's tensors tells which of FLUX's models it was made with.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.errors import InvalidRequest
from app.models.catalog_editing import AUTOENCODER, LANGUAGE_MODEL, RECOMMENDED, STEP1X_LOADER, STEP1X_TASK
from app.models.inspection import WEIGHTS, Header, Inspection, lora_options, read_header

PARTS = ("processor", "scheduler", "text_encoder", "transformer", "vae")
_MATRIX = re.compile(r"\.lora_(A|B|down|up)\b|_lora[12]?\.(down|up)\.")
_BLOCKS = re.compile(
    r"single_transformer_blocks[._]\d+[._]"
    r"|^lora_unet_(double|single)_blocks_\d+_"
    r"|^(diffusion_model\.)?(double|single)_blocks\.\d+\.processor\."
)
"""FLUX's blocks as diffusers, kohya and XLabs name them."""
_UNREAD = re.compile(r"^(base_model\.model\.|diffusion_model\.)?(double|single)_blocks\.\d+\.")
"""The original's own names, which diffusers reads of some trainers' whole sets of layers alone."""
BASE_KEYS = ("ss_base_model_version", "modelspec.architecture")
_BASE = re.compile(r"flux|step1x", re.IGNORECASE)
_TEXT_ENCODER = re.compile(r"^(lora_te\d?_|text_encoders?\b)")


def recognise(header: Header, stem: str) -> Inspection | None:
    """A LoRA of FLUX's layout in one safetensors file; None where it is none."""
    names = [name for name in header.shapes if _MATRIX.search(name)]
    # On double blocks alone it has the names and the widths of a LoRA for Qwen-Image: such a file must say what it is.
    said = any(_BASE.search(header.metadata.get(key, "")) for key in BASE_KEYS)
    if any(_UNREAD.search(name) and not _BLOCKS.search(name) for name in names):
        raise InvalidRequest(
            "The FLUX LoRA has the original network's own names; those of kohya, XLabs and diffusers are served."
        )
    if not names or not (said or any(_BLOCKS.search(name) for name in names)):
        return None
    if any(_TEXT_ENCODER.search(name) for name in names):
        raise InvalidRequest(
            "The FLUX LoRA changes a text encoder (CLIP) too, which Step1X-Edit has not; one of the network alone is "
            "served."
        )
    return Inspection("lora", "flux", options=lora_options(header))


def recognise_index(folder: Path, index: Mapping[str, Any]) -> Inspection | None:
    """The diffusers layout, by the pipeline that `index` names; None where it is another's."""
    if not str(index.get("_class_name")).startswith("Step1XEditPipeline"):
        return None
    missing = [name for name in PARTS if not (folder / name).is_dir()]
    if missing:
        raise InvalidRequest(f"The folder lacks {', '.join(missing)}.")
    files = sorted((folder / "transformer").glob("*" + WEIGHTS))
    names = {name for file in files for name in read_header(file).shapes}
    if "connector.global_proj_out.weight" not in names:
        raise InvalidRequest("The folder's transformer is no Step1X-Edit: it has no connector.")
    return _inspection({"layout": "diffusers"})


def recognise_folder(folder: Path) -> Inspection | None:
    """The original single file beside the autoencoder's; None where the folder holds none."""
    for file in sorted(folder.glob("*" + WEIGHTS)):
        names = read_header(file).shapes
        if {"img_in.weight", "connector.global_proj_out.weight"} <= set(names):
            if not (folder / AUTOENCODER).is_file():
                raise InvalidRequest(f"Beside {file.name!r} the folder lacks its autoencoder, {AUTOENCODER}.")
            found = _inspection({"layout": "folder", "weights": file.name}, parts=(LANGUAGE_MODEL,))
            return found
    return None


def _inspection(options: dict[str, str], parts: tuple[str, ...] = ()) -> Inspection:
    return Inspection(
        "checkpoint", "flux", (STEP1X_TASK,), RECOMMENDED, options=options, parts=parts, loader=STEP1X_LOADER
    )
