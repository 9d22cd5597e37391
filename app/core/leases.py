"""Who runs which job when several servers share a store: each claim is a lease that its server must renew.

What must never happen: a job whose server lives is taken for lost. It cannot, because a lease ends by the database's
clock alone, or with a process that ran on this very machine and is gone. The price is that the jobs of a machine that
vanished wait until their leases end. A server names the jobs that it renews, so that one that it claimed and does not
know of (the answer to its commit was lost) is given up as well. After a time in which the database itself was away
nobody could renew anything, so nobody is judged by silence until all had time to speak (`app.core.peers`).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, or_, select, update

from app.core.database import Database
from app.core.group_commit import GroupCommit
from app.core.job_tables import jobs, outbox, servers
from app.core.jobs import JobStatus
from app.core.server_identity import is_dead

FORGET_AFTER_LEASES = 20
_RUNS = jobs.c.status == JobStatus.RUNNING.value

Token = tuple[str, int]
"""A job and its attempt."""


@dataclass(frozen=True)
class Renewal:
    """What became of the jobs that a server holds: which it has lost, and which are to be cancelled."""

    lost: list[Token]
    cancelled: list[str]


class Leases:
    """The leases of one server, for so many seconds each."""

    def __init__(self, writer: GroupCommit, database: Database, seconds: float) -> None:
        self.seconds = seconds
        self._writer = writer
        self._database = database

    def of_claim(self, now: float) -> dict[str, str | float | None]:
        """The columns that a claim fills."""
        until = now + self.seconds if self._database.is_shared else None
        return {"server": self._database.server, "lease_until": until}

    def renew(self, held: Iterable[Token]) -> Renewal:
        """Say that this server lives, and keep the jobs that it holds."""
        tokens = list(held)

        def change(connection: Connection) -> Renewal:
            now = self._database.now(connection)
            connection.execute(update(servers).where(servers.c.id == self._database.server).values(seen=now))
            own = (_RUNS, jobs.c.server == self._database.server, jobs.c.id.in_([job_id for job_id, _ in tokens]))
            renewed = update(jobs).where(*own).values(lease_until=now + self.seconds)
            rows = connection.execute(renewed.returning(jobs.c.id, jobs.c.attempt, jobs.c.cancel_requested)).all()
            kept = {(row.id, row.attempt) for row in rows}
            return Renewal(
                [token for token in tokens if token not in kept], [row.id for row in rows if row.cancel_requested]
            )

        return self._writer.write(change)

    def ended(self, connection: Connection, silent: bool = True) -> list[Token]:
        """The running jobs that no living server holds, locked; what their dead servers left otherwise is freed.

        Where a database has one server at a time, that is every running job: its server has just begun.
        """
        if not self._database.is_shared:
            return [tuple(row) for row in connection.execute(select(jobs.c.id, jobs.c.attempt).where(_RUNS))]
        now = self._database.now(connection)
        others = connection.execute(select(servers).where(servers.c.id != self._database.server)).all()
        dead = [row.id for row in others if is_dead(row.place, row.pid, row.began)]
        forgotten = [row.id for row in others if row.seen < now - FORGET_AFTER_LEASES * self.seconds]
        over = jobs.c.server.in_(dead)
        if silent:
            over = or_(jobs.c.lease_until.is_(None), jobs.c.lease_until <= now, over)
        query = select(jobs.c.id, jobs.c.attempt).where(_RUNS, over).order_by(jobs.c.number)
        found = [tuple(row) for row in connection.execute(query.with_for_update(skip_locked=True))]
        if dead:
            sends = (outbox.c.state == "pending", outbox.c.sender.in_(dead))
            connection.execute(update(outbox).where(*sends).values(sender=None, not_before=now))
        if gone := {*dead, *(forgotten if silent else ())}:
            connection.execute(delete(servers).where(servers.c.id.in_(gone)))
        return found

    def leave(self) -> None:
        """This server ends: nobody need ask whether it lives."""
        if self._database.is_shared:
            own = delete(servers).where(servers.c.id == self._database.server)
            self._writer.write(lambda connection: connection.execute(own))
