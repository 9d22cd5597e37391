"""The values that the engine is handed by the composition root, and how a thing is found by its `module:NAME`."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.core.capability import Capability
from app.errors import InvalidRequest

RUNTIME = "app.models.runtime:open_runtime"
MEMORY_SETTINGS = ("offload", "precision", "model_memory_bytes", "parked_memory_bytes")


@dataclass(frozen=True)
class EngineOptions:
    """What the engine must know; the names are those of the settings, which describe them.

    `retry_seconds` is the first pause after a lost worker or a trouble that may pass. Unfinished picture files are
    removed when nobody has touched them for `sweep_seconds`: longer than any picture takes to be written; finished ones
    without a row after `orphan_seconds`: longer than any request takes; None is for a store that goes with its process
    and judges nothing. `runtime` opens a device in the worker.
    """

    home: Path
    catalog: str = "app.core.catalog:CATALOG"
    devices: tuple[str, ...] = ("auto",)
    fake_devices: tuple[str, ...] = ()
    executor: str = "local"
    ray_address: str = "local"
    database_url: str | None = None
    queue_limit: int = 10_000
    batch_limit: int = 1_000
    ageing_seconds: float = 300.0
    max_attempts: int = 3
    heartbeat_seconds: float = 5.0
    worker_lost_seconds: float = 20.0
    server_lost_seconds: float = 20.0
    cancel_grace_seconds: float = 10.0
    jobs_at_once: int | None = None
    retry_seconds: float = 1.0
    sweep_seconds: float = 60.0
    orphan_seconds: float | None = 3600.0
    max_image_pixels: int = 32_000_000
    image_decode_seconds: float = 15.0
    dataset_pictures: int = 1_000
    dataset_bytes: int = 2**30
    dataset_folder: Path | None = None
    training_keep_days: float = 30.0
    min_free_bytes: int = 512 * 2**20
    pictures_url: str | None = None
    picture_cache_bytes: int = 10 * 2**30
    trusted_hosts: tuple[str, ...] = ()
    hub_url: str = "https://huggingface.co"
    hub_token: str | None = None
    precision: str = "auto"
    offload: str = "auto"
    compile: bool = False
    model_memory_bytes: int | None = None
    parked_memory_bytes: int | None = None
    callback_secret: str | None = None
    search_provider: str | None = None
    search_url: str | None = None
    search_key: str | None = None
    runtime: str = RUNTIME

    def __post_init__(self) -> None:
        if self.worker_lost_seconds <= self.heartbeat_seconds:
            raise InvalidRequest("A worker must have longer to be silent (worker_lost_seconds) than between two beats.")
        if self.executor == "ray":
            self._check_ray()

    def _check_ray(self) -> None:
        if self.fake_devices:
            raise InvalidRequest("EIS_FAKE_DEVICES: described devices are for EIS_EXECUTOR=local.")
        if self.pictures_url is None and self.ray_address != "local":
            raise InvalidRequest(
                "EIS_PICTURES_URL: the workers of a Ray cluster are on other machines; name a store that all of them "
                "reach, as file:///a/shared/folder or s3://bucket/prefix."
            )

    def memory_settings(self) -> dict[str, Any]:
        """How models may use the device's memory: what a worker is opened with, and what may change while it works."""
        return {name: getattr(self, name) for name in MEMORY_SETTINGS}

    @property
    def store_url(self) -> str:
        """The job store's SQLAlchemy URL with the default filled in."""
        return self.database_url or f"sqlite:///{self.home / 'jobs.sqlite'}"


def load_catalog(name: str) -> tuple[Capability, ...]:
    """The capabilities that `module:NAME` names; `InvalidRequest` says what is wrong with the name."""
    try:
        catalog = tuple(load_by_name(name))
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InvalidRequest(f"EIS_CATALOG: {name[:200]!r} is no tuple of capabilities: {error}.") from error
    if not all(isinstance(capability, Capability) for capability in catalog):
        raise InvalidRequest(f"EIS_CATALOG: {name[:200]!r} holds things that are no capabilities.")
    return catalog


def load_by_name(name: str) -> Any:
    """The object that `module:NAME` names."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)
