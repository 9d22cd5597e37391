"""A job as a row and back, its transitions' rows, and the statement that changes a job only if nobody else did."""

import functools
import json
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, Update, bindparam, insert, select, update

from app.core.job_tables import jobs, transitions
from app.core.jobs import Job, JobStatus

_REASON = (
    select(transitions.c.reason)
    .where(transitions.c.job_id == jobs.c.id, transitions.c.after == JobStatus.RUNNING.value)
    .order_by(transitions.c.number.desc())
    .limit(1)
    .scalar_subquery()
    .label("device_reason")
)
COLUMNS = [*(column for column in jobs.c if column.name not in {"number", "server", "lease_until"}), _REASON]
"""What a job is read by: its own columns, and why the last claim chose its device."""

_JSON = ("request", "result", "error", "then", "followed_by")
_INSERT_TRANSITION = insert(transitions)


def log(connection: Connection, moved: Iterable[Job], before: JobStatus | None, reason: str, at: float) -> None:
    """Write down that these jobs came from one state into the one they are in."""
    rows = [
        {
            "job_id": job.id,
            "attempt": job.attempt,
            "before": before and before.value,
            "after": job.status.value,
            "at": at,
            "reason": reason,
        }
        for job in moved
    ]
    connection.execute(_INSERT_TRANSITION, rows)


def last_wait(connection: Connection, job_id: str) -> str | None:
    """Why the job began to wait the last time."""
    waits = transitions.c.after == JobStatus.QUEUED.value
    query = select(transitions.c.reason).where(transitions.c.job_id == job_id, waits)
    return connection.execute(query.order_by(transitions.c.number.desc()).limit(1)).scalar_one_or_none()


@functools.cache
def fenced_update(names: tuple[str, ...]) -> Update:
    """The update of these columns of one job, if its state and attempt are still what they were."""
    fence = (jobs.c.status == bindparam("fence_status"), jobs.c.attempt == bindparam("fence_attempt"))
    changes = {name: bindparam(f"new_{name}") for name in names}
    return update(jobs).where(jobs.c.id == bindparam("job_id"), *fence).values(changes)


def values_of(fields: dict[str, Any]) -> dict[str, Any]:
    """A job's fields as the columns hold them."""
    values = dict(fields)
    values.pop("device_reason", None)
    for name in _JSON:
        if values.get(name) is not None:
            values[name] = json.dumps(values[name], separators=(",", ":"), allow_nan=False)
    if "status" in values:
        values["status"] = JobStatus(values["status"]).value
    return values


def job_of(row: Row[Any]) -> Job:
    """The job that a row holds."""
    values = dict(row._mapping)
    for name in _JSON:
        if values[name] is not None:
            values[name] = json.loads(values[name])
    values["status"] = JobStatus(values["status"])
    return Job(**values)
