"""What the commands that train pocket have in common: options, the lines that they print, their last word."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from app.pocket import spec


def parser_of(
    name: str, summary: str | None, out: Path, made: str, presets: Iterable[str] = ()
) -> argparse.ArgumentParser:
    """The options that every `eis pocket train-<name>` has; `made` says what lies in `out` in the end.

    Where there are presets, of which `cpu` is the usual one, it has `--preset` and `--fresh` too.
    """
    parser = argparse.ArgumentParser(f"eis pocket train-{name}", description=summary)
    parser.add_argument("--out", type=Path, default=out, help=f"folder of the finished {made}")
    parser.add_argument("--work", type=Path, default=work_folder(f"pocket-{name}"), help="folder of checkpoints")
    parser.add_argument("--weights", type=Path, default=spec.WEIGHTS, help="pocket's own weights")
    parser.add_argument("--seconds", type=float, help="stop each stage after this long; the next run goes on")
    parser.add_argument("--seed", default="train")
    if presets:
        add_presets(parser, presets)
    return parser


def add_presets(parser: argparse.ArgumentParser, presets: Iterable[str]) -> None:
    """`--preset`, and `--fresh`, which `parse` obeys."""
    parser.add_argument("--preset", choices=tuple(presets), default="cpu")
    parser.add_argument("--fresh", action="store_true", help="forget the checkpoints")


def work_folder(name: str) -> Path:
    """Where a training keeps its checkpoints when it is not told."""
    return Path.home() / ".cache/eis-train" / name


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """The options; with `--fresh` the folder of checkpoints is gone."""
    options = parser.parse_args(argv)
    if getattr(options, "fresh", False) and options.work.exists():
        shutil.rmtree(options.work)
    return options


def say(line: str) -> None:
    """Print a line with the time."""
    print(time.strftime("%H:%M:%S"), line, flush=True)


def ending(complete: bool) -> str:
    """What a training says of itself at the end."""
    return "complete" if complete else "not complete yet: the same command goes on"
