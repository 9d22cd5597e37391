"""Callbacks to a receiver on loopback that refuses, redirects, delays and forgets; signatures checked by hand."""

import base64
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from app.core import callbacks
from app.core.callbacks import (
    DELIVERIES_AT_ONCE,
    DELIVERIES_TO_ONE_HOST,
    CallbackSender,
    Outbox,
    Signer,
    secret_of,
)
from app.core.job_store import JobStore
from app.core.jobs import JobStatus, new_id
from app.core.service import Service
from app.errors import InvalidRequest, StorageFull
from app.guarded_http import GuardedClient
from tests.engine.conftest import end_of, new_job, until

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


class Receiver(ThreadingHTTPServer):
    """Remembers what it was sent and answers what it was told to, 204 when it was told nothing more."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.seen: list[tuple[dict, bytes]] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.open = threading.Event()
        self.open.set()
        self.inside = self.most_inside = 0
        self._counting = threading.Lock()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def hold(self) -> None:
        """Count a request that is inside, and keep it there while the receiver is not open."""
        with self._counting:
            self.inside += 1
            self.most_inside = max(self.most_inside, self.inside)
        self.open.wait(30)
        with self._counting:
            self.inside -= 1

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_address[1]}"

    @property
    def url(self) -> str:
        return f"http://{self.address}/hook"


class Handler(BaseHTTPRequestHandler):
    """One POST."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if len(body) < int(self.headers["content-length"]):
            return  # The sender died in the middle, so there is nothing to remember or to answer.
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.hold()
        self.server.seen.append(({**headers, "path": self.path}, body))
        status, answer = self.server.answers.pop(0) if self.server.answers else (204, {})
        self.send_response(status)
        for name, value in answer.items():
            self.send_header(name, value)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.shutdown()
    receiver.server_close()


def is_signed(headers: dict, body: bytes, secret: str = SECRET) -> bool:
    """The check of a receiver, written from the specification."""
    key = base64.b64decode(secret[len("whsec_") :])
    content = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    wanted = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    return f"v1,{wanted}" in headers["webhook-signature"].split(" ")


def test_the_specification_s_own_example() -> None:
    headers = Signer(SECRET).headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("secret", ["whsec_", "whsec_not base64", "whsec_abc"])
def test_a_secret_that_is_none_is_refused(secret: str) -> None:
    with pytest.raises(InvalidRequest):
        Signer(secret)


def test_a_secret_is_made_once_for_its_owner_alone(tmp_path) -> None:
    made = secret_of(tmp_path, None)
    assert secret_of(tmp_path, None) == made
    assert secret_of(tmp_path, SECRET) == SECRET
    assert (tmp_path / "callback_secret").stat().st_mode & 0o777 == 0o600
    Signer(made)


def test_one_secret_is_made_by_servers_that_start_at_once(tmp_path) -> None:
    barrier = threading.Barrier(8)

    def make(_: int) -> str:
        barrier.wait()
        return secret_of(tmp_path, None)

    with ThreadPoolExecutor(8) as pool:
        (made,) = set(pool.map(make, range(8)))
    Signer(made)
    assert [path.name for path in tmp_path.iterdir()] == ["callback_secret"]


def test_every_end_is_told_once_signed(make_service: Callable[..., Service], receiver: Receiver) -> None:
    service = make_service(trusted_hosts=(receiver.address,), callback_secret=SECRET)
    blocker = service.submit("test/paint", {"step_seconds": 0.05}, callback_url=receiver.url)
    waiting = service.submit("test/paint", {}, callback_url=receiver.url)
    fails = service.submit("test/fail", {}, callback_url=receiver.url)
    service.cancel(waiting.id)
    end_of(service, fails.id)
    until(lambda: len(receiver.seen) == 3)
    told = {}
    for headers, body in receiver.seen:
        assert is_signed(headers, body)
        assert not is_signed(headers, body + b" ")
        assert headers["content-type"] == "application/json"
        event = json.loads(body)
        told[event["data"]["id"]] = (event["type"], event["data"]["status"])
    assert told == {
        blocker.id: ("job.succeeded", "succeeded"),
        waiting.id: ("job.cancelled", "cancelled"),
        fails.id: ("job.failed", "failed"),
    }
    assert len({headers["webhook-id"] for headers, _ in receiver.seen}) == 3
    until(lambda: service.callbacks_of(blocker.id)[0]["state"] == "delivered")


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def sender(store: JobStore, receiver: Receiver) -> Iterator[tuple[CallbackSender, Clock]]:
    clock = Clock()
    client = GuardedClient((receiver.address,))
    sender = CallbackSender(store.outbox, Signer(SECRET), client, clock=clock)
    sender.start()
    yield sender, clock
    sender.stop()


def end_with_callback(store: JobStore, url: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> str:
    """A job that has succeeded at the clock's time."""
    monkeypatch.setattr(store.database, "now", lambda connection: clock())
    job = store.insert(new_job(callback_url=url))
    store.claim(job.id, device="cpu")
    assert store.succeed(job.id, 1, {"images": []}, step=1, steps=1).status is JobStatus.SUCCEEDED
    return job.id


def test_a_refused_callback_is_repeated_under_its_id(
    store: JobStore, receiver: Receiver, sender: tuple[CallbackSender, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery, clock = sender
    receiver.answers = [(500, {}), (302, {"location": f"http://{receiver.address}/elsewhere"}), (503, {})]
    job_id = end_with_callback(store, receiver.url, clock, monkeypatch)
    for attempt in range(1, 5):
        delivery.wake()
        until(lambda attempt=attempt: len(receiver.seen) == attempt)
        until(lambda attempt=attempt: store.outbox.of_job(job_id)[0]["attempts"] == attempt)
        row = store.outbox.of_job(job_id)[0]
        if attempt < 4:
            assert row["state"] == "pending"
            pause = callbacks.RETRY_SECONDS[attempt - 1]
            assert 0.8 * pause <= row["not_before"] - clock.now <= 1.2 * pause
            clock.now = row["not_before"] - 0.5
            delivery.wake()
            clock.now = row["not_before"] + 0.5
    assert (row["state"], row["last_status"]) == ("delivered", 204)
    assert len({headers["webhook-id"] for headers, _ in receiver.seen}) == 1
    assert len({headers["webhook-timestamp"] for headers, _ in receiver.seen}) == 4
    assert {headers["path"] for headers, _ in receiver.seen} == {"/hook"}
    assert all(is_signed(headers, body) for headers, body in receiver.seen)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_heeded(
    store: JobStore,
    receiver: Receiver,
    sender: tuple[CallbackSender, Clock],
    monkeypatch: pytest.MonkeyPatch,
    form: str,
) -> None:
    delivery, clock = sender
    asked = "900" if form == "seconds" else formatdate(clock.now + 900, usegmt=True)
    receiver.answers = [(429, {"retry-after": asked})]
    job_id = end_with_callback(store, receiver.url, clock, monkeypatch)
    delivery.wake()
    until(lambda: store.outbox.of_job(job_id)[0]["attempts"] == 1)
    assert store.outbox.of_job(job_id)[0]["not_before"] == pytest.approx(clock.now + 900, abs=2)


def test_gone_ends_it_and_so_does_patience(
    store: JobStore, receiver: Receiver, sender: tuple[CallbackSender, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    delivery, clock = sender
    receiver.answers = [(410, {})]
    job_id = end_with_callback(store, receiver.url, clock, monkeypatch)
    delivery.wake()
    until(lambda: store.outbox.of_job(job_id)[0]["state"] == "gone")
    receiver.answers = [(500, {})] * 50
    job_id = end_with_callback(store, receiver.url, clock, monkeypatch)
    for attempt in range(1, len(callbacks.RETRY_SECONDS) + 2):
        delivery.wake()
        until(lambda attempt=attempt: store.outbox.of_job(job_id)[0]["attempts"] == attempt)
        clock.now += 2 * 86400
    assert store.outbox.of_job(job_id)[0]["state"] == "failed"
    assert store.outbox.next_due() is None


def test_what_is_in_flight_is_not_taken_again(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its attempt may be noted, and the next one due, before the thread that made it is done with it."""
    clock = Clock()
    end_with_callback(store, "https://example.org/hook", clock, monkeypatch)
    (taken,) = store.outbox.due(clock.now, 4)
    store.outbox.note(taken.number, not_before=clock.now)
    assert store.outbox.due(clock.now, 4, {taken.number: taken.host}) == []
    assert [entry.number for entry in store.outbox.due(clock.now, 4)] == [taken.number]


def test_a_dead_or_private_receiver_is_noted_and_tried_again(
    store: JobStore, receiver: Receiver, sender: tuple[CallbackSender, Clock], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that became private after the submit is refused at the connection."""
    delivery, clock = sender
    private = end_with_callback(store, "http://127.0.0.1:9/hook", clock, monkeypatch)
    delivery.wake()
    until(lambda: store.outbox.of_job(private)[0]["attempts"] == 1)
    row = store.outbox.of_job(private)[0]
    assert (row["state"], row["last_status"], row["last_error"]) == ("pending", None, "url_not_allowed")
    assert receiver.seen == []


def test_a_host_that_hangs_leaves_room_for_another(make_service: Callable[..., Service], receiver: Receiver) -> None:
    """So many deliveries run at once and no more, of them so many to one host; the other host waits for none."""
    other = Receiver()
    try:
        service = make_service(trusted_hosts=(receiver.address, other.address), callback_secret=SECRET)
        receiver.open.clear()
        for _ in range(DELIVERIES_AT_ONCE + 2):
            service.submit("test/paint", {}, callback_url=f"{receiver.url}/{new_id()}")
        until(lambda: receiver.inside == DELIVERIES_TO_ONE_HOST)
        last = service.submit("test/paint", {}, callback_url=other.url)
        end_of(service, last.id)
        until(lambda: service.callbacks_of(last.id)[0]["state"] == "delivered")
        assert len(other.seen) == 1 and receiver.seen == []
        receiver.open.set()
        until(lambda: len(receiver.seen) == DELIVERIES_AT_ONCE + 2)
        assert receiver.most_inside == DELIVERIES_TO_ONE_HOST
    finally:
        receiver.open.set()
        other.shutdown()
        other.server_close()


class FullDisk(Outbox):
    """An outbox whose first notes meet a full disk."""

    troubles = 3

    def note(self, number: int, **values: object) -> None:
        if self.troubles:
            self.troubles -= 1
            raise StorageFull("The disk that holds the job store is full.")
        super().note(number, **values)


def test_what_cannot_be_noted_is_not_sent_again(
    store: JobStore, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full for a while delays the note of an attempt, and makes no second one."""
    monkeypatch.setattr(callbacks, "STORE_PAUSE_SECONDS", 0.02)
    clock, full = Clock(), FullDisk(store.writer, store.database)
    job_id = end_with_callback(store, receiver.url, clock, monkeypatch)
    sender = CallbackSender(full, Signer(SECRET), GuardedClient((receiver.address,)), clock=clock)
    sender.start()
    until(lambda: store.outbox.of_job(job_id)[0]["state"] == "delivered")
    sender.stop()
    assert full.troubles == 0
    assert len(receiver.seen) == 1


def test_the_receiver_remembers_whole_requests_alone(receiver):
    """A sender that a proof kills between headers and body has delivered nothing."""
    lines = f"POST /hook HTTP/1.1\r\nhost: {receiver.address}\r\ncontent-length: 8\r\n\r\n"
    for body in ("{}", "whole   "):
        with socket.create_connection(receiver.server_address) as connection:
            connection.sendall((lines + body).encode())
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert [body for _, body in receiver.seen] == [b"whole   "]
