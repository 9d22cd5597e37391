"""A Ray cluster of small nodes on this machine, for the tests of workers elsewhere; its token is `conftest`'s."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

QUICK = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 3}
"""A node that is gone without a word is missed sooner than Ray would by itself."""
SMALL = {"num_gpus": 0, "object_store_memory": 80 * 2**20}


class Nodes:
    """The cluster's head, which offers no processor, and nodes of one each with a home of its own."""

    def __init__(self, folder: Path, *names: str) -> None:
        self.folder = folder
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={
                **SMALL,
                "num_cpus": 0,
                "include_dashboard": False,
                "node_name": "head",
                "_system_config": QUICK,
            },
        )
        self.nodes: dict[str, Any] = {}
        for name in names:
            self.add(name)

    @property
    def address(self) -> str:
        """The setting that names this cluster."""
        return self.cluster.address

    def home(self, name: str) -> Path:
        """Where a node keeps its copies."""
        return self.folder / name

    def add(self, name: str) -> None:
        """A node joins."""
        self.nodes[name] = self.cluster.add_node(
            **SMALL, num_cpus=1, node_name=name, env_vars={"EIS_HOME": str(self.home(name))}
        )

    def remove(self, name: str, *, suddenly: bool = False) -> None:
        """A node leaves; `suddenly` without a word to anybody."""
        self.cluster.remove_node(self.nodes.pop(name), allow_graceful=not suddenly)


@contextmanager
def cluster(folder: Path, *names: str) -> Iterator[Nodes]:
    """A cluster while the block runs."""
    nodes = Nodes(folder, *names)
    try:
        yield nodes
    finally:
        nodes.cluster.shutdown()


def processes_with(text: str) -> set[int]:
    """The processes whose title holds this text; Ray gives an actor's process the name of its class."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            title = path.read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if text.encode() in title:
            found.add(int(path.parent.name))
    return found
