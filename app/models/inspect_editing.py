"""What an instruction editor's folder is, from its names and shapes alone: Step1X-Edit in either published layout."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.errors import InvalidRequest
from app.models.catalog_editing import AUTOENCODER, LANGUAGE_MODEL, RECOMMENDED, STEP1X_LOADER, STEP1X_TASK
from app.models.inspection import WEIGHTS, Inspection, read_header

PARTS = ("processor", "scheduler", "text_encoder", "transformer", "vae")


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
        "checkpoint", "other", (STEP1X_TASK,), RECOMMENDED, options=options, parts=parts, loader=STEP1X_LOADER
    )
