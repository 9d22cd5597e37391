"""`eis tag FOLDER`: captions for training, as a .txt beside each picture.

A caption is written whole or not at all, and one that is there already is left alone unless `--overwrite` is said: it
may have been corrected by hand. Pictures go through the tagger in batches; one that cannot be read is named, and the
others go on.
"""

import argparse
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from app.cli_fields import add_flags, given_fields
from app.cli_settings import served_catalog
from app.core.catalog import find
from app.errors import InvalidRequest, ServiceError

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".avif"})
PICTURES_A_JOB = 64
PICTURES = ("image", "further_images")
CAPABILITY = "tag-image"


def declare(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    """The folder, what may be written over, and the fields of the capability that are not pictures."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the pictures lie")
    parser.add_argument("--recursive", action="store_true", help="also the folders in it")
    parser.add_argument("--overwrite", action="store_true", help="write over captions that are there")
    parser.add_argument("--quiet", action="store_true", help="no progress line")
    add_flags(parser.add_argument_group("fields"), find(CAPABILITY, served_catalog()).request, but=PICTURES)
    parser.set_defaults(act=act)


def act(options: argparse.Namespace) -> int:
    """Tag what needs it; 1 where a picture could not be."""
    pictures = find_pictures(options.folder, recursive=options.recursive)
    capability = find(CAPABILITY, served_catalog())
    given = given_fields(options, capability.request)
    wanted = [path for path in pictures if options.overwrite or not path.with_suffix(".txt").exists()]
    written, failed = 0, 0
    if wanted:
        from app.cli_inline import Inline

        with Inline() as inline:
            for start in range(0, len(wanted), PICTURES_A_JOB):
                stored = store(inline, wanted[start : start + PICTURES_A_JOB])
                failed += len(wanted[start : start + PICTURES_A_JOB]) - len(stored)
                if not stored:
                    continue
                payload = {**given, "image": stored[0][1], "further_images": [reference for _, reference in stored[1:]]}
                title = f"tag {start + 1}-{start + len(stored)} of {len(wanted)}"
                job = inline.run(capability, payload, quiet=options.quiet, title=title)
                for (path, _), told in zip(stored, job.result["data"]["pictures"], strict=True):
                    written += write(path.with_suffix(".txt"), told["caption"] + "\n", overwrite=options.overwrite)
    print(f"{written} captions written, {len(pictures) - len(wanted)} left as they were, {failed} pictures not read")
    return 1 if failed else 0


def find_pictures(folder: Path, *, recursive: bool) -> list[Path]:
    """The pictures of a folder; `InvalidRequest` where there are none, or two of them would share a caption."""
    if not folder.is_dir():
        raise InvalidRequest(f"There is no folder {folder}.")
    seen = sorted(folder.rglob("*") if recursive else folder.iterdir())
    found = [path for path in seen if path.suffix.lower() in ENDINGS and path.is_file()]
    if not found:
        raise InvalidRequest(f"{folder} holds no pictures ({', '.join(sorted(ENDINGS))}).")
    captions: dict[Path, Path] = {}
    for path in found:
        other = captions.setdefault(path.with_suffix(".txt"), path)
        if other != path:
            raise InvalidRequest(f"{other.name} and {path.name} would share one caption; rename one of them.")
    return found


def store(inline: Any, paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Each picture that can be read, with its reference."""

    def stored() -> Iterator[tuple[Path, str]]:
        for path in paths:
            try:
                yield path, inline.store(inline.bytes_of(str(path)))
            except ServiceError as error:
                print(f"eis: {path}: {error.message}", file=sys.stderr)

    return list(stored())


def write(file: Path, text: str, *, overwrite: bool) -> bool:
    """Write the file by one rename; without `overwrite` one that has come meanwhile stays. Whether it was written."""
    part = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    try:
        with part.open("x", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        if overwrite:
            part.replace(file)
            return True
        try:
            os.link(part, file)
        except FileExistsError:
            return False
        return True
    finally:
        part.unlink(missing_ok=True)
