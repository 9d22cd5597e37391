"""What is read of the table of jobs: one, a page, what waits, how many are in which state, and a job's history."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from app.core.batch_processing import Waiting
from app.core.database import Reader
from app.core.job_rows import COLUMNS, job_of
from app.core.job_tables import jobs, transitions
from app.core.jobs import Job, JobStatus
from app.errors import UnknownJob

# Made once: SQLAlchemy then finds its compiled form without looking into it.
BY_ID = select(*COLUMNS).where(jobs.c.id == bindparam("job_id"))


class JobReading:
    """The part of the job store that changes nothing."""

    reader: Reader

    def get(self, job_id: str) -> Job:
        """The job as last committed; `UnknownJob` if there is none."""
        with self.reader.connect() as connection:
            return read_job(connection, job_id)

    def list_jobs(
        self,
        *,
        owner: str | None = None,
        status: JobStatus | None = None,
        capability: str | None = None,
        limit: int = 50,
        offset: int = 0,
    ) -> tuple[list[Job], int]:
        """Newest first, and how many there are in all."""
        wanted = {"owner": owner, "status": status and status.value, "capability": capability}
        conditions = [jobs.c[name] == value for name, value in wanted.items() if value is not None]
        query = select(*COLUMNS).where(*conditions).order_by(jobs.c.number.desc()).limit(limit).offset(offset)
        count = select(func.count()).select_from(jobs).where(*conditions)
        with self.reader.connect() as connection:
            return [job_of(row) for row in connection.execute(query)], connection.execute(count).scalar_one()

    def waiting(self, job_ids: Sequence[str] | None = None) -> list[Waiting]:
        """Every queued job, or those of these that are, as the queue needs them."""
        names = ("id", "priority", "turn", "model", "not_before", "attempt", "owner", "capability")
        query = select(*(jobs.c[name] for name in names), jobs.c.queued.label("since")).where(jobs.c.status == "queued")
        if job_ids is not None:
            query = query.where(jobs.c.id.in_(job_ids))
        with self.reader.connect() as connection:
            return [Waiting(**row._mapping) for row in connection.execute(query)]

    def queued_at(self, job_id: str) -> float:
        """When the job last began to wait (Unix seconds): at its submit, a retry or the loss of its worker."""
        waits = transitions.c.after == JobStatus.QUEUED.value
        query = select(func.max(transitions.c.at)).where(transitions.c.job_id == job_id, waits)
        with self.reader.connect() as connection:
            return connection.execute(query).scalar_one()

    def oldest_attempt(self) -> float | None:
        """When the oldest attempt that still runs began (Unix seconds); None when none runs."""
        query = select(func.min(jobs.c.started)).where(jobs.c.status == JobStatus.RUNNING.value)
        with self.reader.connect() as connection:
            return connection.execute(query).scalar_one()

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        query = select(jobs.c.status, func.count()).group_by(jobs.c.status)
        with self.reader.connect() as connection:
            found = {status: count for status, count in connection.execute(query)}
        return {status.value: found.get(status.value, 0) for status in JobStatus}

    def history(self, job_id: str) -> list[dict[str, Any]]:
        """The job's transitions in order: `before`, `after`, `attempt`, `at`, `reason`."""
        query = select(transitions).where(transitions.c.job_id == job_id).order_by(transitions.c.number)
        with self.reader.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(query)]


def read_job(connection: Connection, job_id: str) -> Job:
    """The job, which somebody may move the next moment; `UnknownJob`."""
    row = connection.execute(BY_ID, {"job_id": job_id}).one_or_none()
    if row is None:
        raise unknown_job()
    return job_of(row)


def unknown_job() -> UnknownJob:
    """There is none of this id, or it is not the asker's."""
    return UnknownJob("There is no such job.")
