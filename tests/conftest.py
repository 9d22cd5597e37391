"""What all tests share: turns, and one PostgreSQL server for a process, started by the first test that needs it."""

from collections.abc import Iterator

import pytest

from tests.postgres import Cluster, open_cluster

pytest_plugins = ["tests.turns"]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running PostgreSQL server."""
    cluster = open_cluster()
    yield cluster
    cluster.close()
