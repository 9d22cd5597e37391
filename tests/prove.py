"""Run the long proofs whole, one after the other, and write their figures into docs/proofs.md.

Every proof is an ordinary test with the marker `prove`; alone it runs in part. A proof that passed at this commit is
not run again (`--again` does), so an interrupted run goes on where it stopped. Results lie in proofs/, which git
ignores.
"""

import argparse
import datetime
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "proofs"
PAGE = ROOT / "docs" / "proofs.md"
PAGES_OF_FIGURES = ("docs/proofs.md", "docs/performance.md")
CYCLES = "30"


def collect() -> list[str]:
    """The node ids of every proof."""
    command = [sys.executable, "-m", "pytest", "tests", "-m", "prove", "--collect-only", "-q"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    nodes = [line for line in listed.stdout.splitlines() if "::" in line]
    if not nodes:
        raise SystemExit(f"no proof was found\n{listed.stdout}{listed.stderr}")
    return nodes


def commit() -> str:
    """The short hash of the checkout, with a mark when files differ from it that could have made other figures."""
    head = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    but = [f":(exclude){page}" for page in PAGES_OF_FIGURES]
    command = ["git", "status", "--porcelain", "-uno", "--", ".", *but]
    changed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    return head + ("+" if changed.strip() else "")


def machine() -> str:
    """The processor and its number of cores."""
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return f"{model.group(1) if model else platform.processor()}, {os.cpu_count()} cores"


def run(node: str, cycles: str, here: str) -> dict:
    """Run one proof; its outcome with the figures that it wrote."""
    stem = re.sub(r"[^\w.-]+", "_", node)
    figures = RESULTS / f"{stem}.figures.json"
    figures.unlink(missing_ok=True)
    environment = {**os.environ, "EIS_PROVE_CYCLES": cycles, "EIS_PROVE_OUT": str(figures)}
    begun = time.monotonic()
    command = [sys.executable, "-m", "pytest", node, "-q", "-s", "--timeout=7200"]
    finished = subprocess.run(command, cwd=ROOT, env=environment)
    return {
        "node": node,
        "commit": here,
        "cycles": cycles,
        "passed": finished.returncode == 0,
        "seconds": round(time.monotonic() - begun, 1),
        "date": datetime.date.today().isoformat(),
        "figures": json.loads(figures.read_text()) if figures.exists() else {},
    }


def known_rows() -> dict[str, str]:
    """The rows that the page holds, by the proof's name."""
    lines = PAGE.read_text().splitlines() if PAGE.exists() else []
    return {line.split("`")[1]: line for line in lines if line.startswith("| `")}


def write_page(outcomes: list[dict], nodes: list[str]) -> None:
    """docs/proofs.md, from the outcomes; a proof that has none here keeps the row of the run that wrote it."""
    lines = [
        "# Proofs\n",
        "`make prove` runs these; `make test` holds a part of each.\n",
        f"Machine: {machine()}, {platform.system()}, Python {platform.python_version()}.\n",
        "| proof | cycles | outcome | figures | seconds | commit | date |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    rows = known_rows()
    for outcome in outcomes:
        figures = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in outcome["figures"].items())
        name = outcome["node"].split("::", 1)[1]
        word = "passed" if outcome["passed"] else "**failed**"
        rows[name] = (
            f"| `{name}` | {outcome['cycles']} | {word} | {figures} | {outcome['seconds']} "
            f"| {outcome['commit']} | {outcome['date']} |"
        )
    lines += [rows[name] for node in nodes if (name := node.split("::", 1)[1]) in rows]
    PAGE.write_text("\n".join(lines) + "\n")


def main() -> int:
    """Run what is left to run; 1 if any proof failed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cycles", default=CYCLES, help="cycles of each proof")
    parser.add_argument("--again", action="store_true", help="run also what passed at this commit")
    parser.add_argument("-k", dest="only", default="", help="run only proofs whose name holds this")
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    here = commit()
    outcomes, nodes = [], collect()
    for node in nodes:
        saved = RESULTS / (re.sub(r"[^\w.-]+", "_", node) + ".json")
        known = json.loads(saved.read_text()) if saved.exists() else None
        fresh = known and known["passed"] and known["commit"] == here and known["cycles"] == arguments.cycles
        if (fresh and not arguments.again) or arguments.only not in node:
            outcomes += [known] if known else []
            continue
        outcome = run(node, arguments.cycles, here)
        saved.write_text(json.dumps(outcome))
        outcomes.append(outcome)
        write_page(outcomes, nodes)
    write_page(outcomes, nodes)
    failed = [outcome["node"] for outcome in outcomes if not outcome["passed"]]
    print(f"{len(outcomes) - len(failed)} passed, {len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
