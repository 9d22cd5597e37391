"""Where the workers run: as processes of this machine, or on the nodes of a Ray cluster."""

import os
import secrets
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol

from app.core.device_inventory import Inventory, Reading, resolve_devices
from app.core.engine_options import EngineOptions, load_by_name
from app.core.simulated_devices import read_devices
from app.core.worker_handle import OnLost, OnMessage, WorkerHandle, make_worker
from app.errors import DependencyMissing

Follow = Callable[[Collection[str]], None]
"""Called with the names of all devices each time that one came or went."""


class Readings(Protocol):
    """What is read of the devices, in the background between `start` and `stop`."""

    def readings(self) -> dict[str, Reading]:
        """The last sample by device."""

    def start(self) -> None:
        """Take samples from now on."""

    def stop(self) -> None:
        """Take no more."""


class Executor(Protocol):
    """The devices that there are, what is read of them, and how a worker for one is made."""

    names: tuple[str, ...]
    inventory: Readings

    def make(self, name: str, options: EngineOptions, on_message: OnMessage, on_lost: OnLost) -> WorkerHandle:
        """The handle of a worker for this device, not yet started."""

    def follow(self, changed: Follow) -> None:
        """Say from now on when devices come or go."""

    def close(self) -> None:
        """Let go of what the workers were started with; they have ended."""


class LocalExecutor:
    """The devices of this machine, which stay as they are."""

    def __init__(self, options: EngineOptions) -> None:
        simulated = read_devices(options.fake_devices)
        self.names = resolve_devices(options.devices, simulated)
        self.inventory: Readings = Inventory(
            self.names, [device for device in simulated if device.device in self.names]
        )

    def make(self, name: str, options: EngineOptions, on_message: OnMessage, on_lost: OnLost) -> WorkerHandle:
        """A child process, or a thread for `inline`."""
        return make_worker(name, options, on_message, on_lost)

    def follow(self, changed: Follow) -> None:
        """Nothing comes or goes."""

    def close(self) -> None:
        """Nothing is left."""


def open_executor(options: EngineOptions) -> Executor:
    """What EIS_EXECUTOR names; `DependencyMissing` names the extra that it needs."""
    if options.executor == "local":
        return LocalExecutor(options)
    _prepare_ray(options)
    try:
        kind: Any = load_by_name("app.core.ray_cluster:RayExecutor")
    except ImportError as error:
        raise DependencyMissing(
            "EIS_EXECUTOR=ray needs more packages: pip install 'edit-image-service[ray]'"
        ) from error
    return kind(options)


def _prepare_ray(options: EngineOptions) -> None:
    """Set what Ray reads from the environment when it is imported: no usage figures, and a token where we start it.

    Nor may a call that comes after the end of the service start a cluster of its own.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
    if options.ray_address != "local":
        return
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if not os.environ.get("RAY_AUTH_TOKEN"):
        os.environ.setdefault("RAY_AUTH_TOKEN_PATH", str(_own_token(options.home)))


def _own_token(home: Path) -> Path:
    """The token of the cluster that the service starts itself: made once, readable by its user alone."""
    path = home / "ray.token"
    if not path.exists():
        part = home / f".ray.token-{secrets.token_hex(8)}"
        descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        part.rename(path)
    return path
