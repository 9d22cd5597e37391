"""The stored pictures by owner, job, words and seed: what a face lists and searches.

The rows of a job's pictures are written in the transaction that marks the job succeeded, so a picture is found exactly
when its job says that it made it. The files themselves are the storage's.

What must never happen: an accepted job whose picture was deleted before it ran. It cannot, because a deletion looks for
waiting and running jobs, and a job that begins to wait looks for deletions, each inside its own transaction, of which
one is written after the other (`Database.guard_pictures`). The price is a short row for each deleted picture.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, delete, func, insert, or_, select, union_all

from app.core.database import Database
from app.core.group_commit import GroupCommit
from app.core.job_tables import forgotten_images, images, jobs
from app.core.jobs import ImageRecord, Job, JobStatus
from app.errors import Conflict, UnknownImage

_COLUMNS = [column for column in images.c if column.name != "number"]
_BY_ID = select(*_COLUMNS).where(images.c.id == bindparam("image_id"))
_INSERT = insert(images)
_DIGEST = union_all(
    *(
        select(table.c.owner, table.c.sha256).where(table.c.id == bindparam("image_id"))
        for table in (images, forgotten_images)
    )
)
ASKED_AT_ONCE = 500
_REFERENCE = re.compile(r"[0-9a-z]{26}")
_UNFINISHED = (JobStatus.QUEUED.value, JobStatus.RUNNING.value)


class ImageIndex:
    """Reads and writes the `images` table."""

    def __init__(self, writer: GroupCommit, database: Database) -> None:
        self._writer = writer
        self._database = database
        self._reader = database.reader

    def add(self, record: ImageRecord) -> None:
        """Remember an upload; the same id again, or one that was deleted, changes nothing."""

        def change(connection: Connection) -> None:
            if connection.execute(_DIGEST, {"image_id": record.id}).first() is None:
                connection.execute(_INSERT, vars(record))

        self._writer.write(change)

    def get(self, image_id: str) -> ImageRecord | None:
        """The row of this picture."""
        with self._reader.connect() as connection:
            row = connection.execute(_BY_ID, {"image_id": image_id}).first()
        return ImageRecord(**row._mapping) if row else None

    def search(
        self,
        *,
        owner: str | None = None,
        prompt: str | None = None,
        model: str | None = None,
        seed: int | None = None,
        capability: str | None = None,
        kind: str | None = "result",
        limit: int = 50,
        offset: int = 0,
    ) -> tuple[list[ImageRecord], int]:
        """Newest first, and how many there are in all. Every word of `prompt` must stand in the picture's prompt."""
        wanted: dict[str, Any] = {"owner": owner, "model": model, "seed": seed, "capability": capability, "kind": kind}
        conditions = [images.c[name] == value for name, value in wanted.items() if value is not None]
        conditions += [images.c.prompt.icontains(word, autoescape=True) for word in (prompt or "").split()]
        query = select(*_COLUMNS).where(*conditions).order_by(images.c.number.desc()).limit(limit).offset(offset)
        count = select(func.count()).select_from(images).where(*conditions)
        with self._reader.connect() as connection:
            rows = [ImageRecord(**row._mapping) for row in connection.execute(query)]
            return rows, connection.execute(count).scalar_one()

    def digest(self, image_id: str) -> tuple[str, str] | None:
        """(owner, SHA-256) of a picture that has a row, also after it was deleted."""
        with self._reader.connect() as connection:
            row = connection.execute(_DIGEST, {"image_id": image_id}).first()
        return (row.owner, row.sha256) if row else None

    def without_row(self, image_ids: Sequence[str]) -> list[str]:
        """Those of these pictures that have no row."""
        found = []
        with self._reader.connect() as connection:
            for start in range(0, len(image_ids), ASKED_AT_ONCE):
                asked = image_ids[start : start + ASKED_AT_ONCE]
                known = set(connection.execute(select(images.c.id).where(images.c.id.in_(asked))).scalars())
                found += [image_id for image_id in asked if image_id not in known]
        return found

    def remove(self, image_id: str, *, owner: str, sha256: str) -> None:
        """Forget the picture; `Conflict` while a job that waits or runs names it."""

        def change(connection: Connection) -> None:
            self._database.guard_pictures(connection, removes=True)
            # A request is JSON, so a reference stands in it between quotes.
            named = or_(*(text.contains(f'"{image_id}"', autoescape=True) for text in (jobs.c.request, jobs.c.then)))
            busy = select(jobs.c.id).where(jobs.c.status.in_(_UNFINISHED), named).limit(1)
            if connection.execute(busy).first() is not None:
                raise Conflict("A job that has not ended needs this picture; cancel it first, or wait for its end.")
            connection.execute(delete(images).where(images.c.id == image_id))
            known = select(forgotten_images.c.id).where(forgotten_images.c.id == image_id)
            if connection.execute(known).first() is None:
                now = self._database.now(connection)
                row = {"id": image_id, "owner": owner, "sha256": sha256, "forgotten": now}
                connection.execute(insert(forgotten_images), row)

        self._writer.write(change)


def require_pictures(connection: Connection, database: Database, *requests: Mapping[str, Any]) -> None:
    """`UnknownImage` when a request names a deleted picture, inside the transaction that lets its job wait."""
    named = [reference for request in requests for reference in _references(request)]
    if named:
        database.guard_pictures(connection, removes=False)
        gone = select(forgotten_images.c.id).where(forgotten_images.c.id.in_(named)).limit(1)
        if connection.execute(gone).first() is not None:
            raise UnknownImage("A picture of this job has been deleted.")


def _references(request: Mapping[str, Any]) -> Iterator[str]:
    """Every text of a request that may be a picture's id."""
    for value in request.values():
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str) and _REFERENCE.fullmatch(text):
                yield text


def insert_results(connection: Connection, job: Job, made: Sequence[dict[str, Any]], now: float) -> None:
    """The rows of a job's pictures, inside the transaction that ends the job."""
    rows = [
        {
            "id": image["id"],
            "job_id": job.id,
            "owner": job.owner,
            "kind": "result",
            "width": image["width"],
            "height": image["height"],
            "bytes": image["bytes"],
            "sha256": image["sha256"],
            "media_type": image["media_type"],
            "created": now,
            "capability": job.capability,
            "model": job.model,
            "prompt": job.request.get("prompt"),
            "seed": image["seed"],
            "position": position,
        }
        for position, image in enumerate(made)
    ]
    if rows:
        connection.execute(_INSERT, rows)
