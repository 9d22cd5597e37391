"""The job store's contract: what holds for every kind of database."""

import itertools
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from app.core.job_store import JobStore
from app.core.jobs import TRANSITIONS, Job, JobStatus, new_id
from app.core.sqlite_database import refuse_network_folder
from app.errors import Conflict, UnknownJob
from tests.engine.conftest import end_leases, end_pauses, new_job
from tests.postgres import Cluster

STEPS = {"step": 4, "steps": 4}


def no_pause(attempt: int) -> float:
    return 0.0


def picture() -> dict:
    return {
        "id": new_id(),
        "width": 64,
        "height": 32,
        "bytes": 900,
        "sha256": "0" * 64,
        "media_type": "image/png",
        "seed": 7,
    }


def states(store: JobStore, job: Job) -> list[tuple[str | None, str]]:
    return [(entry["before"], entry["after"]) for entry in store.history(job.id)]


def test_an_accepted_job_reads_back_as_it_was(store: JobStore) -> None:
    wish = new_job(request={"prompt": "ein rotes Auto 🚗", "seed": 2**32 - 1, "loras": []}, owner="ann", model="pocket")
    accepted = store.insert(wish)
    assert accepted.turn == 1
    assert store.get(wish.id) == accepted
    assert states(store, wish) == [(None, "queued")]


def test_unknown_ids_are_said_to_be_unknown(store: JobStore) -> None:
    with pytest.raises(UnknownJob):
        store.get(new_id())
    with pytest.raises(UnknownJob):
        store.cancel(new_id())


def test_the_attempt_is_counted_at_the_claim(store: JobStore) -> None:
    job = store.insert(new_job())
    claimed = store.claim(job.id, device="cpu")
    assert (claimed.attempt, claimed.status, claimed.device) == (1, JobStatus.RUNNING, "cpu")
    assert store.get(job.id) == claimed
    assert store.claim(job.id, device="cpu") is None


def test_a_late_writer_with_an_old_token_changes_nothing(store: JobStore) -> None:
    job = store.insert(new_job())
    store.claim(job.id, device="cpu")
    store.lose(job.id, 1, no_pause, reason="silent")
    again = store.claim(job.id, device="cpu")
    before = store.history(job.id)
    result = {"images": [picture()], "data": {}, "notes": []}
    assert store.succeed(job.id, 1, result, **STEPS) is None
    assert store.fail(job.id, 1, {"code": "internal", "message": "late"}, **STEPS) is None
    assert store.cancelled(job.id, 1, **STEPS) is None
    assert store.lose(job.id, 1, no_pause, reason="late") is None
    assert store.get(job.id) == again
    assert store.history(job.id) == before
    assert store.images.search() == ([], 0)
    assert store.succeed(job.id, 2, result, **STEPS).status is JobStatus.SUCCEEDED


def test_success_and_its_pictures_are_one_transaction(store: JobStore) -> None:
    job = store.insert(new_job(owner="ann", model="pocket"))
    store.claim(job.id, device="cpu")
    made = [picture(), picture()]
    ended = store.succeed(job.id, 1, {"images": made, "data": {"n": 2}, "notes": ["x"]}, **STEPS)
    assert store.get(job.id) == ended
    found, total = store.images.search(owner="ann", prompt="CAR red", model="pocket", seed=7)
    assert total == 2
    assert {record.id for record in found} == {entry["id"] for entry in made}
    assert {record.job_id for record in found} == {job.id}
    assert store.images.search(owner="ben")[1] == 0
    assert store.images.search(prompt="blue")[1] == 0
    assert store.images.search(prompt="%")[1] == 0

    broken = store.insert(new_job())
    store.claim(broken.id, device="cpu")
    with pytest.raises(KeyError):
        store.succeed(broken.id, 1, {"images": [{"id": new_id()}]}, **STEPS)
    assert store.get(broken.id).status is JobStatus.RUNNING


def test_a_job_succeeds_at_most_once_even_by_hand(store: JobStore) -> None:
    job = store.insert(new_job())
    store.claim(job.id, device="cpu")
    store.succeed(job.id, 1, {"images": []}, **STEPS)
    columns = "job_id, attempt, before, after, at, reason"
    for words in (
        f"INSERT INTO transitions ({columns}) VALUES (:id, 1, 'running', 'succeeded', 0, '')",
        "UPDATE transitions SET after = 'failed' WHERE job_id = :id",
        "DELETE FROM transitions WHERE job_id = :id",
    ):
        with pytest.raises(DBAPIError):
            store.writer.write(lambda connection, words=words: connection.execute(text(words), {"id": job.id}))
    assert states(store, job) == [(None, "queued"), ("queued", "running"), ("running", "succeeded")]


def test_lost_attempts_end_as_worker_lost_and_are_kept(store: JobStore) -> None:
    job = store.insert(new_job(max_attempts=2))
    store.claim(job.id, device="cpu")
    waits = store.lose(job.id, 1, lambda attempt: 30.0 * attempt, reason="killed")
    assert waits.status is JobStatus.QUEUED
    assert waits.not_before > job.created + 29
    assert store.claim(job.id, device="cpu") is None, "its pause is not over"
    end_pauses(store)
    store.claim(job.id, device="cpu")
    lost = store.lose(job.id, 2, no_pause, reason="killed")
    assert (lost.status, lost.error["code"], lost.attempt) == (JobStatus.FAILED, "worker_lost", 2)
    assert store.get(job.id) == lost


def test_a_stop_on_purpose_costs_no_attempt(store: JobStore) -> None:
    job = store.insert(new_job(max_attempts=1))
    for attempt in (1, 2, 3):
        store.claim(job.id, device="cpu")
        after = store.lose(job.id, attempt, no_pause, reason="stopped", counts=False)
        assert (after.status, after.not_before) == (JobStatus.QUEUED, None)
    store.claim(job.id, device="cpu")
    assert store.lose(job.id, 4, no_pause, reason="killed").status is JobStatus.FAILED


def test_a_restart_queues_what_ran_and_cancels_what_was_to_end(store: JobStore) -> None:
    runs, ends, waits = (store.insert(new_job()) for _ in range(3))
    store.claim(runs.id, device="cpu")
    store.claim(ends.id, device="cpu")
    store.cancel(ends.id)
    end_leases(store)
    store.recover(no_pause)
    assert [store.get(job.id).status for job in (runs, ends, waits)] == ["queued", "cancelled", "queued"]
    assert [entry.id for entry in sorted(store.waiting(), key=lambda entry: entry.place)] == [runs.id, waits.id]


def test_cancel_and_retry_by_hand(store: JobStore) -> None:
    job, later = store.insert(new_job()), store.insert(new_job())
    assert store.cancel(job.id).status is JobStatus.CANCELLED
    assert store.cancel(job.id).status is JobStatus.CANCELLED
    again = store.retry(job.id, attempts=3)
    assert (again.status, again.max_attempts, again.finished) == (JobStatus.QUEUED, 3, None)
    assert again.turn > later.turn
    with pytest.raises(Conflict):
        store.retry(job.id, attempts=3)
    store.claim(job.id, device="cpu")
    running = store.cancel(job.id)
    assert (running.status, running.cancel_requested) == (JobStatus.RUNNING, True)
    store.succeed(job.id, 1, {"images": []}, **STEPS)
    with pytest.raises(Conflict):
        store.cancel(job.id)


def test_every_column_holds_the_longest_that_may_come(store: JobStore) -> None:
    """SQLite takes any length for any column, PostgreSQL what was said."""
    long = "ü" * 5000
    job = new_job(owner=long[:64], model=long, capability=long, request={"prompt": long}, idempotency_key="k" * 255)
    job = store.insert(replace(job, callback_url=f"https://example.org/{long}", batch_id=new_id()), body=long)
    store.claim(job.id, device=long, reason=long)
    result = {
        "images": [{**picture(), "bytes": 2**40, "seed": 2**32 - 1, "media_type": "image/avif"}],
        "data": {long: 1},
    }
    assert store.succeed(job.id, 1, result, **STEPS) == store.get(job.id)
    assert store.find_idempotent(job.owner, "k" * 255, long).id == job.id
    assert store.images.search(seed=2**32 - 1)[0][0].bytes == 2**40


def test_the_same_key_and_body_is_the_same_job(store: JobStore) -> None:
    first = store.insert(new_job(owner="ann", idempotency_key="k"), body="one")
    assert store.insert(new_job(owner="ann", idempotency_key="k"), body="one") == first
    assert store.insert(new_job(owner="ben", idempotency_key="k"), body="one").id != first.id
    with pytest.raises(Conflict):
        store.insert(new_job(owner="ann", idempotency_key="k"), body="two")
    assert store.list_jobs()[1] == 2


def test_one_key_from_many_threads_makes_one_job(store: JobStore) -> None:
    barrier = threading.Barrier(8)

    def submit(_: int) -> str:
        barrier.wait()
        return store.insert(new_job(idempotency_key="k"), body="one").id

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(submit, range(8)))) == 1
    assert store.list_jobs()[1] == 1


def test_a_claim_is_answered_again_only_to_the_server_that_made_it(store: JobStore, database_url: str) -> None:
    job = store.insert(new_job())
    assert store.claim(job.id, device="cpu", again=True).attempt == 1
    again = store.claim(job.id, device="cuda:0", reason="once more", again=True)
    assert (again.attempt, again.device, again.device_reason) == (1, "cuda:0", "once more")
    assert store.get(job.id).device == "cuda:0" and store.claim(job.id, device="cpu") is None
    if store.database.is_shared:
        other = JobStore(database_url)
        assert other.claim(job.id, device="cpu", again=True) is None
        other.close()
    ended = store.cancelled(job.id, 1, step=0, steps=1)
    assert ended.status is JobStatus.CANCELLED and store.claim(job.id, device="cpu", again=True) is None
    assert store.claim("a" * 26, device="cpu", again=True) is None


def test_each_job_is_claimed_once_by_many_claimers(store: JobStore) -> None:
    ids = [store.insert(new_job()).id for _ in range(40)]
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda job_id: store.claim(job_id, device="cpu"), ids * 4))
    assert sorted(job.id for job in claims if job is not None) == sorted(ids)
    assert {job.attempt for job in claims if job is not None} == {1}


def test_listing_filters_and_counts(store: JobStore) -> None:
    for index in range(5):
        store.insert(new_job(owner="ann", capability="test/fail" if index % 2 else "test/paint"))
    store.insert(new_job(owner="ben"))
    page, total = store.list_jobs(owner="ann", limit=2, offset=1)
    assert (len(page), total) == (2, 5)
    assert [job.turn for job in page] == [4, 3]
    assert store.list_jobs(owner="ann", capability="test/fail")[1] == 2
    assert store.list_jobs(status=JobStatus.RUNNING) == ([], 0)
    assert store.counts()["queued"] == 6
    assert store.is_sound()


def test_one_failing_change_takes_nothing_of_its_group(store: JobStore) -> None:
    """A change that fails after it wrote is undone; the others of its commit stand."""
    gate, good = threading.Event(), [new_job() for _ in range(6)]

    def bad() -> None:
        def change(connection):
            connection.exec_driver_sql("UPDATE jobs SET priority = 10")
            raise ZeroDivisionError

        store.writer.write(change)

    with ThreadPoolExecutor(9) as pool:
        blocker = pool.submit(store.writer.write, lambda connection: gate.wait(10))
        writes = [pool.submit(store.insert, job) for job in good[:3]]
        failing = pool.submit(bad)
        writes += [pool.submit(store.insert, job) for job in good[3:]]
        gate.set()
        blocker.result()
        with pytest.raises(ZeroDivisionError):
            failing.result()
        for write in writes:
            write.result()
    assert {job.priority for job in store.list_jobs()[0]} == {5}
    assert store.list_jobs()[1] == 6


def test_waiting_writers_share_a_commit(store: JobStore) -> None:
    gate, commits = threading.Event(), []
    commit = store.writer._commit
    store.writer._commit = lambda changes: (commits.append(len(changes)), commit(changes))
    with ThreadPoolExecutor(20) as pool:
        blocker = pool.submit(store.writer.write, lambda connection: gate.wait(10))
        while not commits:
            pass
        writes = [pool.submit(store.insert, new_job()) for _ in range(19)]
        while store.writer._waiting.qsize() < 19:
            pass
        gate.set()
        for write in [blocker, *writes]:
            write.result()
    assert commits == [1, 19]


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[JobStore]:
    store = JobStore(f"sqlite:///{tmp_path / 'jobs.sqlite'}")
    yield store
    store.close()


def test_a_second_process_is_refused(sqlite_store: JobStore, tmp_path: Path) -> None:
    store, url = sqlite_store, f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    program = "import sys; from app.core.job_store import JobStore; JobStore(sys.argv[1])"
    second = subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True)
    assert second.returncode != 0
    assert "Another Edit Image Service runs on this home folder" in second.stderr
    store.close()
    assert subprocess.run([sys.executable, "-c", program, url]).returncode == 0


def test_only_its_owner_may_read_the_store(sqlite_store: JobStore, tmp_path: Path) -> None:
    sqlite_store.insert(new_job())
    kept = sorted(tmp_path.glob("jobs.sqlite*"))
    assert {path.name for path in kept} >= {"jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite.lock"}
    assert {path.stat().st_mode & 0o077 for path in kept} == {0}


def test_a_network_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = f"/dev/vda / ext4 rw 0 0\nserver:/export {tmp_path}/a\\040b nfs4 rw 0 0\n"
    monkeypatch.setattr(Path, "read_text", lambda path: mounts)
    refuse_network_folder(tmp_path)
    with pytest.raises(Conflict, match="nfs4"):
        refuse_network_folder(tmp_path / "a b" / "home")


class Moves(RuleBasedStateMachine):
    """Random moves with right and stale tokens; the invariants hold after each."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.store = self.open()
        self.ids: list[str] = []

    def open(self) -> JobStore:
        self.folder = tempfile.TemporaryDirectory()
        return JobStore(f"sqlite:///{self.folder.name}/jobs.sqlite")

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(target=jobs, attempts=st.integers(1, 3))
    def submit(self, attempts: int) -> str:
        job = self.store.insert(new_job(max_attempts=attempts, callback_url="https://example.org/"))
        self.ids.append(job.id)
        return job.id

    @rule(job=jobs)
    def claim(self, job: str) -> None:
        before = self.store.get(job)
        claimed = self.store.claim(job, device="cpu")
        assert (claimed is not None) == (before.status is JobStatus.QUEUED)

    @rule(job=jobs, late=st.integers(0, 1), how=st.sampled_from(["succeed", "fail", "cancelled", "lose"]))
    def end(self, job: str, late: int, how: str) -> None:
        before = self.store.get(job)
        token = before.attempt - late
        match how:
            case "succeed":
                after = self.store.succeed(job, token, {"images": []}, **STEPS)
            case "fail":
                after = self.store.fail(job, token, {"code": "internal", "message": ""}, **STEPS)
            case "cancelled":
                after = self.store.cancelled(job, token, **STEPS)
            case _:
                after = self.store.lose(job, token, no_pause, reason="lost")
        assert (after is not None) == (before.status is JobStatus.RUNNING and not late)
        if after is None:
            assert self.store.get(job) == before

    @rule(job=jobs)
    def cancel(self, job: str) -> None:
        try:
            self.store.cancel(job)
        except Conflict:
            assert self.store.get(job).status in {JobStatus.SUCCEEDED, JobStatus.FAILED}

    @rule(job=jobs)
    def retry(self, job: str) -> None:
        try:
            self.store.retry(job, attempts=2)
        except Conflict:
            assert self.store.get(job).status not in {JobStatus.FAILED, JobStatus.CANCELLED}

    @rule()
    def restart(self) -> None:
        end_leases(self.store)
        self.store.recover(no_pause)
        assert self.store.counts()["running"] == 0

    @invariant()
    def histories_are_legal_and_end_where_the_job_is(self) -> None:
        for job_id in self.ids:
            job, history = self.store.get(job_id), self.store.history(job_id)
            assert job.attempt <= job.max_attempts
            assert history[-1]["after"] == job.status
            for earlier, later in itertools.pairwise(history):
                assert later["before"] == earlier["after"]
                assert JobStatus(later["after"]) in TRANSITIONS[JobStatus(later["before"])]
            assert sum(entry["after"] == "succeeded" for entry in history) <= 1
            ends = sum(JobStatus(entry["after"]).is_terminal for entry in history)
            assert len(self.store.outbox.of_job(job_id)) == ends


MOVES = settings(max_examples=12, stateful_step_count=25, deadline=None)


def test_random_moves_on_sqlite() -> None:
    run_state_machine_as_test(Moves, settings=MOVES)


def test_random_moves_on_postgres(cluster: Cluster) -> None:
    class OnPostgres(Moves):
        def open(self) -> JobStore:
            self.url = cluster.url()
            return JobStore(self.url)

        def teardown(self) -> None:
            self.store.close()
            cluster.drop(self.url)

    run_state_machine_as_test(OnPostgres, settings=MOVES)
