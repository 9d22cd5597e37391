"""SQLite as the job store: one file, one server.

It runs in WAL mode with synchronous=FULL: a commit returns when its bytes are on the disk. One front process at a
time: it holds an exclusive lock on `<database>.lock` for as long as it lives, and the kernel gives the lock back when
the process dies, however it dies.
"""

import fcntl
import os
import secrets
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import Connection, create_engine, event, func, make_url, select
from sqlalchemy.exc import OperationalError

from app.core.database import Database, Reader
from app.core.job_migrations import SQLITE_STEPS, migrate
from app.core.job_tables import SCHEMA_VERSION, jobs, meta, metadata
from app.errors import Conflict, StorageFull, Unavailable

NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "fuse.sshfs", "fuse.glusterfs"}
)
_NEXT_TURN = select(func.coalesce(func.max(jobs.c.turn), 0) + 1)
_APPEND_ONLY = [
    f"""CREATE TRIGGER IF NOT EXISTS transitions_no_{deed.lower()} BEFORE {deed} ON transitions
        BEGIN SELECT RAISE(ABORT, 'transitions are append-only'); END"""
    for deed in ("UPDATE", "DELETE")
]


class SqliteDatabase(Database):
    """A SQLite file that this process has to itself; its transactions begin as BEGIN IMMEDIATE."""

    def __init__(self, url: str) -> None:
        database = make_url(url).database
        self._lock = take_lock(Path(database).absolute()) if database and database != ":memory:" else None
        self.writer = create_engine(url, pool_size=1, max_overflow=0)
        event.listen(self.writer, "connect", lambda connection, _: _prepare(connection, writes=True))
        event.listen(self.writer, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
        reader = create_engine(url, pool_size=8, max_overflow=56, isolation_level="AUTOCOMMIT")
        event.listen(reader, "connect", lambda connection, _: _prepare(connection, writes=False))
        self.reader = Reader(reader, self.refusal)

    def create(self) -> str:
        """See `Database`."""
        with self.writer.begin() as connection:
            migrate(connection, SCHEMA_VERSION, SQLITE_STEPS)
            metadata.create_all(connection)
            for trigger in _APPEND_ONLY:
                connection.exec_driver_sql(trigger)
            return own_id(connection)

    def close(self) -> None:
        """See `Database`."""
        self.writer.dispose()
        self.reader.dispose()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def now(self, connection: Connection) -> float:
        """See `Database`."""
        return time.time()

    def clock(self) -> float:
        """See `Database`."""
        return time.time()

    def turns(self, connection: Connection, count: int) -> list[int]:
        """See `Database`."""
        first = connection.execute(_NEXT_TURN).scalar_one()
        return list(range(first, first + count))

    def guard_pictures(self, connection: Connection, *, removes: bool) -> None:
        """See `Database`: transactions follow one another anyway."""

    def tell(self, connection: Connection, kind: str, jobs: Sequence[str]) -> None:
        """See `Database`: there is nobody else."""

    def is_sound(self) -> bool:
        """See `Database`."""
        with self.reader.connect() as connection:
            return connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"

    def refusal(self, error: BaseException) -> BaseException:
        """See `Database`."""
        if not isinstance(error, OperationalError):
            return error
        if "full" in str(error.orig):
            return StorageFull("The disk that holds the job store is full.")
        return Unavailable("The job store cannot be used just now.")

    def is_lost(self, error: BaseException) -> bool:
        """See `Database`."""
        return False

    def is_collision(self, error: BaseException) -> bool:
        """See `Database`."""
        return False


def own_id(connection: Connection) -> str:
    """The store's id, with the version of its tables written beside it where that is not yet so."""
    known = {row.name: row.value for row in connection.execute(select(meta))}
    for name, value in (("schema_version", str(SCHEMA_VERSION)), ("id", secrets.token_hex(16))):
        if name not in known:
            connection.execute(meta.insert().values(name=name, value=value))
            known[name] = value
    return known["id"]


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


def _prepare(connection: sqlite3.Connection, *, writes: bool) -> None:
    connection.isolation_level = None
    for pragma in (
        "journal_mode=WAL",
        "synchronous=FULL",
        "busy_timeout=30000",
        "foreign_keys=ON",
        f"query_only={'OFF' if writes else 'ON'}",
    ):
        connection.execute(f"PRAGMA {pragma}")
