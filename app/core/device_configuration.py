"""What an operator has decided about the devices while the service runs; it lies under EIS_HOME and outlives restarts.

The file is replaced as a whole, so a crash leaves the old decision or the new one. What it says of a device that is
not there now is kept for the day when it is back.
"""

import json
import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from app.core.model_offload import PRECISIONS, STRATEGIES
from app.core.multi_gpu import MOST_SEATS, Strategy
from app.errors import InvalidRequest, StorageFull
from app.on_disk import sync

FILE = "devices.json"
LEAST_MEMORY = 2**20


class DeviceChoice(BaseModel):
    """One device. In a change, what is not named stays as it is; null goes back to the setting."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: Annotated[bool, Field(strict=True, description="Whether it is given jobs.")] = True
    memory_limit_bytes: Annotated[
        int | None, Field(strict=True, ge=LEAST_MEMORY, description="Bytes of models kept on it.")
    ] = None
    jobs_at_once: Annotated[
        int | None, Field(strict=True, ge=1, le=MOST_SEATS, description="Jobs of one model that it runs at once.")
    ] = None
    parked_memory_bytes: Annotated[
        int | None, Field(strict=True, ge=0, description="Bytes of models kept in RAM beside it.")
    ] = None
    offload: Annotated[
        Literal[STRATEGIES] | None, Field(description="How weights stand on it; auto: what fits into its free memory.")
    ] = None
    precision: Annotated[Literal[PRECISIONS] | None, Field(description="Number format of the models on it.")] = None


class DeviceConfiguration(BaseModel):
    """All devices. In a change, what is not named stays as it is."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    strategy: Annotated[Strategy, Field(description="How the device of a job is chosen.")] = Strategy.AUTO
    devices: Annotated[dict[str, DeviceChoice], Field(description="Changes by device.")] = {}

    def of(self, device: str) -> DeviceChoice:
        """What is decided about one device."""
        return self.devices.get(device, DeviceChoice())

    def changed(self, change: "DeviceConfiguration", known: Collection[str]) -> "DeviceConfiguration":
        """This with a change to known devices; `InvalidRequest` where it names others or leaves none enabled."""
        devices = dict(self.devices)
        for name, choice in change.devices.items():
            if name not in known:
                raise InvalidRequest(
                    f"There is no device {name[:40]!r} here; the devices are {', '.join(sorted(known))}.",
                    field="devices",
                )
            devices[name] = self.of(name).model_copy(update=choice.model_dump(exclude_unset=True))
        strategy = change.strategy if "strategy" in change.model_fields_set else self.strategy
        after = DeviceConfiguration(strategy=strategy, devices=devices)
        if not any(after.of(name).enabled for name in known):
            raise InvalidRequest("One device must stay enabled: without any, every job would wait.", field="devices")
        return after


def read_change(value: Mapping[str, Any]) -> DeviceConfiguration:
    """A change as it was sent; `InvalidRequest` names the field that is wrong."""
    try:
        return DeviceConfiguration.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part)[:80] for part in first["loc"])
        message = "There is no such field." if first["type"] == "extra_forbidden" else first["msg"]
        raise InvalidRequest(f"{field}: {message}", field=field) from None


def load(home: Path) -> DeviceConfiguration:
    """What was decided before; the defaults where nothing was. `InvalidRequest` when the file is damaged."""
    try:
        text = (home / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return DeviceConfiguration()
    try:
        return read_change(json.loads(text))
    except (ValueError, InvalidRequest, TypeError) as error:
        said = error.message if isinstance(error, InvalidRequest) else str(error)
        raise InvalidRequest(f"{FILE} under EIS_HOME cannot be used: {said} Correct it or delete it.") from None


def save(home: Path, configuration: DeviceConfiguration) -> None:
    """Replace the file; when this returns, the decision is on the disk. `StorageFull` when it cannot be written."""
    text = json.dumps(configuration.model_dump(mode="json"), indent=2) + "\n"
    try:
        _replace(home, text)
    except OSError as error:
        raise StorageFull(f"The decision cannot be written under EIS_HOME: {error.strerror}.") from None


def _replace(home: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{FILE}-", dir=home)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, home / FILE)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync(home)
