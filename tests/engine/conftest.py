"""Services over the test catalog: inline, and with real worker processes."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from app.core.engine_options import EngineOptions
from app.core.job_store import JobStore
from app.core.job_tables import jobs
from app.core.jobs import Job, JobStatus, new_id
from app.core.service import Service
from tests.postgres import Cluster

# Ray reads this when it is imported, and never again; every process that a test starts has it too.
os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="f" * 64)
os.environ.update(RAY_USAGE_STATS_ENABLED="0", RAY_ENABLE_AUTO_CONNECT="0")

CATALOG = "tests.engine.capabilities:CATALOG"


def options(home: Path, **changes: object) -> EngineOptions:
    """Options of a small service with short times."""
    values: dict = {
        "home": home,
        "catalog": CATALOG,
        "devices": ("inline",),
        "min_free_bytes": 0,
        "retry_seconds": 0.05,
        "heartbeat_seconds": 0.2,
        "cancel_grace_seconds": 0.5,
    }
    return EngineOptions(**{**values, **changes})


@pytest.fixture
def make_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Start services that are stopped at the end of the test."""
    started: list[Service] = []

    def make(**changes: object) -> Service:
        service = Service(options(changes.pop("home", tmp_path), **changes))
        service.start()
        started.append(service)
        return service

    yield make
    for service in started:
        service.stop(0.0)


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    """A service whose worker is a thread of this process."""
    return make_service()


@pytest.fixture
def process_service(make_service: Callable[..., Service]) -> Service:
    """A service with one worker process."""
    return make_service(devices=("cpu",))


DATABASES = ("sqlite", "postgres")


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'jobs.sqlite'}"
        return
    cluster: Cluster = request.getfixturevalue("cluster")
    url = cluster.url()
    yield url
    cluster.drop(url)


@pytest.fixture
def postgres_url(cluster: Cluster) -> Iterator[str]:
    """The URL of an empty PostgreSQL database."""
    url = cluster.url()
    yield url
    cluster.drop(url)


@pytest.fixture
def store(database_url: str) -> Iterator[JobStore]:
    """An empty job store of each kind of database."""
    store = JobStore(database_url)
    yield store
    store.close()


def end_leases(store: JobStore) -> None:
    """As if every server that holds a job had been silent for long; nothing where one server has the store."""
    if store.database.is_shared:
        store.writer.write(lambda connection: connection.execute(update(jobs).values(lease_until=0.0)))


def end_pauses(store: JobStore) -> None:
    """As if every waiting job had paused long enough."""
    store.writer.write(lambda connection: connection.execute(update(jobs).values(not_before=0.0)))


def new_job(**changes: object) -> Job:
    """A job that could be inserted."""
    values: dict = {
        "id": new_id(),
        "capability": "test/paint",
        "request": {"prompt": "a red car", "seed": 1},
        "status": JobStatus.QUEUED,
        "priority": 5,
        "created": time.time(),
    }
    return Job(**{**values, **changes})


def end_of(service: Service, job_id: str, seconds: float = 30.0) -> Job:
    """The job at its end."""
    for _ in service.watch_blocking(job_id, seconds=seconds):
        pass
    job = service.get(job_id)
    assert job.status.is_terminal, f"{job.status} after {seconds} s of silence; {service.readiness()}"
    return job


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never became so"
        time.sleep(0.01)
