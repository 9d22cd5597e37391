"""The order of waiting, against a list that is sorted anew each time, and the choice of a worker."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.core.batch_processing import JobQueue, Waiting, pause_after_loss
from app.core.device_inventory import count_cuda_devices, resolve_devices
from app.core.multi_gpu import (
    LOOK_AHEAD,
    PATIENCE,
    OpenWorker,
    choose,
    seats_on,
)
from app.errors import InvalidRequest

AGEING = 4.0


class Shelf:
    """The queue's rules, told slowly: every question sorts everything anew and serves it in the mind."""

    def __init__(self) -> None:
        self.jobs: dict[str, Waiting] = {}
        self.asked: dict[str, int] = {}
        self.served: dict[tuple[int, str], int] = {}
        self.servings = 0

    def level(self, entry: Waiting, now: float) -> int:
        return min(10, self.asked[entry.id] + int((now - entry.since) // AGEING))

    def order(self, now: float, also: Waiting | None = None) -> list[Waiting]:
        jobs = [job for job in self.jobs.values() if job.not_before is None or job is also]
        served, count, order = dict(self.served), self.servings, []
        while jobs:
            top = max(self.level(job, now) for job in jobs)
            heads: dict[str, Waiting] = {}
            for job in sorted(jobs, key=lambda job: job.turn):
                if self.level(job, now) == top:
                    heads.setdefault(job.owner, job)
            job = min(heads.values(), key=lambda job: (served.get((top, job.owner), 0), job.turn))
            count += 1
            served[top, job.owner] = count
            jobs.remove(job)
            order.append(job)
        return order


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["add", "add", "add", "remove", "take", "wake", "priority"]),
            st.integers(0, 12),
            st.integers(0, 10),
            st.integers(0, 3),
            st.sampled_from(["ann", "bob", "eve"]),
        ),
        max_size=40,
    )
)
def test_the_queue_is_what_its_rules_say(moves: list[tuple[str, int, int, int, str]]) -> None:
    queue, shelf, now = JobQueue(ageing_seconds=AGEING), Shelf(), 0.0
    for move, number, priority, pause, owner in moves:
        job_id = str(number)
        if move == "add":
            not_before = now + pause if pause else None
            entry = Waiting(job_id, priority, number, owner=owner, since=now - number, not_before=not_before)
            queue.add(entry)
            shelf.jobs[job_id], shelf.asked[job_id] = entry, priority
            queue.age(now)
        elif move == "remove":
            assert queue.remove(job_id) is shelf.jobs.pop(job_id, None)
        elif move == "take":
            if order := shelf.order(now):
                taken = order[min(pause, len(order) - 1)]
                shelf.servings += 1
                shelf.served[shelf.level(taken, now), taken.owner] = shelf.servings
                assert queue.take(taken.id) is shelf.jobs.pop(taken.id)
        elif move == "priority":
            entry = queue.reprioritise(job_id, priority, now)
            assert entry is shelf.jobs.get(job_id)
            shelf.asked[job_id] = priority
        else:
            now += 1.5
            pending = [entry.not_before for entry in shelf.jobs.values() if entry.not_before and entry.not_before > now]
            assert queue.wake(now) == (min(pending) if pending else None)
        order = shelf.order(now)
        assert [entry.id for entry in queue.first(100)] == [entry.id for entry in order]
        assert [entry.id for entry in queue.first(2)] == [entry.id for entry in order[:2]]
        assert len(queue) == len(shelf.jobs)
        for entry in shelf.jobs.values():
            assert queue.position(entry.id) == shelf.order(now, also=entry).index(entry)
    assert queue.position("none") is None


def drained(queue: JobQueue) -> list[str]:
    """The ids in the order in which they are served."""
    served = []
    while head := queue.first(1):
        served.append(queue.take(head[0].id).id)
    return served


def test_a_job_that_comes_down_from_the_highest_priority_has_risen_by_its_waiting() -> None:
    queue = JobQueue([Waiting("long", 10, 1, since=0.0), Waiting("short", 1, 0, since=8.5)], ageing_seconds=4.0)
    queue.age(9.0)
    assert queue.reprioritise("long", 0, 9.0).priority == 2
    assert [entry.id for entry in queue.first(2)] == ["long", "short"]


def test_a_thousand_jobs_of_one_key_hold_up_anothers_first_by_one_at_most() -> None:
    queue = JobQueue(Waiting(f"a{turn}", 5, turn, owner="ann") for turn in range(1000))
    assert queue.take("a0")
    queue.add(Waiting("b0", 5, 1000, owner="bob"))
    queue.add(Waiting("b1", 5, 1001, owner="bob"))
    assert queue.position("b0") == 0
    assert drained(queue)[:5] == ["b0", "a1", "b1", "a2", "a3"]


def test_a_low_job_is_served_although_higher_ones_never_end() -> None:
    queue = JobQueue([Waiting("low", 0, 0, since=0.0)], ageing_seconds=60.0)
    served = []
    for minute in range(1, 20):
        queue.add(Waiting(str(minute), 8, minute, since=60.0 * minute))
        queue.wake(60.0 * minute)
        served.append(queue.take(queue.first(1)[0].id).id)
    # After eight minutes it is level with them, and older.
    assert served.index("low") == 7
    still = JobQueue([Waiting("low", 0, 0, since=0.0)], ageing_seconds=0.0)
    still.wake(1e9)
    assert still.first(1)[0].priority == 0, "0 seconds: nothing rises"


def test_ten_thousand_waiting_jobs_are_told_their_place_without_a_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    queue = JobQueue(Waiting(str(turn), turn % 11, turn, owner=str(turn % 7), since=0.0) for turn in range(10_000))
    looks = 0
    rank = JobQueue._rank

    def counted(*arguments: object) -> object:
        nonlocal looks
        looks += 1
        return rank(*arguments)

    monkeypatch.setattr(JobQueue, "_rank", counted)
    places = {queue.position(str(turn)) for turn in range(0, 10_000, 100)}
    assert len(places) == 100
    assert looks <= 100 * 7, "each question looks once at each owner, never at the jobs"
    assert [entry.priority for entry in queue.first(8)] == [10] * 8


def test_pauses_double_with_jitter_and_end_at_a_minute() -> None:
    for attempt, longest in ((1, 1.0), (2, 2.0), (5, 16.0), (20, 60.0)):
        pauses = {pause_after_loss(attempt, 1.0) for _ in range(50)}
        assert len(pauses) > 10
        assert all(longest / 2 <= pause <= longest for pause in pauses)


def waiting(*models: str | None, priority: int = 5) -> list[Waiting]:
    return [Waiting(str(turn), priority, turn, model) for turn, model in enumerate(models)]


def test_the_head_goes_to_the_worker_that_holds_its_model() -> None:
    workers = [OpenWorker("cuda:0", frozenset({"a"})), OpenWorker("cuda:1", frozenset({"b"}))]
    choice = choose(waiting("b", "a"), workers)
    assert (choice.job.id, choice.worker.name, choice.passed_over) == ("0", "cuda:1", ())
    assert choose([], workers) is None
    assert choose(waiting("a"), []) is None


def test_a_warm_job_passes_a_cold_one_but_not_for_ever() -> None:
    jobs = waiting("cold", *["warm"] * 10)
    worker = [OpenWorker("cpu", frozenset({"warm"}))]
    served = []
    for _ in range(PATIENCE + 1):
        choice = choose(jobs, worker)
        for passed in choice.passed_over:
            passed.passed_over += 1
        jobs.remove(choice.job)
        served.append(choice.job.model)
    assert served == ["warm"] * PATIENCE + ["cold"]


def test_no_warm_job_is_looked_for_too_far_or_below_its_priority() -> None:
    worker = [OpenWorker("cpu", frozenset({"warm"}))]
    assert choose(waiting(*["cold"] * LOOK_AHEAD, "warm"), worker).job.model == "cold"
    lower = [*waiting("cold"), *waiting("warm", priority=4)]
    assert choose(lower, worker).job.model == "cold"


def test_a_cold_job_goes_where_least_is_put_aside() -> None:
    workers = [OpenWorker("cuda:0", frozenset({"a", "b"})), OpenWorker("cuda:1", frozenset())]
    assert choose(waiting("c"), workers).worker.name == "cuda:1"


def held(*jobs: tuple[str | None, int], alone: bool = False) -> tuple[Waiting, ...]:
    return tuple(Waiting(f"held{n}", jobs[n][1], n, jobs[n][0], attempt=int(alone)) for n in range(len(jobs)))


@pytest.mark.parametrize(
    ("job", "worker", "joins"),
    [
        (("a", 5), OpenWorker("x", held=held(("a", 5)), seats=2), True),
        (("a", 5), OpenWorker("x", held=held(("a", 5), ("a", 5)), seats=2), False),
        (("b", 5), OpenWorker("x", held=held(("a", 5)), seats=2), False),
        ((None, 5), OpenWorker("x", held=held(("a", 5)), seats=2), True),
        ((None, 10), OpenWorker("x", held=held((None, 5)), seats=1), False),
        (("a", 6), OpenWorker("x", held=held(("a", 5)), seats=1), True),
        (("a", 5), OpenWorker("x", held=held(("a", 5)), seats=1), False),
        (("a", 9), OpenWorker("x", held=held(("a", 9), ("a", 5)), seats=1), False),
        (("b", 6), OpenWorker("x", frozenset({"a", "b"}), held(("a", 5)), seats=1), True),
        (("b", 6), OpenWorker("x", frozenset({"a"}), held(("a", 5)), seats=1), False),
        (("a", 6), OpenWorker("x", held=held(("a", 5), alone=True), seats=8), False),
    ],
)
def test_who_may_join_a_worker_that_is_busy(job: tuple[str | None, int], worker: OpenWorker, joins: bool) -> None:
    choice = choose([Waiting("new", job[1], 9, job[0])], [worker])
    assert (choice is not None) == joins
    assert choose([Waiting("new", job[1], 9, job[0], attempt=1)], [worker]) is None, "one that lost a worker is alone"


def test_joining_prefers_the_least_held_and_ends_when_somebody_was_passed_over_too_often() -> None:
    workers = [OpenWorker("x", held=held(("a", 5), ("a", 5)), seats=8), OpenWorker("y", held=held(("a", 5)), seats=8)]
    jobs = [Waiting("head", 5, 0, "b"), Waiting("other", 5, 1, "a")]
    for _ in range(PATIENCE):
        choice = choose(jobs, workers)
        assert (choice.job.id, choice.worker.name) == ("other", "y")
        for passed in choice.passed_over:
            passed.passed_over += 1
    assert choose(jobs, workers) is None, "the head waits for a worker that its neighbours keep full"
    assert choose(jobs, [*workers, OpenWorker("z")]).job.id == "head"


def test_seats() -> None:
    assert [seats_on(device, None) for device in ("cpu", "inline", "cuda:1")] == [1, 1, 8]
    assert seats_on("cuda:0", 3) == seats_on("cpu", 3) == 3


def test_devices_are_named_or_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert resolve_devices(["cpu", "cuda:3", "inline", "cpu"]) == ("cpu", "cuda:3", "inline")
    monkeypatch.setattr("app.core.device_inventory.Nvml.count", lambda self: None)
    for number in range(3):
        (tmp_path / str(number)).touch()
    monkeypatch.setattr("app.core.device_inventory.DRIVER_FOLDER", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert resolve_devices(["auto"]) == ("cuda:0", "cuda:1", "cuda:2")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,0")
    assert count_cuda_devices() == 2
    for nothing in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        assert resolve_devices(["auto"]) == ("cpu",)
    for wrong in (["gpu"], ["cuda:x"], []):
        with pytest.raises(InvalidRequest):
            resolve_devices(wrong)
