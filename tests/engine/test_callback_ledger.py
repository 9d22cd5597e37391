"""The proof of callbacks: a receiver that fails half of what it is sent has every end at last, and knows each repeat.

Store, outbox, sender and guarded client are the real ones; the receiver is a server on loopback that checks signatures
with the reference package of Standard Webhooks. Only the clock is the test's, so that days of pauses pass in seconds.
"""

import json
import os
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, tzinfo
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from app.core.callbacks import CallbackSender, Signer
from app.core.job_store import JobStore
from app.core.jobs import JobStatus
from app.guarded_http import GuardedClient
from tests.engine.conftest import new_job
from tests.engine.ledger import tell
from tests.engine.test_callbacks import SECRET, Clock

CALLBACKS = 5000 if int(os.environ.get("EIS_PROVE_CYCLES", "3")) >= 30 else 500
FAILURES = {"500": 6, "503": 6, "reset": 6, "late": 1}
"""How a receiver fails, and how often beside the others; a late answer costs the sender its whole patience."""
MOST_FAILURES = 8
PATIENCE_SECONDS = 1.0
STRIDE_SECONDS = 60.0

pytestmark = [pytest.mark.prove, pytest.mark.timeout(1800)]


def plan(number: int) -> list[str]:
    """How the receiver fails at the n-th callback before it answers well: of all requests, half."""
    chance = random.Random(number)
    failures: list[str] = []
    while len(failures) < MOST_FAILURES and chance.random() < 0.5:
        failures += chance.choices(list(FAILURES), list(FAILURES.values()))
    return failures


class Ledger(ThreadingHTTPServer):
    """A receiver that remembers every request by its `webhook-id`, and fails by plan."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, clock: Clock) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.clock = clock
        self.webhook = Webhook(SECRET)
        self.lock = threading.Lock()
        self.plans: dict[str, list[str]] = {}
        self.bodies: dict[str, list[bytes]] = {}
        self.acknowledged: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    def take(self, headers: dict[str, str], body: bytes) -> str:
        """Note a request; answers what to do with it."""
        try:
            self.webhook.verify(body, headers)
        except WebhookVerificationError:
            return self._noted("forged")
        name = headers["webhook-id"]
        with self.lock:
            failures = self.plans.setdefault(name, plan(len(self.plans)))
            seen = self.bodies.setdefault(name, [])
            seen.append(body)
            way = failures[len(seen) - 1] if len(seen) <= len(failures) else "204"
            if way == "204":
                self.acknowledged[name] += 1
        return self._noted(way)

    def _noted(self, way: str) -> str:
        with self.lock:
            self.answers[way] += 1
        return way


class Handler(BaseHTTPRequestHandler):
    """One POST."""

    server: Ledger

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        way = self.server.take({name.lower(): value for name, value in self.headers.items()}, body)
        if way == "reset":
            # With nothing lingering the kernel ends the connection by a reset instead of a goodbye.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            return
        if way == "late":
            time.sleep(1.5 * PATIENCE_SECONDS)
        self.send_response({"204": 204, "500": 500, "503": 503, "late": 204, "forged": 400}[way])
        if way == "503":
            later = random.choice(("90", formatdate(self.server.clock() + 90, usegmt=True)))
            self.send_header("retry-after", later)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass

    def finish(self) -> None:
        """A connection that was reset, or that the sender gave up on, has nobody to say goodbye to."""
        try:
            super().finish()
        except (OSError, ValueError):
            self.rfile.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The sender's clock, by which the receiver's package judges the age of a signature as well."""
    clock = Clock()
    clock.now = time.time()

    class ByTheClock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:
            return datetime.fromtimestamp(clock.now, tz)

    monkeypatch.setattr("standardwebhooks.webhooks.datetime", ByTheClock)
    return clock


@pytest.fixture
def ledger(clock: Clock) -> Iterator[Ledger]:
    ledger = Ledger(clock)
    yield ledger
    ledger.shutdown()
    ledger.server_close()


def end_one(store: JobStore, url: str, number: int, sender: CallbackSender) -> tuple[str, str]:
    """A job that asked for a callback, ended in one of the three ways; answers its id and status."""
    job = store.insert(new_job(callback_url=url))
    names, steps = (job.id, 1), {"step": 1, "steps": 1}
    if number % 10 == 0:
        ended = store.cancel(job.id)
    else:
        store.claim(job.id, device="cpu")
        if number % 10 == 1:
            ended = store.fail(*names, {"code": "internal", "message": "It failed."}, **steps)
        else:
            ended = store.succeed(*names, {"images": []}, **steps)
    sender.wake()
    return ended.id, ended.status.value


def pass_time(store: JobStore, sender: CallbackSender, clock: Clock) -> None:
    """Move the clock whenever nothing is due or under way, until the outbox holds nothing that waits."""
    deadline = time.monotonic() + 1500
    while (due := store.outbox.next_due()) is not None:
        assert time.monotonic() < deadline, "the outbox was never empty"
        if due > clock.now:
            clock.now = due + STRIDE_SECONDS
            sender.wake()
        time.sleep(0.002)


def test_the_receiver_s_check_can_fail(ledger: Ledger, clock: Clock) -> None:
    body = b'{"a": 1}'
    signed = Signer(SECRET).headers("msg_1", int(clock()), body)
    old = Signer(SECRET).headers("msg_1", int(clock()) - 3600, body)
    assert ledger.take(signed, b'{"a": 2}') == ledger.take(old, body) == "forged"
    assert ledger.take(signed, body) != "forged"


def test_every_end_reaches_a_receiver_that_fails_half_of_the_time(
    store: JobStore, ledger: Ledger, clock: Clock
) -> None:
    began = time.monotonic()
    client = GuardedClient((ledger.address,))
    sender = CallbackSender(store.outbox, Signer(SECRET), client, clock=clock, answer_seconds=PATIENCE_SECONDS)
    sender.start()
    url = f"http://{ledger.address}/hook"
    with ThreadPoolExecutor(16) as pool:
        ended = dict(pool.map(lambda number: end_one(store, url, number, sender), range(CALLBACKS)))
    pass_time(store, sender, clock)
    sender.stop()

    jobs, total = store.list_jobs(limit=2 * CALLBACKS)
    terminal = {job.id: job.status.value for job in jobs if job.status.is_terminal}
    assert total == len(terminal) == CALLBACKS and terminal == ended
    assert set(terminal.values()) == {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}
    told: dict[str, str] = {}
    with ledger.lock:
        received = {name: list(bodies) for name, bodies in ledger.bodies.items()}
    for name, bodies in received.items():
        assert len(set(bodies)) == 1, "a repeat had another body"
        event = json.loads(bodies[0])
        job = event["data"]["id"]
        assert job not in told, "one end was told under two ids"
        assert event["type"] == f"job.{terminal[job]}"
        told[job] = name
    assert told.keys() == terminal.keys()
    assert ledger.acknowledged.keys() == set(told.values()), "an end was never acknowledged"
    rows = {row["webhook_id"]: row for job in terminal for row in store.outbox.of_job(job)}
    assert rows.keys() == received.keys()
    assert {row["state"] for row in rows.values()} == {"delivered"}
    assert all(row["attempts"] >= len(received[name]) for name, row in rows.items())
    requests, failed = sum(ledger.answers.values()), sum(ledger.answers[way] for way in FAILURES)
    assert all(ledger.answers[way] for way in FAILURES) and not ledger.answers["forged"]
    assert 0.4 < failed / requests < 0.6, "the receiver did not fail half of the time"
    seconds = time.monotonic() - began
    tell(
        "callbacks",
        {
            "terminal_jobs": len(terminal), "delivered": len(told), "requests": requests, "failed": failed,
            **{f"failed_by_{way}": ledger.answers[way] for way in FAILURES},
            "repeats_with_another_id_or_body": 0, "seconds": round(seconds, 1),
        },
    )  # fmt: skip
