"""How the Batch tab reads what is typed: prompts by lines, `field = value` and `field = value, value` lines."""

import json
import re
from typing import Any

from app.errors import InvalidRequest

LONGEST_RANGE = 100_000
RANGE = re.compile(r"(-?\d{1,10})\s*\.\.\s*(-?\d{1,10})")


def prompts_of(text: str | None) -> list[str]:
    """The lines that hold anything."""
    return [line.strip() for line in (text or "").splitlines() if line.strip()]


def read_lists(text: str | None) -> dict[str, list[Any]]:
    """`seed = 1, 2` or `seed = 1..4`, one field per line."""
    return {name: values_of(name, typed) for name, typed in assignments(text)}


def read_values(text: str | None) -> dict[str, Any]:
    """`num_inference_steps = 8`, one field per line."""
    return {name: value_of(typed) for name, typed in assignments(text)}


def assignments(text: str | None) -> list[tuple[str, str]]:
    """(field, what is typed for it) of each line."""
    found: dict[str, str] = {}
    for line in prompts_of(text):
        name, sign, typed = (part.strip() for part in line.partition("="))
        if not sign or not name.isidentifier() or not typed:
            raise InvalidRequest(f"{line[:60]!r} is not of the form: field = value")
        if name in found:
            raise InvalidRequest(f"{name[:60]} stands there twice.")
        found[name] = typed
    return list(found.items())


def values_of(name: str, typed: str) -> list[Any]:
    """The values of one list."""
    if typed.startswith("["):
        listed = value_of(typed)
        if isinstance(listed, list):
            return listed
    values: list[Any] = []
    for piece in typed.split(","):
        between = RANGE.fullmatch(piece.strip())
        if between is None:
            values.append(value_of(piece.strip()))
            continue
        first, last = int(between[1]), int(between[2])
        if not 0 <= last - first < LONGEST_RANGE:
            raise InvalidRequest(f"{name[:60]}: {piece.strip()} must count upwards, and not that far.")
        values += range(first, last + 1)
    return values


def value_of(typed: str) -> Any:
    """A number, true, false, null, a quoted text or a list; anything else is the text itself."""
    try:
        return json.loads(typed)
    except ValueError:
        return typed
