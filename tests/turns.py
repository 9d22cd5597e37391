"""Turns for tests that measure time, where the suite runs in several processes.

A test marked `alone` runs while the other processes stand still: every test holds a lock that all others share and that
an `alone` one has for itself. Who waits for it keeps the door closed, so that it is not passed over. The wait counts
towards no test's timeout, and the kernel takes the locks of a process that ends back, however it ends.
"""

import fcntl
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

DOOR, ROOM = 0, 1
"""Bytes of the file of turns; each is a lock."""

NAME = pytest.StashKey[str]()
FILE = pytest.StashKey[int]()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """In the process that hands out the tests, before it starts another one: the same file for all of them."""
    stash = node.config.stash
    if NAME not in stash:
        file, stash[NAME] = tempfile.mkstemp(prefix="eis-turns-")
        os.close(file)
    node.workerinput["turns"] = stash[NAME]


def pytest_configure(config: pytest.Config) -> None:
    if "turns" in (given := getattr(config, "workerinput", {})):
        config.stash[FILE] = os.open(given["turns"], os.O_RDWR)


def pytest_unconfigure(config: pytest.Config) -> None:
    if NAME in config.stash:
        os.unlink(config.stash[NAME])


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    file = item.config.stash.get(FILE, None)
    if file is None:
        return (yield)
    fcntl.lockf(file, fcntl.LOCK_EX, 1, DOOR)
    fcntl.lockf(file, fcntl.LOCK_EX if item.get_closest_marker("alone") else fcntl.LOCK_SH, 1, ROOM)
    fcntl.lockf(file, fcntl.LOCK_UN, 1, DOOR)
    try:
        return (yield)
    finally:
        fcntl.lockf(file, fcntl.LOCK_UN, 1, ROOM)
