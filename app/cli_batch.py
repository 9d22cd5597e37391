"""`eis batch FILE.jsonl`: every line is one wish, run in this process, one result line each on stdout.

`eis batch submit FILE.jsonl` and its siblings speak to a running server (`cli_batches`).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app import cli_batches
from app.cli_batches import COMMANDS
from app.cli_lines import read_lines
from app.cli_settings import served_catalog
from app.core.catalog import find
from app.errors import InvalidRequest, ServiceError


def declare(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """The flags; a first word that is a command speaks to a running server instead."""
    if words and words[0] in COMMANDS:
        cli_batches.declare(parser)
        return
    parser.description = (
        "Run every line of a JSONL file. A line is a JSON object with `capability` and the capability's fields; "
        "`out` names its file. Each line is answered with a line of JSON on stdout. "
        f"On a running server: eis batch {' | '.join(COMMANDS)}."
    )
    parser.add_argument("file", metavar="FILE", help="the JSONL file; - reads stdin")
    parser.add_argument("--capability", help="capability of the lines that name none")
    parser.add_argument("--out-dir", type=Path, default=Path("."), help="folder for the pictures (default: here)")
    parser.add_argument("--quiet", action="store_true", help="no progress lines")
    parser.set_defaults(act=act)


def act(options: argparse.Namespace) -> int:
    """Run all lines; 1 when one of them failed."""
    wishes = list(read_lines(options.file))
    options.out_dir.mkdir(parents=True, exist_ok=True)
    catalog = served_catalog()
    failed = 0
    from app.cli_inline import Inline

    with Inline() as inline:
        for number, wish in wishes:
            answer: dict[str, Any] = {"line": number}
            try:
                name = wish.pop("capability", options.capability)
                if not isinstance(name, str):
                    raise InvalidRequest("The line names no capability; --capability sets one for all.")
                capability = find(name, catalog)
                out = wish.pop("out", None)
                job = inline.run(capability, wish, quiet=options.quiet, title=f"line {number}, {name}")
                path = file_name(options.out_dir, out, number)
                files = inline.write(job.result["images"], path, name)
                answer |= {"status": "succeeded", "model": job.model, "files": [str(file) for file in files]}
                answer |= {"request": job.request, "data": job.result.get("data", {})}
            except ServiceError as error:
                failed += 1
                answer |= {"status": "failed", "error": {"code": error.code, "message": error.message}}
            print(json.dumps(answer), flush=True)
    print(f"{len(wishes) - failed} of {len(wishes)} lines succeeded", file=sys.stderr)
    return 1 if failed else 0


def file_name(folder: Path, out: Any, number: int) -> Path:
    """The picture's file: the line's own name inside the folder, else its number."""
    if out is None:
        return folder / f"{number:05}.png"
    path = Path(str(out))
    if path.name != str(out) or path.suffix.lower() not in {".png", ".jpg", ".jpeg", ".webp"}:
        raise InvalidRequest("`out` must be a plain file name that ends with .png, .jpg or .webp.")
    return folder / path
