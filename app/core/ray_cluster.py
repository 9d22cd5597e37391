"""The Ray cluster that the workers run on: connecting to it, its nodes as devices, and nodes that come and go.

A cluster that does not ask for a token is refused, because whoever reaches it may run what they like on every node. The
look at that is a child process which comes without a token and must be turned away. Only a cluster that the service
starts itself, on this machine alone, needs no such look.
"""

import hashlib
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import ray
from ray.exceptions import RayError

from app.core.device_inventory import Reading
from app.core.engine_options import EngineOptions
from app.core.executors import Follow, Readings
from app.core.ray_worker import RayDevice, RayWorker
from app.core.worker_handle import OnLost, OnMessage, WorkerHandle
from app.errors import InvalidRequest, Unavailable

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 2.0
CONNECT_SECONDS = 5.0
PROBE_SECONDS = 60.0
OBJECT_STORE_BYTES = 128 * 2**20
"""Only messages travel through Ray; pictures and models do not."""
NAME = re.compile(r"ray:[A-Za-z0-9._-]+/(?:cpu|cuda:[0-9]{1,2})")
ADDRESS = re.compile(r"local|\[?[A-Za-z0-9.:_-]+\]?:[0-9]{1,5}")
START_A_NODE = "start a node on this machine: ray start --address=HEAD:6379 --num-cpus=0"

PROBE = """
import os, sys
os.environ["RAY_AUTH_MODE"] = "disabled"
for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
    os.environ.pop(name, None)
from ray._raylet import GcsClient
from ray.exceptions import AuthenticationError
try:
    GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10)
except AuthenticationError:
    print("VERDICT token")
except Exception as error:
    print("VERDICT away", (str(error).splitlines() or [type(error).__name__])[0][:300])
else:
    print("VERDICT open")
"""


class RayExecutor:
    """One worker for each GPU of the cluster, and one for the processors of each node that has none."""

    def __init__(self, options: EngineOptions) -> None:
        self._wished = _wished(options.devices)
        _connect(options)
        self._namespace = _namespace(options)
        self._devices: dict[str, RayDevice] = {}
        self._workers: dict[str, RayWorker] = {}
        self._stopping = threading.Event()
        self._is_closed = False
        self._changed: Follow | None = None
        self._thread = threading.Thread(target=self._look_again, name="cluster", daemon=True)
        self._look()
        self.inventory: Readings = self

    @property
    def names(self) -> tuple[str, ...]:
        """The devices that the cluster has now."""
        return tuple(self._devices)

    def make(self, name: str, options: EngineOptions, on_message: OnMessage, on_lost: OnLost) -> WorkerHandle:
        """The handle of an actor on the device's node."""
        worker = RayWorker(name, options, on_message, on_lost, find=self._devices_get, namespace=self._namespace)
        self._workers[name] = worker
        return worker

    def follow(self, changed: Follow) -> None:
        """Say from now on when nodes come or go."""
        self._changed = changed

    def readings(self) -> dict[str, Reading]:
        """What each worker last told of its device; only its name where none has yet."""
        found = {}
        for name, device in self._devices.items():
            worker = self._workers.get(name)
            told = worker.reading if worker is not None else None
            kind = "NVIDIA GPU" if device.kind == "cuda" else "CPU"
            unknown = Reading(name, device.kind, f"{kind} of {device.node_name}")  # type: ignore[arg-type]
            found[name] = told or unknown
        return found

    def start(self) -> None:
        """Look at the nodes from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._is_closed:
            return
        self._is_closed = True
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(SECONDS_BETWEEN_LOOKS)
        ray.shutdown()

    def _devices_get(self, name: str) -> RayDevice | None:
        return self._devices.get(name)

    def _look_again(self) -> None:
        while not self._stopping.wait(SECONDS_BETWEEN_LOOKS):
            try:
                if self._look() and self._changed is not None:
                    self._changed(self.names)
            except Exception:
                # The head may be away for a while; what was known of the cluster stands until it answers again.
                logger.exception("the nodes of the cluster could not be read")

    def _look(self) -> bool:
        """Read the nodes; answers whether a device came, went, or lies on another node now."""
        found = devices_of(ray.nodes())
        if self._wished is not None:
            found = {name: device for name, device in found.items() if name in self._wished}
        before, self._devices = self._devices, found
        for name in sorted(before.keys() - found.keys()):
            logger.warning("%s left the cluster", name)
        for name in sorted(found.keys() - before.keys()):
            logger.info("%s is in the cluster", name)
        return before != found


def devices_of(nodes: Iterable[Mapping[str, Any]]) -> dict[str, RayDevice]:
    """The devices of the nodes that live: every GPU, or the processors of a node without one that offers any."""
    alive = sorted((node for node in nodes if node["Alive"]), key=lambda node: (node["NodeName"], node["NodeID"]))
    found: dict[str, RayDevice] = {}
    for node in alive:
        called = re.sub(r"[^A-Za-z0-9._-]", "-", node["NodeName"])
        if any(device.node_name == called for device in found.values()):
            called = f"{called}-{node['NodeID'][:8]}"
        gpus, cpus = int(node["Resources"].get("GPU", 0)), int(node["Resources"].get("CPU", 0))
        if gpus == cpus == 0:
            continue
        for index in range(max(gpus, 1)):
            kind = "cuda" if gpus else "cpu"
            name = f"ray:{called}/cuda:{index}" if gpus else f"ray:{called}/cpu"
            # Each takes its share of the processors: Ray lets a worker have as many threads as it has taken.
            found[name] = RayDevice(name, node["NodeID"], called, kind, cpus // max(gpus, 1))
    return found


def _wished(devices: tuple[str, ...]) -> frozenset[str] | None:
    """The devices that EIS_DEVICES names; None for all of them."""
    if devices == ("auto",):
        return None
    for name in devices:
        if not NAME.fullmatch(name):
            raise InvalidRequest(
                f"EIS_DEVICES: there is no device {name[:40]!r} in a cluster: with EIS_EXECUTOR=ray devices are auto, "
                "or ray:NODE/cuda:0, ray:NODE/cpu."
            )
    return frozenset(devices)


def _namespace(options: EngineOptions) -> str:
    """The same for all servers of one job store, and for nobody else; a file belongs to its machine."""
    of_machine = socket.gethostname() if options.store_url.startswith("sqlite") else ""
    return "eis-" + hashlib.sha256(f"{of_machine} {options.store_url}".encode()).hexdigest()[:16]


def _connect(options: EngineOptions) -> None:
    """Be a driver of the cluster; `InvalidRequest` or `Unavailable` names the setting that stands in the way."""
    address = options.ray_address
    if not ADDRESS.fullmatch(address):
        raise InvalidRequest("EIS_RAY_ADDRESS: write HOST:6379 or local.")
    if ray.is_initialized():
        raise InvalidRequest("EIS_EXECUTOR=ray: this process is a driver of a Ray cluster already.")
    given: dict[str, Any] = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    if address != "local":
        given = {}
        _check_token(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address,
            namespace=_namespace(options),
            configure_logging=False,
            logging_level=logging.WARNING,
            log_to_driver=True,
            **given,
        )
    except (RayError, ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise Unavailable(f"EIS_RAY_ADDRESS: the cluster cannot be joined: {str(error)[:300]}") from error
    finally:
        # Ray puts its own in this place; when the service ends is for the service to decide.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _check_token(address: str) -> None:
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        raise InvalidRequest(
            "RAY_AUTH_MODE: a Ray cluster without a token lets everybody who reaches it run code on every node; set "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH (a file with the token) here and on all nodes."
        )
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not os.environ.get("RAY_AUTH_TOKEN") and path and not os.access(path, os.R_OK):
        raise InvalidRequest("RAY_AUTH_TOKEN_PATH: the file with the token cannot be read.")
    host, _, port = address.rpartition(":")
    try:
        # Ray itself would try for most of a minute.
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
        probe = subprocess.run(
            [sys.executable, "-c", PROBE, address], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
        )
        said = next((line for line in probe.stdout.splitlines() if line.startswith("VERDICT ")), "VERDICT away")
    except (OSError, OverflowError, subprocess.TimeoutExpired) as error:
        said = f"VERDICT away {error}"
    _, verdict, *reason = said.split(" ", 2)
    if verdict == "open":
        raise InvalidRequest(
            "EIS_RAY_ADDRESS: the cluster asks for no token, so everybody who reaches it may run code on every node; "
            "start its head and nodes with RAY_AUTH_MODE=token."
        )
    if verdict != "token":
        why = f" ({reason[0]})" if reason else ""
        raise Unavailable(f"EIS_RAY_ADDRESS: no cluster answers at {address}{why}; {START_A_NODE}.")
