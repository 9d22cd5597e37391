"""`eis`: serve, run, batch, tag, jobs, models, pocket, doctor.

A command's own module is imported when the command is chosen, so that every `--help` answers at once.
"""

import argparse
import importlib
import sys
from collections.abc import Sequence
from importlib.metadata import version

from app.errors import ServiceError

MODULES = {
    "serve": "app.cli_serve",
    "run": "app.cli_run",
    "batch": "app.cli_batch",
    "tag": "app.cli_tag",
    "jobs": "app.cli_jobs",
    "models": "app.cli_models",
    "pocket": "app.cli_pocket",
    "doctor": "app.cli_doctor",
}
SUMMARIES = {
    "serve": "serve the page and the API",
    "run": "run one capability here and now",
    "batch": "run every line of a JSONL file, or look after a server's batches",
    "tag": "write a caption of tags beside every picture of a folder",
    "jobs": "look after the jobs of a running server",
    "models": "list, fetch, add and remove models",
    "pocket": "train or check the embedded model",
    "doctor": "look at this installation",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the answer is the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return run(given)
    except ServiceError as error:
        print(f"eis: {error.message}", file=sys.stderr)
        for problem in list(error.details.get("errors", ()))[1:]:
            print(f"eis: {problem['field']}: {problem['message']}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("eis: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 141


def run(given: list[str]) -> int:
    """Read the words and act."""
    parser = argparse.ArgumentParser(
        prog="eis",
        description="Edit Image Service: self-hosted image generation and editing.",
        epilog="Every setting is an EIS_* variable; `eis COMMAND --help` says more.",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    chosen = next((word for word in given if not word.startswith("-")), None)
    for name, summary in SUMMARIES.items():
        known = name == chosen
        child = commands.add_parser(name, help=summary, description=summary.capitalize() + ".", add_help=known)
        if known:
            module = importlib.import_module(MODULES[name])
            module.declare(child, given[given.index(name) + 1 :])
    options = parser.parse_args(given)
    if options.version:
        print(version("edit-image-service"))
        return 0
    if options.command is None:
        parser.print_help()
        return 0
    return options.act(options) or 0


if __name__ == "__main__":
    sys.exit(main())
