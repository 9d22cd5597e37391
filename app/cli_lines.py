"""Wishes of a JSONL file, one JSON object a line."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.errors import InvalidRequest


def read_lines(name: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """The wishes with their line numbers; a broken line stops before anything runs."""
    try:
        lines = sys.stdin.read() if name == "-" else Path(name).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"{name}: {getattr(error, 'strerror', None) or 'no UTF-8 text'}.") from None
    for number, line in enumerate(lines.splitlines(), 1):
        if not line.strip():
            continue
        try:
            wish = json.loads(line)
        except ValueError:
            raise InvalidRequest(f"Line {number} is no JSON.") from None
        if not isinstance(wish, dict):
            raise InvalidRequest(f"Line {number} is no JSON object.")
        yield number, wish
