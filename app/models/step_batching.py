"""One forward for several jobs: stock pipelines in threads take turns on a device and meet at the UNet.

A diffusers UNet takes a vector of timesteps, so jobs at different steps, with different schedulers, guidance and
prompts, can share one forward. Each pipeline gets a view of the UNet that parks its calls. One thread at a time works
on the device; when none wants to, the parked call of the highest priority and those that fit it run as one forward on
their concatenated rows, and each pipeline goes on with its own rows. A call of a job alone reaches the module as it
was made, so its picture is the stock pipeline's to the bit. Encoders and decoders of pictures meet in the same way.

What must never happen: a job changes its neighbour. It cannot, because rows meet nowhere in a UNet, an error of a
shared forward is met again by each call alone, and a job that is cancelled while it is parked takes its call along.
"""

import copy
import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from app.models.step_pace import StepPace

RESIDUALS = ("down_block_additional_residuals", "mid_block_additional_residual")
"""What ControlNets add to a UNet: a call that has none merges with one that has."""


@dataclass(eq=False)
class Session:
    """One pipeline call on its way.

    `check` raises when its job is to end; `dress` puts its additions on the shared modules, and calls merge only when
    `outfit` agrees. `branches` act on its own rows alone, so they hinder no merging; `guided` says that its rows are a
    negative prompt's and then a prompt's.
    """

    priority: int = 5
    outfit: Any = None
    check: Callable[[], None] = lambda: None
    dress: Callable[[], None] = lambda: None
    branches: tuple[Any, ...] = ()
    guided: bool = True
    order: int = 0

    def ended(self) -> bool:
        """Whether `check` would raise."""
        try:
            self.check()
        except Exception:
            return True
        return False

    @property
    def place(self) -> tuple[int, int]:
        """What turns are taken by: the highest priority first, within it who came first."""
        return (-self.priority, self.order)


Around = Callable[[Sequence["Call"]], AbstractContextManager[None]]
"""What stands around a forward that serves these calls."""


@dataclass(eq=False)
class Call:
    """A parked call of a module: `key` says which others it may merge with, `rows` how many it brings."""

    session: Session
    forward: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    rows: int
    key: tuple[Any, ...]
    counts: "Counts"
    around: "Around"
    taken: bool = False
    done: bool = False
    answer: Any = None
    error: BaseException | None = None


@dataclass
class Counts:
    """Since the start: forwards that ran, calls that they served, and rows of both guidance halves."""

    forwards: int = 0
    calls: int = 0
    rows: int = 0
    largest: int = 0


@dataclass
class StepBatcher:
    """The turns on one device. `is_out_of_memory` tells the errors after which a batch is made smaller for good."""

    is_out_of_memory: Callable[[BaseException], bool] = lambda error: False
    pace: StepPace = field(default_factory=StepPace)
    clock: Callable[[], float] = time.perf_counter
    counts: Counts = field(default_factory=Counts)
    pictures: Counts = field(default_factory=Counts)

    def __post_init__(self) -> None:
        self._changed = threading.Condition()
        self._holder: Session | None = None
        self._wanting: list[Session] = []
        self._parked: list[Call] = []
        self._numbers = itertools.count()

    @contextmanager
    def turn(self, session: Session) -> Iterator[None]:
        """Hold the device for the block, but for the parked calls in it; waits for a turn."""
        with self._changed:
            session.order = next(self._numbers)
        try:
            self._take(session)
            yield
        finally:
            with self._changed:
                self._holder = None
                self._changed.notify_all()

    def view(
        self,
        module: torch.nn.Module,
        session: Session,
        counts: Counts | None = None,
        around: Around = lambda batch: nullcontext(),
    ) -> torch.nn.Module:
        """The module, sharing every weight, whose forward parks the call until a batch takes it."""
        view = copy.copy(module)

        def forward(*args: Any, **kwargs: Any) -> Any:
            return self._park(session, module, args, kwargs, counts or self.counts, around)

        view.__dict__["forward"] = forward
        return view

    def view_of_vae(self, vae: Any, session: Session) -> Any:
        """The autoencoder, sharing every weight, whose encoder and decoder park their calls.

        One that changes its number format around its work (SDXL's own in float16) stays as it is: its format would
        change under a parked call.
        """
        if vae.config.get("force_upcast") and vae.dtype is torch.float16:
            return vae
        view = copy.copy(vae)
        view.__dict__["_modules"] = dict(vae._modules)
        for name in ("encoder", "decoder"):
            view._modules[name] = self.view(vae._modules[name], session, self.pictures)
        return view

    def nudge(self) -> None:
        """Let those who wait look whether their job is to end."""
        with self._changed:
            self._changed.notify_all()

    def _take(self, session: Session) -> None:
        with self._changed:
            self._wanting.append(session)
            try:
                while self._holder is not None or min(self._wanting, key=lambda other: other.place) is not session:
                    self._changed.wait()
                self._holder = session
            finally:
                self._wanting.remove(session)
        # Who gives up does so holding the device: what it undoes, it undoes alone.
        session.check()
        session.dress()

    def _park(
        self,
        session: Session,
        module: torch.nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        counts: Counts,
        around: Around,
    ) -> Any:
        rows = args[0].shape[0] if args and isinstance(args[0], torch.Tensor) else 0
        key = (id(module), session.outfit, *_signature(args, rows), *_signature(_without_residuals(kwargs), rows))
        # The module's forward as it will be then: hooks that stream its weights may come and go meanwhile.
        call = Call(
            session, lambda *given, **named: module.forward(*given, **named), args, kwargs, rows, key, counts, around
        )
        with self._changed:
            self._holder = None
            self._parked.append(call)
            self._changed.notify_all()
            while not call.done and (call.taken or not session.ended()):
                batch = self._next_batch(call)
                if batch:
                    self._run(batch)
                else:
                    self._changed.wait()
            if not call.done:
                self._parked.remove(call)
        # What follows the forward is this thread's alone again; it raises if the job is to end.
        self._take(session)
        if call.error is not None:
            raise call.error
        return call.answer

    def _next_batch(self, call: Call) -> list[Call]:
        """The calls of the next forward if it is `call`'s thread that runs it, else none."""
        if self._holder is not None or self._wanting or not self._parked:
            return []
        # Pictures before steps: a job meets them once at its begin and once at its end, and joins or leaves by that.
        waiting = sorted(
            self._parked, key=lambda other: (-other.session.priority, other.counts is self.counts, other.session.order)
        )
        if waiting[0] is not call:
            return []
        fitting = [other for other in waiting if other.key == call.key and call.rows]
        return fitting[: self.pace.choose(call.key, len(fitting))] or [call]

    def _run(self, batch: list[Call]) -> None:
        """One forward for these calls; the lock is held on entry and on exit, and not meanwhile."""
        leader = batch[0].session
        for call in batch:
            call.taken = True
            self._parked.remove(call)
        self._holder = leader
        self._changed.release()
        try:
            self._forward(batch)
        finally:
            self._changed.acquire()
            self._holder = None
            for call in batch:
                call.done = True
            self._changed.notify_all()

    def _forward(self, batch: list[Call]) -> None:
        began = self.clock()
        first = batch[0]
        try:
            first.session.dress()
            with first.around(batch):
                if len(batch) == 1:
                    first.answer = first.forward(*first.args, **first.kwargs)
                else:
                    args, kwargs = merge(batch)
                    answers = split(first.forward(*args, **kwargs), [call.rows for call in batch])
                    for call, answer in zip(batch, answers, strict=True):
                        call.answer = answer
        except Exception as error:
            if len(batch) == 1:
                first.error = error
                return
            if self.is_out_of_memory(error):
                self.pace.limit(first.key, len(batch) // 2)
        else:
            self.pace.note(first.key, len(batch), self.clock() - began)
            counts = first.counts
            counts.forwards += 1
            counts.calls += len(batch)
            counts.rows += sum(call.rows for call in batch)
            counts.largest = max(counts.largest, len(batch))
            return
        # Each alone: who is to blame fails alone, and a lack of memory was the batch's.
        for call in batch:
            self._forward([call])


def merge(batch: Sequence[Call]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of one forward that serves these calls, whose keys agree."""
    sizes = [call.rows for call in batch]
    args = [_timed(call.args, call.rows) for call in batch]
    merged = tuple(_join(parts, sizes) for parts in zip(*args, strict=True))
    named = {name: _join([call.kwargs[name] for call in batch], sizes) for name in _without_residuals(batch[0].kwargs)}
    return merged, named | _residuals(batch, sizes)


def _without_residuals(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in RESIDUALS}


def _residuals(batch: Sequence[Call], sizes: Sequence[int]) -> dict[str, Any]:
    """What ControlNets add, for all rows: zeros for the calls that have none."""
    found = {}
    for name in RESIDUALS:
        given = [call.kwargs.get(name) for call in batch]
        like = next((value for value in given if value is not None), None)
        if like is not None:
            nothing = [_zeros(like, rows) for rows in sizes]
            found[name] = _join([none if one is None else one for one, none in zip(given, nothing, strict=True)], sizes)
    return found


def _zeros(like: Any, rows: int) -> Any:
    """Zeros in the shape of `like`, but with so many rows."""
    if isinstance(like, torch.Tensor):
        return like.new_zeros(rows, *like.shape[1:])
    return type(like)(_zeros(part, rows) for part in like)


def split(answer: Any, sizes: Sequence[int]) -> list[Any]:
    """A module's answer, a part for each of the calls."""
    if isinstance(answer, torch.Tensor):
        return list(answer.split(list(sizes)))
    if isinstance(answer, dict):
        named = {name: split(value, sizes) for name, value in answer.items()}
        return [type(answer)(**{name: parts[index] for name, parts in named.items()}) for index in range(len(sizes))]
    if isinstance(answer, list | tuple):
        parts = [split(value, sizes) for value in answer]
        return [type(answer)(part[index] for part in parts) for index in range(len(sizes))]
    return [answer] * len(sizes)


def _timed(args: tuple[Any, ...], rows: int) -> tuple[Any, ...]:
    """The second argument is the timestep: one number for all rows becomes one for each, in the UNet's own format."""
    if len(args) < 2:
        return args
    time_ = torch.as_tensor(args[1], device=args[0].device).float().reshape(-1)
    return (args[0], time_.expand(rows) if time_.shape[0] == 1 else time_, *args[2:])


def _join(parts: Sequence[Any], sizes: Sequence[int]) -> Any:
    first = parts[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(list(parts)) if first.ndim else first
    if isinstance(first, dict):
        return {name: _join([part[name] for part in parts], sizes) for name in first}
    if isinstance(first, list | tuple):
        return type(first)(_join(inner, sizes) for inner in zip(*parts, strict=True))
    return first


def _signature(value: Any, rows: int, *, depth: int = 0) -> tuple[Any, ...]:
    """What must agree in two calls so that their rows may stand in one tensor; unhashable things agree with nothing."""
    if isinstance(value, torch.Tensor):
        if value.ndim == 0 or value.shape[0] != rows:
            return ("one", id(value))
        return (str(value.dtype), str(value.device), *value.shape[1:])
    if isinstance(value, dict):
        return ("dict", *((name, _signature(inner, rows, depth=depth + 1)) for name, inner in sorted(value.items())))
    if isinstance(value, list | tuple):
        # The timestep stands second among the arguments and is spread over the rows by `merge`.
        inner = [
            ("time",) if depth == 0 and place == 1 else _signature(part, rows, depth=depth + 1)
            for place, part in enumerate(value)
        ]
        return (type(value).__name__, *inner)
    if value is None or isinstance(value, str | int | float | bool | torch.dtype):
        return (type(value).__name__, value)
    return ("one", id(value))
