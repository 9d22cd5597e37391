"""The proof of the door: many connections submit and poll at once while others hang half open, and nothing is lost.

The queue is kept short, so that the flood meets its limit: each answer is either a success or a coded 503, and what was
acknowledged is found done at the end, by `ledger.audit` from the home's files.
"""

import http.client
import json
import os
import socket
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.engine.conftest import CATALOG
from tests.engine.ledger import audit, processes_of, tell
from tests.engine.server import PATIENCE_SECONDS, Server

CYCLES = int(os.environ.get("EIS_PROVE_CYCLES", "3"))
SUBMITS = 100 * CYCLES
CLIENTS = 12
HANGING = 100
HEADS = (
    b"",
    b"POST /api/v1/test/paint?wait=0 HTTP/1.1\r\nHost: localhost\r\nX: ",
    b"POST /api/v1/test/paint?wait=0 HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Content-Length: 400\r\n\r\n{"seed": ',
)

pytestmark = [pytest.mark.prove, pytest.mark.timeout(7200)]


class Client:
    """One connection that is kept; it submits its share and polls after each, and counts every answer."""

    def __init__(self, port: int, numbers: range) -> None:
        self.accepted: list[str] = []
        self.answers: Counter[str] = Counter()
        self.trouble: Exception | None = None
        self._port = port
        self._numbers = numbers
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def ask(self, method: str, path: str, wish: object = None) -> tuple[int, dict]:
        """Status and JSON of one answer; anything but 2xx and a coded 503 is an error."""
        body = None if wish is None else json.dumps(wish)
        self._connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        answer = self._connection.getresponse()
        told = json.load(answer)
        code = "" if answer.status < 300 else told["error"]["code"]
        assert 200 <= answer.status < 300 or (answer.status == 503 and code), (answer.status, told)
        self.answers[code or str(answer.status)] += 1
        return answer.status, told

    def _run(self) -> None:
        try:
            for number in self._numbers:
                status = 503
                while status == 503:
                    status, told = self.ask("POST", "/api/v1/test/paint?wait=0", {"seed": number, **QUICK})
                    if status == 503:
                        time.sleep(0.05)
                self.accepted.append(told["id"])
                assert self.ask("GET", f"/api/v1/jobs/{told['id']}")[1]["id"] == told["id"]
        except Exception as error:
            self.trouble = error


QUICK = {"num_inference_steps": 1}


def test_a_flood_beside_hanging_connections_loses_nothing(tmp_path: Path) -> None:
    began = time.monotonic()
    server = Server(tmp_path, catalog=CATALOG, queue_limit="50", max_attempts=None)
    server.start()
    with ExitStack() as open_sockets:
        for number in range(HANGING):
            hanging = open_sockets.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            hanging.sendall(HEADS[number % len(HEADS)])
        clients = [Client(server.port, range(start, SUBMITS, CLIENTS)) for start in range(CLIENTS)]
        for client in clients:
            client.thread.join(PATIENCE_SECONDS + 6 * CYCLES)
            assert not client.thread.is_alive(), "a client never got its answer"
            assert client.trouble is None, client.trouble
    accepted = [job for client in clients for job in client.accepted]
    answers = sum((client.answers for client in clients), Counter())
    assert len(set(accepted)) == SUBMITS
    server.wait_until(
        lambda: not any(server.request(f"/api/v1/jobs?status={word}&limit=1")["total"] for word in UNFINISHED),
        "finish what it had accepted",
    )
    assert server.stop() == 0
    assert processes_of(server.home) == []
    figures = audit(server.home, accepted)
    refused = sum(count for code, count in answers.items() if not code.isdigit())
    tell(
        "flood",
        {
            "submits": SUBMITS, "polls": SUBMITS, "connections": CLIENTS, "hanging": HANGING, "refused_503": refused,
            **figures, "seconds": round(time.monotonic() - began, 1),
        },
    )  # fmt: skip


UNFINISHED = ("queued", "running")
