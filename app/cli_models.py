"""`eis models list | show | pull | add | rm`: the models under EIS_HOME."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.errors import InvalidRequest


def declare(parser: argparse.ArgumentParser, _: Sequence[str]) -> None:
    """Five commands."""
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    listing = commands.add_parser("list", help="every known model")
    listing.add_argument("--installed", action="store_true", help="only what is on this machine")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(act=list_models)
    show = commands.add_parser("show", help="everything about one model")
    show.add_argument("id")
    show.add_argument("--json", action="store_true", help="as JSON")
    show.set_defaults(act=show_model)
    pull = commands.add_parser("pull", help="fetch a model from its hub; goes on where it stopped")
    pull.add_argument("id", nargs="+")
    pull.add_argument("--accept-licence", action="store_true", help="agree to a licence that limits use")
    pull.add_argument("--quiet", action="store_true", help="no progress line")
    pull.set_defaults(act=pull_models)
    add = commands.add_parser("add", help="add a .safetensors or .gguf file or a model's folder")
    add.add_argument("file", type=Path, metavar="FILE")
    add.add_argument("--id", help="its name from now on (default: from the file's name)")
    add.add_argument("--title")
    add.add_argument("--kind", help="checkpoint, lora, identity ... (default: by the file's own keys)")
    add.add_argument("--licence", help="name of its licence, for the list")
    add.add_argument("--accept-licence", action="store_true", help="agree to a licence that limits use")
    add.set_defaults(act=add_model)
    remove = commands.add_parser("rm", help="remove a model's files")
    remove.add_argument("id", nargs="+")
    remove.set_defaults(act=remove_models)


def library() -> Any:
    """The models of the EIS_HOME that the settings name."""
    from app.cli_settings import read_settings
    from app.models.library import ModelLibrary

    settings = read_settings()
    token = settings.hub_token.get_secret_value() if settings.hub_token else None
    return ModelLibrary(settings.home, hub_url=settings.hub_url, hub_token=token, trusted_hosts=settings.trusted_hosts)


def facts(row: Any, models: Any) -> dict[str, Any]:
    """A row as JSON."""
    from app.models.tiers import needs_of, tiers_of

    needs = needs_of(models, row.spec.id)
    return {
        **asdict(row.spec),
        "installed": row.installed,
        "path": str(row.path) if row.path else None,
        "bytes_on_disk": row.bytes_on_disk,
        "sha256": row.sha256,
        "needed_bytes": needs,
        "tiers": tiers_of(needs),
    }


def missing(models: Any, id: str) -> str:
    """The line that fetches what lacks; empty where nothing does."""
    return f"; eis models pull {id}" if models.is_pullable(id) else ""


def size(count: int) -> str:
    """Bytes as a person reads them."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def list_models(options: argparse.Namespace) -> int:
    """A table; the installed ones are marked."""
    models = library()
    rows = [row for row in models.rows() if row.installed or not options.installed]
    if options.json:
        print(json.dumps([facts(row, models) for row in rows], indent=2))
        return 0
    for row in rows:
        mark = "*" if row.installed else " "
        spec = row.spec
        print(
            f"{mark} {spec.id:30} {spec.kind:13} {spec.family:6} {size(spec.bytes):>8}  "
            f"{spec.licence.name:41} {spec.title}"
        )
    print("* installed; `eis models pull ID` fetches another", file=sys.stderr)
    return 0


def show_model(options: argparse.Namespace) -> int:
    """One model."""
    models = library()
    row = models.get(options.id)
    told_all = facts(row, models)
    if options.json:
        print(json.dumps(told_all, indent=2))
        return 0
    spec = row.spec
    told = {
        "id": spec.id,
        "title": spec.title,
        "what": spec.description,
        "kind": f"{spec.kind}, {spec.family}",
        "serves": ", ".join(spec.tasks),
        "licence": f"{spec.licence.name} ({spec.licence.url}), "
        + ("commercial use allowed" if spec.licence.commercial else "no commercial use"),
        "from": f"{spec.repo} at {spec.revision}" if spec.repo else ", ".join(file.url for file in spec.sources),
        "with": ", ".join(spec.parts),
        "size": size(spec.bytes),
        "needs": "; ".join(
            f"{name}: {size(count)} on the device, tier {told_all['tiers'][name]}"
            for name, count in told_all["needed_bytes"].items()
        ),
        "installed": str(row.path or "yes, it has no files") if row.installed else f"no{missing(models, spec.id)}",
        "sha256": row.sha256 or "",
    }
    if spec.recommended:
        told |= {name.replace("_", " "): str(value) for name, value in asdict(spec.recommended).items()}
    for name, value in told.items():
        if value:
            print(f"{name:20} {value}")
    return 0


def pull_models(options: argparse.Namespace) -> int:
    """Fetch, asking for the licence where it limits use."""
    from app.cli_progress import ProgressLine

    models = library()
    for id in options.id:
        row = models.get(id)
        if row.installed:
            print(f"{id} is installed already")
            continue
        accepted = options.accept_licence or agreed(models.licences_to_accept(id))
        line = ProgressLine(id, quiet=options.quiet)
        try:
            row = models.pull(id, accept_licence=accepted, progress=line.bytes)
        finally:
            line.close()
        print(f"{id}: {size(row.bytes_on_disk)} installed")
    return 0


def agreed(licences: Sequence[Any]) -> bool:
    """Ask on a terminal; elsewhere the flag is the only way to say yes."""
    if not licences:
        return False
    for licence in licences:
        commercial = "" if licence.commercial else " (no commercial use)"
        print(f"The licence {licence.name} limits use{commercial}: {licence.url}", file=sys.stderr)
    if not sys.stdin.isatty():
        raise InvalidRequest("Read the licence and agree with --accept-licence.")
    print("Do you accept? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise InvalidRequest("Not accepted; nothing was fetched or added.")
    return True


def add_model(options: argparse.Namespace) -> int:
    """Take a file of this machine."""
    given = {name: getattr(options, name) for name in ("id", "title", "kind", "licence")}
    given = {name: value for name, value in given.items() if value}
    models = library()
    accepted = options.accept_licence or agreed(models.licences_of_file(options.file, **given))
    row = models.add(options.file, **given, accept_licence=accepted)
    print(f"{row.spec.id}: {row.spec.kind}, {row.spec.family}, {size(row.bytes_on_disk)}")
    return 0


def remove_models(options: argparse.Namespace) -> int:
    """Remove files; the embedded model stays."""
    models = library()
    for id in options.id:
        models.remove(id)
        print(f"{id} removed")
    return 0
