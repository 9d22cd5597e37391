"""Several servers on one queue: they share a PostgreSQL store and the home folder, and each sees what the others do."""

import asyncio
import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Connection, select, update

from app.core import peers
from app.core.batching import Wish
from app.core.job_store import JobStore
from app.core.job_tables import jobs, servers
from app.core.jobs import Job, JobStatus
from app.core.leases import Leases
from app.core.service import Service
from app.errors import Conflict, QueueFull, Unavailable
from tests.engine.conftest import end_leases, end_of, new_job, until
from tests.engine.ledger import audit
from tests.engine.test_callbacks import SECRET, Receiver, receiver  # noqa: F401

SLOW = {"num_inference_steps": 400, "step_seconds": 0.05}
STEPS = {"step": 1, "steps": 1}
Make = Callable[..., Service]


def no_pause(attempt: int) -> float:
    return 0.0


@pytest.fixture
def make(make_service: Make, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Start another server of the same store, which knows by words alone; one that does not work takes nothing."""
    monkeypatch.setattr(peers, "LOOK_SECONDS", 600.0)

    def start(*, works: bool = True, **changes: object) -> Service:
        service = make_service(database_url=postgres_url, **{"server_lost_seconds": 600.0, **changes})
        if not works:
            (worker,) = service._dispatcher._fleet.workers.values()
            worker.enabled = False
        return service

    return start


@pytest.fixture
def front(make: Make) -> Service:
    """A server that accepts and runs nothing: what it accepts runs elsewhere."""
    return make(works=False)


def is_running(service: Service, job: Job) -> bool:
    return service.get(job.id).status is JobStatus.RUNNING


def test_what_one_accepts_another_runs_and_the_first_sees_all_of_it(front: Service, make: Make) -> None:
    other = make()
    job = front.submit("test/paint", {"num_inference_steps": 12, "step_seconds": 0.15})
    events = list(front.watch_blocking(job.id, seconds=30))
    kinds = [event.kind for event in events]
    assert kinds[0] == "queued" and kinds[-1] == "succeeded"
    assert {"started", "step"} <= set(kinds)
    steps = [event.data["step"] for event in events if event.kind == "step"]
    assert steps == sorted(steps) and max(steps) <= 12
    ended = front.get(job.id)
    assert ended == other.get(job.id)
    assert events[-1].data["result"] == ended.result
    assert front.storage.path(ended.result["images"][0]["id"]).is_file()


def test_wait_ends_with_a_job_that_runs_elsewhere(front: Service, make: Make) -> None:
    make()
    job = front.submit("test/paint", {"step_seconds": 0.05})
    assert asyncio.run(front.wait(job.id, 30)).status is JobStatus.SUCCEEDED


def test_progress_is_told_of_a_job_that_runs_elsewhere(front: Service, make: Make) -> None:
    make()
    job = front.submit("test/paint", SLOW)
    until(lambda: front.get(job.id).step > 2)
    assert front.get(job.id).steps == 400
    front.cancel(job.id)
    end_of(front, job.id)


def test_a_cancel_reaches_the_server_that_runs_it(front: Service, make: Make) -> None:
    make()
    job = front.submit("test/paint", SLOW)
    until(lambda: is_running(front, job))
    assert front.cancel(job.id).cancel_requested
    assert end_of(front, job.id).status is JobStatus.CANCELLED


def test_a_cancel_that_was_not_heard_is_found_with_the_next_beat(
    front: Service, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(server_lost_seconds=2.0)
    job = front.submit("test/paint", SLOW)
    until(lambda: is_running(front, job))
    monkeypatch.setattr(front._store.database, "tell", lambda connection, kind, ids: None)
    front.cancel(job.id)
    until(lambda: front.get(job.id).status is JobStatus.CANCELLED, 30)


def test_a_waiting_job_that_is_cancelled_leaves_every_queue(front: Service, make: Make) -> None:
    other = make(works=False)
    job = front.submit("test/paint", {})
    until(lambda: other.position(job.id) == 0)
    other.cancel(job.id)
    until(lambda: front.position(job.id) is None)
    assert front.readiness()["queued"] == other.readiness()["queued"] == 0
    with pytest.raises(Conflict):
        front.reprioritise(job.id, 9)


def test_another_priority_counts_on_every_server(front: Service, make: Make) -> None:
    other = make(works=False)
    first, second = (front.submit("test/paint", {"seed": seed}) for seed in range(2))
    until(lambda: other.position(second.id) == 1)
    front.reprioritise(second.id, 9)
    until(lambda: (other.position(second.id), other.position(first.id)) == (0, 1))


def test_a_pause_holds_on_every_server(front: Service, make: Make) -> None:
    other = make()
    front.pause_queue(True)
    until(lambda: other.readiness()["paused"])
    job = front.submit("test/paint", {})
    until(lambda: other.position(job.id) == 0)
    assert make().readiness()["paused"] is True
    time.sleep(0.3)
    assert front.get(job.id).status is JobStatus.QUEUED
    other.pause_queue(False)
    assert end_of(front, job.id).status is JobStatus.SUCCEEDED


def test_batches_act_on_every_server(front: Service, make: Make) -> None:
    other = make()
    batch, _ = front.submit_batch([Wish("test/paint", SLOW) for _ in range(4)])
    until(lambda: front.batch(batch.id).counts["running"] == 1)
    until(lambda: other.readiness()["queued"] == 3)
    front.cancel_batch(batch.id)
    until(lambda: other.batch(batch.id).counts["cancelled"] == 4)
    until(lambda: other.readiness()["queued"] == front.readiness()["queued"] == 0)


def test_one_key_at_two_servers_makes_one_job(postgres_url: str) -> None:
    stores = [JobStore(postgres_url) for _ in range(2)]
    barrier = threading.Barrier(8)
    made: list[str] = []

    def submit(store: JobStore, key: str) -> None:
        barrier.wait()
        made.append(store.insert(new_job(idempotency_key=key), body="one").id)

    for turn in range(10):
        threads = [threading.Thread(target=submit, args=(stores[n % 2], f"k{turn}")) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(made) == 80 and len(set(made)) == 10
    assert stores[0].list_jobs()[1] == 10
    assert len({entry.turn for entry in stores[0].waiting()}) == 10
    for store in stores:
        store.close()


def test_changes_of_two_servers_that_wait_for_each_other_both_come_through(postgres_url: str) -> None:
    """Each locks the same two jobs in another order; the database ends one, and that one is run again."""
    stores = [JobStore(postgres_url) for _ in range(2)]
    pair = [stores[0].insert(new_job()).id for _ in range(2)]
    both_hold_one = threading.Barrier(2)

    def cancel(store: JobStore, order: list[str]) -> None:
        tries = itertools.count()

        def change(connection: Connection) -> None:
            store.cancel_within(connection, order[0])
            if next(tries) == 0:
                both_hold_one.wait()
            store.cancel_within(connection, order[1])

        store.writer.write(change)

    with ThreadPoolExecutor(2) as pool:
        for ended in [pool.submit(cancel, stores[0], pair), pool.submit(cancel, stores[1], pair[::-1])]:
            ended.result()
    assert stores[0].counts()["cancelled"] == 2
    for store in stores:
        store.close()


def test_a_picture_is_not_deleted_while_another_server_accepts_a_job_that_names_it(postgres_url: str) -> None:
    stores = [JobStore(postgres_url) for _ in range(2)]
    for _ in range(20):
        job = new_job()
        image = job.id[::-1]
        told: dict[str, object] = {}

        def accept(job: Job = job, image: str = image, told: dict = told) -> None:
            try:
                told["job"] = stores[0].insert(new_job(id=job.id, request={"image": image}))
            except Exception as error:
                told["refused"] = error

        def remove(image: str = image, told: dict = told) -> None:
            try:
                stores[1].images.remove(image, owner="", sha256="0" * 64)
                told["removed"] = True
            except Conflict:
                told["kept"] = True

        threads = [threading.Thread(target=run) for run in (accept, remove)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ("job" in told) == ("kept" in told) and ("refused" in told) == ("removed" in told), told
    for store in stores:
        store.close()


# ---- leases


def test_a_skewed_clock_takes_no_live_lease(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = JobStore(postgres_url), JobStore(postgres_url)
    job = right.insert(new_job())
    claimed = right.claim(job.id, device="cpu")
    real = time.time
    for skew in (3600.0, -3600.0):
        monkeypatch.setattr(time, "time", lambda skew=skew: real() + skew)
        assert wrong.recover(no_pause) == []
        wrong.leases.renew([])
        assert abs(wrong.now() - real()) < 5, "the next look at the database sets the clock right"
        late = wrong.insert(new_job())
        assert abs(late.created - real()) < 5
    monkeypatch.setattr(time, "time", real)
    paused = right.lose(job.id, 1, lambda attempt: 60.0, reason="lost")
    monkeypatch.setattr(time, "time", lambda: real() + 3600.0)
    assert wrong.claim(job.id, device="cpu") is None, "its pause is by the database's clock"
    assert paused.not_before - claimed.started < 70
    for store in (right, wrong):
        store.close()


def test_an_ended_lease_is_taken_up_once_and_the_late_writer_changes_nothing(postgres_url: str) -> None:
    silent, others = JobStore(postgres_url, lease_seconds=0.05), [JobStore(postgres_url) for _ in range(4)]
    ids = [silent.insert(new_job()).id for _ in range(20)]
    for job_id in ids:
        silent.claim(job_id, device="cpu")
    time.sleep(0.2)
    taken: list[Job] = []
    threads = [threading.Thread(target=lambda store=store: taken.extend(store.recover(no_pause))) for store in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(job.id for job in taken) == sorted(ids)
    assert {job.status for job in taken} == {JobStatus.QUEUED}
    assert silent.leases.renew([(ids[0], 1)]).lost == [(ids[0], 1)]
    assert silent.succeed(ids[0], 1, {"images": []}, **STEPS) is None
    for store in (silent, *others):
        store.close()


def test_a_renewed_lease_is_nobody_else_s(postgres_url: str) -> None:
    alive, other = JobStore(postgres_url, lease_seconds=600), JobStore(postgres_url)
    job = alive.insert(new_job())
    alive.claim(job.id, device="cpu")
    end_leases(other)
    assert alive.leases.renew([(job.id, 1)]).lost == []
    assert other.recover(no_pause) == []
    end_leases(other)
    assert [lost.id for lost in other.recover(no_pause)] == [job.id]
    assert alive.leases.renew([(job.id, 1)]).lost == [(job.id, 1)]
    for store in (alive, other):
        store.close()


def test_a_claim_that_its_server_does_not_know_of_is_given_up(postgres_url: str) -> None:
    """The answer to its commit was lost: the server lives on, and says so, and yet the job must run."""
    store = JobStore(postgres_url, lease_seconds=0.3)
    job = store.insert(new_job())
    store.claim(job.id, device="cpu")
    for _ in range(6):
        time.sleep(0.1)
        store.leases.renew([])
    assert [lost.id for lost in store.recover(no_pause)] == [job.id]
    store.close()


def test_a_server_that_died_on_this_machine_is_known_dead(postgres_url: str) -> None:
    dead, other = JobStore(postgres_url), JobStore(postgres_url)
    job = dead.insert(new_job(callback_url="https://example.org/hook"))
    dead.claim(job.id, device="cpu")
    assert other.recover(no_pause) == [], "its process lives"
    # A process of that number that began at another time is another process.
    gone = update(servers).where(servers.c.id == dead.database.server).values(began=servers.c.began - 1)
    other.writer.write(lambda connection: connection.execute(gone))
    assert [lost.id for lost in other.recover(no_pause)] == [job.id]
    with other.reader.connect() as connection:
        assert list(connection.execute(select(servers.c.id)).scalars()) == [other.database.server]
    for store in (dead, other):
        store.close()


def test_a_server_that_lost_a_lease_ends_the_attempt(front: Service, make: Make) -> None:
    """Its machine slept, say; another server has taken the job meanwhile."""
    worker = make(server_lost_seconds=1.0)
    job = front.submit("test/paint", SLOW)
    until(lambda: is_running(front, job))
    stolen = update(jobs).where(jobs.c.id == job.id).values(server=front._store.database.server, attempt=7)
    front._store.writer.write(lambda connection: connection.execute(stolen))
    until(lambda: worker.readiness()["running"] == 0, 30)
    assert front.get(job.id).status is JobStatus.RUNNING, "what it made of the attempt changes nothing"


def test_the_job_of_a_server_that_fell_silent_runs_elsewhere(make: Make, postgres_url: str) -> None:
    front = make(works=False, server_lost_seconds=1.0)
    silent = JobStore(postgres_url, lease_seconds=0.1)
    job = front.submit("test/paint", {})
    silent.claim(job.id, device="cpu")
    kinds: list[str] = []
    for event in front.watch_blocking(job.id, seconds=30):
        if event.kind == "requeued":
            make()
        kinds.append(event.kind)
    assert "requeued" in kinds and kinds[-1] == "succeeded"
    assert front.get(job.id).attempt == 2
    assert front.history(job.id)[2]["reason"] == "the server that ran it is gone"
    silent.close()


def test_silence_counts_only_after_beats_in_a_row(
    make: Make, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the database was away nobody could speak."""
    front = make(works=False, server_lost_seconds=1.0)
    real_renew, real_recover = front._store.leases.renew, front._store.recover
    told: list[object] = []

    def renew(held: object) -> object:
        if told.count("trouble") < 2 and told.count(True) == 1:
            told.append("trouble")
            raise Unavailable("The job store cannot be used just now.")
        return real_renew(held)

    def recover(pause: object, *, silent: bool = True) -> object:
        told.append(silent)
        return real_recover(pause, silent=silent)

    monkeypatch.setattr(front._store.leases, "renew", renew)
    monkeypatch.setattr(front._store, "recover", recover)
    until(lambda: told.count(True) >= 2)
    after = told[told.index("trouble") :]
    assert after[:5] == ["trouble", "trouble", False, False, True]
    silent = JobStore(postgres_url, lease_seconds=0.0)
    job = silent.insert(new_job())
    silent.claim(job.id, device="cpu")
    assert front._store.recover(no_pause, silent=False) == []
    silent.close()


def test_a_stopped_server_gives_its_job_back_at_once(front: Service, make: Make) -> None:
    leaves = make()
    job = front.submit("test/paint", SLOW)
    until(lambda: is_running(front, job))
    leaves.stop(0.0)
    assert front.get(job.id).status is JobStatus.QUEUED
    make()
    until(lambda: is_running(front, job))
    front.cancel(job.id)
    assert end_of(front, job.id).attempt == 2


def test_what_no_word_was_said_of_is_found(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that dies between commit and word, or a connection that broke: the slow look finds jobs and ends."""
    monkeypatch.setattr(peers, "LOOK_SECONDS", 0.5)
    front, other = make(works=False), make()
    for service in (front, other):
        monkeypatch.setattr(service._store.database, "tell", lambda connection, kind, ids: None)
    job = front.submit("test/paint", {})
    assert end_of(front, job.id).status is JobStatus.SUCCEEDED
    front.pause_queue(True)
    until(lambda: other.readiness()["paused"])


# ---- what is counted and delivered


def test_the_queue_s_limit_counts_what_every_server_accepted(front: Service, make: Make) -> None:
    other = make(works=False, queue_limit=3)
    accepted = [front.submit("test/paint", {"seed": seed}) for seed in range(3)]
    until(lambda: other.readiness()["queued"] == 3)
    with pytest.raises(QueueFull):
        other.submit("test/paint", {})
    front.cancel(accepted[0].id)
    until(lambda: other.readiness()["queued"] == 2)
    other.submit("test/paint", {})


def test_keys_take_turns_with_what_other_servers_took(front: Service, make: Make) -> None:
    other = make(works=False)
    for owner, count in (("ann", 3), ("bob", 1)):
        for seed in range(count):
            front.submit("test/paint", {"seed": seed}, owner=owner)
    until(lambda: other.readiness()["queued"] == 4)
    (first, _), *_ = front.next_jobs("ann")
    front._store.claim(first.id, device="cpu")
    until(lambda: other.readiness()["queued"] == 3)
    ((_, position),) = other.next_jobs("bob")
    assert position == 0, "ann was served, if by another server"
    assert other.next_jobs("ann")[0][1] == 1


def test_each_callback_is_delivered_by_one_server(
    make: Make,
    receiver: Receiver,  # noqa: F811
) -> None:
    told = {"trusted_hosts": (receiver.address,), "callback_secret": SECRET}
    both = [make(**told), make(**told)]
    made = [both[seed % 2].submit("test/paint", {"seed": seed}, callback_url=receiver.url).id for seed in range(24)]
    for job_id in made:
        end_of(both[0], job_id)
    until(lambda: all(both[0].callbacks_of(job_id)[0]["state"] == "delivered" for job_id in made))
    ids = [headers["webhook-id"] for headers, _ in receiver.seen]
    assert len(ids) == len(set(ids)) == 24
    assert {both[0].callbacks_of(job_id)[0]["attempts"] for job_id in made} == {1}


def test_the_callback_of_a_dead_server_is_sent_by_another(postgres_url: str) -> None:
    dead, other = JobStore(postgres_url), JobStore(postgres_url)
    job = dead.insert(new_job(callback_url="https://example.org/hook"))
    dead.claim(job.id, device="cpu")
    dead.succeed(job.id, 1, {"images": []}, **STEPS)
    (taken,) = dead.outbox.due(dead.now() + 1, 5)
    assert other.outbox.due(other.now() + 1, 5) == [], "it is another server's just now"
    gone = update(servers).where(servers.c.id == dead.database.server).values(began=servers.c.began - 1)
    other.writer.write(lambda connection: connection.execute(gone))
    other.recover(no_pause)
    assert other.outbox.due(other.now() + 1, 5) == [taken]
    assert dead.outbox.due(dead.now() + 1000, 5) == [taken], "a server that hangs holds it for a time only"
    for store in (dead, other):
        store.close()


def test_each_server_s_sweep_leaves_the_other_s_pictures(make: Make, tmp_path: Path) -> None:
    both = [make(orphan_seconds=0.05, sweep_seconds=5.0) for _ in range(2)]
    wish = {"num_inference_steps": 3, "step_seconds": 0.05, "num_images_per_prompt": 2}
    made = [both[seed % 2].submit("test/paint", {**wish, "seed": seed}) for seed in range(12)]
    image = both[0].upload(both[0].storage.encode(end_of(both[1], made[0].id).result["images"][0]["id"]))
    copied = both[1].submit("test/copy", {"image": image.id})
    for job in (*made, copied):
        assert end_of(both[0], job.id).status is JobStatus.SUCCEEDED
    time.sleep(0.5)
    for service in both:
        service.stop(5.0)
    assert audit(tmp_path, [job.id for job in (*made, copied)], both[0].options.store_url)["files"] == 25


def test_a_beat_renews_every_job_in_one_statement(postgres_url: str) -> None:
    store = JobStore(postgres_url)
    held = [(store.claim(store.insert(new_job()).id, device="cpu").id, 1) for _ in range(5)]
    statements: list[str] = []

    class Counting:
        def write(self, change: Callable) -> object:
            def counted(connection: object) -> object:
                execute = connection.execute
                connection.execute = lambda query, *rest: (statements.append(str(query)), execute(query, *rest))[1]
                try:
                    return change(connection)
                finally:
                    del connection.execute

            return store.writer.write(counted)

    leases = Leases(Counting(), store.database, 20.0)
    assert leases.renew(held).lost == []
    assert sum("UPDATE jobs" in statement for statement in statements) == 1
    store.close()
