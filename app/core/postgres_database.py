"""PostgreSQL as the job store: one queue, several servers.

What two servers must not do at once is decided by the database: a row is locked while it is moved, times are those of
its own clock, and a transaction that collided with another's is run again. What one has committed the others hear by
NOTIFY. Several servers may start at once: an advisory lock lets one make the tables and the others find them.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, create_engine, event, make_url, text
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.core.database import Database, Message, Reader
from app.core.job_migrations import POSTGRES_STEPS, migrate
from app.core.job_tables import SCHEMA_VERSION, metadata, servers
from app.core.server_identity import own_identity
from app.core.sqlite_database import own_id
from app.errors import DependencyMissing, InvalidRequest, StorageFull, Unavailable

CHANNEL = "edit_image_service"
CREATING, PICTURES = 0x0E15_0001, 0x0E15_0002
"""Keys of advisory locks: one server makes the tables; a picture is removed or a job that names it is accepted."""
IDS_AT_ONCE = 200
PAYLOAD_BYTES = 7900
"""PostgreSQL takes less than 8000 in one notification."""
READERS = 16
CONNECTING = {
    "connect_timeout": 10,
    "keepalives_idle": 15,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 30000,
}
"""A machine that vanished without a word is noticed within half a minute."""

DISK_FULL = "53100"
COLLISIONS = frozenset({"40001", "40P01", "23505"})
"""Serialisation failure, deadlock, and a row that another server wrote a moment before."""
PASSING = ("08", "53", "57", "58", "25006", "55006")
"""Classes of trouble that the operator or time ends: connection, resources, shutdown, system, a standby."""

_NOW = text("SELECT extract(epoch FROM clock_timestamp())::float8")
_TURNS = text("SELECT nextval('job_turns') FROM generate_series(1, :count)")
_TELL = text("SELECT pg_notify(:channel, :payload)")
_DURABLE = """SELECT set_config('synchronous_commit', 'on', false)
    WHERE current_setting('synchronous_commit') = 'off'"""
_FIRST_TIME = (
    "CREATE SEQUENCE job_turns",
    """CREATE FUNCTION transitions_are_append_only() RETURNS trigger LANGUAGE plpgsql AS
       $$ BEGIN RAISE EXCEPTION 'transitions are append-only'; END $$""",
    """CREATE TRIGGER transitions_append_only BEFORE UPDATE OR DELETE ON transitions
       FOR EACH ROW EXECUTE FUNCTION transitions_are_append_only()""",
)
_CHECK_INDEXES = """SELECT bt_index_check(index.indexrelid, true) FROM pg_index index
    JOIN pg_class class ON class.oid = index.indexrelid JOIN pg_am am ON am.oid = class.relam
    WHERE am.amname = 'btree' AND class.relnamespace = current_schema()::regnamespace"""


class PostgresDatabase(Database):
    """A PostgreSQL database that this process may share with other servers."""

    is_shared = True

    def __init__(self, url: str) -> None:
        given = make_url(url)
        known = {name: value for name, value in CONNECTING.items() if name not in given.query}
        try:
            self.writer = create_engine(
                given, connect_args=known, pool_size=1, max_overflow=0, isolation_level="READ COMMITTED"
            )
            reader = create_engine(
                given,
                connect_args=known,
                pool_size=4,
                max_overflow=READERS - 4,
                pool_pre_ping=True,
                isolation_level="AUTOCOMMIT",
            )
        except ImportError as error:
            raise DependencyMissing(
                "EIS_DATABASE_URL: PostgreSQL needs the driver psycopg: pip install 'edit-image-service[postgres]'."
            ) from error
        except ArgumentError:
            raise InvalidRequest("EIS_DATABASE_URL: this is no URL of a PostgreSQL database.") from None
        for engine in (self.writer, reader):
            event.listen(engine, "do_connect", _connect)
        event.listen(self.writer, "connect", lambda connection, _: _make_durable(connection))
        event.listen(reader, "connect", lambda connection, _: _read_only(connection))
        self._read_engine = reader
        self.reader = Reader(reader, self.refusal)
        self.identity = own_identity()
        self.server = self.identity.id
        self._shift = 0.0

    def create(self) -> str:
        """See `Database`; also writes down that this server lives."""
        with self.writer.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": CREATING})
            found = connection.exec_driver_sql("SELECT to_regclass('meta') IS NOT NULL").scalar_one()
            if found:
                migrate(connection, SCHEMA_VERSION, POSTGRES_STEPS)
            metadata.create_all(connection)
            if not found:
                for statement in _FIRST_TIME:
                    connection.exec_driver_sql(statement)
            own = own_id(connection)
            connection.execute(servers.insert().values(**vars(self.identity), seen=self.now(connection)))
            return own

    def close(self) -> None:
        """See `Database`."""
        self.writer.dispose()
        self.reader.dispose()

    def now(self, connection: Connection) -> float:
        """See `Database`; notes on the way how far this machine's clock is from it."""
        shown = connection.execute(_NOW).scalar_one()
        self._shift = shown - time.time()
        return shown

    def clock(self) -> float:
        """See `Database`: this machine's clock, set right by the last answer."""
        return time.time() + self._shift

    def turns(self, connection: Connection, count: int) -> list[int]:
        """See `Database`."""
        return sorted(connection.execute(_TURNS, {"count": count}).scalars())

    def guard_pictures(self, connection: Connection, *, removes: bool) -> None:
        """See `Database`: whoever removes waits for all who accept, and they for it."""
        shared = "" if removes else "_shared"
        connection.execute(text(f"SELECT pg_advisory_xact_lock{shared}(:key)"), {"key": PICTURES})

    def tell(self, connection: Connection, kind: str, jobs: Sequence[str]) -> None:
        """See `Database`."""
        for start in range(0, len(jobs), IDS_AT_ONCE):
            self._notify(connection, {"kind": kind, "jobs": list(jobs[start : start + IDS_AT_ONCE])})

    def tell_events(self, events: Sequence[Any]) -> None:
        """Let the other servers hear what is not kept; what does not fit into one notification is told in several."""
        with self.reader.connect() as connection:
            part: list[Any] = []
            size = 0
            for told in events:
                length = len(json.dumps(told)) + 2
                if part and size + length > PAYLOAD_BYTES - 200:
                    self._notify(connection, {"kind": "events", "events": part})
                    part, size = [], 0
                if length <= PAYLOAD_BYTES - 200:
                    part.append(told)
                    size += length
            if part:
                self._notify(connection, {"kind": "events", "events": part})

    def tell_leaving(self) -> None:
        """Say that this server ends; its own listener wakes by it as well."""
        with self.reader.connect() as connection:
            self._notify(connection, {"kind": "leaves"})

    @contextmanager
    def listen(self) -> Iterator["Listener"]:
        """What the other servers tell from now on, on a connection of its own."""
        try:
            with self._read_engine.connect() as connection:
                connection.exec_driver_sql(f"LISTEN {CHANNEL}")
                try:
                    yield Listener(connection.connection.driver_connection, self.server)
                finally:
                    # A connection that has listened must not go back among the others.
                    connection.invalidate()
        except DBAPIError as error:
            raise self.refusal(error) from error

    def is_sound(self) -> bool:
        """See `Database`: amcheck over every index where the extension is installed, else each row is read once."""
        with self.reader.connect() as connection:
            try:
                has_check = "SELECT count(*) FROM pg_extension WHERE extname = 'amcheck'"
                if connection.exec_driver_sql(has_check).scalar_one():
                    connection.exec_driver_sql(_CHECK_INDEXES).all()
                for table in metadata.sorted_tables:
                    connection.exec_driver_sql(f"SELECT sum(length(t::text)) FROM {table.name} t").scalar_one()
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) in {"XX001", "XX002"}:
                    return False
                raise
        return True

    def refusal(self, error: BaseException) -> BaseException:
        """See `Database`."""
        if isinstance(error, PoolTimeout | PendingRollbackError):
            return Unavailable("The job store is too busy just now.")
        if not isinstance(error, DBAPIError):
            return error
        state = _state(error)
        if state == DISK_FULL:
            return StorageFull("The disk that holds the job store is full.")
        if isinstance(error, DataError) and "NUL" in str(error.orig):
            return InvalidRequest("A text holds a NUL character.")
        if self.is_lost(error) or isinstance(error, OperationalError) or state.startswith(PASSING):
            return Unavailable("The job store cannot be used just now.")
        return error

    def is_lost(self, error: BaseException) -> bool:
        """See `Database`."""
        if not isinstance(error, DBAPIError):
            return False
        unsaid = isinstance(error, OperationalError) and not _state(error)
        return error.connection_invalidated or isinstance(error, InterfaceError) or unsaid

    def is_collision(self, error: BaseException) -> bool:
        """See `Database`."""
        return isinstance(error, DBAPIError) and _state(error) in COLLISIONS

    def _notify(self, connection: Connection, message: Message) -> None:
        payload = json.dumps({"server": self.server, **message}, separators=(",", ":"))
        connection.execute(_TELL, {"channel": CHANNEL, "payload": payload})


class Listener:
    """Hears what the other servers tell."""

    def __init__(self, connection: Any, own: str) -> None:
        self._connection = connection
        self._own = own

    def hear(self, seconds: float) -> list[Message]:
        """What the others told, in order: at once when anything is said, nothing after so many seconds."""
        heard = []
        for notification in self._connection.notifies(timeout=seconds, stop_after=1):
            message = json.loads(notification.payload)
            if message["server"] != self._own:
                heard.append(message)
        return heard


def _state(error: DBAPIError) -> str:
    return getattr(error.orig, "sqlstate", None) or ""


def _connect(dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
    """A connection to a database that can hold every text."""
    connection = dialect.connect(*arguments, **options)
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        connection.close()
        raise InvalidRequest(f"EIS_DATABASE_URL: the database's encoding is {encoding}; it must be UTF8.")
    return connection


def _make_durable(connection: Any) -> None:
    """A commit returns when it is on the disk, whatever the server was told to think of others."""
    connection.execute(_DURABLE)
    connection.commit()


def _read_only(connection: Any) -> None:
    connection.execute("SET default_transaction_read_only = on")
    connection.commit()
