"""The stored pictures by owner, job, words and seed: what a face lists and searches.

The rows of a job's pictures are written in the transaction that marks the job succeeded, so a picture is found exactly
when its job says that it made it. The files themselves are the storage's.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, Engine, bindparam, delete, func, insert, select

from app.core.group_commit import GroupCommit
from app.core.job_tables import images
from app.core.jobs import ImageRecord, Job

_COLUMNS = [column for column in images.c if column.name != "number"]
_BY_ID = select(*_COLUMNS).where(images.c.id == bindparam("image_id"))
_INSERT = insert(images)


class ImageIndex:
    """Reads and writes the `images` table."""

    def __init__(self, writer: GroupCommit, reader: Engine) -> None:
        self._writer = writer
        self._reader = reader

    def add(self, record: ImageRecord) -> None:
        """Remember an upload; the same id again changes nothing."""

        def change(connection: Connection) -> None:
            known = connection.execute(select(images.c.id).where(images.c.id == record.id)).first()
            if known is None:
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

    def remove(self, image_id: str) -> None:
        """Forget the picture."""
        self._writer.write(lambda connection: connection.execute(delete(images).where(images.c.id == image_id)))


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
