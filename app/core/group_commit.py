"""One thread that writes: many callers' small transactions share one durable commit.

A caller returns only after the COMMIT that holds its change is on the disk. Each change runs in a savepoint of its
own, so one that fails takes nothing of its neighbours with it. While one commit waits for the disk the next group
gathers, so the group grows with the load and a lone caller waits for nobody.

A change must be able to run twice: one that collided with another server's is run again alone, and a group whose
connection turned out to be dead is run again on a fresh one. Nothing is run again whose COMMIT was already on its way.
"""

import logging
import queue
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from app.core.database import Database
from app.errors import Unavailable

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")
Change = Callable[[Connection], Any]
Outcome = tuple[Future[Any], Any, BaseException | None]

LARGEST_GROUP = 256
MOST_TRIES = 6
COLLISION_SECONDS = 0.02


class GroupCommit:
    """The only door through which the store is written."""

    def __init__(self, database: Database) -> None:
        self._database = database
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
                self._commit(changes)
        self._refuse_the_rest()

    def _commit(self, changes: list[tuple[Change, Future[Any]]]) -> None:
        collided = []
        for entry, (future, answer, error) in zip(changes, self._attempt(changes), strict=True):
            if error is not None and self._database.is_collision(error):
                collided.append((entry, error))
            else:
                self._answer(future, answer, error)
        for entry, error in collided:
            self._again_alone(entry, error)

    def _again_alone(self, entry: tuple[Change, Future[Any]], error: BaseException | None) -> None:
        answer, tries = None, 1
        while error is not None and self._database.is_collision(error) and tries < MOST_TRIES:
            time.sleep(random.uniform(0, COLLISION_SECONDS * tries))
            tries += 1
            ((_, answer, error),) = self._attempt([entry])
        self._answer(entry[1], answer, error)

    def _attempt(self, changes: list[tuple[Change, Future[Any]]]) -> list[Outcome]:
        """One transaction; what became of each change, in their order."""
        is_second = False
        while True:
            is_committing = False
            try:
                with self._database.writer.connect() as connection, connection.begin():
                    if len(changes) == 1:
                        # Alone it needs no savepoint: what undoes the transaction undoes the change.
                        answers: list[Outcome] = [(changes[0][1], changes[0][0](connection), None)]
                    else:
                        answers = [_in_savepoint(connection, change, future) for change, future in changes]
                    is_committing = True
                return answers
            except Exception as error:
                if self._database.is_lost(error) and not is_committing and not is_second:
                    is_second = True
                    continue
                if isinstance(error, SQLAlchemyError) and not self._database.is_collision(error):
                    logger.error("a commit of %d changes failed: %s", len(changes), error)
                return [(future, None, error) for _, future in changes]

    def _answer(self, future: Future[Any], answer: Any, error: BaseException | None) -> None:
        if error is None:
            future.set_result(answer)
        else:
            future.set_exception(self._database.refusal(error))

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
        if connection.invalidated:
            raise
        return future, None, error
