"""How a job store of an earlier version becomes one of this version: in one transaction, or not at all."""

from collections.abc import Mapping

from sqlalchemy import Connection, inspect, text

from app.errors import Conflict

_CHAINS = (
    'ALTER TABLE jobs ADD COLUMN "then" TEXT',
    "ALTER TABLE jobs ADD COLUMN follows VARCHAR(26)",
    "ALTER TABLE jobs ADD COLUMN followed_by TEXT",
    "ALTER TABLE jobs ADD COLUMN share FLOAT DEFAULT 1 NOT NULL",
)

SQLITE_STEPS: dict[int, tuple[str, ...]] = {
    1: (
        "ALTER TABLE jobs ADD COLUMN batch_id VARCHAR(26)",
        "ALTER TABLE jobs ADD COLUMN queued FLOAT",
        "UPDATE jobs SET queued = created",
        "CREATE INDEX jobs_by_batch ON jobs (batch_id, number)",
    ),
    2: (
        "ALTER TABLE jobs ADD COLUMN server VARCHAR(26)",
        "ALTER TABLE jobs ADD COLUMN lease_until FLOAT",
        "ALTER TABLE outbox ADD COLUMN sender VARCHAR(26)",
    ),
    3: _CHAINS,
}
"""Version -> what leads to the next one; tables that are new as a whole are made for every database alike."""

POSTGRES_STEPS: dict[int, tuple[str, ...]] = {3: _CHAINS}
"""The same for PostgreSQL, whose first store had version 3."""


def migrate(connection: Connection, version: int, steps: Mapping[int, tuple[str, ...]]) -> None:
    """Bring an earlier database to this version; `Conflict` for one that no step leads from, as a later one."""
    if not inspect(connection).has_table("meta"):
        return
    found = connection.execute(text("SELECT value FROM meta WHERE name = 'schema_version'")).scalar_one_or_none()
    if found is None:
        return
    at = int(found)
    while at < version and at in steps:
        for statement in steps[at]:
            connection.exec_driver_sql(statement)
        at += 1
    if at != version:
        raise Conflict(f"The job store has version {found}; this program knows version {version}.")
    if at != int(found):
        connection.execute(text("UPDATE meta SET value = :at WHERE name = 'schema_version'"), {"at": str(at)})
