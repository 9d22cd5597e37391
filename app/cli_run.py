"""`eis run <capability>`: one wish, run in this process, with a progress line and the pictures as files.

The job lives in a store of its own that goes with the command; models and input pictures are those of EIS_HOME.
`--recipe FILE` takes everything from a picture that the service made, or from its recipe as JSON, and repeats it to
the pixel; a flag beside it changes one thing. A model or addition that is installed with other weights than made the
picture is said on stderr.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.cli_chain import HELP, read_then
from app.cli_fields import add_flags, given_fields
from app.cli_settings import served_catalog
from app.core.capability import Capability
from app.core.catalog import find
from app.errors import InvalidRequest, UnknownImage, UnknownModel
from app.models.library import ModelLibrary


def declare(parser: argparse.ArgumentParser, rest: Sequence[str]) -> None:
    """The common flags, and one for each field of the chosen capability."""
    catalog = served_catalog()
    parser.usage = "eis run CAPABILITY [--FIELD VALUE ...] [--out FILE] | eis run --recipe FILE [--out FILE]"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.description = "Run one capability in this process.\n\ncapabilities:\n" + "\n".join(
        f"  {capability.name:20} {capability.summary}" for capability in catalog
    )
    parser.epilog = "`eis run CAPABILITY --help` lists the fields."
    parser.add_argument("capability", nargs="?", metavar="CAPABILITY", help="what to run; --recipe knows it itself")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write (.png, .jpg, .webp); several get -1, -2"
    )
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="repeat this picture (or JSON recipe) to the pixel")
    parser.add_argument("--then", action="append", default=[], metavar="CAPABILITY[:FIELD=VALUE,...]", help=HELP)
    parser.add_argument("--json", action="store_true", help="print the finished job as JSON on stdout")
    parser.add_argument("--quiet", action="store_true", help="no progress line")
    capability = chosen(rest, catalog)
    if capability is not None:
        parser.description = capability.summary
        parser.epilog = None
        add_flags(parser.add_argument_group("fields"), capability.request)
    parser.set_defaults(act=act)


def chosen(rest: Sequence[str], catalog: Sequence[Capability]) -> Capability | None:
    """The capability that the words name, by themselves or through the recipe; None when there is none yet."""
    names = {capability.name: capability for capability in catalog}
    if rest and not rest[0].startswith("-"):
        return names.get(rest[0]) or find(rest[0], catalog)
    for word in rest:
        if word in names:
            return names[word]
    for index, word in enumerate(rest):
        path = rest[index + 1] if word == "--recipe" and index + 1 < len(rest) else word.removeprefix("--recipe=")
        if word.startswith("--recipe") and path != "--recipe":
            return find(str(read_recipe(Path(path))["capability"]), catalog)
    return None


def act(options: argparse.Namespace) -> int:
    """Run it and write the pictures."""
    recipe = read_recipe(options.recipe) if options.recipe else None
    name = options.capability or (recipe or {}).get("capability")
    if name is None:
        raise InvalidRequest("Say what to run: eis run CAPABILITY, or eis run --recipe FILE.")
    capability = find(str(name), served_catalog())
    given = given_fields(options, capability.request)
    payload = {**recipe["request"], **given} if recipe else given
    then = [read_then(text) for text in options.then]
    check_out(options.out)
    from app.cli_inline import Inline, report

    with Inline() as inline:
        if recipe:
            check_inputs(recipe, payload, inline)
            for note in other_weights(recipe, payload, inline.service.models):
                print(f"note: {note}", file=sys.stderr)
        links = inline.run_chain(capability, payload, then, quiet=options.quiet)
        drawn = next((jobs for jobs in reversed(links) if jobs[0].result["images"]), links[-1])
        images = [image for job in drawn for image in job.result["images"]]
        position = recipe.get("position") if recipe and not then else None
        if isinstance(position, int) and position < len(images) and "num_images_per_prompt" not in given:
            images = [images[position]]
        written = inline.write(images, options.out, drawn[0].capability)
        files = {image["id"]: path for image, path in zip(images, written, strict=True)}
        for job in (job for jobs in links for job in jobs):
            own = [files[image["id"]] for image in job.result["images"] if image["id"] in files]
            report(job, own, as_json=options.json)
    return 0


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe inside a picture, or in a JSON file."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{path}: {error.strerror}.") from None
    if data.lstrip()[:1] == b"{":
        try:
            recipe = json.loads(data)
        except ValueError:
            raise InvalidRequest(f"{path} is no JSON.") from None
        recipe = recipe.get("recipe", recipe)
    else:
        from PIL import Image

        from app.imaging.metadata import read_origin

        try:
            with Image.open(path, formats=("PNG", "JPEG", "WEBP")) as image:
                image.load()
                recipe = read_origin(image).recipe
        except (OSError, ValueError, Image.DecompressionBombError):
            raise InvalidRequest(f"{path} is no picture that can be read.") from None
    if not isinstance(recipe, dict) or not isinstance(recipe.get("request"), dict) or "capability" not in recipe:
        raise InvalidRequest(f"{path} holds no recipe of this service.")
    return recipe


def check_inputs(recipe: dict[str, Any], payload: dict[str, Any], inline: Any) -> None:
    """The input pictures of a recipe must still be the same files, where no flag replaces them."""
    for name, held in (recipe.get("inputs") or {}).items():
        if payload.get(name) != recipe["request"].get(name):
            continue
        for one in held if isinstance(held, list) else [held]:
            flag = "--" + name.replace("_", "-")
            try:
                data = inline.service.storage.path(one["id"]).read_bytes()
            except UnknownImage:
                raise InvalidRequest(f"The recipe's {name} is not stored here; give it with {flag} FILE.") from None
            if hashlib.sha256(data).hexdigest() != one.get("sha256"):
                raise InvalidRequest(f"The recipe's {name} has changed since; give it with {flag} FILE.")


def other_weights(recipe: dict[str, Any], payload: dict[str, Any], models: ModelLibrary) -> list[str]:
    """A sentence for each model of the recipe that is asked for again and installed with other weights."""
    held = {name: str(digest) for name, digest in (recipe.get("addition_sha256") or {}).items()}
    asked = {lora.get("model") for lora in payload.get("loras") or () if isinstance(lora, dict)}
    asked |= {name for name in payload.get("textual_inversions") or () if isinstance(name, str)}
    if recipe.get("model_sha256") and payload.get("model") == recipe["request"].get("model"):
        held[str(recipe.get("model"))] = str(recipe["model_sha256"])
        asked.add(str(recipe.get("model")))
    notes = []
    for name, digest in held.items():
        try:
            installed = models.get(name).sha256 if name in asked else None
        except UnknownModel:
            continue
        if installed is not None and installed != digest:
            notes.append(
                f"{name} is installed with other weights ({installed[:10]}) than made this picture "
                f"({digest[:10]}); it will not be the same to the pixel."
            )
    return notes


def check_out(out: Path | None) -> None:
    """Refuse before the work what could not be written after it."""
    if out is None:
        return
    if out.suffix.lower() not in {".png", ".jpg", ".jpeg", ".webp"}:
        raise InvalidRequest(f"--out {out}: the name must end with .png, .jpg or .webp.")
    if not out.parent.is_dir():
        raise InvalidRequest(f"--out {out}: there is no folder {out.parent}.")
