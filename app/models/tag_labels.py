"""What a tagger's outputs mean: the rows of selected_tags.csv, in the order of the outputs."""

import csv
from pathlib import Path

from app.errors import InvalidRequest

MAX_FILE = 16 * 2**20
MAX_NAME = 300


def read_labels(file: Path) -> tuple[tuple[str, int], ...]:
    """Name and category's number of each row.

    `InvalidRequest` where the file is no such table.
    """
    try:
        if file.stat().st_size > MAX_FILE:
            raise ValueError("too large")
        with file.open(newline="", encoding="utf-8") as lines:
            labels = tuple((row["name"][:MAX_NAME], int(row["category"])) for row in csv.DictReader(lines))
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        raise InvalidRequest(f"{file.name!r} is no table of tags with the columns name and category.") from None
    if not labels:
        raise InvalidRequest(f"{file.name!r} names no tag.")
    return labels
