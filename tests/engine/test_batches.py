"""Batches in the engine: all or none, one transaction, in order, over a restart; and what is tried again by itself."""

import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from app.core import handlers
from app.core.batch_store import BatchStore
from app.core.batching import Wish
from app.core.capability import Capability, Request, Result
from app.core.catalog import CATALOG
from app.core.combining import combine, count_wishes
from app.core.job_store import JobStore
from app.core.job_tables import SCHEMA_VERSION
from app.core.jobs import Batch, JobStatus, new_id
from app.core.service import Service
from app.errors import (
    Conflict,
    InvalidRequest,
    QueueFull,
    TooLarge,
    TransferFailed,
    UnknownBatch,
    UnknownCapability,
    UnknownJob,
)
from app.models.library import ModelLibrary
from tests.engine.conftest import end_of, end_pauses, new_job, until

STEPS = {"step": 1, "steps": 4}
MEMORY = {"code": "out_of_memory", "message": "Make the picture smaller."}


def wishes(count: int, **changes: object) -> list[Wish]:
    return [Wish("test/paint", {"seed": seed, **changes}) for seed in range(count)]


def held(make_service: Callable[..., Service], **changes: object) -> Service:
    """A service that starts nothing."""
    service = make_service(**changes)
    service.pause_queue(True)
    return service


def seeds(service: Service) -> list[int]:
    """The seeds in the order in which their jobs were begun."""
    jobs, _ = service.list_jobs(limit=1000)
    begun = sorted((job for job in jobs if job.started), key=lambda job: job.started)
    return [job.request["seed"] for job in begun]


# ---- the wishes of a batch


def test_lists_become_lines_or_combinations() -> None:
    values = {"prompt": ["a", "b"], "seed": [1, 2]}
    assert combine({"steps": 4}, values, "zip") == [
        {"steps": 4, "prompt": "a", "seed": 1},
        {"steps": 4, "prompt": "b", "seed": 2},
    ]
    pairs = [(one["prompt"], one["seed"]) for one in combine({}, values, "product")]
    assert pairs == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert combine({"seed": 1}, {}, "zip") == [{"seed": 1}]
    assert count_wishes({name: range(10_000) for name in "abcdef"}, "product") == 10_000**6


@pytest.mark.parametrize(
    ("request_", "values", "how"),
    [
        ({}, {"seed": [1], "prompt": ["a", "b"]}, "zip"),
        ({}, {"seed": []}, "product"),
        ({"seed": 1}, {"seed": [1]}, "zip"),
    ],
)
def test_lists_that_do_not_fit_are_refused(request_: dict, values: dict, how: str) -> None:
    with pytest.raises(InvalidRequest):
        combine(request_, values, how)


def test_short_names_mean_the_first_capability_that_there_is(tmp_path: Path) -> None:
    models = ModelLibrary(tmp_path)
    assert handlers.resolve("generate", CATALOG, models).name == "text-to-image"
    assert handlers.resolve("inpaint", CATALOG, models).name == "inpaint"

    def made(name: str, needs: tuple[str, ...] = ()) -> Capability:
        return Capability(name, name, name, Request, lambda request, context: Result(), needs=needs)

    plain = made("image-to-image")
    assert handlers.resolve("edit", [plain], models) is plain
    best = made("qwen-edit")
    assert handlers.resolve("edit", [plain, best], models) is best
    unserved = made("qwen-edit", needs=("no such task",))
    assert handlers.resolve("edit", [plain, unserved], models) is plain
    with pytest.raises(UnknownCapability, match=r"face_swap.*pulid/swap"):
        handlers.resolve("face_swap", [plain], models)
    with pytest.raises(UnknownCapability, match="image-to-image, edit"):
        handlers.resolve("nonsense", [plain], models)


# ---- all or none


def test_a_batch_runs_to_its_end_in_order(service: Service) -> None:
    batch, new = service.submit_batch(wishes(4))
    assert new
    jobs = service.jobs_of_batch(batch.id)
    assert [job.request["seed"] for job in jobs] == [0, 1, 2, 3]
    for job in jobs:
        end_of(service, job.id)
    view = service.batch(batch.id)
    assert (view.status, view.counts["succeeded"], view.progress) == (JobStatus.SUCCEEDED, 4, 1.0)
    assert seeds(service) == [0, 1, 2, 3]


def test_one_bad_wish_and_nothing_is_accepted(service: Service) -> None:
    bad = [*wishes(2), Wish("test/paint", {"seed": -1})]
    with pytest.raises(InvalidRequest, match=r"^Job 2: seed") as refusal:
        service.submit_batch(bad)
    assert refusal.value.details["index"] == 2
    with pytest.raises(UnknownCapability, match=r"^Job 1: "):
        service.submit_batch([*wishes(1), Wish("test/none", {})])
    with pytest.raises(InvalidRequest, match=r"^Job 0: .*priority"):
        service.submit_batch([Wish("test/paint", {}, priority=11)])
    with pytest.raises(InvalidRequest):
        service.submit_batch([])
    assert service.list_jobs()[1] == service.list_batches()[1] == 0


def test_limits_hold_for_the_whole_batch(make_service: Callable[..., Service]) -> None:
    service = held(make_service, batch_limit=5, queue_limit=7)
    with pytest.raises(TooLarge):
        service.submit_batch(wishes(6))
    service.submit_batch(wishes(5))
    with pytest.raises(QueueFull):
        service.submit_batch(wishes(3))
    assert service.list_jobs()[1] == 5
    service.submit_batch(wishes(2))
    assert service.readiness()["queued"] == 7


def test_a_batch_costs_one_commit(make_service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch) -> None:
    service = held(make_service)
    commits, commit = [], service._store.writer._commit

    def counted(changes: list) -> None:
        commits.append(len(changes))
        commit(changes)

    monkeypatch.setattr(service._store.writer, "_commit", counted)
    batch, _ = service.submit_batch(wishes(300))
    assert commits == [1]
    assert service.batch(batch.id).counts["queued"] == 300
    turns = [job.turn for job in service.jobs_of_batch(batch.id, limit=1000)]
    assert turns == list(range(turns[0], turns[0] + 300))


def test_the_same_key_makes_one_batch(make_service: Callable[..., Service]) -> None:
    service = held(make_service)
    first, new = service.submit_batch(wishes(3), idempotency_key="k")
    again, new_again = service.submit_batch(wishes(3), idempotency_key="k")
    assert (new, new_again, again) == (True, False, first)
    assert service.list_jobs()[1] == 3
    for other in (wishes(2), [Wish("test/paint", {"seed": seed}, priority=6) for seed in range(3)]):
        with pytest.raises(Conflict):
            service.submit_batch(other, idempotency_key="k")
    with pytest.raises(Conflict):
        service.submit("test/paint", {"seed": 0}, idempotency_key="k")
    service.submit("test/paint", {"seed": 0}, idempotency_key="lone")
    with pytest.raises(Conflict):
        service.submit_batch(wishes(1), idempotency_key="lone")
    service.submit_batch(wishes(3), idempotency_key="k", owner="ann")
    assert service.list_batches(owner="ann")[1] == 1


def test_many_at_once_with_one_key_make_one_batch(make_service: Callable[..., Service]) -> None:
    service, found = held(make_service), set()
    barrier = threading.Barrier(8)

    def submit() -> None:
        barrier.wait()
        found.add(service.submit_batch(wishes(5), idempotency_key="k")[0].id)

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 1
    assert service.list_jobs()[1] == service.readiness()["queued"] == 5


def test_other_owners_batches_do_not_exist(make_service: Callable[..., Service]) -> None:
    service = held(make_service)
    batch, _ = service.submit_batch(wishes(2), owner="ann")
    asks = [service.batch, service.jobs_of_batch, service.cancel_batch, service.retry_batch, service.find]
    for ask in asks:
        with pytest.raises(UnknownBatch):
            ask(batch.id, "bob")
    with pytest.raises(UnknownBatch):
        service.reprioritise(batch.id, 9, "bob")
    assert service.list_batches(owner="bob") == ([], 0)
    assert service.batch(batch.id, "ann").counts["queued"] == 2


# ---- cancel, retry, reprioritise, pause


def test_cancel_ends_what_waits_and_what_runs(service: Service) -> None:
    batch, _ = service.submit_batch(wishes(3, num_inference_steps=10_000, step_seconds=0.01))
    until(lambda: service.batch(batch.id).counts["running"])
    ended = []
    service.on_end.append(ended.append)
    view = service.cancel_batch(batch.id)
    assert view.counts["cancelled"] == 2 and view.status is JobStatus.RUNNING
    until(lambda: service.batch(batch.id).counts["cancelled"] == 3)
    assert service.batch(batch.id).status is JobStatus.CANCELLED
    until(lambda: len(ended) == 3)
    assert service.statistics()["ended"] == {"cancelled": 3}
    with pytest.raises(Conflict):
        service.cancel_batch(batch.id)
    with pytest.raises(Conflict):
        service.retry_batch(batch.id)


def test_retry_runs_the_failed_ones_alone(service: Service) -> None:
    asked = [Wish("test/paint", {"seed": 1}), Wish("test/fail", {"way": "refusal"}), Wish("test/paint", {"seed": 2})]
    batch, _ = service.submit_batch(asked)
    jobs = service.jobs_of_batch(batch.id)
    for job in jobs:
        end_of(service, job.id)
    assert service.batch(batch.id).status is JobStatus.FAILED
    service.pause_queue(True)
    view = service.retry_batch(batch.id)
    assert (view.counts["queued"], view.counts["succeeded"], view.status) == (1, 2, JobStatus.RUNNING)
    service.pause_queue(False)
    assert end_of(service, jobs[1].id).attempt == 2
    assert [service.get(job.id).attempt for job in jobs] == [1, 2, 1]


def test_priority_of_what_waits_is_changed_in_the_queue_and_on_the_disk(make_service: Callable[..., Service]) -> None:
    service = held(make_service)
    first, _ = service.submit_batch(wishes(3))
    second, _ = service.submit_batch(wishes(2))
    jobs = [service.jobs_of_batch(batch.id) for batch in (first, second)]
    assert [service.position(job.id) for job in jobs[0] + jobs[1]] == [0, 1, 2, 3, 4]
    assert service.reprioritise(second.id, 9).batch == second
    assert [service.position(job.id) for job in jobs[0] + jobs[1]] == [2, 3, 4, 0, 1]
    moved = service.reprioritise(jobs[0][2].id, 10)
    assert (moved.id, moved.priority) == (jobs[0][2].id, 10)
    assert [service.position(job.id) for job in jobs[0] + jobs[1]] == [3, 4, 0, 1, 2]
    assert [job.priority for job in service.jobs_of_batch(second.id)] == [9, 9]
    service.cancel(jobs[0][0].id)
    with pytest.raises(Conflict):
        service.reprioritise(jobs[0][0].id, 1)
    with pytest.raises(InvalidRequest):
        service.reprioritise(second.id, 11)


def test_a_paused_queue_starts_nothing_also_after_a_restart(make_service: Callable[..., Service]) -> None:
    service = make_service()
    running = service.submit("test/paint", {"num_inference_steps": 10_000, "step_seconds": 0.01})
    until(lambda: service.get(running.id).status is JobStatus.RUNNING)
    state = service.pause_queue(True)
    assert state["paused"] and state["paused_since"] > running.created and state["running"] == 1
    assert service.pause_queue(True)["paused_since"] == state["paused_since"], "it has been paused since the first time"
    waits = service.submit("test/paint", {"seed": 1})
    service.cancel(running.id)
    until(lambda: service.get(running.id).status is JobStatus.CANCELLED)
    until(lambda: all(worker["state"] == "idle" for worker in service.readiness()["workers"]))
    assert service.get(waits.id).status is JobStatus.QUEUED
    service.stop(0.0)
    again = make_service()
    until(lambda: again.readiness()["ready"])
    assert again.readiness()["paused"] and again.get(waits.id).status is JobStatus.QUEUED
    assert again.pause_queue(False)["paused_since"] is None
    assert end_of(again, waits.id).status is JobStatus.SUCCEEDED


def test_two_owners_take_turns(make_service: Callable[..., Service]) -> None:
    service = held(make_service)
    flood, _ = service.submit_batch(wishes(20), owner="ann")
    late = service.submit("test/paint", {"seed": 99}, owner="bob")
    assert service.position(late.id) == 1
    service.pause_queue(False)
    until(lambda: service.get(late.id, "bob").status is JobStatus.SUCCEEDED)
    until(lambda: service.batch(flood.id, "ann").status is JobStatus.SUCCEEDED)
    begun = service.get(late.id, "bob").started
    assert sum(job.started < begun for job in service.jobs_of_batch(flood.id, "ann")) == 1


def test_waiting_jobs_have_aged_over_a_restart(tmp_path: Path, make_service: Callable[..., Service]) -> None:
    store = JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    fresh = new_job(priority=4)
    old = store.insert(new_job(priority=2, created=fresh.created - 1000))
    store.insert(fresh)
    BatchStore(store).pause(True)
    assert [entry.since for entry in store.waiting()] == [old.created, fresh.created]
    store.close()
    service = make_service(ageing_seconds=300.0)
    assert (service.position(old.id), service.position(fresh.id)) == (0, 1)


# ---- what may pass is tried again


def test_out_of_memory_is_tried_again_and_recorded(service: Service) -> None:
    job = service.submit("test/fail", {"way": "memory"})
    ended = end_of(service, job.id)
    assert (ended.status, ended.error["code"], ended.attempt) == (JobStatus.FAILED, "out_of_memory", 2)
    told = [(entry["after"], entry["attempt"], entry["reason"]) for entry in service.history(job.id)]
    assert told == [
        ("queued", 0, "submitted"),
        ("running", 1, "it needs no model"),
        ("queued", 1, "out_of_memory, with inline to itself"),
        ("running", 2, "it needs no model"),
        ("failed", 2, "out_of_memory, with inline to itself"),
    ]
    assert service.statistics()["ended"] == {"failed": 1}


def test_a_busy_hub_is_tried_again_and_a_bad_wish_is_not(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def busy_at_first(request: object, context: object) -> Result:
        calls.append(request)
        if len(calls) < 3:
            raise TransferFailed("The hub is busy.")
        return Result(data={"calls": len(calls)})

    capability = next(known for known in service.catalog if known.name == "test/paint")
    (worker,) = service._dispatcher._fleet.workers.values()
    until(lambda: worker.is_up)
    known = worker._worker._catalog
    monkeypatch.setitem(known, "test/paint", Capability("test/paint", "p", "p", capability.request, busy_at_first))
    ended = end_of(service, service.submit("test/paint", {}).id)
    assert (ended.status, ended.attempt, ended.result["data"]) == (JobStatus.SUCCEEDED, 3, {"calls": 3})
    refused = end_of(service, service.submit("test/fail", {"way": "refusal"}).id)
    assert (refused.status, refused.attempt) == (JobStatus.FAILED, 1)


def test_a_passing_failure_pauses_or_heeds_the_cancel(store: JobStore) -> None:
    job = store.insert(new_job(max_attempts=2, callback_url="https://example.org/hook"))
    pauses = []

    def pause(attempt: int) -> float:
        pauses.append(attempt)
        return 100.0

    claimed = store.claim(job.id, device="cpu")
    again = store.fail(job.id, 1, MEMORY, pause=pause, **STEPS)
    assert (again.status, again.attempt, again.error) == (JobStatus.QUEUED, 1, None)
    assert again.not_before >= claimed.started + 100 and pauses == [1]
    assert store.outbox.of_job(job.id) == [], "no callback while it is tried again"
    end_pauses(store)
    store.claim(job.id, device="cpu")
    assert store.fail(job.id, 1, MEMORY, pause=pause, **STEPS) is None, "an old token changes nothing"
    ended = store.fail(job.id, 2, MEMORY, pause=pause, **STEPS)
    assert (ended.status, ended.error, ended.step) == (JobStatus.FAILED, MEMORY, 1)
    assert len(store.outbox.of_job(job.id)) == 1
    unwanted = store.insert(new_job())
    store.claim(unwanted.id, device="cpu")
    store.cancel(unwanted.id)
    assert store.fail(unwanted.id, 1, MEMORY, pause=pause, **STEPS).status is JobStatus.CANCELLED


# ---- the store


def test_a_batch_with_a_deleted_picture_leaves_nothing(store: JobStore) -> None:
    batches = BatchStore(store)
    gone = new_id()
    store.images.remove(gone, owner="", sha256="0" * 64)
    batch = Batch(new_id(), "", 1.0, 2)
    jobs = [new_job(batch_id=batch.id), new_job(batch_id=batch.id, request={"image": gone})]
    with pytest.raises(Exception, match="deleted"):
        batches.insert(batch, jobs, key="k", body="b")
    with pytest.raises(UnknownBatch):
        batches.get(batch.id)
    for job in jobs:
        with pytest.raises(UnknownJob):
            store.get(job.id)
    assert batches.find_idempotent("", "k", "other") is None


def test_a_store_of_the_first_version_is_brought_to_this_one(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    store = JobStore(f"sqlite:///{path}")
    old = store.insert(new_job(idempotency_key="k", created=1234.5), body="b")
    own = store.id
    store.close()
    with sqlite3.connect(path) as database:
        # What the first version did not have.
        database.execute("DROP INDEX jobs_by_batch")
        database.execute("DROP TABLE batches")
        for column in ("batch_id", "queued", "server", "lease_until", "then", "follows", "followed_by", "share"):
            database.execute(f'ALTER TABLE jobs DROP COLUMN "{column}"')
        database.execute("ALTER TABLE outbox DROP COLUMN sender")
        database.execute("DROP TABLE servers")
        database.execute("UPDATE meta SET value = '1' WHERE name = 'schema_version'")
    store = JobStore(f"sqlite:///{path}")
    try:
        assert store.id == own
        assert store.get(old.id) == old
        assert store.find_idempotent("", "k", "b") == old
        batch = Batch(new_id(), "", 1.0, 1)
        BatchStore(store).insert(batch, [new_job(batch_id=batch.id)], key=None, body="")
        assert BatchStore(store).counts([batch.id])[batch.id]["queued"] == 1
        assert store.is_sound()
    finally:
        store.close()
    with sqlite3.connect(path) as database:
        version = database.execute("SELECT value FROM meta WHERE name = 'schema_version'").fetchone()[0]
        names = {row[1] for row in database.execute("PRAGMA index_list(jobs)")}
    assert version == str(SCHEMA_VERSION) and "jobs_by_batch" in names


def test_a_store_of_a_later_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "jobs.sqlite"
    JobStore(f"sqlite:///{path}").close()
    with sqlite3.connect(path) as database:
        database.execute(f"UPDATE meta SET value = '{SCHEMA_VERSION + 1}' WHERE name = 'schema_version'")
    before = path.read_bytes()
    with pytest.raises(Conflict, match=f"version {SCHEMA_VERSION + 1}"):
        JobStore(f"sqlite:///{path}")
    assert path.read_bytes() == before
