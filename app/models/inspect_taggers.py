"""Taggers recognised: a folder of model.onnx beside the selected_tags.csv that names its outputs."""

from pathlib import Path

from app.errors import InvalidRequest
from app.models.catalog_taggers import LABELS, NETWORK, TAG, TAGGER_LOADER
from app.models.inspection import Inspection
from app.models.tag_labels import read_labels


def recognise_folder(folder: Path) -> Inspection | None:
    """A WD14 tagger's folder; what else lies in it is not taken. `InvalidRequest` where one of its two files lacks."""
    has_network, has_labels = ((folder / name).is_file() for name in (NETWORK, LABELS))
    if not has_labels:
        return None
    if not has_network:
        raise InvalidRequest(f"Beside {LABELS} the folder lacks its network, {NETWORK}.")
    read_labels(folder / LABELS)
    return Inspection(
        "tagger",
        "other",
        (TAG,),
        options={"layout": "folder"},
        loader=TAGGER_LOADER,
        files=(NETWORK, LABELS),
    )
