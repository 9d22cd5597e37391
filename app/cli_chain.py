"""`eis run --then CAPABILITY[:FIELD=VALUE,...]`: a follow-up, run on every picture that the one before it makes."""

import json
import re
from typing import Any

from app.errors import InvalidRequest

HELP = "what follows on every picture made, as `upscale:scale=2`; several follow each other"
BETWEEN = re.compile(r",(?=[a-z_]+=)")


def read_then(text: str) -> dict[str, Any]:
    """One follow-up: a value is JSON where it can be read so, else the text itself."""
    name, _, rest = text.partition(":")
    wish: dict[str, Any] = {"capability": name}
    for pair in BETWEEN.split(rest) if rest else ():
        field, separator, value = pair.partition("=")
        if not separator or not field:
            raise InvalidRequest(f"--then {text}: write CAPABILITY:FIELD=VALUE,FIELD=VALUE.")
        try:
            wish[field] = json.loads(value)
        except ValueError:
            wish[field] = value
    return wish
