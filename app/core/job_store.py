"""The durable table of jobs, and the only place where a job changes state.

What must never happen: an accepted job is forgotten, or one job succeeds twice. It cannot, because a job is committed
before its id is answered; the attempt is counted at the claim, before the work, and every later write must carry that
number, so that a worker that was given up on changes nothing; and a unique index allows one success a job. The
pictures' rows, the jobs that follow and the callback's row are written in the transaction that ends the job. The cost
is one commit to the disk for each of submit, claim and end, shared between all callers of the moment (group_commit).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection, bindparam, insert, make_url, or_, select, update

from app.core import crash_points
from app.core.callbacks import Outbox, insert_callback
from app.core.chains import followers, own_share
from app.core.database import Database
from app.core.group_commit import GroupCommit
from app.core.image_index import ImageIndex, insert_results, require_pictures
from app.core.job_reading import BY_ID, JobReading, read_job, unknown_job
from app.core.job_rows import fenced_update, job_of, last_wait, log, values_of
from app.core.job_tables import batches, idempotency, jobs
from app.core.jobs import TRANSITIONS, Batch, Job, JobStatus
from app.core.leases import Leases
from app.core.postgres_database import PostgresDatabase
from app.core.sqlite_database import SqliteDatabase
from app.errors import Conflict, WorkerLost

# Statements are made once: SQLAlchemy then finds their compiled form without looking into them.
_MOVING = BY_ID.with_for_update(of=jobs)
_DUE = or_(jobs.c.not_before.is_(None), jobs.c.not_before <= bindparam("now"))
_CLAIMING = BY_ID.where(jobs.c.status == JobStatus.QUEUED.value, _DUE).with_for_update(of=jobs, skip_locked=True)
_INSERT_JOB, _INSERT_KEY = insert(jobs), insert(idempotency)
_BY_KEY = select(idempotency).where(idempotency.c.owner == bindparam("owner"), idempotency.c.key == bindparam("key"))

_MET_TWICE = "It had the device to itself, twice, so it is not started again by itself; when that may help, retry it."

Pause = Callable[[int], float]
"""Attempt -> seconds to wait before the next one."""

TOLD = {JobStatus.QUEUED: "waits", JobStatus.RUNNING: "claimed"}
"""What the other servers hear of a move; of every other one, that the job has ended."""


class JobStore(JobReading):
    """Jobs, their transitions, their pictures and their callbacks, in one database."""

    def __init__(self, url: str, *, lease_seconds: float = 20.0) -> None:
        self.database = open_database(url)
        self.reader = self.database.reader
        try:
            self.id = self.database.create()
        except BaseException:
            self.database.close()
            raise
        self.writer = GroupCommit(self.database)
        self.leases = Leases(self.writer, self.database, lease_seconds)
        self.images = ImageIndex(self.writer, self.database)
        self.outbox = Outbox(self.writer, self.database)

    def close(self) -> None:
        """Write what is waiting, close the database and give back its lock."""
        self.writer.close()
        self.database.close()

    def now(self) -> float:
        """The time by which jobs wait and leases end: the database's."""
        return self.database.clock()

    def is_sound(self) -> bool:
        """Whether the database's own check of its pages and indexes passes."""
        return self.database.is_sound()

    def find_idempotent(self, owner: str, key: str, body: str) -> Job | None:
        """The job that this key made; `Conflict` when it was another request's."""
        with self.reader.connect() as connection:
            known = self.find_key(connection, owner, key, body)
            return None if known is None else read_job(connection, known)

    # Moving

    def insert(self, job: Job, *, body: str = "", batch: Batch | None = None) -> Job:
        """Accept a job, with a batch of its own if it is to have one; answers it with its turn.

        Or answers the job that the same idempotency key made before.

        `UnknownImage` when a picture that it names was deleted a moment ago.
        """

        def change(connection: Connection) -> Job:
            known = self.find_key(connection, job.owner, job.idempotency_key, body)
            if known is not None:
                return read_job(connection, known)
            self.keep_key(connection, job.owner, job.idempotency_key, body, job.id, job.created)
            if batch is not None:
                connection.execute(insert(batches), vars(batch))
            return self.insert_within(connection, [job])[0]

        accepted = self.writer.write(change)
        crash_points.reach("insert")
        return accepted

    def insert_within(self, connection: Connection, wanted: Sequence[Job]) -> list[Job]:
        """Accept jobs inside a caller's transaction; answers them with their turns."""
        for job in wanted:
            require_pictures(connection, self.database, job.request, *(link["request"] for link in job.then or ()))
        turns = self.database.turns(connection, len(wanted))
        # A server's clock may be wrong; what another one will compare is by the database's.
        shift = self.database.now(connection) - time.time() if self.database.is_shared else 0.0
        accepted = [
            replace(job, turn=turn, created=job.created + shift, queued=job.created + shift)
            for job, turn in zip(wanted, turns, strict=True)
        ]
        connection.execute(_INSERT_JOB, [values_of(vars(job)) for job in accepted])
        log(connection, accepted, None, "submitted", accepted[0].created)
        self.database.tell(connection, "waits", [job.id for job in accepted])
        return accepted

    def find_key(self, connection: Connection, owner: str, key: str | None, body: str) -> str | None:
        """The id of what this idempotency key made; `Conflict` when it was another request's."""
        found = connection.execute(_BY_KEY, {"owner": owner, "key": key}).one_or_none() if key else None
        if found is None:
            return None
        if found.body != body:
            raise Conflict("This Idempotency-Key was used for another request.")
        return found.job_id

    def keep_key(
        self, connection: Connection, owner: str, key: str | None, body: str, made: str, created: float
    ) -> None:
        """Remember what an idempotency key made, where there is one."""
        if key:
            row = {"owner": owner, "key": key, "body": body, "job_id": made, "created": created}
            connection.execute(_INSERT_KEY, row)

    def claim(self, job_id: str, *, device: str, reason: str = "it is next", again: bool = False) -> Job | None:
        """Start an attempt: counts it, and answers the job with the new token.

        None if the job does not wait any more, pauses, or is in another server's hand at this moment. `again` is for a
        caller whose last claim of this job failed, so that it runs nowhere here: where only the answer was lost and the
        claim was committed, its attempt is answered.
        """

        def change(connection: Connection) -> Job | None:
            now = self.database.now(connection)
            row = connection.execute(_CLAIMING, {"job_id": job_id, "now": now}).one_or_none()
            if row is None:
                return self._claimed_before(connection, job_id, device, reason, now) if again else None
            job = job_of(row)
            claimed = self._move(
                connection,
                job,
                JobStatus.RUNNING,
                reason,
                at=now,
                lease=self.leases.of_claim(now),
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

    def _claimed_before(self, connection: Connection, job_id: str, device: str, reason: str, now: float) -> Job | None:
        """The attempt that this server began without hearing of it, now on this device."""
        own = jobs.c.server.is_not_distinct_from(self.database.server)
        columns = {"device": device, **self.leases.of_claim(now)}
        mine = update(jobs).where(jobs.c.id == job_id, jobs.c.status == JobStatus.RUNNING.value, own).values(columns)
        if connection.execute(mine).rowcount != 1:
            return None
        return replace(self._read(connection, job_id), device_reason=reason)

    def succeed(self, job_id: str, attempt: int, result: dict[str, Any], *, step: int, steps: int) -> Job | None:
        """End an attempt well, with its pictures' rows; None if the token is old."""
        return self._end(job_id, attempt, JobStatus.SUCCEEDED, "done", result=result, step=step, steps=steps)

    def fail(
        self,
        job_id: str,
        attempt: int,
        error: dict[str, Any],
        *,
        step: int,
        steps: int,
        pause: Pause | None = None,
        at_most_twice: str | None = None,
        result: dict[str, Any] | None = None,
    ) -> Job | None:
        """End an attempt with an error; None if the token is old.

        With a `pause` the error is one that may pass: the job waits again until its last attempt has met it, or two in
        a row ended for the reason `at_most_twice`.
        """
        ending = {"error": error, "result": result, "step": step, "steps": steps}
        if pause is None:
            return self._end(job_id, attempt, JobStatus.FAILED, error["code"], **ending)

        def change(connection: Connection) -> Job | None:
            twice = at_most_twice is not None and last_wait(connection, job_id) == at_most_twice
            if twice:
                ending["error"] = {**error, "message": f"{error['message']} {_MET_TWICE}"}
            reason = at_most_twice or error["code"]
            return self._again(connection, job_id, attempt, pause, reason, last=twice, **ending)

        moved = self.writer.write(change)
        crash_points.reach("done")
        return moved

    def cancelled(
        self, job_id: str, attempt: int, *, step: int, steps: int, result: dict[str, Any] | None = None
    ) -> Job | None:
        """End an attempt that heeded a cancel, with what it told before; None if the token is old."""
        return self._end(job_id, attempt, JobStatus.CANCELLED, "cancelled", result=result, step=step, steps=steps)

    def lose(self, job_id: str, attempt: int, pause: Pause, *, reason: str, counts: bool = True) -> Job | None:
        """The attempt's worker is gone: wait for another one, or end; None if the token is old.

        A job that was to be cancelled is cancelled. One that used its last attempt fails as `worker_lost` and is kept.
        `counts=False` is for a worker that was stopped on purpose: the job gets that attempt again, without a pause.
        """
        return self.writer.write(lambda connection: self._lose(connection, job_id, attempt, pause, reason, counts))

    def recover(self, pause: Pause, *, silent: bool = True) -> list[Job]:
        """What no living server runs any more is treated as lost; answers the jobs as they are now.

        Without `silent` only of servers that are known to be dead, not of those whose leases have ended.
        """

        def change(connection: Connection) -> list[Job]:
            reason = "the server that ran it is gone" if self.database.is_shared else "the service was restarted"
            lost = self.leases.ended(connection, silent)
            moved = [self._lose(connection, *token, pause, reason, True) for token in lost]
            return [job for job in moved if job is not None]

        return self.writer.write(change)

    def cancel(self, job_id: str) -> Job:
        """End a queued job, or ask for the end of a running one; `Conflict` if it succeeded or failed."""
        return self.writer.write(lambda connection: self.cancel_within(connection, job_id))

    def cancel_within(self, connection: Connection, job_id: str) -> Job:
        """`cancel` inside a caller's transaction."""
        job = self._read(connection, job_id)
        if job.status is JobStatus.QUEUED:
            return self._finish(connection, job, JobStatus.CANCELLED, "cancelled while it waited")
        if job.status is JobStatus.RUNNING:
            connection.execute(update(jobs).where(jobs.c.id == job_id).values(cancel_requested=True))
            self.database.tell(connection, "cancel", [job_id])
            return replace(job, cancel_requested=True)
        if job.status is JobStatus.CANCELLED:
            return job
        raise Conflict(f"The job has already {job.status.value}.")

    def retry(self, job_id: str, *, attempts: int) -> Job:
        """Queue a failed or cancelled job again, at the end of its priority, with so many new attempts.

        `UnknownImage` when a picture that it names was deleted since.
        """
        return self.writer.write(lambda connection: self.retry_within(connection, job_id, attempts))

    def retry_within(self, connection: Connection, job_id: str, attempts: int) -> Job:
        """`retry` inside a caller's transaction."""
        job = self._read(connection, job_id)
        if job.status not in {JobStatus.FAILED, JobStatus.CANCELLED}:
            raise Conflict(f"Only a failed or cancelled job can be tried again; this one is {job.status.value}.")
        require_pictures(connection, self.database, job.request, *(link["request"] for link in job.then or ()))
        return self._move(
            connection,
            job,
            JobStatus.QUEUED,
            "tried again by hand",
            turn=self.database.turns(connection, 1)[0],
            queued=self.database.now(connection),
            max_attempts=job.attempt + attempts,
            cancel_requested=False,
            not_before=None,
            started=None,
            finished=None,
            error=None,
            result=None,
            step=0,
            steps=0,
        )

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
        held = job.status is JobStatus.RUNNING and job.attempt == attempt
        if held and not counts and not job.cancel_requested:
            return self._move(connection, job, JobStatus.QUEUED, reason, max_attempts=job.max_attempts + 1, step=0)
        message = (
            f"{job.attempt} times its worker or the whole service ended while this job ran; it is not started again by "
            "itself. When the cause is gone, retry it by hand."
        )
        error = {"code": WorkerLost.code, "message": message}
        return self._again(connection, job_id, attempt, pause, reason, error=error)

    def _again(
        self,
        connection: Connection,
        job_id: str,
        attempt: int,
        pause: Pause,
        reason: str,
        *,
        last: bool = False,
        **ending: Any,
    ) -> Job | None:
        """An attempt ended in a way that may pass: wait for the next one, or end as cancelled or failed."""
        job = self._read(connection, job_id)
        if job.status is not JobStatus.RUNNING or job.attempt != attempt:
            return None
        if job.cancel_requested:
            return self._finish(connection, job, JobStatus.CANCELLED, f"cancelled; {reason}")
        if job.attempt < job.max_attempts and not last:
            due = self.database.now(connection) + pause(job.attempt)
            return self._move(connection, job, JobStatus.QUEUED, reason, not_before=due, step=0)
        return self._finish(connection, job, JobStatus.FAILED, reason, **ending)

    def _finish(self, connection: Connection, job: Job, after: JobStatus, reason: str, **values: Any) -> Job:
        now = self.database.now(connection)
        following = followers(job, values["result"]["images"]) if after is JobStatus.SUCCEEDED else []
        if following:
            values.update(followed_by=[follower.id for follower in following], share=own_share(job))
        ended = self._move(connection, job, after, reason, at=now, finished=now, **values)
        if after is JobStatus.SUCCEEDED:
            insert_results(connection, ended, ended.result["images"], now)
        if following:
            self._follow(connection, job, following)
        if ended.callback_url:
            insert_callback(connection, ended, now)
            crash_points.reach("webhook_row")
        return ended

    def _follow(self, connection: Connection, job: Job, following: list[Job]) -> None:
        """The next link waits; of a job whose cancel came too late for its worker it is cancelled instead."""
        accepted = self.insert_within(connection, following)
        for follower in accepted if job.cancel_requested else ():
            self._finish(connection, follower, JobStatus.CANCELLED, "the job before it was to be cancelled")

    def _move(
        self,
        connection: Connection,
        job: Job,
        after: JobStatus,
        reason: str,
        *,
        at: float | None = None,
        lease: dict[str, Any] | None = None,
        **values: Any,
    ) -> Job:
        if after not in TRANSITIONS[job.status]:
            raise Conflict(f"A job that is {job.status.value} cannot become {after.value}.")
        moved = replace(job, status=after, **values)
        written = {**values_of({"status": after, **values}), **(lease or {})}
        columns = {f"new_{name}": value for name, value in written.items()}
        fence = {"job_id": job.id, "fence_status": job.status.value, "fence_attempt": job.attempt}
        if connection.execute(fenced_update(tuple(written)), {**columns, **fence}).rowcount != 1:
            raise Conflict("The job was moved by somebody else.")
        log(connection, [moved], job.status, reason, self.database.now(connection) if at is None else at)
        self.database.tell(connection, TOLD.get(after, "ended"), [job.id])
        return moved

    def _read(self, connection: Connection, job_id: str) -> Job:
        """The job, which nobody else moves until the transaction ends."""
        row = connection.execute(_MOVING, {"job_id": job_id}).one_or_none()
        if row is None:
            raise unknown_job()
        return job_of(row)


def open_database(url: str) -> Database:
    """The database that a SQLAlchemy URL names."""
    kind = PostgresDatabase if make_url(url).get_backend_name() == "postgresql" else SqliteDatabase
    return kind(url)
