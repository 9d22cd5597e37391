"""What is PostgreSQL's own: servers that restart under the store, URLs that lead nowhere, and who may share a home."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import text

from app import cli
from app.core.job_store import JobStore
from app.core.job_tables import SCHEMA_VERSION
from app.core.jobs import JobStatus
from app.core.service import Service
from app.errors import Conflict, InvalidRequest, StorageFull, Unavailable
from app.main import without_password
from tests import postgres
from tests.engine.conftest import end_of, new_job, options, until
from tests.postgres import PASSWORD, Cluster, open_cluster


@pytest.fixture(scope="module")
def own_cluster() -> Iterator[Cluster]:
    """A PostgreSQL server that a test may stop and start."""
    cluster = open_cluster()
    yield cluster
    cluster.close()


def test_writers_and_readers_come_back_after_a_restart(own_cluster: Cluster) -> None:
    store = JobStore(own_cluster.url())
    first = store.insert(new_job())
    own_cluster.stop()
    with pytest.raises(Unavailable):
        store.insert(new_job())
    with pytest.raises(Unavailable):
        store.get(first.id)
    own_cluster.start()
    assert store.get(first.id).status is JobStatus.QUEUED
    assert store.claim(first.id, device="cpu").attempt == 1
    own_cluster.stop(signal.SIGQUIT)
    own_cluster.start()
    # The connection died unnoticed: the change is run on a fresh one, and its caller hears of nothing.
    second = store.insert(new_job())
    assert store.get(first.id).status is JobStatus.RUNNING
    assert store.list_jobs()[1] == 2 and second.turn > first.turn
    store.close()


def test_a_group_whose_connection_dies_is_run_again_whole(own_cluster: Cluster) -> None:
    store = JobStore(own_cluster.url())
    gate, begun = threading.Event(), threading.Event()
    tries: list[int] = []

    def slow(connection: object) -> int:
        tries.append(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
        begun.set()
        assert gate.wait(60)
        return connection.execute(text("SELECT 1")).scalar_one()

    answers: list[int] = []
    writer = threading.Thread(target=lambda: answers.append(store.writer.write(slow)))
    writer.start()
    assert begun.wait(60)
    own_cluster.stop(signal.SIGQUIT)
    own_cluster.start()
    gate.set()
    writer.join()
    assert answers == [1] and len(tries) == 2
    store.close()


def test_a_service_lives_through_a_restart_of_its_database(own_cluster: Cluster, tmp_path: Path) -> None:
    """The running job's end waits for the database; nothing is run a second time."""
    service = Service(options(tmp_path, database_url=own_cluster.url(), server_lost_seconds=600.0))
    service.start()
    try:
        job = service.submit("test/paint", {"num_inference_steps": 20, "step_seconds": 0.05})
        until(lambda: service.get(job.id).status is JobStatus.RUNNING)
        own_cluster.stop()
        with pytest.raises(Unavailable):
            service.submit("test/paint", {})
        time.sleep(1.5)
        own_cluster.start()
        assert end_of(service, job.id).attempt == 1
        # It hears again as well.
        peer = JobStore(service.options.store_url)
        later = peer.insert(new_job())
        until(lambda: service.get(later.id).status is JobStatus.SUCCEEDED, 40)
        peer.close()
    finally:
        service.stop(0.0)


def test_many_jobs_wait_while_the_database_is_away(own_cluster: Cluster, tmp_path: Path) -> None:
    service = Service(options(tmp_path, database_url=own_cluster.url(), server_lost_seconds=600.0))
    service.start()
    try:
        service.pause_queue(True)
        made = [service.submit("test/paint", {"seed": seed}).id for seed in range(10)]
        service.pause_queue(False)
        own_cluster.stop(signal.SIGQUIT)
        own_cluster.start()
        for job_id in made:
            until(lambda job_id=job_id: service.get(job_id).status is JobStatus.SUCCEEDED, 120)
        assert all([entry["after"] for entry in service.history(job_id)].count("succeeded") == 1 for job_id in made)
    finally:
        service.stop(0.0)


# ---- opening


def test_without_postgres_tests_are_skipped_or_fail_where_it_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "programs", lambda: None)
    monkeypatch.delenv(postgres.REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="not installed"):
        open_cluster()
    monkeypatch.setenv(postgres.REQUIRED, "1")
    with pytest.raises(AssertionError, match="not installed"):
        open_cluster()


def test_two_servers_may_start_at_once(cluster: Cluster) -> None:
    url = cluster.url()
    barrier, stores, troubles = threading.Barrier(4), [], []

    def start() -> None:
        barrier.wait()
        try:
            stores.append(JobStore(url))
        except Exception as error:
            troubles.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert troubles == [] and len({store.id for store in stores}) == 1
    for store in stores:
        store.close()
    cluster.drop(url)


def test_a_store_of_another_version_is_refused(postgres_url: str) -> None:
    store = JobStore(postgres_url)
    for version in (SCHEMA_VERSION + 1, 1):
        words = text("UPDATE meta SET value = :version WHERE name = 'schema_version'")
        store.writer.write(
            lambda connection, words=words, version=version: connection.execute(words, {"version": str(version)})
        )
        with pytest.raises(Conflict, match=f"version {version}"):
            JobStore(postgres_url)
    store.close()


def test_a_damaged_index_is_not_sound(postgres_url: str) -> None:
    """amcheck reads the rows as well as the index: one that the index does not know is noticed."""
    store = JobStore(postgres_url)
    store.insert(new_job())
    assert store.is_sound()
    hidden = "UPDATE pg_index SET indisready = %s, indisvalid = true WHERE indexrelid = 'jobs_by_turn'::regclass"
    for statement in (hidden % "false", "INSERT", hidden % "true"):
        if statement == "INSERT":
            store.insert(new_job())
        else:
            store.writer.write(lambda connection, statement=statement: connection.execute(text(statement)))
    assert not store.is_sound()
    store.close()


def test_nul_in_a_question_is_a_refusal(postgres_url: str) -> None:
    store = JobStore(postgres_url)
    with pytest.raises(InvalidRequest, match="NUL"):
        store.get("a\0b")
    with pytest.raises(InvalidRequest, match="NUL"):
        store.list_jobs(capability="\0")
    assert store.list_jobs() == ([], 0)
    store.close()


def test_a_full_disk_is_told_as_one(postgres_url: str) -> None:
    store = JobStore(postgres_url)

    def full(connection: object) -> None:
        connection.execute(text("DO $$ BEGIN RAISE EXCEPTION 'no room' USING ERRCODE = '53100'; END $$"))

    with pytest.raises(StorageFull):
        store.writer.write(full)
    store.close()


def test_whoever_reads_cannot_write(postgres_url: str) -> None:
    store = JobStore(postgres_url)
    with pytest.raises(Unavailable) as refused, store.reader.connect() as connection:
        connection.execute(text("DELETE FROM jobs"))
    assert "read-only transaction" in str(refused.value.__cause__)
    store.close()


def test_a_commit_is_on_the_disk_even_where_the_database_would_not_wait(cluster: Cluster) -> None:
    url = cluster.url()
    first = JobStore(url)
    first.writer.write(
        lambda connection: connection.execute(
            text(f"ALTER DATABASE {first.database.writer.url.database} SET synchronous_commit = off")
        )
    )
    first.close()
    store = JobStore(url)
    shown = store.writer.write(lambda connection: connection.execute(text("SHOW synchronous_commit")).scalar_one())
    assert shown == "on"
    store.close()
    cluster.drop(url)


# ---- what `eis serve` says


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], str]:
    """What `eis serve` says of a URL that it cannot use."""
    monkeypatch.setenv("EIS_HOME", str(tmp_path))
    monkeypatch.setattr("app.main.listen", lambda host, port: socket.socket())

    def told(url: str) -> str:
        monkeypatch.setenv("EIS_DATABASE_URL", url)
        assert cli.main(["serve", "--port", "1"]) == 2
        return checked(capsys.readouterr().err)

    return told


def checked(told: str) -> str:
    """It names the setting, is no stack trace, and keeps the password to itself."""
    assert told.startswith("eis: EIS_DATABASE_URL: ") and "Traceback" not in told
    for secret in ("wrong-word", quote(PASSWORD), PASSWORD):
        assert secret not in told
    return told


def test_a_wrong_password_is_a_sentence_and_exit_2(cluster: Cluster, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "app.cli", "serve", "--port", str(closed_port())],
        env={**os.environ, "EIS_HOME": str(tmp_path), "EIS_DATABASE_URL": cluster.address("wrong-word")},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (run.returncode, run.stdout) == (2, "")
    assert "password authentication failed" in checked(run.stderr)


def test_a_server_that_cannot_be_reached_is_a_sentence(cluster: Cluster, refusal: Callable[[str], str]) -> None:
    assert "the job store cannot be opened" in refusal(cluster.address(port=closed_port()))


def test_a_database_that_is_not_there_is_a_sentence(cluster: Cluster, refusal: Callable[[str], str]) -> None:
    assert "does not exist" in refusal(cluster.address().replace("/postgres", "/nothing_here"))


def test_an_option_that_is_none_is_a_sentence(cluster: Cluster, refusal: Callable[[str], str]) -> None:
    assert "nonsense" in refusal(f"{cluster.address()}?nonsense=1")


def test_a_driver_that_repeats_the_password_is_cut_short() -> None:
    url = "postgresql+psycopg://eis:wrong-word@h/x"
    assert without_password("cannot use wrong-word here", url) == "cannot use *** here"
    assert without_password("no such file", None) == "no such file"


def test_a_missing_driver_is_a_sentence_with_the_extra(
    refusal: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    told = refusal("postgresql+psycopg://eis:wrong-word@127.0.0.1/x")
    assert "edit-image-service[postgres]" in told


@pytest.mark.parametrize("url", ["postgresql://eis:wrong-word@h/x", "postgresql+psycopg2://eis:wrong-word@h/x"])
def test_another_driver_is_refused_with_the_right_one(url: str, refusal: Callable[[str], str]) -> None:
    assert "postgresql+psycopg://" in refusal(url)


def test_another_encoding_is_refused(cluster: Cluster, refusal: Callable[[str], str]) -> None:
    cluster.ask("CREATE DATABASE bytes_alone ENCODING 'SQL_ASCII' TEMPLATE template0")
    try:
        assert "SQL_ASCII" in refusal(cluster.address().replace("/postgres", "/bytes_alone"))
    finally:
        cluster.ask("DROP DATABASE bytes_alone WITH (FORCE)")
