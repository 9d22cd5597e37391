"""The durable table of jobs, and the only place where a job changes state.

What must never happen: an accepted job is forgotten, or one job succeeds twice. It cannot, because a job is committed
before its id is answered; the attempt is counted at the claim, before the work, and every later write must carry that
number, so that a worker that was given up on changes nothing; and a unique index allows one success a job. The
pictures' rows and the callback's row are written in the transaction that ends the job. The cost is one commit to the
disk for each of submit, claim and end, shared between all callers of the moment (group_commit).
"""

import functools
import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, Update, bindparam, func, insert, make_url, select, update

from app.core import crash_points
from app.core.batch_processing import Waiting
from app.core.callbacks import Outbox, insert_callback
from app.core.group_commit import GroupCommit
from app.core.image_index import ImageIndex, insert_results, require_pictures
from app.core.job_tables import create_tables, idempotency, jobs, open_engines, take_lock, transitions
from app.core.jobs import TRANSITIONS, Job, JobStatus
from app.errors import Conflict, UnknownJob, WorkerLost

_COLUMNS = [column for column in jobs.c if column.name != "number"]
_JSON = ("request", "result", "error")
_REASON = (
    select(transitions.c.reason)
    .where(transitions.c.job_id == jobs.c.id, transitions.c.after == JobStatus.RUNNING.value)
    .order_by(transitions.c.number.desc())
    .limit(1)
    .scalar_subquery()
    .label("device_reason")
)
"""Why the last claim chose its device."""

# Statements are made once: SQLAlchemy then finds their compiled form without looking into them.
_BY_ID = select(*_COLUMNS, _REASON).where(jobs.c.id == bindparam("job_id"))
_NEXT_TURN = select(func.coalesce(func.max(jobs.c.turn), 0) + 1)
_INSERT_JOB, _INSERT_TRANSITION, _INSERT_KEY = insert(jobs), insert(transitions), insert(idempotency)
_BY_KEY = select(idempotency).where(idempotency.c.owner == bindparam("owner"), idempotency.c.key == bindparam("key"))

Pause = Callable[[int], float]
"""Attempt -> seconds to wait before the next one."""


class JobStore:
    """Jobs, their transitions, their pictures and their callbacks, in one database."""

    def __init__(self, url: str) -> None:
        database = make_url(url).database
        self._lock = take_lock(Path(database).absolute()) if database and database != ":memory:" else None
        try:
            self._write_engine, self._read_engine = open_engines(url)
            self.id = create_tables(self._write_engine)
        except BaseException:
            if self._lock is not None:
                os.close(self._lock)
            raise
        self.writer = GroupCommit(self._write_engine)
        self.images = ImageIndex(self.writer, self._read_engine)
        self.outbox = Outbox(self.writer, self._read_engine)

    def close(self) -> None:
        """Write what is waiting, close the database and give back its lock."""
        self.writer.close()
        self._write_engine.dispose()
        self._read_engine.dispose()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # Reading

    def get(self, job_id: str) -> Job:
        """The job as last committed; `UnknownJob` if there is none."""
        with self._read_engine.connect() as connection:
            row = connection.execute(_BY_ID, {"job_id": job_id}).one_or_none()
        if row is None:
            raise _unknown()
        return _job(row)

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
        query = select(*_COLUMNS, _REASON).where(*conditions).order_by(jobs.c.number.desc()).limit(limit).offset(offset)
        count = select(func.count()).select_from(jobs).where(*conditions)
        with self._read_engine.connect() as connection:
            return [_job(row) for row in connection.execute(query)], connection.execute(count).scalar_one()

    def waiting(self) -> list[Waiting]:
        """Every queued job, as the queue needs it."""
        columns = (jobs.c.id, jobs.c.priority, jobs.c.turn, jobs.c.model, jobs.c.not_before, jobs.c.attempt)
        with self._read_engine.connect() as connection:
            return [Waiting(*row) for row in connection.execute(select(*columns).where(jobs.c.status == "queued"))]

    def queued_at(self, job_id: str) -> float:
        """When the job last began to wait (Unix seconds): at its submit, a retry or the loss of its worker."""
        waits = transitions.c.after == JobStatus.QUEUED.value
        query = select(func.max(transitions.c.at)).where(transitions.c.job_id == job_id, waits)
        with self._read_engine.connect() as connection:
            return connection.execute(query).scalar_one()

    def oldest_attempt(self) -> float | None:
        """When the oldest attempt that still runs began (Unix seconds); None when none runs."""
        query = select(func.min(jobs.c.started)).where(jobs.c.status == JobStatus.RUNNING.value)
        with self._read_engine.connect() as connection:
            return connection.execute(query).scalar_one()

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        query = select(jobs.c.status, func.count()).group_by(jobs.c.status)
        with self._read_engine.connect() as connection:
            found = {status: count for status, count in connection.execute(query)}
        return {status.value: found.get(status.value, 0) for status in JobStatus}

    def history(self, job_id: str) -> list[dict[str, Any]]:
        """The job's transitions in order: `before`, `after`, `attempt`, `at`, `reason`."""
        query = select(transitions).where(transitions.c.job_id == job_id).order_by(transitions.c.number)
        with self._read_engine.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(query)]

    def find_idempotent(self, owner: str, key: str, body: str) -> Job | None:
        """The job that this key made; `Conflict` when it was another request's."""
        with self._read_engine.connect() as connection:
            return self._idempotent(connection, owner, key, body)

    def is_sound(self) -> bool:
        """Whether the database's own check of its pages and indexes passes."""
        with self._read_engine.connect() as connection:
            return connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"

    # Moving

    def insert(self, job: Job, *, body: str = "") -> Job:
        """Accept a job; answers it with its turn, or the job that the same idempotency key made before.

        `UnknownImage` when a picture that it names was deleted a moment ago.
        """

        def change(connection: Connection) -> Job:
            if job.idempotency_key:
                known = self._idempotent(connection, job.owner, job.idempotency_key, body)
                if known is not None:
                    return known
            require_pictures(connection, job.request)
            if job.idempotency_key:
                connection.execute(
                    _INSERT_KEY,
                    {
                        "owner": job.owner,
                        "key": job.idempotency_key,
                        "body": body,
                        "job_id": job.id,
                        "created": job.created,
                    },
                )
            accepted = replace(job, turn=connection.execute(_NEXT_TURN).scalar_one())
            connection.execute(_INSERT_JOB, _values(vars(accepted)))
            _log(connection, accepted, None, "submitted", accepted.created)
            return accepted

        accepted = self.writer.write(change)
        crash_points.reach("insert")
        return accepted

    def claim(self, job_id: str, *, device: str, reason: str = "it is next") -> Job | None:
        """Start an attempt: counts it, and answers the job with the new token; None if it no longer waits."""
        now = time.time()

        def change(connection: Connection) -> Job | None:
            job = self._read(connection, job_id)
            if job.status is not JobStatus.QUEUED:
                return None
            claimed = self._move(
                connection,
                job,
                JobStatus.RUNNING,
                reason,
                attempt=job.attempt + 1,
                device=device,
                started=now,
                not_before=None,
                step=0,
                steps=0,
            )
            return replace(claimed, device_reason=reason)

        claimed = self.writer.write(change)
        crash_points.reach("claim")
        return claimed

    def succeed(self, job_id: str, attempt: int, result: dict[str, Any], *, step: int, steps: int) -> Job | None:
        """End an attempt well, with its pictures' rows; None if the token is old."""
        return self._end(job_id, attempt, JobStatus.SUCCEEDED, "done", result=result, step=step, steps=steps)

    def fail(self, job_id: str, attempt: int, error: dict[str, Any], *, step: int, steps: int) -> Job | None:
        """End an attempt with an error that a new attempt would meet again; None if the token is old."""
        return self._end(job_id, attempt, JobStatus.FAILED, error["code"], error=error, step=step, steps=steps)

    def cancelled(self, job_id: str, attempt: int, *, step: int, steps: int) -> Job | None:
        """End an attempt that heeded a cancel; None if the token is old."""
        return self._end(job_id, attempt, JobStatus.CANCELLED, "cancelled", step=step, steps=steps)

    def lose(self, job_id: str, attempt: int, pause: Pause, *, reason: str, counts: bool = True) -> Job | None:
        """The attempt's worker is gone: wait for another one, or end; None if the token is old.

        A job that was to be cancelled is cancelled. One that used its last attempt fails as `worker_lost` and is kept.
        `counts=False` is for a worker that was stopped on purpose: the job gets that attempt again, without a pause.
        """
        return self.writer.write(lambda connection: self._lose(connection, job_id, attempt, pause, reason, counts))

    def recover(self, pause: Pause) -> list[Job]:
        """After a start: what ran when the process before this one ended is treated as lost."""

        def change(connection: Connection) -> list[Job]:
            query = select(jobs.c.id, jobs.c.attempt).where(jobs.c.status == JobStatus.RUNNING.value)
            running = connection.execute(query).all()
            moved = [self._lose(connection, *pair, pause, "the service was restarted", True) for pair in running]
            return [job for job in moved if job is not None]

        return self.writer.write(change)

    def cancel(self, job_id: str) -> Job:
        """End a queued job, or ask for the end of a running one; `Conflict` if it succeeded or failed."""

        def change(connection: Connection) -> Job:
            job = self._read(connection, job_id)
            if job.status is JobStatus.QUEUED:
                return self._finish(connection, job, JobStatus.CANCELLED, "cancelled while it waited")
            if job.status is JobStatus.RUNNING:
                connection.execute(update(jobs).where(jobs.c.id == job_id).values(cancel_requested=True))
                return replace(job, cancel_requested=True)
            if job.status is JobStatus.CANCELLED:
                return job
            raise Conflict(f"The job has already {job.status.value}.")

        return self.writer.write(change)

    def retry(self, job_id: str, *, attempts: int) -> Job:
        """Queue a failed or cancelled job again, at the end of its priority, with so many new attempts.

        `UnknownImage` when a picture that it names was deleted since.
        """

        def change(connection: Connection) -> Job:
            job = self._read(connection, job_id)
            if job.status not in {JobStatus.FAILED, JobStatus.CANCELLED}:
                raise Conflict(f"Only a failed or cancelled job can be tried again; this one is {job.status.value}.")
            require_pictures(connection, job.request)
            return self._move(
                connection,
                job,
                JobStatus.QUEUED,
                "tried again by hand",
                turn=connection.execute(_NEXT_TURN).scalar_one(),
                max_attempts=job.attempt + attempts,
                cancel_requested=False,
                not_before=None,
                started=None,
                finished=None,
                error=None,
                step=0,
                steps=0,
            )

        return self.writer.write(change)

    # The steps that the moves share; all of them run inside a caller's transaction

    def _end(self, job_id: str, attempt: int, after: JobStatus, reason: str, **values: Any) -> Job | None:
        def change(connection: Connection) -> Job | None:
            job = self._read(connection, job_id)
            if job.status is not JobStatus.RUNNING or job.attempt != attempt:
                return None
            return self._finish(connection, job, after, reason, **values)

        ended = self.writer.write(change)
        crash_points.reach("done")
        return ended

    def _lose(
        self, connection: Connection, job_id: str, attempt: int, pause: Pause, reason: str, counts: bool
    ) -> Job | None:
        job = self._read(connection, job_id)
        if job.status is not JobStatus.RUNNING or job.attempt != attempt:
            return None
        if job.cancel_requested:
            return self._finish(connection, job, JobStatus.CANCELLED, f"cancelled; {reason}")
        if not counts:
            return self._move(connection, job, JobStatus.QUEUED, reason, max_attempts=job.max_attempts + 1, step=0)
        if job.attempt < job.max_attempts:
            due = time.time() + pause(job.attempt)
            return self._move(connection, job, JobStatus.QUEUED, reason, not_before=due, step=0)
        message = (
            f"{job.attempt} times its worker or the whole service ended while this job ran; it is not started again by "
            "itself. When the cause is gone, retry it by hand."
        )
        error = {"code": WorkerLost.code, "message": message}
        return self._finish(connection, job, JobStatus.FAILED, reason, error=error)

    def _finish(self, connection: Connection, job: Job, after: JobStatus, reason: str, **values: Any) -> Job:
        now = time.time()
        ended = self._move(connection, job, after, reason, finished=now, **values)
        if after is JobStatus.SUCCEEDED:
            insert_results(connection, ended, ended.result["images"], now)
        if ended.callback_url:
            insert_callback(connection, ended, now)
            crash_points.reach("webhook_row")
        return ended

    def _move(self, connection: Connection, job: Job, after: JobStatus, reason: str, **values: Any) -> Job:
        if after not in TRANSITIONS[job.status]:
            raise Conflict(f"A job that is {job.status.value} cannot become {after.value}.")
        moved = replace(job, status=after, **values)
        columns = {f"new_{name}": value for name, value in _values({"status": after, **values}).items()}
        fence = {"job_id": job.id, "fence_status": job.status.value, "fence_attempt": job.attempt}
        if connection.execute(_fenced_update(("status", *values)), {**columns, **fence}).rowcount != 1:
            raise Conflict("The job was moved by somebody else.")
        _log(connection, moved, job.status, reason, time.time())
        return moved

    def _read(self, connection: Connection, job_id: str) -> Job:
        row = connection.execute(_BY_ID, {"job_id": job_id}).one_or_none()
        if row is None:
            raise _unknown()
        return _job(row)

    def _idempotent(self, connection: Connection, owner: str, key: str, body: str) -> Job | None:
        found = connection.execute(_BY_KEY, {"owner": owner, "key": key}).one_or_none()
        if found is None:
            return None
        if found.body != body:
            raise Conflict("This Idempotency-Key was used for another request.")
        return self._read(connection, found.job_id)


def _log(connection: Connection, job: Job, before: JobStatus | None, reason: str, at: float) -> None:
    connection.execute(
        _INSERT_TRANSITION,
        {
            "job_id": job.id,
            "attempt": job.attempt,
            "before": before and before.value,
            "after": job.status.value,
            "at": at,
            "reason": reason,
        },
    )


@functools.cache
def _fenced_update(names: tuple[str, ...]) -> Update:
    """The update of these columns of one job, if its state and attempt are still what they were."""
    fence = (jobs.c.status == bindparam("fence_status"), jobs.c.attempt == bindparam("fence_attempt"))
    changes = {name: bindparam(f"new_{name}") for name in names}
    return update(jobs).where(jobs.c.id == bindparam("job_id"), *fence).values(changes)


def _values(fields: dict[str, Any]) -> dict[str, Any]:
    """A job's fields as the columns hold them."""
    values = dict(fields)
    values.pop("device_reason", None)
    for name in _JSON:
        if values.get(name) is not None:
            values[name] = json.dumps(values[name], separators=(",", ":"), allow_nan=False)
    if "status" in values:
        values["status"] = JobStatus(values["status"]).value
    return values


def _job(row: Row[Any]) -> Job:
    values = dict(row._mapping)
    for name in _JSON:
        if values[name] is not None:
            values[name] = json.loads(values[name])
    values["status"] = JobStatus(values["status"])
    return Job(**values)


def _unknown() -> UnknownJob:
    return UnknownJob("There is no such job.")
