"""JSON from strangers: what is ambiguous, absurd or cannot be stored is refused before anything looks at it.

Python's own loader takes NaN, Infinity, 1e999, lone surrogates, duplicate keys and integers of any length; each of
them later breaks an encoder, a database driver or a comparison. One pass over the parsed value costs about as much
as parsing it.
"""

import json
import math
from typing import Any

DEPTH_LIMIT = 32
INTEGER_LIMIT = 2**63
INTEGER_DIGITS = 20
ELEMENT_LIMIT = 200_000
"""A long body is one long text, a picture; as many small values would take a hundred times its size in memory."""


class NotStrictJson(ValueError):
    """The sentence names what is wrong, never the text itself."""


def loads(body: bytes) -> Any:
    """The value of a UTF-8 JSON text; `NotStrictJson` where it is none."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") > ELEMENT_LIMIT:
        raise refuse(f"The JSON has more than {ELEMENT_LIMIT} values.")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise refuse("The body is not UTF-8.") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=unique_keys,
            parse_constant=no_constant,
            parse_float=finite_float,
            parse_int=short_int,
        )
    except RecursionError:
        raise refuse(f"The JSON is nested deeper than {DEPTH_LIMIT} levels.") from None
    except json.JSONDecodeError as error:
        raise refuse(f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from None
    check(value)
    return value


def refuse(message: str) -> NotStrictJson:
    return NotStrictJson(message)


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise refuse("A JSON object names the same key twice.")
    return found


def no_constant(_: str) -> Any:
    raise refuse("NaN and Infinity are not JSON.")


def finite_float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise refuse("A number is too large.")
    return number


def short_int(text: str) -> int:
    if len(text) > INTEGER_DIGITS:
        raise refuse("An integer has more than 64 bits.")
    number = int(text)
    if not -INTEGER_LIMIT <= number < 2 * INTEGER_LIMIT:
        raise refuse("An integer has more than 64 bits.")
    return number


def check_text(text: str) -> None:
    """Refuse what UTF-8 cannot hold and what databases and C libraries end a text at."""
    if "\x00" in text:
        raise refuse("A text holds a NUL character.")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise refuse("A text holds half of a surrogate pair.") from None


def check(value: Any) -> None:
    """Walk the whole value without recursion: texts and depth."""
    pending = [(value, 1)]
    while pending:
        here, depth = pending.pop()
        if isinstance(here, str):
            check_text(here)
        elif isinstance(here, dict | list):
            if depth > DEPTH_LIMIT:
                raise refuse(f"The JSON is nested deeper than {DEPTH_LIMIT} levels.")
            if isinstance(here, dict):
                for key in here:
                    check_text(key)
                pending.extend((inner, depth + 1) for inner in here.values())
            else:
                pending.extend((inner, depth + 1) for inner in here)
