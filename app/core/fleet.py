"""The devices of the service with their workers: who may be given jobs, what each did, and changes while it runs.

`changed` is the engine's one lock: it guards the workers' states here and the queue in the dispatcher. A device that is
disabled is given nothing more; once its last job has ended its worker ends too, and the memory is free. Enabled again,
it gets a fresh worker. In a cluster devices come and go with their nodes, and so do their workers.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from app.core import device_configuration
from app.core.batch_processing import Waiting
from app.core.channel import Message
from app.core.device_configuration import DeviceChoice
from app.core.device_inventory import Reading
from app.core.engine_options import EngineOptions
from app.core.executors import open_executor
from app.core.jobs import Job, new_id
from app.core.model_offload import check_strategy
from app.core.multi_gpu import OpenWorker, Strategy, choose, seats_on
from app.core.worker_handle import WorkerHandle
from app.errors import InvalidRequest, NoDevice, UnknownModel
from app.models.library import ModelLibrary
from app.models.machine import FULL_SIZE, check_package, cpu_has_bfloat16
from app.models.tiers import GIB, SHARE_FOR_WORK, needs_of, tiers_of

logger = logging.getLogger(__name__)

OPERATIONS_KEPT = 10
SECONDS_KNOWN = 10.0
"""How long a model's need is believed: a model may be replaced by another of its name."""
RAM_FOR_WORK = GIB
FREE_CPU = "auto"
"""In the place of a number format: on a CPU that is free to choose, it goes by the model's size."""


@dataclass(frozen=True)
class Held:
    """A device that `device_for` holds, and why it is this one."""

    device: str
    runs_on: str
    reason: str


class Fleet:
    """Every device of the service."""

    def __init__(self, options: EngineOptions, library: ModelLibrary) -> None:
        self._executor = open_executor(options)
        self.names = self._executor.names
        self.inventory = self._executor.inventory
        self.changed = threading.Condition()
        self.workers: dict[str, WorkerHandle] = {}
        self._options = options
        self._library = library
        self._configuration = device_configuration.load(options.home)
        self._configuring = threading.Lock()
        self._leaving: list[WorkerHandle] = []
        self._needs: dict[str, tuple[float, dict[str, int]]] = {}
        self._turns: dict[str, int] = {}
        self.others_serve = options.executor == "ray"
        """Whether jobs may also run where this process does not know what there is."""
        self._operations: dict[str, deque[dict[str, Any]]] = {}
        self._on_message: Callable[[WorkerHandle, Message], None]
        self._on_lost: Callable[[WorkerHandle, str], None]

    # Life

    def connect(
        self, on_message: Callable[[WorkerHandle, Message], None], on_lost: Callable[[WorkerHandle, str], None]
    ) -> None:
        """Make the workers, whose words go to these two."""
        self._on_message, self._on_lost = on_message, on_lost
        self.workers = {name: self._make(name) for name in self.names}

    def start(self) -> None:
        """Start the workers of the enabled devices."""
        self.inventory.readings()
        for worker in self.workers.values():
            if worker.enabled:
                worker.start()
        self._executor.follow(self._follow)
        self.inventory.start()
        if not any(worker.enabled for worker in self.workers.values()):
            logger.warning("no device is enabled: every job waits until one is (POST /api/v1/gpu/configure)")

    def leave(self) -> list[WorkerHandle]:
        """Take no more samples; answers the workers that live, those of disabled devices among them."""
        self.inventory.stop()
        return [worker for worker in (*self.workers.values(), *self._leaving) if worker.is_alive()]

    def close(self) -> None:
        """Let go of what the workers ran on, after they have ended."""
        self._executor.close()

    def _follow(self, names: Collection[str]) -> None:
        """The devices are these from now on: those that came get a worker, the workers of those that left end."""
        with self._configuring, self.changed:
            self.names = tuple(names)
            gone = [self.workers.pop(name) for name in self.workers.keys() - set(names)]
            for worker in gone:
                worker.enabled, worker.dismissed = False, True
            self._leaving += gone
            for name in self.names:
                if name not in self.workers:
                    worker = self.workers[name] = self._make(name)
                    if worker.enabled:
                        worker.start()
            self.changed.notify_all()
        for worker in gone:
            worker.stop()
            worker.kill()

    def settle(self) -> None:
        """Let workers of disabled devices go that hold nothing any more. Under `changed`."""
        for worker in self.workers.values():
            if not worker.enabled and not worker.held and not worker.dismissed:
                worker.dismissed = True
                worker.stop()
        self._leaving = [worker for worker in self._leaving if worker.is_alive()]

    def _make(self, name: str) -> WorkerHandle:
        choice = self._configuration.of(name)
        options = replace(self._options, **self.memory_settings(name))
        worker = self._executor.make(name, options, self._on_message, self._on_lost)
        worker.seats = self._seats(name)
        # One that was never started needs no dismissal, and is replaced when its device is enabled.
        worker.enabled = choice.enabled
        worker.dismissed = not choice.enabled
        return worker

    def _seats(self, name: str) -> int:
        wished = self._configuration.of(name).jobs_at_once
        return seats_on(name, self._options.jobs_at_once if wished is None else wished)

    def known_names(self) -> Collection[str] | None:
        """See `Door.devices`."""
        return None if self.others_serve else self.names

    # What the dispatcher asks; under `changed`

    @property
    def strategy(self) -> Strategy:
        """How the device of a job is chosen now."""
        return self._configuration.strategy

    def open_workers(self) -> list[OpenWorker]:
        """What the choice of a job must know: of every enabled device whose worker is up or on its way."""
        readings = self.inventory.readings()
        return [
            self._open(worker, readings[name])
            for name, worker in self.workers.items()
            if worker.enabled and worker.state != "broken" and name in readings
        ]

    def _open(self, worker: WorkerHandle, reading: Reading) -> OpenWorker:
        total, free = reading.total_bytes, reading.free_bytes
        placed = int(worker.memory.get("placed_bytes", 0))
        if reading.simulated and total is not None:
            free = max(0, total - placed)
        for_work = 0 if total is None else RAM_FOR_WORK if reading.kind == "cpu" else int(total * SHARE_FOR_WORK)
        capacity = None if total is None else max(0, total - for_work)
        room = None if free is None else max(0, free - for_work)
        limit = self.memory_settings(worker.name)["model_memory_bytes"]
        if limit is not None:
            capacity, room = limit, max(0, limit - placed)
        return OpenWorker(
            worker.name,
            worker.resident,
            tuple(worker.held.values()),
            worker.seats,
            capacity=capacity,
            free_bytes=room,
            load_percent=reading.load_percent,
            compute=reading.compute,
            precision=self._precision(reading),
            turn=self._turns.get(worker.name, 0),
            is_up=worker.is_up,
        )

    def memory_settings(self, name: str) -> dict[str, Any]:
        """How models may use this device's memory now: what was decided for it, else the settings."""
        own = self._configuration.of(name)
        decided = {
            "offload": own.offload,
            "precision": own.precision,
            "model_memory_bytes": own.memory_limit_bytes,
            "parked_memory_bytes": own.parked_memory_bytes,
        }
        return self._options.memory_settings() | {key: value for key, value in decided.items() if value is not None}

    def _precision(self, reading: Reading) -> str:
        precision = self.memory_settings(reading.device)["precision"]
        if precision != "auto":
            return precision
        return "float16" if reading.kind == "cuda" else FREE_CPU

    def note_given(self, name: str) -> None:
        """This device was given a job: the others come first in the round."""
        self._turns[name] = max(self._turns.values(), default=0) + 1

    def needs(self, model: str, precision: str) -> int | None:
        """Bytes of a model's weights on a device, of a model that `learn` has looked up."""
        known = self._needs.get(model, (0.0, {}))[1]
        if precision == FREE_CPU:
            is_full_size = known.get("bfloat16", 0) >= FULL_SIZE
            precision = "bfloat16" if is_full_size and cpu_has_bfloat16() else "float32"
        return known.get(precision)

    def note_operation(self, job: Job, outcome: str, seconds: float) -> None:
        """Remember what a device did; the last ten are kept."""
        kept = self._operations.setdefault(job.device or "", deque(maxlen=OPERATIONS_KEPT))
        facts = {"owner": job.owner, "job": job.id, "capability": job.capability, "model": job.model}
        kept.appendleft({**facts, "seconds": round(seconds, 3), "outcome": outcome, "ended": time.time()})

    # What anybody asks

    def learn(self, model: str | None) -> None:
        """Look up what a model needs, ahead of the choice, which must not wait for a disk."""
        if model is None:
            return
        known = self._needs.get(model)
        if known is None or time.monotonic() - known[0] > SECONDS_KNOWN:
            try:
                needs = self.model_needs(model)
            except Exception:
                # Whatever is wrong with the model's files is told by the job itself; it must be given out for that.
                logger.exception("what the model %s needs could not be looked up", model)
                needs = {}
            self._needs[model] = (time.monotonic(), needs)

    def model_needs(self, model: str) -> dict[str, int]:
        """Bytes of weights by number format; empty for an addition, and for a model that is gone."""
        try:
            return needs_of(self._library, model)
        except UnknownModel:
            return {}

    def demand(self, model: str) -> dict[str, Any]:
        """What a model asks of a device at each number format: bytes, and the lowest tier that has them."""
        needs = self.model_needs(model)
        return {"needed_bytes": needs, "tiers": tiers_of(needs)}

    @contextmanager
    def device_for(self, model: str | None = None, *, seconds: float = 60.0) -> Iterator[Held]:
        """The device that a job of this model would go to; it is given no job until the block ends.

        Waits so long for an idle one; `NoDevice` when there was none.
        """
        self.learn(model)
        entry = Waiting(f"held-{new_id()}", priority=10, turn=0, model=model, attempt=1)
        deadline = time.monotonic() + seconds
        with self.changed:
            while (choice := choose([entry], self.open_workers(), self.strategy, self.needs)) is None:
                if (left := deadline - time.monotonic()) <= 0:
                    raise NoDevice("No device became free in time.")
                self.changed.wait(left)
            worker = self.workers[choice.worker.name]
            worker.hold(entry)
            self.note_given(worker.name)
        try:
            yield Held(worker.name, worker.runs_on, choice.reason)
        finally:
            with self.changed:
                worker.let_go(entry.id)
                self.changed.notify_all()

    def configure(self, change: Mapping[str, Any]) -> None:
        """Change strategy and devices at once and for the next starts; `InvalidRequest` changes nothing."""
        wished = device_configuration.read_change(change)
        readings = self.inventory.readings()
        for name, choice in wished.devices.items():
            total = readings[name].total_bytes if name in readings else None
            limit = choice.memory_limit_bytes
            if total is not None and limit is not None and limit > total:
                raise InvalidRequest(
                    f"devices.{name}.memory_limit_bytes: {limit} is more than the device has ({total}).",
                    field=f"devices.{name}.memory_limit_bytes",
                )
            if name in self.workers:
                _check_memory_use(choice, self.workers[name])
        with self._configuring:
            before = self._configuration
            after = before.changed(wished, self.names)
            device_configuration.save(self._options.home, after)
            with self.changed:
                self._configuration = after
                for name in self.names:
                    self._apply(name)
                self.changed.notify_all()

    def _apply(self, name: str) -> None:
        worker, choice = self.workers[name], self._configuration.of(name)
        worker.seats = self._seats(name)
        worker.use_memory(self.memory_settings(name))
        if choice.enabled and worker.dismissed:
            self._leaving.append(worker)
            self.workers[name] = self._make(name)
            self.workers[name].start()
        else:
            worker.enabled = choice.enabled

    def status(self, running: Mapping[str, Job], owner: str) -> dict[str, Any]:
        """Every device for a person; the ids of other owners' jobs are null."""
        readings = self.inventory.readings()
        with self.changed:
            devices = [self._told(reading, running, owner) for reading in readings.values()]
        return {
            "strategy": self.strategy.value,
            "strategies": [strategy.value for strategy in Strategy],
            "simulated": any(device["simulated"] for device in devices),
            "devices": devices,
        }

    def _told(self, reading: Reading, running: Mapping[str, Job], owner: str) -> dict[str, Any]:
        name = reading.device
        told = {
            "device": name,
            "name": reading.name,
            "kind": reading.kind,
            "tier": reading.tier.value if reading.tier is not None else None,
            "simulated": reading.simulated,
            "load_percent": reading.load_percent,
            "temperature_celsius": reading.temperature,
            "total_bytes": reading.total_bytes,
            "free_bytes": reading.free_bytes,
        }
        worker = self.workers.get(name)
        if worker is None:
            # Apple's GPU is seen, and no worker knows how to use it.
            return {**told, "enabled": False, "state": "unused"}
        open_to = self._open(worker, reading)
        if reading.simulated and reading.total_bytes is not None:
            told["free_bytes"] = max(0, reading.total_bytes - int(worker.memory.get("placed_bytes", 0)))
        jobs = [running[id] for id in worker.held if id in running]
        return {
            **told,
            "runs_on": worker.runs_on,
            "enabled": worker.enabled,
            "state": worker.describe()["state"],
            "trouble": worker.trouble,
            "memory_limit_bytes": self.memory_settings(name)["model_memory_bytes"],
            "models_may_take_bytes": open_to.capacity,
            "jobs_at_once": worker.seats,
            "held": len(worker.held),
            "jobs": [
                {"job": job.id if job.owner == owner else None, "capability": job.capability, "model": job.model}
                for job in jobs
            ],
            "resident_models": sorted(worker.resident),
            "last_operations": [_seen_by(owner, done) for done in self._operations.get(name, ())],
        }


def _check_memory_use(choice: DeviceChoice, worker: WorkerHandle) -> None:
    """`InvalidRequest` for a strategy that the device cannot serve, `DependencyMissing` for a missing package."""
    if choice.offload is not None:
        try:
            check_strategy(choice.offload, worker.runs_on.partition(":")[0])
        except InvalidRequest as error:
            raise InvalidRequest(f"{worker.name}: {error.message}", field="offload") from None
    if choice.precision is not None:
        check_package(choice.precision)


def _seen_by(owner: str, done: dict[str, Any]) -> dict[str, Any]:
    told = {name: value for name, value in done.items() if name != "owner"}
    return told if done["owner"] == owner else {**told, "job": None}
