"""Batches in the job store: many jobs accepted, cancelled or tried again in one transaction, and the queue's pause.

A job's state is moved by the job store's own steps; here is only what makes one transaction of many of them. So a batch
is accepted whole or not at all, and costs one commit to the disk whatever its size.
"""

from collections.abc import Sequence

from sqlalchemy import Connection, Select, delete, func, insert, select, update

from app.core import crash_points
from app.core.job_rows import COLUMNS, job_of
from app.core.job_store import JobStore
from app.core.job_tables import batches, jobs, meta
from app.core.jobs import Batch, Job, JobStatus
from app.errors import Conflict, UnknownBatch

_BATCH = (batches.c.id, batches.c.owner, batches.c.created, batches.c.size)
PAUSED = "paused"


class BatchStore:
    """Reads and writes batches; the job store behind it moves their jobs."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    # Reading

    def get(self, batch_id: str) -> Batch:
        """The batch; `UnknownBatch` if there is none."""
        with self._store.reader.connect() as connection:
            return _read(connection, batch_id)

    def page(self, *, owner: str, limit: int, offset: int) -> tuple[list[Batch], int]:
        """The owner's batches, newest first, and how many there are in all."""
        query = select(*_BATCH).where(batches.c.owner == owner).order_by(batches.c.number.desc())
        count = select(func.count()).select_from(batches).where(batches.c.owner == owner)
        with self._store.reader.connect() as connection:
            rows = connection.execute(query.limit(limit).offset(offset))
            return [Batch(*row) for row in rows], connection.execute(count).scalar_one()

    def counts(self, batch_ids: Sequence[str]) -> dict[str, dict[str, int]]:
        """How many jobs of each batch are in each state."""
        query = (
            select(jobs.c.batch_id, jobs.c.status, func.count())
            .where(jobs.c.batch_id.in_(batch_ids))
            .group_by(jobs.c.batch_id, jobs.c.status)
        )
        found = {batch_id: {status.value: 0 for status in JobStatus} for batch_id in batch_ids}
        with self._store.reader.connect() as connection:
            for batch_id, status, count in connection.execute(query):
                found[batch_id][status] = count
        return found

    def ended_shares(self, batch_ids: Sequence[str]) -> dict[str, float]:
        """The sum of the shares of what has ended of each batch, of which anything has."""
        ends = [status.value for status in JobStatus if status.is_terminal]
        wanted = (jobs.c.batch_id.in_(batch_ids), jobs.c.status.in_(ends))
        query = select(jobs.c.batch_id, func.sum(jobs.c.share)).where(*wanted).group_by(jobs.c.batch_id)
        with self._store.reader.connect() as connection:
            return {batch_id: share for batch_id, share in connection.execute(query)}

    def waiting_priorities(self, batch_ids: Sequence[str]) -> dict[str, int]:
        """The highest priority among what waits of each batch, of which anything does."""
        waits = (jobs.c.batch_id.in_(batch_ids), jobs.c.status == JobStatus.QUEUED.value)
        query = select(jobs.c.batch_id, func.max(jobs.c.priority)).where(*waits).group_by(jobs.c.batch_id)
        with self._store.reader.connect() as connection:
            return {batch_id: priority for batch_id, priority in connection.execute(query)}

    def by_ids(self, job_ids: Sequence[str]) -> dict[str, Job]:
        """These jobs by id."""
        with self._store.reader.connect() as connection:
            rows = connection.execute(select(*COLUMNS).where(jobs.c.id.in_(job_ids)))
            return {row.id: job_of(row) for row in rows}

    def jobs_of(
        self, batch_id: str, *, status: JobStatus | None = None, limit: int | None = None, offset: int = 0
    ) -> list[Job]:
        """The batch's jobs in the order in which they were asked for."""
        query = select(*COLUMNS).where(jobs.c.batch_id == batch_id).order_by(jobs.c.number).offset(offset)
        if status is not None:
            query = query.where(jobs.c.status == status.value)
        with self._store.reader.connect() as connection:
            return [job_of(row) for row in connection.execute(query.limit(limit))]

    def find_idempotent(self, owner: str, key: str, body: str) -> Batch | None:
        """The batch that this key made; `Conflict` when it was another request's."""
        with self._store.reader.connect() as connection:
            known = self._store.find_key(connection, owner, key, body)
            return None if known is None else _read(connection, known)

    def paused_since(self) -> float | None:
        """When the queue was paused (Unix seconds); None while it is not."""
        with self._store.reader.connect() as connection:
            found = connection.execute(select(meta.c.value).where(meta.c.name == PAUSED)).scalar_one_or_none()
        return None if found is None else float(found)

    # Writing

    def insert(self, batch: Batch, wanted: Sequence[Job], *, key: str | None, body: str) -> tuple[Batch, list[Job]]:
        """Accept a batch; answers it and its jobs, or without jobs the batch that the same key made before."""

        def change(connection: Connection) -> tuple[Batch, list[Job]]:
            known = self._store.find_key(connection, batch.owner, key, body)
            if known is not None:
                return _read(connection, known), []
            self._store.keep_key(connection, batch.owner, key, body, batch.id, batch.created)
            connection.execute(insert(batches), vars(batch))
            return batch, self._store.insert_within(connection, wanted)

        accepted = self._store.writer.write(change)
        crash_points.reach("insert")
        return accepted

    def cancel(self, batch_id: str) -> tuple[list[Job], list[Job]]:
        """End what waits and ask for the end of what runs: (ended, still running). `Conflict` if all have ended."""

        def change(connection: Connection) -> tuple[list[Job], list[Job]]:
            moved = [
                self._store.cancel_within(connection, job_id)
                for job_id in _ids(connection, batch_id, JobStatus.QUEUED, JobStatus.RUNNING)
            ]
            if not moved:
                raise Conflict("Every job of the batch has ended already.")
            running = [job for job in moved if job.status is JobStatus.RUNNING]
            return [job for job in moved if job.status is not JobStatus.RUNNING], running

        return self._store.writer.write(change)

    def retry(self, batch_id: str, *, attempts: int) -> list[Job]:
        """Queue the failed jobs again; `Conflict` if none has failed."""

        def change(connection: Connection) -> list[Job]:
            failed = _ids(connection, batch_id, JobStatus.FAILED)
            if not failed:
                raise Conflict("No job of the batch has failed.")
            return [self._store.retry_within(connection, job_id, attempts) for job_id in failed]

        return self._store.writer.write(change)

    def reprioritise(self, wanted: Select[tuple[str]], priority: int) -> list[str]:
        """Give those of these jobs that wait another priority; answers them. `Conflict` if none waits."""

        def change(connection: Connection) -> list[str]:
            query = wanted.where(jobs.c.status == JobStatus.QUEUED.value).order_by(jobs.c.number).with_for_update()
            waiting = list(connection.execute(query).scalars())
            if not waiting:
                raise Conflict("Only what still waits can be given another priority.")
            rows = update(jobs).where(jobs.c.id.in_(waiting), jobs.c.status == JobStatus.QUEUED.value)
            connection.execute(rows.values(priority=priority))
            self._store.database.tell(connection, "waits", waiting)
            return waiting

        return self._store.writer.write(change)

    def pause(self, paused: bool) -> None:
        """Remember, over a restart, whether the queue is paused."""

        def change(connection: Connection) -> None:
            known = connection.execute(select(meta.c.value).where(meta.c.name == PAUSED)).first()
            if paused and known is None:
                now = self._store.database.now(connection)
                connection.execute(insert(meta).values(name=PAUSED, value=str(now)))
            elif not paused:
                connection.execute(delete(meta).where(meta.c.name == PAUSED))
            self._store.database.tell(connection, "paused", [""])

        self._store.writer.write(change)


def job_alone(job_id: str) -> Select[tuple[str]]:
    """The one job, for `reprioritise`."""
    return select(jobs.c.id).where(jobs.c.id == job_id)


def jobs_in(batch_id: str) -> Select[tuple[str]]:
    """The jobs of a batch, for `reprioritise`."""
    return select(jobs.c.id).where(jobs.c.batch_id == batch_id)


def _read(connection: Connection, batch_id: str) -> Batch:
    row = connection.execute(select(*_BATCH).where(batches.c.id == batch_id)).one_or_none()
    if row is None:
        raise UnknownBatch("There is no such batch.")
    return Batch(*row)


def _ids(connection: Connection, batch_id: str, *states: JobStatus) -> list[str]:
    wanted = jobs.c.status.in_([status.value for status in states])
    query = jobs_in(batch_id).where(wanted).order_by(jobs.c.number).with_for_update()
    return list(connection.execute(query).scalars())
