"""Signed callbacks: a row in the outbox for each end of a job that asked for one, delivered until the receiver has it.

The row is written in the transaction that ends the job, so an end without its callback cannot exist. Delivery is at
least once: a process that dies between the answer and the note of it sends again, under the same `webhook-id`, by which
a receiver knows a repeat. Headers and signature are those of Standard Webhooks (standardwebhooks.com). Redirects are
not followed, and the guarded client refuses an address that is not public.
"""

import base64
import binascii
import hashlib
import hmac
import json
import logging
import os
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sqlalchemy import ColumnElement, Connection, func, insert, not_, select, update

from app.core import crash_points
from app.core.database import Database
from app.core.group_commit import GroupCommit
from app.core.job_tables import outbox
from app.core.jobs import Job, new_id
from app.errors import InvalidRequest, ServiceError
from app.guarded_http import GuardedClient

logger = logging.getLogger(__name__)

SECRET_PREFIX = "whsec_"
RETRY_SECONDS = (5, 30, 120, 600, 1800, 7200, 18000, 36000, 50400, 72000, 86400)
"""The pauses between attempts: close together at first, about three days in all."""
LONGEST_RETRY_AFTER_SECONDS = 86400
DELIVERIES_AT_ONCE = 16
DELIVERIES_TO_ONE_HOST = 8
"""How many of them one host may hold: one that hangs leaves room for the others."""
ANSWER_SECONDS = 15.0
"""How long a receiver may take until its answer is whole."""
SENDING_SECONDS = 120.0
"""For so long a callback is one server's to deliver; longer than the guarded client waits for an answer."""
STORE_PAUSE_SECONDS = 1.0


@dataclass(frozen=True)
class CheckedUrl:
    """A callback's address that was looked at, and why it may not be called where that is so."""

    url: str
    refusal: ServiceError | None = None


def check_callback_url(client: GuardedClient, url: str) -> CheckedUrl:
    """Ask the guard about an address; blocks for seconds where the resolver is slow."""
    try:
        client.check_url(url)
    except ServiceError as refusal:
        return CheckedUrl(url, refusal)
    return CheckedUrl(url)


@dataclass(frozen=True)
class Delivery:
    """One row of the outbox that is due."""

    number: int
    webhook_id: str
    job_id: str
    url: str
    payload: str
    attempts: int

    @property
    def host(self) -> str:
        """Scheme, host and port, as the address spells them."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"


_DELIVERY = tuple(outbox.c[name] for name in ("number", "webhook_id", "job_id", "url", "payload", "attempts"))


def insert_callback(connection: Connection, job: Job, now: float) -> None:
    """Write the callback of an ended job, inside the transaction that ends it."""
    moment = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    names = ("id", "capability", "priority", "created", "started", "finished", "attempt", "model", "result", "error")
    data = {"status": job.status.value, **{name: getattr(job, name) for name in names}}
    payload = {"type": f"job.{job.status.value}", "timestamp": moment, "data": data}
    row = {
        "webhook_id": f"msg_{new_id()}",
        "job_id": job.id,
        "url": job.callback_url,
        "payload": json.dumps(payload, separators=(",", ":"), allow_nan=False),
        "state": "pending",
        "attempts": 0,
        "not_before": now,
        "created": now,
    }
    connection.execute(insert(outbox), row)


class Outbox:
    """Reads and writes the `outbox` table."""

    def __init__(self, writer: GroupCommit, database: Database) -> None:
        self._writer = writer
        self._database = database
        self._reader = database.reader

    def due(self, now: float, limit: int, under_way: Mapping[int, str] | None = None) -> list[Delivery]:
        """Pending callbacks whose time has come, oldest first, as many as their hosts have room for.

        `under_way` are those that this process is at work on, with their hosts. Where several servers share the outbox,
        those that are answered are this server's for `SENDING_SECONDS`.
        """
        under_way = under_way or {}
        query = (
            select(*_DELIVERY)
            .where(*_pending(under_way), outbox.c.not_before <= now)
            .order_by(outbox.c.not_before, outbox.c.number)
            .limit(limit)
        )
        if not self._database.is_shared:
            with self._reader.connect() as connection:
                return _with_room((Delivery(*row) for row in connection.execute(query)), under_way)
        with self._reader.connect() as connection:
            if connection.execute(query.limit(1)).first() is None:
                return []

        def take(connection: Connection) -> list[Delivery]:
            rows = connection.execute(query.with_for_update(skip_locked=True))
            taken = _with_room((Delivery(*row) for row in rows), under_way)
            own = outbox.c.number.in_([delivery.number for delivery in taken])
            lease = {"sender": self._database.server, "not_before": now + SENDING_SECONDS}
            connection.execute(update(outbox).where(own).values(lease))
            return taken

        return self._writer.write(take)

    def next_due(self, under_way: Mapping[int, str] | None = None) -> float | None:
        """When the earliest of the pending callbacks is due, without those under way and those to full hosts."""
        query = select(func.min(outbox.c.not_before)).where(*_pending(under_way or {}))
        with self._reader.connect() as connection:
            return connection.execute(query).scalar_one()

    def of_job(self, job_id: str) -> list[dict[str, Any]]:
        """Every callback of a job, with what became of it."""
        query = select(outbox).where(outbox.c.job_id == job_id).order_by(outbox.c.number)
        with self._reader.connect() as connection:
            return [dict(row._mapping) for row in connection.execute(query)]

    def note(self, number: int, **values: Any) -> None:
        """Write down what became of an attempt."""
        seen = {"attempts": outbox.c.attempts + 1, "sender": None, **values}
        # Another server may have delivered it meanwhile, where this one took longer than it may.
        change = update(outbox).where(outbox.c.number == number, outbox.c.state == "pending").values(seen)
        self._writer.write(lambda connection: connection.execute(change))


def _with_room(deliveries: Iterable[Delivery], under_way: Mapping[int, str]) -> list[Delivery]:
    """Those for which their hosts have room, beside what is under way."""
    counts = Counter(under_way.values())
    kept = []
    for delivery in deliveries:
        if counts[delivery.host] < DELIVERIES_TO_ONE_HOST:
            counts[delivery.host] += 1
            kept.append(delivery)
    return kept


def _pending(under_way: Mapping[int, str]) -> list[ColumnElement[bool]]:
    full_hosts = [host for host, n in Counter(under_way.values()).items() if n >= DELIVERIES_TO_ONE_HOST]
    # A host whose name only begins like a full one waits with it, for as long.
    full = [not_(outbox.c.url.startswith(host, autoescape=True)) for host in full_hosts]
    return [outbox.c.state == "pending", outbox.c.number.not_in(under_way), *full]


class Signer:
    """Signs by Standard Webhooks: HMAC-SHA256 over `id.timestamp.body`, secret `whsec_` + base64."""

    def __init__(self, secret: str) -> None:
        try:
            self._key = base64.b64decode(secret.removeprefix(SECRET_PREFIX), validate=True)
        except binascii.Error:
            raise InvalidRequest("The callback secret must be `whsec_` followed by base64.") from None
        if not self._key:
            raise InvalidRequest("The callback secret is empty.")

    def headers(self, webhook_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """The three headers that a receiver checks."""
        message = b".".join((webhook_id.encode(), str(timestamp).encode(), body))
        signature = base64.b64encode(hmac.new(self._key, message, hashlib.sha256).digest()).decode()
        return {
            "content-type": "application/json",
            "webhook-id": webhook_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": f"v1,{signature}",
        }


def secret_of(home: Path, given: str | None) -> str:
    """The operator's secret, or the one that was made once under the home folder, readable by its owner alone."""
    if given:
        return given
    path = home / "callback_secret"
    if not path.exists():
        # Whole or not at all, and the first of several servers that start at once decides.
        part = path.with_suffix(f".{secrets.token_hex(4)}.part")
        with os.fdopen(os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(SECRET_PREFIX + base64.b64encode(secrets.token_bytes(32)).decode())
        with suppress(FileExistsError):
            os.link(part, path)
        part.unlink()
    return path.read_text().strip()


class CallbackSender:
    """A thread that watches the outbox and some that deliver, so that one slow receiver holds up no other."""

    def __init__(
        self,
        outbox: Outbox,
        signer: Signer,
        client: GuardedClient,
        *,
        clock: Callable[[], float] = time.time,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        self._outbox = outbox
        self._signer = signer
        self._client = client
        self._clock = clock
        self._answer_seconds = answer_seconds
        self._changed = threading.Condition()
        self._in_flight: dict[int, str] = {}
        self._woken = False
        self._stopping = False
        self._pool = ThreadPoolExecutor(DELIVERIES_AT_ONCE, thread_name_prefix="callback")
        self._thread = threading.Thread(target=self._run, name="callbacks", daemon=True)

    def start(self) -> None:
        """Begin with what is due."""
        self._thread.start()

    def wake(self) -> None:
        """Say that a row was added."""
        with self._changed:
            self._woken = True
            self._changed.notify()

    def stop(self) -> None:
        """End after the deliveries that are under way; what is pending stays in the outbox."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._pool.shutdown(wait=True)

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._deliver_due()
                pause = self._pause()
            except ServiceError as error:
                # The store may be unreadable for a moment; the callbacks stay in it.
                logger.error("the outbox could not be read: %s", error.message)
                pause = STORE_PAUSE_SECONDS
            except Exception:
                logger.exception("the outbox could not be read")
                pause = STORE_PAUSE_SECONDS
            with self._changed:
                if not self._woken and not self._stopping:
                    self._changed.wait(pause)
                self._woken = False

    def _deliver_due(self) -> None:
        """Hand out what is due while there is room, over all and at its host."""
        while True:
            under_way = self._under_way()
            room = DELIVERIES_AT_ONCE - len(under_way)
            due = self._outbox.due(self._clock(), room, under_way) if room else []
            for delivery in due:
                with self._changed:
                    self._in_flight[delivery.number] = delivery.host
                self._pool.submit(self._deliver, delivery)
            if not due:
                return

    def _under_way(self) -> dict[int, str]:
        """The callbacks that are being delivered, with their hosts."""
        with self._changed:
            return dict(self._in_flight)

    def _pause(self) -> float | None:
        """Seconds until another one is due; what is under way wakes the loop when it ends."""
        under_way = self._under_way()
        if len(under_way) >= DELIVERIES_AT_ONCE:
            return None
        due = self._outbox.next_due(under_way)
        return None if due is None else max(due - self._clock(), 0.0)

    def _deliver(self, delivery: Delivery) -> None:
        try:
            self._note(delivery, self._attempt(delivery))
        finally:
            with self._changed:
                self._in_flight.pop(delivery.number, None)
                self._woken = True
                self._changed.notify()

    def _note(self, delivery: Delivery, values: dict[str, Any]) -> None:
        """Write down an attempt until it is written: a full disk must not have the receiver told without end."""
        while True:
            try:
                return self._outbox.note(delivery.number, **values)
            except ServiceError as error:
                logger.error("the callback of job %s cannot be noted: %s", delivery.job_id, error.message)
            if self._stopping:
                return None
            time.sleep(STORE_PAUSE_SECONDS)

    def _attempt(self, delivery: Delivery) -> dict[str, Any]:
        body = delivery.payload.encode()
        status, retry_after, trouble = None, None, None
        try:
            headers = self._signer.headers(delivery.webhook_id, int(self._clock()), body)
            answer = self._client.post(delivery.url, content=body, headers=headers, seconds=self._answer_seconds)
            status, retry_after = answer.status, answer.headers.get("retry-after")
        except ServiceError as error:
            trouble = error.code
        except Exception as error:
            trouble = type(error).__name__
        crash_points.reach("webhook_sent")
        now = self._clock()
        seen = {"last_status": status, "last_error": trouble}
        if status is not None and 200 <= status < 300:
            return {"state": "delivered", "finished": now, **seen}
        if status == 410 or delivery.attempts >= len(RETRY_SECONDS):
            logger.warning("the callback of job %s is given up (%s)", delivery.job_id, status or trouble)
            return {"state": "gone" if status == 410 else "failed", "finished": now, **seen}
        pause = RETRY_SECONDS[delivery.attempts] * random.uniform(0.8, 1.2)
        return {"not_before": now + max(pause, _asked_pause(retry_after, now)), **seen}


def _asked_pause(retry_after: str | None, now: float) -> float:
    """Seconds that a Retry-After header asks for: a number or a date; at most a day."""
    if not retry_after:
        return 0.0
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - now
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER_SECONDS)
