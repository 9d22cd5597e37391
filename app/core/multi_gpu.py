"""Which waiting job goes to which worker, and why: a pure function of what waits and what the workers hold.

Idle workers come first. A job whose model lies ready on an idle worker may go before the head of the queue, within the
head's priority and a small look-ahead. When nobody is idle, a job may join jobs of its own model on a worker with a
free seat, where they share forwards; one that is more urgent than a job there joins even a full worker. A job that
gives way to more urgent ones is started alone, and its worker then counts as free for these. A job that was passed
over `PATIENCE` times lets nobody by any more on a worker that it could use itself, so nothing starves for the sake of
warm models.

A job whose model does not fit a device is not sent there while another device could hold it: it waits for that one.
Where none can, the largest takes it. Among the idle workers that remain, the strategy chooses:

    auto            where the model lies ready; else where it fits without moving others away, little load, most compute
    round_robin     whoever was given a job longest ago
    least_loaded    the lowest load
    vram_based      the most free memory
    compute_based   the most compute
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf
from typing import Any

from app.core.batch_processing import Waiting

LOOK_AHEAD = 8
PATIENCE = 4
URGENT_SEATS = 1
"""Jobs beyond a worker's seats that may join because they are more urgent than one that it holds."""
SEATS_ON_A_GPU = 8
MOST_SEATS = 64
LOAD_STEP = 25
"""Percent of load that make a difference to `auto`: below it a faster device counts more."""


class Strategy(StrEnum):
    """How the device of a job is chosen."""

    AUTO = "auto"
    ROUND_ROBIN = "round_robin"
    LEAST_LOADED = "least_loaded"
    VRAM_BASED = "vram_based"
    COMPUTE_BASED = "compute_based"


@dataclass(frozen=True)
class OpenWorker:
    """A worker that may be given jobs: what lies ready on it, what it holds, and what is known of its device.

    `capacity` is what models may take there in all, `free_bytes` what is free now; None is unknown, and holds anything.
    `turn` grows with every job that it was given. One that is not `is_up` is only starting: it is not given a job, and
    a job that nobody else can hold waits for it.
    """

    name: str
    resident: frozenset[str] = frozenset()
    held: tuple[Waiting, ...] = ()
    seats: int = 1
    capacity: int | None = None
    free_bytes: int | None = None
    load_percent: float | None = None
    compute: float | None = None
    precision: str = "float32"
    turn: int = 0
    is_up: bool = True


@dataclass(frozen=True)
class Choice:
    """A job, its worker, why, and the jobs that it was let past."""

    job: Waiting
    worker: OpenWorker
    reason: str
    passed_over: tuple[Waiting, ...] = ()


Needs = Callable[[str, str], int | None]
"""(model, number format) -> bytes of its weights on a device; None where that is not known."""


def choose(
    waiting: Sequence[Waiting],
    workers: Sequence[OpenWorker],
    strategy: Strategy = Strategy.AUTO,
    needs: Needs = lambda model, precision: None,
) -> Choice | None:
    """The next job and its worker; `waiting` is in queue order. None when nothing waits or nobody can take anything."""
    if not waiting:
        return None
    placing = _Placing(waiting, workers, strategy, needs)
    return placing.start() or placing.join()


def seats_on(device: str, wished: int | None) -> int:
    """How many jobs a worker of this device may hold: as set, else 8 on a GPU and 1 where sharing gains nothing."""
    if wished is not None:
        return wished
    # A device of a cluster bears its node's name before its own.
    return SEATS_ON_A_GPU if device.rpartition("/")[2].startswith("cuda") else 1


class _Placing:
    """One look at the queue."""

    def __init__(
        self, waiting: Sequence[Waiting], workers: Sequence[OpenWorker], strategy: Strategy, needs: Needs
    ) -> None:
        self.workers = workers
        self.strategy = strategy
        self.needs = needs
        self.equals = [job for job in waiting[:LOOK_AHEAD] if job.priority == waiting[0].priority]
        self.homes = [self.possible(job) for job in self.equals]

    def possible(self, job: Waiting) -> list[OpenWorker]:
        """The workers whose device can hold its model; where none can, the largest."""
        model = job.model
        if model is None or not self.workers:
            return list(self.workers)
        able = [worker for worker in self.workers if self.holds(worker, model)]
        if able:
            return able
        largest = max(worker.capacity or 0 for worker in self.workers)
        return [worker for worker in self.workers if worker.capacity == largest]

    def holds(self, worker: OpenWorker, model: str) -> bool:
        """Whether the model fits into what models may take there."""
        need = self.needs(model, worker.precision)
        return model in worker.resident or need is None or worker.capacity is None or need <= worker.capacity

    def start(self) -> Choice | None:
        """The first job that an idle worker can be given."""
        for index, possible in enumerate(self.homes):
            idle = [worker for worker in possible if worker.is_up and not worker.held]
            if idle:
                return self.begin(index, idle)
        return None

    def begin(self, index: int, homes: list[OpenWorker]) -> Choice:
        """This job, or a later one whose model lies ready, on the idle workers that this job could have."""
        job = self.equals[index]
        # A named strategy has chosen the device; then only the order of the jobs may still save a load.
        chosen = min(homes, key=lambda worker: self.rank(worker, job))
        for later in range(index, len(self.equals)):
            other = self.equals[later]
            if other.model is None:
                if later == index or self.strategy is Strategy.AUTO:
                    where = min(homes, key=lambda worker: self.rank(worker, other))
                    reason = "it needs no model" + self.by_strategy(where, homes)
                    return Choice(other, where, reason, self.past(later, where))
            else:
                places = homes if self.strategy is Strategy.AUTO else [chosen]
                fitting = {worker.name for worker in self.homes[later]}
                warm = [w for w in places if other.model in w.resident and w.name in fitting]
                if warm:
                    where = min(warm, key=lambda worker: self.rank(worker, other))
                    reason = f"{other.model} lies ready there"
                    if self.strategy is not Strategy.AUTO:
                        reason += self.by_strategy(where, homes)
                    return Choice(other, where, reason, self.past(later, where))
            if other.passed_over >= PATIENCE:
                break
        return Choice(job, chosen, self.reason(job, chosen, homes), self.past(index, chosen))

    def join(self) -> Choice | None:
        """The first job that may share a worker with what it holds."""
        reserved: set[str] = set()
        for index, job in enumerate(self.equals):
            homes = [worker for worker in self.homes[index] if worker.is_up and worker.name not in reserved]
            for worker in sorted(homes, key=lambda worker: (len(worker.held), self.rank(worker, job))):
                if worker.held and _may_join(job, worker):
                    return Choice(job, worker, "it shares the device with others there", self.past(index, worker))
            if job.passed_over >= PATIENCE:
                reserved |= {worker.name for worker in self.homes[index]}
        return None

    def past(self, index: int, worker: OpenWorker) -> tuple[Waiting, ...]:
        """The jobs before this one that could have had the worker too."""
        before = zip(self.equals[:index], self.homes[:index], strict=True)
        return tuple(job for job, homes in before if worker in homes)

    def rank(self, worker: OpenWorker, job: Waiting) -> tuple[Any, ...]:
        """What the strategy sorts by; the smallest is chosen, of equals the first."""
        load = worker.load_percent or 0.0
        free = -inf if worker.free_bytes is None else worker.free_bytes
        match self.strategy:
            case Strategy.ROUND_ROBIN:
                return (worker.turn,)
            case Strategy.LEAST_LOADED:
                return (load, len(worker.resident))
            case Strategy.VRAM_BASED:
                return (-free,)
            case Strategy.COMPUTE_BASED:
                return (-(worker.compute or 0.0), load)
        need = self.needs(job.model, worker.precision) if job.model is not None else None
        crowded = need is not None and worker.free_bytes is not None and need > worker.free_bytes
        return (crowded, load // LOAD_STEP, -(worker.compute or 0.0), len(worker.resident))

    def by_strategy(self, worker: OpenWorker, homes: Sequence[OpenWorker]) -> str:
        return f", {self.words(worker)}" if len(homes) > 1 else ""

    def words(self, worker: OpenWorker) -> str:
        """The strategy's reason for this worker."""
        match self.strategy:
            case Strategy.ROUND_ROBIN:
                return "it was that device's turn"
            case Strategy.LEAST_LOADED:
                return f"the least loaded ({worker.load_percent or 0.0:.0f} %)"
            case Strategy.VRAM_BASED:
                known = worker.free_bytes is not None
                return "the most free memory" + (f" ({_size(worker.free_bytes or 0)})" if known else "")
            case Strategy.COMPUTE_BASED:
                return "the most compute"
        return "the best of what is idle"

    def reason(self, job: Waiting, chosen: OpenWorker, homes: Sequence[OpenWorker]) -> str:
        """Why a job whose model lies ready nowhere goes there."""
        model = job.model
        if model is None:
            return "it is next"
        need = self.needs(model, chosen.precision)
        size = f" ({_size(need)})" if need is not None else ""
        if not self.holds(chosen, model):
            whole = _size(chosen.capacity or 0)
            return f"no device can hold {model}{size}; this is the largest, with {whole} for models"
        others = [worker for worker in self.workers if not self.holds(worker, model)]
        if others and len(others) == len(self.workers) - 1:
            return f"the only device that can hold {model}{size}"
        if len(homes) == 1:
            return "it is next, and only this device is idle" if len(self.workers) > 1 else "it is next"
        return f"it is next; {self.words(chosen)}"


def _may_join(job: Waiting, worker: OpenWorker) -> bool:
    yielding = [held for held in worker.held if held.gives_way]
    if yielding:
        is_urgent = all(job.priority > held.priority for held in yielding)
        rest = replace(worker, held=tuple(held for held in worker.held if not held.gives_way))
        return is_urgent and not job.gives_way and not job.alone and (not rest.held or _may_join(job, rest))
    if job.gives_way or job.alone or any(held.alone for held in worker.held):
        return False
    if job.model is None:
        return len(worker.held) < worker.seats
    models = {held.model for held in worker.held}
    if len(worker.held) < worker.seats and models <= {job.model, None}:
        return True
    urgent = all(held.model is not None for held in worker.held) and any(
        job.priority > held.priority for held in worker.held
    )
    has_place = len(worker.held) < worker.seats + URGENT_SEATS
    return urgent and has_place and (job.model in models or job.model in worker.resident)


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 / 10 else f"{count / 2**20:.0f} MiB"
