"""The order in which jobs wait: by priority, owners in turn, first in, first out; ageing; and the pause after a loss.

Priority 10 goes first. Within one priority the owners are served in turn, the one served longest ago next, so that a
key with a thousand jobs holds up another's first by one job at most; an owner's own jobs keep their order. A job that
waits rises one priority for each `ageing_seconds`, up to 10, so that none starves. A job whose worker was lost stands
aside until its pause is over and then takes its old place.

Each priority keeps one sorted line for each owner: adding and removing is a binary search, and "you are the n-th" is
one look at each owner.
"""

import heapq
import random
from bisect import bisect_left, insort
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from app.core.jobs import Job

LONGEST_PAUSE_SECONDS = 60.0
HIGHEST_PRIORITY = 10

Place = tuple[int, int]


@dataclass
class Waiting:
    """What the queue and the dispatcher must know of a job.

    `priority` is the one that counts now; the queue raises it by one for each ageing step since `since`.
    `passed_over` counts the jobs let through before it. One that an earlier attempt left behind (`attempt` > 0) shares
    its worker with nobody: if it is what ends workers, it ends no neighbour's again. `shared` says that its worker had
    another job beside it. One that `gives_way` works for long and lets every job of a higher priority run whole between
    two of its steps: such jobs may join it whatever its model is, after an earlier attempt too.
    """

    id: str
    priority: int
    turn: int
    model: str | None = None
    not_before: float | None = None
    attempt: int = 0
    passed_over: int = 0
    owner: str = ""
    since: float | None = None
    capability: str = ""
    gives_way: bool = False
    raised: int = field(default=0, compare=False)
    shared: bool = field(default=False, compare=False)

    @property
    def place(self) -> Place:
        """What the jobs of one owner are sorted by."""
        return (-self.priority, self.turn)

    @property
    def origin(self) -> tuple[int, int, int]:
        """What tells it from itself before it was tried again or given another priority."""
        return (self.priority - self.raised, self.turn, self.attempt)

    @property
    def alone(self) -> bool:
        """Whether it must have its worker to itself."""
        return self.attempt > 0 and not self.gives_way

    @classmethod
    def of(cls, job: Job) -> "Waiting":
        """The queue's view of a job."""
        return cls(
            job.id,
            job.priority,
            job.turn,
            job.model,
            job.not_before,
            job.attempt,
            owner=job.owner,
            since=job.queued,
            capability=job.capability,
        )


def pause_after_loss(attempt: int, base_seconds: float) -> float:
    """How long a job waits after its n-th attempt was lost: doubling, with jitter, at most a minute.

    Between half and all of the doubled time, so that jobs lost together do not come back together.
    """
    longest = min(LONGEST_PAUSE_SECONDS, base_seconds * 2 ** (attempt - 1))
    return longest * random.uniform(0.5, 1.0)


class JobQueue:
    """The waiting jobs; not thread-safe, the dispatcher's lock guards it. Times are the caller's Unix seconds.

    `giving_way` names the capabilities whose jobs give way while they run.
    """

    def __init__(
        self,
        waiting: Iterable[Waiting] = (),
        *,
        ageing_seconds: float = 0.0,
        giving_way: Collection[str] = (),
    ) -> None:
        self._ageing_seconds = ageing_seconds
        self._giving_way = frozenset(giving_way)
        self._by_id: dict[str, Waiting] = {}
        self._by_place: dict[Place, Waiting] = {}
        self._lines: dict[int, dict[str, list[Place]]] = {}
        self._lengths: dict[int, int] = {}
        self._served: dict[tuple[int, str], int] = {}
        self._servings = 0
        self._pausing: list[tuple[float, int, str]] = []
        self._rising: list[tuple[float, int, str]] = []
        for entry in waiting:
            self.add(entry)

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._by_id

    def renew(self, entry: Waiting) -> None:
        """Put a job in its place unless it stands there already; what it rose by waiting comes back by itself."""
        known = self._by_id.get(entry.id)
        if known is None or known.origin != entry.origin:
            self.add(entry)

    def add(self, entry: Waiting) -> None:
        """Put a job in its place; one with a pause stands aside until `wake` finds it due."""
        self.remove(entry.id)
        entry.gives_way = entry.gives_way or entry.capability in self._giving_way
        self._by_id[entry.id] = entry
        if entry.not_before is None:
            self._seat(entry)
        else:
            heapq.heappush(self._pausing, (entry.not_before, entry.turn, entry.id))
        self._expect_rise(entry)

    def remove(self, job_id: str) -> Waiting | None:
        """Take a job out, wherever it stands."""
        entry = self._by_id.pop(job_id, None)
        if entry is not None:
            self._unseat(entry)
        return entry

    def take(self, job_id: str) -> Waiting | None:
        """Take out a job that is served now: its owner's next one waits for the other owners'."""
        entry = self.remove(job_id)
        if entry is not None:
            self._servings += 1
            self._served[entry.priority, entry.owner] = self._servings
        return entry

    def reprioritise(self, job_id: str, priority: int, now: float) -> Waiting | None:
        """Give a waiting job another priority, from which it has risen by waiting as from any."""
        entry = self.remove(job_id)
        if entry is not None:
            entry.priority = min(HIGHEST_PRIORITY, priority + entry.raised)
            self.add(entry)
            self.age(now)  # at the highest it had not risen any more
        return entry

    def wake(self, now: float) -> float | None:
        """Raise and seat the jobs whose time has come; answers when the next pause is over."""
        self.age(now)
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

    def age(self, now: float) -> None:
        """Raise the jobs that have waited for another ageing step."""
        while self._rising and self._rising[0][0] <= now:
            due, _, job_id = heapq.heappop(self._rising)
            entry = self._by_id.get(job_id)
            if entry is None or self._next_rise(entry) != due:
                continue
            seated = self._unseat(entry)
            entry.raised += 1
            entry.priority += 1
            if seated:
                self._seat(entry)
            self._expect_rise(entry)

    def first(self, count: int) -> list[Waiting]:
        """The next jobs in order; those that pause are not among them."""
        found: list[Waiting] = []
        for priority in sorted(self._lines, reverse=True):
            lines = sorted(self._lines[priority].items(), key=lambda item: self._rank(priority, *item))
            depth = 0
            while len(found) < count and (deep := [line for _, line in lines if depth < len(line)]):
                found += [self._by_place[line[depth]] for line in deep]
                depth += 1
            if len(found) >= count:
                break
        return found[:count]

    def position(self, job_id: str) -> int | None:
        """How many jobs stand before this one (0: next); one that pauses counts from the place it will take."""
        entry = self._by_id.get(job_id)
        if entry is None:
            return None
        lines = self._lines.get(entry.priority, {})
        own = lines.get(entry.owner, [])
        depth = bisect_left(own, entry.place)
        rank = self._rank(entry.priority, entry.owner, [min([entry.place, *own[:1]])])
        before = depth + sum(length for priority, length in self._lengths.items() if priority > entry.priority)
        for owner, line in lines.items():
            if owner != entry.owner:
                before += min(len(line), depth + (self._rank(entry.priority, owner, line) < rank))
        return before

    def of_owner(self, owner: str, count: int) -> list[str]:
        """The owner's next jobs in their order, those that pause last."""
        found: list[str] = []
        for priority in sorted(self._lines, reverse=True):
            line = self._lines[priority].get(owner, [])
            found += [self._by_place[place].id for place in line[: count - len(found)]]
        aside = [job_id for due, _, job_id in sorted(self._pausing) if self._pauses(job_id, due, owner)]
        return [*found, *dict.fromkeys(aside)][:count]

    def ids(self) -> list[str]:
        """Every waiting job, in no particular order."""
        return list(self._by_id)

    def _pauses(self, job_id: str, due: float, owner: str) -> bool:
        entry = self._by_id.get(job_id)
        return entry is not None and entry.not_before == due and entry.owner == owner

    def _rank(self, priority: int, owner: str, line: list[Place]) -> tuple[int, Place]:
        """Owners are sorted by when they were last served, those never served by their first job."""
        return (self._served.get((priority, owner), 0), line[0])

    def _seat(self, entry: Waiting) -> None:
        insort(self._lines.setdefault(entry.priority, {}).setdefault(entry.owner, []), entry.place)
        self._lengths[entry.priority] = self._lengths.get(entry.priority, 0) + 1
        self._by_place[entry.place] = entry

    def _unseat(self, entry: Waiting) -> bool:
        """Whether it was seated, and is not any more."""
        if self._by_place.get(entry.place) is not entry:
            return False
        del self._by_place[entry.place]
        lines = self._lines[entry.priority]
        line = lines[entry.owner]
        del line[bisect_left(line, entry.place)]
        self._lengths[entry.priority] -= 1
        if not line:
            del lines[entry.owner]
        if not lines:
            del self._lines[entry.priority], self._lengths[entry.priority]
        return True

    def _next_rise(self, entry: Waiting) -> float | None:
        if not self._ageing_seconds or entry.since is None or entry.priority >= HIGHEST_PRIORITY:
            return None
        return entry.since + (entry.raised + 1) * self._ageing_seconds

    def _expect_rise(self, entry: Waiting) -> None:
        due = self._next_rise(entry)
        if due is not None:
            heapq.heappush(self._rising, (due, entry.turn, entry.id))
