"""The fixture that hands out parity cases, and the last line of `make parity`: how many of them passed."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.parity import cases

USED = pytest.StashKey[list[str]]()
OUTCOMES = pytest.StashKey[dict[str, set[str]]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash.setdefault(OUTCOMES, {})


@pytest.fixture
def parity_case(request: pytest.FixtureRequest) -> Callable[[str], cases.ParityCase]:
    """Case of a name; skips the test where the folder of EIS_PARITY has others only."""
    used = request.node.stash.setdefault(USED, [])

    def find(name: str) -> cases.ParityCase:
        case = cases.find(name)
        if case is None:
            pytest.skip(f"the folder of EIS_PARITY holds no case {name}")
        used.append(name)
        return case

    return find


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    for name in item.stash.get(USED, []):
        if report.when == "call" or report.failed:
            item.config.stash[OUTCOMES].setdefault(name, set()).add(report.outcome)
    return report


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    # As a part of the whole suite the summary is pytest's own.
    if not config.args or not all("parity" in Path(argument).parts for argument in config.args):
        return
    outcomes = config.stash.get(OUTCOMES, {})
    try:
        there = cases.found(cases.source())
    except LookupError as error:
        print(f"0 parity cases passed: {error}")
        return
    passed = sorted(name for name, seen in outcomes.items() if seen == {"passed"})
    untested = sorted(set(there) - set(outcomes))
    line = f"{len(passed)} of {len(outcomes)} parity cases passed: {', '.join(passed) or 'none'}"
    print(line + (f"; read by no test: {', '.join(untested)}" if untested else ""))
