"""The order in which jobs wait: by priority (10 first), within it first in, first out; and the pause after a loss.

Kept as one sorted list of (minus priority, turn), so that taking the next, removing any, and saying "you are the n-th"
are all a binary search. A job whose worker was lost stands aside until its pause is over and then takes its old place.
"""

import heapq
import random
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

from app.core.jobs import Job

LONGEST_PAUSE_SECONDS = 60.0


@dataclass
class Waiting:
    """What the queue and the dispatcher must know of a job.

    `passed_over` counts the jobs let through before it. One that an earlier attempt left behind (`attempt` > 0) shares
    its worker with nobody: if it is what ends workers, it ends no neighbour's again.
    """

    id: str
    priority: int
    turn: int
    model: str | None = None
    not_before: float | None = None
    attempt: int = 0
    passed_over: int = 0

    @property
    def place(self) -> tuple[int, int]:
        """What the queue sorts by."""
        return (-self.priority, self.turn)

    @property
    def alone(self) -> bool:
        """Whether it must have its worker to itself."""
        return self.attempt > 0

    @classmethod
    def of(cls, job: Job) -> "Waiting":
        """The queue's view of a job."""
        return cls(job.id, job.priority, job.turn, job.model, job.not_before, job.attempt)


def pause_after_loss(attempt: int, base_seconds: float) -> float:
    """How long a job waits after its n-th worker was lost: doubling, with jitter, at most a minute.

    Between half and all of the doubled time, so that jobs lost together do not come back together.
    """
    longest = min(LONGEST_PAUSE_SECONDS, base_seconds * 2 ** (attempt - 1))
    return longest * random.uniform(0.5, 1.0)


class JobQueue:
    """The waiting jobs; not thread-safe, the dispatcher's lock guards it."""

    def __init__(self, waiting: Iterable[Waiting] = ()) -> None:
        self._by_id: dict[str, Waiting] = {}
        self._places: list[tuple[int, int]] = []
        self._by_place: dict[tuple[int, int], Waiting] = {}
        self._pausing: list[tuple[float, int, str]] = []
        for entry in waiting:
            self.add(entry)

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._by_id

    def add(self, entry: Waiting) -> None:
        """Put a job in its place; one with a pause stands aside until `wake` finds it due."""
        self.remove(entry.id)
        self._by_id[entry.id] = entry
        if entry.not_before is None:
            self._seat(entry)
        else:
            heapq.heappush(self._pausing, (entry.not_before, entry.turn, entry.id))

    def remove(self, job_id: str) -> Waiting | None:
        """Take a job out, wherever it stands."""
        entry = self._by_id.pop(job_id, None)
        if entry is not None and self._by_place.get(entry.place) is entry:
            del self._by_place[entry.place]
            del self._places[bisect_left(self._places, entry.place)]
        return entry

    def wake(self, now: float) -> float | None:
        """Seat the jobs whose pause is over; answers when the next one is due."""
        while self._pausing:
            due, _, job_id = self._pausing[0]
            entry = self._by_id.get(job_id)
            if entry is None or entry.not_before != due:
                heapq.heappop(self._pausing)
            elif due <= now:
                heapq.heappop(self._pausing)
                entry.not_before = None
                self._seat(entry)
            else:
                return due
        return None

    def first(self, count: int) -> list[Waiting]:
        """The next jobs in order; those that pause are not among them."""
        return [self._by_place[place] for place in self._places[:count]]

    def position(self, job_id: str) -> int | None:
        """How many jobs stand before this one (0: next); one that pauses counts from the place it will take."""
        entry = self._by_id.get(job_id)
        return None if entry is None else bisect_left(self._places, entry.place)

    def ids(self) -> list[str]:
        """Every waiting job, in no particular order."""
        return list(self._by_id)

    def _seat(self, entry: Waiting) -> None:
        insort(self._places, entry.place)
        self._by_place[entry.place] = entry
