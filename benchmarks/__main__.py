"""`make bench`: every part's rows, printed as they come; `--write` puts the tables into docs/performance.md."""

import argparse
import datetime
import os
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path

import app.models  # noqa: F401  (the worker's own settings of torch's threads, before torch is imported)
from benchmarks import cpu_profile, editing, faces, memory, segmenting, service, sharing, tagging, upscaling
from benchmarks.rows import Row
from tests.prove import commit, machine

PAGE = Path(__file__).resolve().parent.parent / "docs" / "performance.md"

PARTS: dict[str, tuple[str, tuple[Callable[[int], Iterable[Row]], ...]]] = {
    "service": (
        "The service",
        (
            lambda rounds: service.rates(2000),
            lambda rounds: service.overhead(10 * rounds, 1000),
            service.cold_start,
        ),
    ),
    "cpu": ("The CPU profile", (cpu_profile.unet_step,)),
    "faces": ("Faces", (faces.identify,)),
    "segmenting": ("Clicks", (segmenting.clicks,)),
    "upscaling": ("Upscaling", (upscaling.megapixels, upscaling.memory)),
    "tagging": ("Tags", (tagging.folders,)),
    "sharing": ("Shared forwards and priorities", (sharing.shared_forwards, sharing.urgent, sharing.full_size)),
    "editing": ("Memory of editors, computed", (editing.computed,)),
    "memory": ("Memory", (memory.on_the_cpu, memory.on_a_gpu)),
}


def table(title: str, rows: list[Row]) -> str:
    """A part's table."""
    lines = [f"## {title}\n", "| what | figure | beside it |", "| --- | --- | --- |"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def page(tables: list[str]) -> str:
    """The tables with machine, commit and date."""
    head = (
        "# Performance\n\n"
        f"`make bench`; {machine()}; load {os.getloadavg()[0]:.1f} at the end; commit {commit()}; "
        f"{datetime.date.today().isoformat()}. Medians; both sides of a ratio interleaved in one run.\n"
    )
    return "\n".join([head, *tables])


def main() -> int:
    """Measure and print; `--write` keeps the page. 1 where a measurement failed: the others are made all the same."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], help="which parts; none: all")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions of each measurement")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md (all parts)")
    arguments = parser.parse_args()
    if arguments.write and arguments.parts:
        parser.error("--write is for a run of all parts: a page holds figures of one run")
    tables, failed = [], []
    for name in arguments.parts or PARTS:
        title, measures = PARTS[name]
        rows = []
        for measure in measures:
            try:
                for row in measure(arguments.rounds):
                    print(" | ".join(row), flush=True)
                    rows.append(row)
            except Exception:
                traceback.print_exc()
                failed.append(title)
        tables.append(table(title, rows))
    if failed:
        print(f"failed, and no page was written: {', '.join(failed)}")
        return 1
    if arguments.write:
        PAGE.write_text(page(tables))
        print(PAGE)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
