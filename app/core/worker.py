"""The loop inside one worker: take a job, build its Context, run it, save the pictures, report.

The same class runs in a process of its own (`python -m app.core.worker`, one for each device) and, for `inline`, in a
thread of the caller. What must never happen: a worker that outlives the process that started it, and holds the device.
It cannot, because the process ends at once when its channel to the front ends, and the kernel kills it when the front
dies. A worker never touches the job store: it reports, and the front writes.
"""

import ctypes
import json
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from app.collector import collector_at_rest
from app.core import crash_points
from app.core.belongings import Belongings
from app.core.capability import Capability, Request, Result
from app.core.channel import Channel, Message
from app.core.context import RunContext
from app.core.device_inventory import INLINE, resolve_devices
from app.core.engine_options import EngineOptions, load_by_name
from app.core.multi_gpu import MOST_SEATS, URGENT_SEATS
from app.core.results import save_pictures
from app.core.storage import open_storage
from app.core.submission import check_with_picture
from app.errors import InvalidRequest, JobCancelled, OutOfMemory, ServiceError, UnknownCapability
from app.guarded_http import GuardedClient
from app.models.library import ModelLibrary
from app.search_providers import SearchProvider

logger = logging.getLogger(__name__)

Send = Callable[[Message], None]


@dataclass
class _Run:
    """A job that this worker was given."""

    message: Message
    cancelled: threading.Event = field(default_factory=threading.Event)
    previewed: threading.Event = field(default_factory=threading.Event)


class Worker:
    """Runs jobs on one device, each in a thread. `handle` takes messages from any thread; `serve` is the loop."""

    def __init__(self, device: str, options: EngineOptions, send: Send) -> None:
        self._device = device
        self._options = options
        self._send = send
        self._inbox: queue.SimpleQueue[_Run | BaseException | None] = queue.SimpleQueue()
        self._runs: dict[str, _Run] = {}
        self._coming_and_going = threading.Condition()
        self._runtime: Any = None
        self._chores: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._trouble: Exception | None = None
        self._catalog: dict[str, Capability] = {}
        self._storage = open_storage(options)
        self._belongings = Belongings(options.home, options.training_keep_days)
        self._models = ModelLibrary(options.home)
        self._client = GuardedClient(options.trusted_hosts)
        search = (options.search_provider, options.search_url, options.search_key)
        self._search = SearchProvider(*search, self._client)

    def handle(self, message: Message) -> None:
        """Take one message of the front: run, cancel, preview, settings, memory or stop."""
        kind, run = message["type"], self._runs.get(message.get("job", ""))
        if kind == "run":
            run = _Run(message)
            if message["preview"]:
                run.previewed.set()
            with self._coming_and_going:
                self._runs[message["job"]] = run
            self._inbox.put(run)
        elif kind == "cancel" and run is not None and run.message["attempt"] == message["attempt"]:
            run.cancelled.set()
            with self._coming_and_going:
                self._coming_and_going.notify_all()
            if self._runtime is not None:
                self._runtime.nudge()
        elif kind == "preview" and run is not None:
            run.previewed.set() if message["on"] else run.previewed.clear()
        elif kind in {"settings", "memory"}:
            # One after the other in a thread of their own: they may wait for a model that is being loaded, and what
            # comes for a job must not.
            self._chores.put(message)
        elif kind == "stop":
            self._inbox.put(None)

    def serve(self) -> None:
        """Open what the catalog needs, say so, then run jobs until `stop`.

        A process that cannot be opened ends, and is started again later. A thread is all that its caller has: there
        every job fails with the trouble, instead of waiting for ever.
        """
        try:
            self._open()
        except Exception as error:
            if self._device != INLINE:
                raise
            logger.exception("the worker in this process cannot work")
            self._trouble = error
        self._send({"type": "ready", "pid": os.getpid(), **self._state()})
        threading.Thread(target=self._do_chores, name="memory", daemon=True).start()
        # Threads begin as they are needed, and the front decides how many that is.
        with ThreadPoolExecutor(MOST_SEATS + URGENT_SEATS, thread_name_prefix="job") as pool:
            while (run := self._inbox.get()) is not None:
                if isinstance(run, BaseException):
                    raise run
                pool.submit(self._serve_one, run).add_done_callback(self._look_at)
        if self._runtime is not None:
            self._runtime.close()

    def _open(self) -> None:
        # What is imported here stays as long as this process: collections, of which each model that moves off the
        # device costs one, need not look through it. A caller's own process is left as it is.
        with nullcontext() if self._device == INLINE else collector_at_rest():
            self._load()

    def _load(self) -> None:
        options = self._options
        catalog: tuple[Capability, ...] = load_by_name(options.catalog)
        self._catalog = {capability.name: capability for capability in catalog}
        if options.runtime and any(capability.needs or capability.additions for capability in catalog):
            self._runtime = load_by_name(options.runtime)(
                device=resolve_devices(["auto"])[0] if self._device == INLINE else self._device,
                library=self._models,
                compile=options.compile,
                **options.memory_settings(),
            )

    def _do_chores(self) -> None:
        while True:
            message = self._chores.get()
            try:
                if message["type"] == "settings":
                    self._obey_settings(message["settings"])
                else:
                    self._tell_memory(message)
            except OSError:
                # The front is gone, and this process ends with it.
                return
            except Exception:
                logger.exception("the worker for %s could not do what it was asked", self._device)

    def _obey_settings(self, settings: Message) -> None:
        """Use memory as the front wishes from now on, and say how it is; what cannot be obeyed is told as trouble."""
        trouble = None
        try:
            if self._runtime is not None:
                self._runtime.configure(**settings)
        except ServiceError as error:
            trouble = error.message
        self._send({"type": "state", "trouble": trouble, **self._state()})

    def _tell_memory(self, message: Message) -> None:
        """Answer a question about memory; where it asks for that, drop what no job uses first."""
        before = self._state()
        if message["cleanup"] and self._runtime is not None:
            self._runtime.clean_up()
        self._send({"type": "memory", "question": message["question"], "before": before, **self._state()})

    def _look_at(self, served: "Future[None]") -> None:
        """What goes wrong outside a job, as a report that cannot be sent, ends the loop."""
        if (error := served.exception()) is not None:
            self._inbox.put(error)

    def _serve_one(self, run: _Run) -> None:
        names = {"job": run.message["job"], "attempt": run.message["attempt"]}

        def report(kind: str, data: Message) -> None:
            self._send({"type": kind, **names, **data})

        context = RunContext(
            storage=self._storage,
            models=self._models,
            runtime=self._runtime,
            client=self._client,
            report=report,
            cancelled=run.cancelled,
            previewed=run.previewed,
            priority=run.message["priority"],
            search=self._search,
            job=run.message["job"],
            belongings=self._belongings,
            give_way=lambda: self._give_way(run),
        )
        report("started", {})
        kind, data = self._attempt(run, context)
        with self._coming_and_going:
            self._runs.pop(run.message["job"], None)
            self._coming_and_going.notify_all()
        report(kind, {**data, "step": context.step, "steps": context.steps, **self._state()})

    def _give_way(self, run: _Run) -> None:
        """Return when this worker holds no job of a higher priority, or the run is to end."""

        def is_free() -> bool:
            own = run.message["priority"]
            others = [other for other in self._runs.values() if other is not run]
            return run.cancelled.is_set() or all(other.message["priority"] <= own for other in others)

        with self._coming_and_going:
            self._coming_and_going.wait_for(is_free)

    def _attempt(self, run: _Run, context: RunContext) -> tuple[str, Message]:
        """Run the capability and save what it made; answers the message that ends the job."""
        began = time.monotonic()
        try:
            capability, request = self._understand(run.message)
            context.check_cancelled()
            if run.message["follows"]:
                check_with_picture(self._storage, self._models, capability, request, run.message["model"])
            result: Result = capability.run(request, context)
            context.check_cancelled()
            data = json.loads(json.dumps(result.data, allow_nan=False))
            message = run.message
            pictures = save_pictures(
                self._storage, self._models, capability, message["request"], message["model"], result
            )
        except JobCancelled:
            return "cancelled", {}
        except (Exception, SystemExit) as error:
            return "failed", {"error": self._describe(error, run.message["job"])}
        notes = [*result.notes, *context.notes]
        answer = {"images": pictures, "data": data, "notes": notes, "model": run.message["model"]}
        answer["run_seconds"] = round(time.monotonic() - began, 4)
        return "done", {"result": answer}

    def _understand(self, message: Message) -> tuple[Capability, Request]:
        """The capability and its request; a job may be older than the catalog that it now meets."""
        if self._trouble is not None:
            raise self._trouble
        capability = self._catalog.get(message["capability"])
        if capability is None:
            raise UnknownCapability("The capability of this job is not served any more.")
        try:
            return capability, capability.request.model_validate(message["request"])
        except ValidationError:
            raise InvalidRequest("The request of this job is not valid any more; submit it anew.") from None

    def _describe(self, error: BaseException, job_id: str) -> Message:
        """What the caller is told of an error; the rest goes to the log."""
        known = error if isinstance(error, ServiceError) else None
        if known is None and self._runtime is not None:
            known = self._runtime.translate(error)
        if known is None and isinstance(error, MemoryError):
            known = OutOfMemory("The machine's memory did not suffice; make the picture smaller or make fewer at once.")
        if known is None:
            logger.error("job %s failed", job_id, exc_info=error)
            return {"code": "internal", "message": "The service failed at this job; its log says why."}
        described: Message = {"code": known.code, "message": known.message}
        if known.details:
            described["details"] = dict(known.details)
        return described

    def _state(self) -> Message:
        """What the dispatcher likes to know after each job."""
        if self._runtime is None:
            return {"resident": [], "memory": {}}
        return {"resident": self._runtime.resident(), "memory": self._runtime.memory()}


def runs_on(device: str, options: EngineOptions) -> str:
    """The device that a worker of this name really uses: a simulated one is the CPU."""
    return "cpu" if options.fake_devices and device.startswith("cuda") else device


def configuration(device: str, options: EngineOptions) -> Message:
    """The first message to a worker process: everything that it must know and no secret that it need not."""
    values = {**asdict(options), "home": str(options.home), "dataset_folder": None}
    values.update(database_url=None, hub_token=None, callback_secret=None)
    return {"type": "configure", "device": runs_on(device, options), "options": values}


def options_of(told: Message) -> EngineOptions:
    """The options of a `configure` message."""
    values = dict(told)
    values.update(home=Path(values["home"]), trusted_hosts=tuple(values["trusted_hosts"]))
    values.update(devices=tuple(values["devices"]), fake_devices=tuple(values["fake_devices"]))
    return EngineOptions(**values)


def what_broke(error: Exception) -> str:
    """What a person is told of a worker that cannot be opened."""
    return error.message if isinstance(error, ServiceError) else "The worker could not be opened; see the log."


def _die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the thread that started this process ends (PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL)


def _beat(channel: Channel, seconds: float) -> None:
    while True:
        try:
            channel.send({"type": "heartbeat"})
        except OSError:
            os._exit(0)
        crash_points.reach("heartbeat")
        time.sleep(seconds)


def _listen(channel: Channel, worker: Worker) -> None:
    """Hand on the front's messages; when there is no front any more, end at once, whatever the job is doing."""
    while (message := channel.receive()) is not None:
        worker.handle(message)
    os._exit(0)


def main(descriptor: int) -> None:
    """The worker process; `descriptor` is its end of the socket pair."""
    _die_with_parent()
    # A terminal's Ctrl-C and a supervisor's SIGTERM reach the whole group; the front decides when a worker ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    channel = Channel(socket.socket(fileno=descriptor))
    first = channel.receive()
    if first is None:
        return
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s worker %(name)s: %(message)s")
    options = options_of(first["options"])
    worker = Worker(first["device"], options, channel.send)
    threading.Thread(target=_beat, args=(channel, options.heartbeat_seconds), name="heartbeat", daemon=True).start()
    threading.Thread(target=_listen, args=(channel, worker), name="messages", daemon=True).start()
    try:
        worker.serve()
    except Exception as error:
        logger.exception("the worker for %s cannot work", first["device"])
        channel.send({"type": "broken", "message": what_broke(error)})
        os._exit(1)
    # Libraries that hold threads or device handles take their time to end; there is nothing left to lose.
    os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
