"""What a tagger's outputs mean: the rows of selected_tags.csv, in the order of the outputs."""

import csv
from pathlib import Path

from app.errors import InvalidRequest
from app.imaging.tags import CATEGORIES, Label

MAX_FILE = 16 * 2**20
MAX_NAME = 300


def read_labels(file: Path) -> tuple[Label, ...]:
    """One label for each row; categories that are known to nobody keep their number as a name.

    `InvalidRequest` where the file is no such table.
    """
    try:
        if file.stat().st_size > MAX_FILE:
            raise ValueError("too large")
        with file.open(newline="", encoding="utf-8") as lines:
            labels = tuple(
                Label(row["name"][:MAX_NAME], CATEGORIES.get(int(row["category"]), row["category"]))
                for row in csv.DictReader(lines)
            )
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        raise InvalidRequest(f"{file.name!r} is no table of tags with the columns name and category.") from None
    if not labels:
        raise InvalidRequest(f"{file.name!r} names no tag.")
    return labels
