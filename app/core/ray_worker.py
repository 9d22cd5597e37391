"""A worker on a node of a Ray cluster: the actor that runs there, and the front's handle for it.

The actor runs the same Worker as everywhere and speaks the same JSON messages. The front asks it again and again for
what it has to say; an answer comes at the latest after the time between two heartbeats, so one that does not come is a
silent worker. Ray starts nothing again by itself, neither actors nor calls: attempts are the job store's to count.

What must never happen: two workers on one device. They cannot be, because an actor takes its GPU, or the node's
processors, for itself, and because its name is the device's among the servers of one job store: who comes second waits,
and takes over when the first one ends. Nor may a worker outlive the server that started it: the cluster ends an actor
whose owner is gone, and an actor that nobody asks any more ends itself.
"""

import json
import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from app import __version__
from app.core.channel import Message
from app.core.device_inventory import SECONDS_BETWEEN_SAMPLES, Nvml, Reading, read_cpu
from app.core.engine_options import EngineOptions
from app.core.worker import Worker, configuration, options_of, what_broke
from app.core.worker_handle import START_SECONDS, OnLost, OnMessage, ReplacedWorker

logger = logging.getLogger(__name__)

PAUSE_SECONDS = 1.0
"""Between two looks at whether another server has let a device go."""
UNASKED_SECONDS = 120.0
"""An actor that was not asked for so long has no front any more."""
CALLS_AT_ONCE = 4
HELD_ELSEWHERE = "Another server of this job store has its worker there."


@dataclass(frozen=True)
class RayDevice:
    """What one worker takes of a node: a GPU or none, and so many processors."""

    name: str
    node_id: str
    node_name: str
    kind: str
    cpus: float

    @property
    def on_its_node(self) -> str:
        """What the device is called inside the actor, which sees only its own GPU."""
        return "cuda:0" if self.kind == "cuda" else "cpu"


class RemoteWorker:
    """What runs in the actor's process on the node. Its methods are called from the front, several at once."""

    def __init__(self, line: str) -> None:
        first = json.loads(line)
        self._outbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._asked = time.monotonic()
        self._telling = threading.Lock()
        self._next = 1
        self._early: dict[int, Message] = {}
        self._worker: Worker | None = None
        if first["version"] != __version__:
            versions = f"its node has version {__version__}, the server {first['version']}"
            self._end(f"The worker's code is another one: {versions}. Install the same on both.")
            return
        # The figures of a GPU are those of the GPU that the worker uses: both count by the bus.
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s worker %(name)s: %(message)s")
        self._device = first["device"]
        try:
            options = options_of(first["options"])
            # Models and copies of pictures lie where the node says, which need not be where the server has them.
            options = replace(options, home=Path(os.environ.get("EIS_HOME") or options.home).expanduser().absolute())
            self._worker = Worker(self._device, options, self._outbox.put)
        except Exception as error:
            logger.exception("the worker for %s cannot work", self._device)
            self._end(what_broke(error))
            return
        threading.Thread(target=self._serve, args=(self._worker,), name="worker", daemon=True).start()
        threading.Thread(target=self._tell_readings, name="devices", daemon=True).start()
        threading.Thread(target=self._end_unasked, name="front", daemon=True).start()

    def tell(self, number: int, line: str) -> None:
        """Take a message of the front; they are handled in the order of their numbers, however they arrive."""
        with self._telling:
            self._early[number] = json.loads(line)
            while (message := self._early.pop(self._next, None)) is not None:
                self._next += 1
                if self._worker is not None:
                    self._worker.handle(message)

    def take(self, seconds: float) -> list[str]:
        """What the worker has to say, as soon as there is something; nothing after so many seconds is a heartbeat."""
        self._asked = time.monotonic()
        said = []
        with suppress(queue.Empty):
            said.append(self._outbox.get(timeout=seconds))
            while True:
                said.append(self._outbox.get_nowait())
        return [json.dumps(message, separators=(",", ":"), allow_nan=False) for message in said]

    def _serve(self, worker: Worker) -> None:
        try:
            worker.serve()
        except Exception as error:
            logger.exception("the worker for %s cannot work", self._device)
            self._end(what_broke(error))
        else:
            self._end(None)

    def _end(self, trouble: str | None) -> None:
        if trouble is not None:
            self._outbox.put({"type": "broken", "message": trouble})
        self._outbox.put({"type": "ended"})

    def _tell_readings(self) -> None:
        nvml = Nvml()
        while True:
            with suppress(Exception):
                # A driver that is being replaced, or whatever else: the last reading stands.
                found = read_cpu() if self._device == "cpu" else (nvml.readings() or [None])[0]
                if found is not None:
                    self._outbox.put({"type": "reading", "values": asdict(found)})
            time.sleep(SECONDS_BETWEEN_SAMPLES)

    def _end_unasked(self) -> None:
        while time.monotonic() - self._asked < UNASKED_SECONDS:
            time.sleep(1.0)
        os._exit(0)


class RayWorker(ReplacedWorker):
    """The front's side. `find` answers the device as the cluster has it now, None while its node is away."""

    def __init__(
        self,
        name: str,
        options: EngineOptions,
        on_message: OnMessage,
        on_lost: OnLost,
        *,
        find: Callable[[str], RayDevice | None],
        namespace: str,
    ) -> None:
        super().__init__(name, options, on_message, on_lost)
        device = find(name)
        self.runs_on = device.on_its_node if device is not None else name
        self.reading: Reading | None = None
        self._find = find
        self._namespace = namespace
        self._actor: Any = None
        self._number = 0
        self._sending = threading.Lock()

    def send(self, message: Message, generation: int | None = None) -> bool:
        """Hand it a message; False when it is gone."""
        with self._sending:
            if self._actor is None or generation not in {None, self.generation}:
                return False
            self._number += 1
            try:
                self._actor.tell.remote(self._number, json.dumps(message, allow_nan=False))
            except RayError:
                return False
        return True

    def kill(self) -> bool:
        """End it at once."""
        actor = self._actor
        if actor is not None:
            _kill(actor)
        return True

    def _live_once(self) -> tuple[bool, str]:
        """Start an actor and hear it until it ends; answers whether it ever was ready, and how it ended."""
        try:
            return self._live()
        except (Exception, SystemExit):
            # Ray has many errors without a common base, and ends the threads that wait for it when it is shut down. A
            # device that lost its thread would serve nobody again.
            if not self._stopping.is_set():
                logger.exception("the worker for %s could not be followed", self.name)
            return False, "the worker could not be followed"

    def _live(self) -> tuple[bool, str]:
        device, actor = self._find(self.name), None
        while device is not None and (actor := self._create(device)) is None:
            if self.state != "elsewhere":
                self._on_message(self, {"type": "elsewhere", "message": HELD_ELSEWHERE})
            if self._stopping.wait(PAUSE_SECONDS):
                return False, "the service was stopped"
            device = self._find(self.name)
        if device is None or actor is None:
            return False, "the worker's node is not in the cluster"
        with self._sending:
            self.generation += 1
            self._actor, self._number = actor, 0
        if self._stopping.is_set():
            self.send({"type": "stop"})
        try:
            return self._hear(actor, device)
        finally:
            with self._sending:
                self._actor = None
            _kill(actor)

    def _create(self, device: RayDevice) -> Any:
        """A fresh actor; None while another server has one of this name."""
        first = configuration(self.name, self._options)
        first.update(device=device.on_its_node, version=__version__)
        wanted = ray.remote(RemoteWorker).options(
            name=self.name,
            namespace=self._namespace,
            num_cpus=device.cpus,
            num_gpus=1 if device.kind == "cuda" else 0,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=CALLS_AT_ONCE,
            scheduling_strategy=NodeAffinitySchedulingStrategy(device.node_id, soft=False),
        )
        try:
            return wanted.remote(json.dumps(first, allow_nan=False))
        except ValueError:
            return None

    def _hear(self, actor: Any, device: RayDevice) -> tuple[bool, str]:
        was_ready, was_heard = False, False
        patience = max(START_SECONDS, self._options.worker_lost_seconds)
        while True:
            try:
                said = ray.get(actor.take.remote(self._options.heartbeat_seconds), timeout=patience)
            except GetTimeoutError:
                logger.error("the worker for %s was silent for %g s", self.name, patience)
                return was_ready, "the worker was silent" if was_heard else "its node had no room for a worker"
            except RayError as error:
                logger.warning("the worker for %s ended: %s", self.name, error)
                return was_ready, self._ending(device, error, was_heard)
            patience, was_heard = self._options.worker_lost_seconds, True
            for line in said:
                message = json.loads(line)
                if message["type"] == "ended":
                    return was_ready, "the worker ended"
                if message["type"] == "reading":
                    self.reading = replace(Reading(**message["values"]), device=self.name)
                    continue
                was_ready = was_ready or message["type"] == "ready"
                self._on_message(self, message)

    def _ending(self, device: RayDevice, error: RayError, was_heard: bool) -> str:
        if "its node has died" in str(error) or not _is_alive(device.node_id):
            return "the worker's node left the cluster"
        if isinstance(error, ActorUnavailableError):
            return "the worker's node cannot be reached"
        return "the worker's process ended" if was_heard else "the worker could not be started on its node"


def _is_alive(node_id: str) -> bool:
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())


def _kill(actor: Any) -> None:
    # One that is dead already, or whose cluster is gone, needs no killing.
    with suppress(RayError, ValueError):
        ray.kill(actor, no_restart=True)
