"""What all tests share: turns, and one PostgreSQL server for a process, started by the first test that needs it."""

import os
import sys
from collections.abc import Iterator

import pytest

from tests.postgres import Cluster, open_cluster

# Python's compiled files are kept as on any machine: without them every process of the suite compiles the project anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

pytest_plugins = ["tests.turns"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running PostgreSQL server."""
    cluster = open_cluster()
    yield cluster
    cluster.close()
