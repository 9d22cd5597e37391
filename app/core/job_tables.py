"""The tables of the job store, and how a database is opened so that what is committed survives a power cut.

SQLite runs in WAL mode with synchronous=FULL: a commit returns when its bytes are on the disk. One front process at a
time: it holds an exclusive lock on `<database>.lock` for as long as it lives, and the kernel gives the lock back when
the process dies, however it dies.
"""

import fcntl
import os
import secrets
import sqlite3
from pathlib import Path

from sqlalchemy import (
    Boolean,
    Column,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    make_url,
    text,
)

from app.core.job_migrations import migrate
from app.errors import Conflict, ServiceError

SCHEMA_VERSION = 2
NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "fuse.sshfs", "fuse.glusterfs"}
)

metadata = MetaData()

meta = Table("meta", metadata, Column("name", String, primary_key=True), Column("value", String, nullable=False))

jobs = Table(
    "jobs",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(26), nullable=False, unique=True),
    Column("turn", Integer, nullable=False),
    Column("owner", String, nullable=False),
    Column("capability", String, nullable=False),
    Column("request", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("finished", Float),
    Column("not_before", Float),
    Column("step", Integer, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("model", String),
    Column("device", String),
    Column("result", Text),
    Column("error", Text),
    Column("callback_url", String),
    Column("idempotency_key", String),
    Column("cancel_requested", Boolean, nullable=False),
    Column("batch_id", String(26)),
    Column("queued", Float),
    Index("jobs_by_batch", "batch_id", "number"),
    Index("jobs_by_status", "status", "number"),
    Index("jobs_by_owner", "owner", "number"),
    Index("jobs_by_turn", "turn"),
    sqlite_autoincrement=True,
)

batches = Table(
    "batches",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(26), nullable=False, unique=True),
    Column("owner", String, nullable=False),
    Column("created", Float, nullable=False),
    Column("size", Integer, nullable=False),
    Index("batches_by_owner", "owner", "number"),
    sqlite_autoincrement=True,
)

transitions = Table(
    "transitions",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("job_id", String(26), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("before", String(16)),
    Column("after", String(16), nullable=False),
    Column("at", Float, nullable=False),
    Column("reason", String, nullable=False),
    Index("transitions_by_job", "job_id"),
    Index(
        "transitions_one_success",
        "job_id",
        unique=True,
        sqlite_where=text("after = 'succeeded'"),
        postgresql_where=text("after = 'succeeded'"),
    ),
    sqlite_autoincrement=True,
)

images = Table(
    "images",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(26), nullable=False, unique=True),
    Column("job_id", String(26)),
    Column("owner", String, nullable=False),
    Column("kind", String(8), nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("media_type", String, nullable=False),
    Column("created", Float, nullable=False),
    Column("capability", String),
    Column("model", String),
    Column("prompt", Text),
    Column("seed", Integer),
    Column("position", Integer, nullable=False),
    Index("images_by_job", "job_id"),
    Index("images_by_owner", "owner", "number"),
    sqlite_autoincrement=True,
)

forgotten_images = Table(
    "forgotten_images",
    metadata,
    Column("id", String(26), primary_key=True),
    Column("owner", String, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("forgotten", Float, nullable=False),
)
"""Deleted pictures: no job may name one any more, and an idempotency key still knows what it was asked with."""

outbox = Table(
    "outbox",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("webhook_id", String, nullable=False, unique=True),
    Column("job_id", String(26), nullable=False),
    Column("url", String, nullable=False),
    Column("payload", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("not_before", Float, nullable=False),
    Column("created", Float, nullable=False),
    Column("last_status", Integer),
    Column("last_error", String),
    Column("finished", Float),
    Index("outbox_due", "state", "not_before"),
    sqlite_autoincrement=True,
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("owner", String, primary_key=True),
    Column("key", String, primary_key=True),
    Column("body", String(64), nullable=False),
    Column("job_id", String(26), nullable=False),
    Column("created", Float, nullable=False),
)
"""What each key made: a job, or a batch under its own id."""

_APPEND_ONLY = [
    f"""CREATE TRIGGER IF NOT EXISTS transitions_no_{deed.lower()} BEFORE {deed} ON transitions
        BEGIN SELECT RAISE(ABORT, 'transitions are append-only'); END"""
    for deed in ("UPDATE", "DELETE")
]


def take_lock(database: Path) -> int:
    """Hold the database for this process; answers the open file. `Conflict` when another process holds it."""
    database.parent.mkdir(parents=True, exist_ok=True)
    refuse_network_folder(database.parent.resolve())
    # What people asked for is nobody else's to read: SQLite gives its other files the rights of the first.
    os.close(os.open(database, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    handle = os.open(f"{database}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise Conflict("Another Edit Image Service runs on this home folder; stop it or set EIS_HOME.") from None
    return handle


def refuse_network_folder(folder: Path) -> None:
    """`Conflict` on a network file system, where neither the lock nor WAL's shared memory can be relied on."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return
    within = []
    for line in mounts:
        _, place, kind, *_ = line.split(" ")
        place = place.encode().decode("unicode_escape")
        if folder.is_relative_to(place):
            within.append((len(place), kind))
    if within and max(within)[1] in NETWORK_FILE_SYSTEMS:
        raise Conflict(f"The job store cannot lie on {max(within)[1]}: set EIS_HOME to a folder on a local disk.")


def open_engines(url: str) -> tuple[Engine, Engine]:
    """(writer, reader) of a SQLite database; the writer's transactions begin as BEGIN IMMEDIATE."""
    if make_url(url).get_backend_name() != "sqlite":
        raise ServiceError("The job store needs a sqlite:/// URL.")

    def prepare(connection: sqlite3.Connection, *, writes: bool) -> None:
        connection.isolation_level = None
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "busy_timeout=30000",
            "foreign_keys=ON",
            f"query_only={'OFF' if writes else 'ON'}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    writer = create_engine(url, pool_size=1, max_overflow=0)
    event.listen(writer, "connect", lambda connection, _: prepare(connection, writes=True))
    event.listen(writer, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    reader = create_engine(url, pool_size=8, max_overflow=56, isolation_level="AUTOCOMMIT")
    event.listen(reader, "connect", lambda connection, _: prepare(connection, writes=False))
    return writer, reader


def create_tables(writer: Engine) -> str:
    """Make what is missing and answer the store's own random id; refuse a database of a version that is not known."""
    with writer.begin() as connection:
        migrate(connection, SCHEMA_VERSION)
        metadata.create_all(connection)
        for trigger in _APPEND_ONLY:
            connection.exec_driver_sql(trigger)
        found = connection.execute(meta.select().where(meta.c.name == "schema_version")).first()
        if found is None:
            connection.execute(meta.insert().values(name="schema_version", value=str(SCHEMA_VERSION)))
        known = connection.execute(meta.select().where(meta.c.name == "id")).first()
        own = known.value if known else secrets.token_hex(16)
        if known is None:
            connection.execute(meta.insert().values(name="id", value=own))
        return own
