"""The front's side of a worker: start it, hear it, end it, start a fresh one; as a child process or in a thread.

Workers on other machines are `app.core.ray_worker`'s.

A worker process that is silent for too long is killed; one that ends, for whatever reason, is reported as lost exactly
once and replaced. A worker that cannot even be opened is tried again with growing pauses, so that a broken driver does
not spin.
"""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from app.core import crash_points
from app.core.batch_processing import Waiting
from app.core.channel import Channel, Message
from app.core.device_inventory import INLINE
from app.core.engine_options import EngineOptions
from app.core.multi_gpu import seats_on
from app.core.worker import Worker, configuration, runs_on

logger = logging.getLogger(__name__)

START_SECONDS = 60.0
"""How long a new process may take until its first word: on a busy machine Python's own start takes its time."""
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0

OnMessage = Callable[["WorkerHandle", Message], None]
OnLost = Callable[["WorkerHandle", str], None]


class WorkerHandle:
    """What the dispatcher sees of a worker; its `state` and `resident` are guarded by the dispatcher's lock.

    state: starting, idle, busy, broken, stopped, or elsewhere when another server has the device; of one that is not
    `enabled`, a person reads finishing or disabled. One that is `dismissed` was told to end for that reason. `runs_on`
    is the real device behind a simulated one. `held` are the jobs that it was given, by id. `generation` counts the
    starts, so that a claim made for one process is never sent to the next. `questions` are those whose `answers`
    somebody waits for. `ended_for` names the jobs that did not heed a cancel and for which it is killed: its other jobs
    are not to blame.
    """

    def __init__(self, name: str, options: EngineOptions, on_message: OnMessage, on_lost: OnLost) -> None:
        self.name = name
        self.state = "starting"
        self.generation = 0
        self.pid: int | None = None
        self.resident: frozenset[str] = frozenset()
        self.memory: dict[str, Any] = {}
        self.trouble: str | None = None
        self.questions: set[str] = set()
        self.answers: dict[str, Message] = {}
        self.enabled = True
        self.dismissed = False
        self.runs_on = runs_on(name, options)
        self.seats = seats_on(name, options.jobs_at_once)
        self.held: dict[str, Waiting] = {}
        self.ended_for: frozenset[str] = frozenset()
        self._options = options
        self._on_message = on_message
        self._on_lost = on_lost
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"worker-{name}", daemon=True)

    @property
    def is_up(self) -> bool:
        """Whether it can be given jobs."""
        return self.enabled and self.state in {"idle", "busy"}

    def take(self, message: Message) -> bool:
        """Note what the worker says of itself; False for what it says of a job."""
        kind = message["type"]
        if kind == "broken":
            self.state, self.trouble = "broken", message["message"]
        elif kind == "elsewhere":
            self.state, self.trouble = "elsewhere", message["message"]
        elif kind in {"ready", "state", "memory"}:
            self.resident, self.memory = frozenset(message["resident"]), message["memory"]
            self.trouble = message.get("trouble", self.trouble)
            if kind == "memory" and message["question"] in self.questions:
                self.answers[message["question"]] = message
            if kind == "ready":
                self.pid, self.trouble, self.state = message["pid"], None, "idle"
        else:
            return False
        return True

    def hold(self, entry: Waiting) -> None:
        """It is given this job."""
        entry.shared = bool(self.held)
        for neighbour in self.held.values():
            neighbour.shared = True
        self.held[entry.id] = entry
        self.state = "busy"

    def let_go(self, job_id: str) -> bool:
        """It holds this job no more; answers whether the job had it to itself from first to last."""
        entry = self.held.pop(job_id, None)
        if self.state == "busy" and not self.held:
            self.state = "idle"
        return entry is not None and not entry.shared

    def describe(self) -> dict[str, Any]:
        """Its device, state, process, models and memory, for a person."""
        return {
            "device": self.name,
            "state": self.state if self.enabled else "finishing" if self.held else "disabled",
            "pid": self.pid,
            "jobs": sorted(self.held),
            "seats": self.seats,
            "resident_models": sorted(self.resident),
            "memory": self.memory,
            "trouble": self.trouble,
        }

    def use_memory(self, settings: Mapping[str, Any]) -> None:
        """Let its models use memory so from now on, also after a fresh start (`EngineOptions.memory_settings`)."""
        if settings != self._options.memory_settings():
            self._options = replace(self._options, **settings)
            self.send({"type": "settings", "settings": dict(settings)})

    def start(self) -> None:
        """Start it in the background."""
        self._thread.start()

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return self._thread.is_alive()

    def join(self, seconds: float | None = None) -> None:
        """Wait until it has ended."""
        self._thread.join(seconds)

    def send(self, message: Message, generation: int | None = None) -> bool:
        """Hand it a message; False when it, or the process of that generation, is gone (`on_lost` tells as well)."""
        raise NotImplementedError

    def stop(self) -> None:
        """Let it finish what it has and end; it is not replaced."""
        raise NotImplementedError

    def kill(self) -> bool:
        """End it at once; False where that cannot be done."""
        raise NotImplementedError

    def _run(self) -> None:
        raise NotImplementedError


class InlineWorker(WorkerHandle):
    """The Worker in a thread of this process: for tests and `eis run`. It cannot be killed, only asked."""

    def __init__(self, name: str, options: EngineOptions, on_message: OnMessage, on_lost: OnLost) -> None:
        super().__init__(name, options, on_message, on_lost)
        self._worker = Worker(name, options, lambda message: on_message(self, message))

    def _run(self) -> None:
        self.generation += 1
        self._worker.serve()

    def send(self, message: Message, generation: int | None = None) -> bool:
        """Hand it a message."""
        self._worker.handle(message)
        return True

    def stop(self) -> None:
        """Let it finish what it has and end."""
        self._stopping.set()
        if self._thread.is_alive():
            self._worker.handle({"type": "stop"})

    def kill(self) -> bool:
        """A thread cannot be ended from outside."""
        return False


class ReplacedWorker(WorkerHandle):
    """One that is started again whenever it has ended; after one that never was ready, with growing pauses."""

    def stop(self) -> None:
        """Let it finish what it has and end; it is not replaced."""
        self._stopping.set()
        self.send({"type": "stop"})

    def _run(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._stopping.is_set():
            was_ready, reason = self._live_once()
            self._on_lost(self, reason)
            pause = FIRST_PAUSE_SECONDS if was_ready else min(2 * pause, LONGEST_PAUSE_SECONDS)
            if not was_ready:
                self._stopping.wait(pause)

    def _live_once(self) -> tuple[bool, str]:
        """Start it and hear it until it ends; answers whether it ever was ready, and how it ended."""
        raise NotImplementedError


class ProcessWorker(ReplacedWorker):
    """The Worker in a child process of its own.

    The thread that starts the child lives as long as the child does, because the kernel kills the child when that
    thread ends.
    """

    def __init__(self, name: str, options: EngineOptions, on_message: OnMessage, on_lost: OnLost) -> None:
        super().__init__(name, options, on_message, on_lost)
        self._channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def send(self, message: Message, generation: int | None = None) -> bool:
        """Hand it a message; False when it is gone."""
        channel = self._channel
        if channel is None or generation not in {None, self.generation}:
            return False
        try:
            channel.send(message)
        except OSError:
            return False
        return True

    def kill(self) -> bool:
        """End it at once."""
        process = self._process
        if process is not None:
            process.kill()
        return True

    def _live_once(self) -> tuple[bool, str]:
        """Start a process and hear it until it ends; answers whether it ever was ready, and how it ended."""
        self.generation += 1
        ours, theirs = socket.socketpair()
        # The child finds the same modules as its parent; "" is how Python spells the current folder.
        paths = [path or os.getcwd() for path in sys.path]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        # CUDA counts as NVML does, so that a device's figures are those of the device that the worker uses.
        environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        if self.generation > 1:
            # A crash point is for the first process: one that met it again in every successor would prove nothing.
            environment.pop(crash_points.VARIABLE, None)
        command = [sys.executable, "-P", "-m", "app.core.worker", str(theirs.fileno())]
        try:
            with theirs:
                process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=environment
                )
        except OSError as error:
            ours.close()
            logger.error("no process could be started for %s: %s", self.name, error)
            return False, "the worker's process could not be started"
        channel = Channel(ours)
        self._process, self._channel = process, channel
        was_ready, silent = False, False
        try:
            channel.send(configuration(self.name, self._options))
            if self._stopping.is_set():
                channel.send({"type": "stop"})
            patience = max(START_SECONDS, self._options.worker_lost_seconds)
            while (message := channel.receive(patience)) is not None:
                patience = self._options.worker_lost_seconds
                was_ready = was_ready or message["type"] == "ready"
                if message["type"] != "heartbeat":
                    self._on_message(self, message)
        except TimeoutError:
            silent = True
        except OSError:
            pass
        if silent:
            logger.error("the worker for %s was silent for %g s", self.name, patience)
        process.kill()
        code = process.wait()
        self._process = self._channel = None
        channel.close()
        return was_ready, _ending(code, silent)


def _ending(code: int, silent: bool) -> str:
    if silent:
        return "the worker was silent"
    if code < 0:
        with suppress(ValueError):
            return f"the worker ended by {signal.Signals(-code).name}"
    return f"the worker ended with status {code}"


def make_worker(device: str, options: EngineOptions, on_message: OnMessage, on_lost: OnLost) -> WorkerHandle:
    """The handle for a device's name."""
    kind = InlineWorker if device == INLINE else ProcessWorker
    return kind(device, options, on_message, on_lost)
