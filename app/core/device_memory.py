"""The memory of every device: how it stands, other settings without a restart, and a cleanup.

What is configured here lasts until the service stops; a worker that is started anew meanwhile is opened under it. The
settings in force after a restart are those of the environment again.
"""

import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from app.core.dispatcher import Dispatcher
from app.core.engine_options import EngineOptions
from app.core.model_offload import PRECISIONS, check_strategy
from app.core.multi_gpu import INLINE, resolve_devices
from app.errors import InvalidRequest

STATUS_SECONDS = 5.0
CHANGE_SECONDS = 60.0
"""Dropping models waits for one that is being loaded."""
OPTIONS = {
    "strategy": "offload",
    "precision": "precision",
    "model_memory_bytes": "model_memory_bytes",
    "parked_memory_bytes": "parked_memory_bytes",
}
"""What may be configured, and the engine's option behind it."""


class DeviceMemory:
    """Asks all workers and puts their answers together."""

    def __init__(self, dispatcher: Dispatcher, options: EngineOptions) -> None:
        self._dispatcher = dispatcher
        self._options = options
        self._configuring = threading.Lock()

    def status(self) -> dict[str, Any]:
        """The settings in force, and for each device its bytes and models; what is not told is what it last said."""
        replies = {reply.worker: reply for reply in self._dispatcher.ask("memory", {}, STATUS_SECONDS)}
        devices = []
        for worker in self._dispatcher.workers():
            reply = replies[worker["device"]]
            known = worker["memory"] if reply.answer is None else reply.answer
            facts = {"worker": worker["device"], "pid": worker["pid"], "state": worker["state"]}
            reason = reply.error["message"] if reply.error else reply.reason
            devices.append({**facts, "answered": reply.answer is not None, "reason": reason, "memory": known})
        return {**self._settings(), "devices": devices}

    def configure(self, wished: Mapping[str, Any]) -> dict[str, Any]:
        """Let these settings hold from now on and the others stay; answers the status after it.

        `InvalidRequest` for what a device cannot serve, `DependencyMissing` for a precision whose package is missing:
        then nothing has changed.
        """
        with self._configuring:
            values = {**self._settings(), **wished}
            self._check(values)
            before = self._options
            changed = replace(before, **{OPTIONS[name]: value for name, value in values.items()})
            # First what a worker is started with: one that is not up yet gets it that way.
            self._dispatcher.reconfigure(changed)
            replies = self._dispatcher.ask("configure", values, CHANGE_SECONDS)
            if any(reply.error is not None for reply in replies):
                self._dispatcher.reconfigure(before)
                for reply in replies:
                    reply.raise_error()
            self._options = changed
        return self.status()

    def cleanup(self) -> dict[str, Any]:
        """Drop the models that no job uses and give free memory back; what that freed, for each device."""
        devices = []
        for reply in self._dispatcher.ask("cleanup", {}, CHANGE_SECONDS):
            reply.raise_error()
            facts = reply.answer or {}
            told = {"worker": reply.worker, "answered": reply.answer is not None, "reason": reply.reason}
            devices.append({**told, **facts})
        return {"devices": devices, "freed_bytes": sum(device.get("freed_bytes", 0) for device in devices)}

    def _settings(self) -> dict[str, Any]:
        return {name: getattr(self._options, option) for name, option in OPTIONS.items()}

    def _check(self, values: Mapping[str, Any]) -> None:
        if values["precision"] not in PRECISIONS:
            raise InvalidRequest(f"There is no such precision: there are {', '.join(PRECISIONS)}.", field="precision")
        for worker in self._dispatcher.workers():
            name = worker["device"]
            check_strategy(values["strategy"], resolve_devices(["auto"])[0] if name == INLINE else name)
