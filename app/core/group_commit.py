"""One thread that writes: many callers' small transactions share one durable commit.

A caller returns only after the COMMIT that holds its change is on the disk. Each change runs in a savepoint of its
own, so one that fails takes nothing of its neighbours with it. While one commit waits for the disk the next group
gathers, so the group grows with the load and a lone caller waits for nobody.
"""

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from app.errors import StorageFull, Unavailable

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Change = Callable[[Connection], Any]
Outcome = tuple[Future[Any], Any, BaseException | None]

LARGEST_GROUP = 256


class GroupCommit:
    """The only door through which the store is written."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: queue.SimpleQueue[tuple[Change, Future[Any]] | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="job-store-writer", daemon=True)
        self._thread.start()

    def write(self, change: Callable[[Connection], Answer]) -> Answer:
        """Run the change and commit it; answers what it answered, or raises what it raised."""
        if self._closed:
            raise Unavailable("The job store is closed.")
        future: Future[Answer] = Future()
        self._waiting.put((change, future))
        return future.result()

    def close(self) -> None:
        """Write what is waiting, then end."""
        if not self._closed:
            self._closed = True
            self._waiting.put(None)
            self._thread.join()

    def _run(self) -> None:
        with self._engine.connect() as connection:
            closing = False
            while not closing:
                first = self._waiting.get()
                group = [first]
                while len(group) < LARGEST_GROUP:
                    try:
                        group.append(self._waiting.get_nowait())
                    except queue.Empty:
                        break
                closing = None in group
                changes = [entry for entry in group if entry is not None]
                if changes:
                    self._commit(connection, changes)
        self._refuse_the_rest()

    def _commit(self, connection: Connection, changes: list[tuple[Change, Future[Any]]]) -> None:
        answers: list[Outcome] = []
        try:
            with connection.begin():
                if len(changes) == 1:
                    # Alone it needs no savepoint: what undoes the transaction undoes the change.
                    answers.append((changes[0][1], changes[0][0](connection), None))
                else:
                    answers += [_in_savepoint(connection, change, future) for change, future in changes]
        except Exception as error:
            if isinstance(error, SQLAlchemyError):
                logger.error("a commit of %d changes failed: %s", len(changes), error)
            answers = [(future, None, error) for _, future in changes]
        for future, answer, error in answers:
            if error is None:
                future.set_result(answer)
            else:
                future.set_exception(_refusal(error))

    def _refuse_the_rest(self) -> None:
        while True:
            try:
                entry = self._waiting.get_nowait()
            except queue.Empty:
                return
            if entry is not None:
                entry[1].set_exception(Unavailable("The job store is closed."))


def _in_savepoint(connection: Connection, change: Change, future: Future[Any]) -> Outcome:
    try:
        with connection.begin_nested():
            return future, change(connection), None
    except Exception as error:
        return future, None, error


def _refusal(error: BaseException) -> BaseException:
    """What the caller is told: a trouble of the disk is `Unavailable`, anything else is what it is."""
    if not isinstance(error, OperationalError):
        return error
    if "full" in str(error.orig):
        return StorageFull("The disk that holds the job store is full.")
    return Unavailable("The job store cannot be written just now.")
