"""What the job store asks of a database beyond the SQL that all speak; each kind answers in a file of its own."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError

Message = dict[str, Any]


class Reader:
    """Connections for reading; a trouble of the database is told as the service's own error."""

    def __init__(self, engine: Engine, refusal: Callable[[BaseException], BaseException]) -> None:
        self._engine = engine
        self._refusal = refusal

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """A connection whose statements each see what is committed."""
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise self._refusal(error) from error

    def dispose(self) -> None:
        """Close every connection."""
        self._engine.dispose()


class Database:
    """One opened database: its two doors, its clock, and what is said differently in its dialect."""

    is_shared = False
    """Whether several servers may work on it at once."""
    server: str | None = None
    """The id of this process among them."""
    writer: Engine
    reader: Reader

    def create(self) -> str:
        """Make what is missing and answer the store's own random id; `Conflict` for an unknown version."""
        raise NotImplementedError

    def close(self) -> None:
        """Close every connection and give back what was held."""
        raise NotImplementedError

    def now(self, connection: Connection) -> float:
        """The database's clock."""
        raise NotImplementedError

    def clock(self) -> float:
        """What the database's clock shows, without asking it."""
        raise NotImplementedError

    def turns(self, connection: Connection, count: int) -> list[int]:
        """The next places at the end of the queue; no two jobs are given one."""
        raise NotImplementedError

    def guard_pictures(self, connection: Connection, *, removes: bool) -> None:
        """Until the transaction ends: no picture is removed while another lets a job that names it wait."""
        raise NotImplementedError

    def tell(self, connection: Connection, kind: str, jobs: Sequence[str]) -> None:
        """Let the other servers hear, once this is committed, what became of these jobs."""
        raise NotImplementedError

    def is_sound(self) -> bool:
        """Whether the database's own check passes."""
        raise NotImplementedError

    def refusal(self, error: BaseException) -> BaseException:
        """What a caller is told: a trouble that may pass is `Unavailable`, anything else is what it is."""
        raise NotImplementedError

    def is_lost(self, error: BaseException) -> bool:
        """Whether the connection was found to be dead, so that nothing of its transaction was kept."""
        raise NotImplementedError

    def is_collision(self, error: BaseException) -> bool:
        """Whether another server's transaction was in the way, so that the change must look again."""
        raise NotImplementedError
