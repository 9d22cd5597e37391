"""Segmenters and erasers recognised: SAM and SAM 2 by their folder's configuration, LaMa by its names."""

import json
from pathlib import Path

from app.models.catalog_segmenters import ERASE, ERASER_LOADER, SEGMENT, SEGMENTER_LOADER, SEGMENTERS
from app.models.inspection import WEIGHTS, Header, Inspection, read_header

MAX_CONFIG = 2**20
LAMA = "model.1.bn_l.running_mean"
CONFIG, WEIGHTS_FILE = "config.json", f"model{WEIGHTS}"


def recognise(header: Header, stem: str) -> Inspection | None:
    """LaMa in one file, with the prefix of any of its publishers, alone or beside what it was trained with."""
    if not any(f"{prefix}{LAMA}" in header.shapes for prefix in ("", "model.", "generator.")):
        return None
    return Inspection("eraser", "other", (ERASE,), options={"layout": "single-file"}, loader=ERASER_LOADER)


def recognise_folder(folder: Path) -> Inspection | None:
    """SAM or SAM 2 in transformers' layout; what else lies in the folder is not taken."""
    config = folder / CONFIG
    if not config.is_file() or config.stat().st_size > MAX_CONFIG or not (folder / WEIGHTS_FILE).is_file():
        return None
    try:
        told = json.loads(config.read_text("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(told, dict) or told.get("model_type") not in SEGMENTERS:
        return None
    read_header(folder / WEIGHTS_FILE)
    return Inspection(
        "segmenter",
        "other",
        (SEGMENT,),
        options={"layout": "folder"},
        loader=SEGMENTER_LOADER,
        files=(CONFIG, WEIGHTS_FILE),
    )
