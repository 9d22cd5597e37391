"""A test that measures time runs while no other test does, in a suite that runs in two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = """
import os, time
from pathlib import Path
import pytest

def note():
    begun = time.monotonic()
    time.sleep(0.05)
    with Path({log!r}).open("a") as log:
        log.write(f"{name} {{begun}} {{time.monotonic()}} {{os.getpid()}}\\n")

@pytest.mark.parametrize("number", range({count}))
{mark}
def test_note(number):
    note()
"""


def spans(folder: Path, mark: str) -> dict[str, list[tuple[float, float, str]]]:
    """When the tests of two files ran, and in which process: a few with this mark, beside many without one."""
    folder.mkdir()
    log = folder / "log"
    for name, count, line in (("measured", 8, mark), ("plain", 24, "")):
        text = TESTS.format(log=str(log), name=name, count=count, mark=line)
        (folder / f"test_{name}.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\nmarkers = alone: runs while no other test does\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "xdist", "-p", "tests.turns", "-n", "2"]
    finished = subprocess.run(
        [*command, "--dist", "loadfile", "--rootdir", str(folder), str(folder)],
        cwd=ROOT, env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert finished.returncode == 0 and "32 passed" in finished.stdout, finished.stdout + finished.stderr
    found: dict[str, list[tuple[float, float, str]]] = {"measured": [], "plain": []}
    for line in log.read_text().splitlines():
        name, begun, ended, process = line.split()
        found[name].append((float(begun), float(ended), process))
    assert [len(rows) for rows in found.values()] == [8, 24]
    assert len({process for rows in found.values() for *_, process in rows}) == 2, "one process ran both files"
    return found


def together(found: dict[str, list[tuple[float, float, str]]]) -> int:
    """How many pairs of one of each file ran at the same time."""
    return sum(
        begun < other_ended and other_begun < ended
        for begun, ended, _ in found["measured"]
        for other_begun, other_ended, _ in found["plain"]
    )


@pytest.mark.parametrize("mark", ["@pytest.mark.alone", ""], ids=["alone", "plain"])
def test_a_test_that_measures_time_has_the_machine_for_itself(mark: str, tmp_path: Path) -> None:
    found = spans(tmp_path / "tests", mark)
    if not mark:
        assert together(found), "the tests of two processes never ran at once: the check is blind"
        return
    assert together(found) == 0
    first, last = min(found["measured"])[0], max(found["measured"])[1]
    between = [begun for begun, *_ in found["plain"] if first < begun < last]
    assert 0 < len(between) < len(found["plain"]), "both processes take turns, and neither is passed over"
