"""What is refused of a Ray cluster and its settings, each with the name of the setting; and nodes as devices."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.core.engine_options import EngineOptions
from app.core.executors import open_executor
from app.core.multi_gpu import seats_on
from app.errors import DependencyMissing, InvalidRequest, ServiceError, Unavailable
from tests.engine.server import free_port

OPEN_CLUSTER = """
import sys
from ray.cluster_utils import Cluster
head = {"num_cpus": 0, "num_gpus": 0, "object_store_memory": 80 * 2**20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=head)
print("address", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


def on_ray(home: Path, **changes: object) -> EngineOptions:
    values = {"executor": "ray", "ray_address": "127.0.0.1:6379", "pictures_url": f"file://{home}/shared"}
    return EngineOptions(home=home, **{**values, **changes})


@pytest.fixture
def open_cluster() -> Iterator[str]:
    """The address of a cluster that asks nobody for a token."""
    given = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    with subprocess.Popen(
        [sys.executable, "-c", OPEN_CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=given
    ) as process:
        yield next(line for line in process.stdout if line.startswith("address ")).split()[1]
        process.stdin.close()


def test_a_cluster_that_asks_for_no_token_is_refused(open_cluster: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="EIS_RAY_ADDRESS: the cluster asks for no token"):
        open_executor(on_ray(tmp_path, ray_address=open_cluster))


def test_token_mode_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE")
    with pytest.raises(InvalidRequest, match="set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH"):
        open_executor(on_ray(tmp_path))


def test_a_token_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(InvalidRequest, match="RAY_AUTH_TOKEN_PATH"):
        open_executor(on_ray(tmp_path))


def test_an_address_where_nobody_answers_is_named(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(Unavailable, match=f"EIS_RAY_ADDRESS: no cluster answers at {address} .*; start a node"):
        open_executor(on_ray(tmp_path, ray_address=address))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ray_address": "http://head"}, "EIS_RAY_ADDRESS: write HOST:6379 or local"),
        ({"devices": ("cuda:0",)}, "EIS_DEVICES: there is no device 'cuda:0' in a cluster"),
        ({"devices": ("auto", "ray:a/tpu")}, "EIS_DEVICES"),
        ({"fake_devices": ("cuda:0=RTX 4090:24",)}, "EIS_FAKE_DEVICES"),
        ({"pictures_url": None}, "EIS_PICTURES_URL: the workers of a Ray cluster are on other machines"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, changes: dict, said: str) -> None:
    with pytest.raises(ServiceError, match=said):
        open_executor(on_ray(tmp_path, **changes))


def test_a_missing_library_is_named(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['ray'] = None\n"
        "from pathlib import Path\n"
        "from app.core.engine_options import EngineOptions\n"
        "from app.core.executors import open_executor\n"
        f"open_executor(EngineOptions(home=Path({str(tmp_path)!r}), executor='ray'))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert DependencyMissing.__name__ in run.stderr
    assert "pip install 'edit-image-service[ray]'" in run.stderr


def node(name: str, letter: str, *, alive: bool = True, **resources: float) -> dict:
    return {"NodeName": name, "NodeID": letter * 56, "Alive": alive, "Resources": resources}


def test_nodes_become_devices() -> None:
    from app.core.ray_cluster import devices_of

    devices = devices_of(
        [
            node("10.0.0.7", "a", GPU=2.0, CPU=16.0),
            node("10.0.0.5", "b", CPU=4.0),
            node("head", "c", memory=1e9),
            node("gone", "d", alive=False, GPU=8.0),
            node("gpu only", "e", GPU=1.0),
        ]
    )
    told = {name: (device.kind, device.cpus, device.on_its_node) for name, device in devices.items()}
    assert told == {
        "ray:10.0.0.5/cpu": ("cpu", 4, "cpu"),
        "ray:10.0.0.7/cuda:0": ("cuda", 8, "cuda:0"),
        "ray:10.0.0.7/cuda:1": ("cuda", 8, "cuda:0"),
        "ray:gpu-only/cuda:0": ("cuda", 0, "cuda:0"),
    }
    assert all(seats_on(name, None) == (8 if "cuda" in name else 1) for name in devices)


def test_two_nodes_of_one_name_are_told_apart() -> None:
    from app.core.ray_cluster import devices_of

    same = [node("10.0.0.7", "b", CPU=1.0), node("10.0.0.7", "a", CPU=1.0)]
    assert set(devices_of(same)) == set(devices_of(same[::-1])) == {"ray:10.0.0.7/cpu", "ray:10.0.0.7-bbbbbbbb/cpu"}


def test_a_worker_is_told_no_secret(tmp_path: Path) -> None:
    from app.core.worker import configuration

    secrets = {"hub_token": "hush", "callback_secret": "hush", "database_url": "postgresql://eis:hush@db/eis"}
    assert "hush" not in str(configuration("cpu", EngineOptions(home=tmp_path, **secrets)))
