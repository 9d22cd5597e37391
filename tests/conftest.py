"""What all tests share: one PostgreSQL server for the whole run, started by the first test that needs it."""

from collections.abc import Iterator

import pytest

from tests.postgres import Cluster, open_cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A running PostgreSQL server."""
    cluster = open_cluster()
    yield cluster
    cluster.close()
