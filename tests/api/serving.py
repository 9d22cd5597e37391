"""A real server on a free loopback port, in a thread of the test process, over a catalog that needs no torch."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from app.core.catalog import CATALOG as PRODUCT
from app.core.service import Service
from app.main import build, listen, make_server
from app.settings import Settings
from tests.engine.capabilities import CATALOG as PAINTING
from tests.engine.modelled import CATALOG as MODELLED

CATALOG = (*PRODUCT, *PAINTING, *MODELLED)
TORCHLESS_RUNTIME = "tests.engine.modelled:open_runtime"
PATIENCE_SECONDS = 120.0
"""What a busy machine may take; every wait ends as soon as its condition holds."""


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    address: str
    port: int
    home: Path
    service: Service
    client: httpx.Client

    def stored(self) -> tuple[int, int, int]:
        """How many jobs, picture rows and picture files there are: what bad input must not change."""
        jobs = self.service.list_jobs(limit=1)[1]
        rows = self.service.search_images(kind=None, limit=1)[1]
        files = sum(path.is_file() for path in (self.home / "images").rglob("*"))
        return jobs, rows, files

    def upload(self, data: bytes, kind: str = "image") -> str:
        """The reference of an uploaded picture."""
        answer = self.client.post(f"/api/v1/images?kind={kind}", content=data, headers={"content-type": "image/png"})
        assert answer.status_code == 201, answer.text
        return answer.json()["id"]


@contextmanager
def serving(
    home: Path, *, engine: dict[str, object] | None = None, ready_seconds: float = PATIENCE_SECONDS, **changes: object
) -> Iterator[Running]:
    """Start a server whose worker is a thread; stop it on leaving."""
    values = {
        "home": home,
        "catalog": "tests.api.serving:CATALOG",
        "devices": ("inline",),
        "min_free_bytes": 0,
        "heartbeat_seconds": 0.2,
        "cancel_grace_seconds": 0.5,
        "drain_seconds": 5.0,
        "ui": False,
    }
    settings = Settings(_env_file=None, **{**values, **changes})
    application = build(settings, **{"runtime": TORCHLESS_RUNTIME, "retry_seconds": 0.05, **(engine or {})})
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    started = threading.Event()
    server = make_server(application, started.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    assert started.wait(PATIENCE_SECONDS), "the server did not start"
    address = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=address, timeout=PATIENCE_SECONDS, trust_env=False) as client:
        deadline = time.monotonic() + ready_seconds
        while not application.service.readiness()["ready"]:
            assert time.monotonic() < deadline, "no worker became ready"
            time.sleep(0.01)
        yield Running(address, port, settings.home, application.service, client)
    server.should_exit = True
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive(), "the server did not stop"
