"""The composition root: settings become storage, models, engine, HTTP application and browser page.

Nothing here imports torch or the page's library: the server answers in about a second, and what is slow starts in
the worker processes and in a thread behind it.
"""

import asyncio
import errno
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError, DatabaseError

from app.api.application import ApiOptions, create_api
from app.api.posture import is_loopback
from app.api.protocol import deadline_protocol
from app.collector import collector_at_rest
from app.core.engine_options import EngineOptions
from app.core.service import Service
from app.errors import DependencyMissing, InvalidRequest, ServiceError
from app.guarded_http import GuardedClient
from app.settings import Settings

DISTRIBUTION = "edit-image-service"
SECRETS = ("hub_token", "callback_secret", "search_key")
FLOORS = {
    "diffusers": "0.42",
    "pillow": "12.3.0",
    "python-multipart": "0.0.31",
    "starlette": "1.3.0",
    "torch": "2.10",
    "transformers": "5.3",
}
"""Below these versions a known hole is open; the server does not start."""

POSTGRES = "postgresql+psycopg"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Application:
    """Everything that one process serves."""

    settings: Settings
    service: Service
    api: FastAPI


def own_version() -> str:
    """The version of the installed distribution."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "0+unknown"


def outdated() -> list[str]:
    """Sentences about packages that are missing or older than they must be."""
    found = []
    for name, floor in FLOORS.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            found.append(f"{name} is not installed; at least {floor} is needed.")
            continue
        if numbers(installed) < numbers(floor):
            found.append(f"{name} {installed} is older than {floor}.")
    return found


def numbers(text: str) -> tuple[int, ...]:
    """`2.15.0+cpu` as (2, 15, 0)."""
    parts = []
    for part in text.split("+")[0].split("."):
        digits = "".join(character for character in part if character.isdigit())
        if not part[:1].isdigit():
            break
        parts.append(int(digits))
    return tuple(parts)


def engine_options(settings: Settings, **changes: Any) -> EngineOptions:
    """What the engine takes from the settings; `changes` win."""
    values = {
        name: getattr(settings, name)
        for name in EngineOptions.__dataclass_fields__
        if name in Settings.model_fields and name not in SECRETS
    }
    for name in SECRETS:
        secret = getattr(settings, name)
        values[name] = secret.get_secret_value() if secret else None
    return EngineOptions(**{**values, **changes})


def build_service(settings: Settings, **changes: Any) -> Service:
    """The engine behind every face, not yet started; a setting that cannot be used is an `InvalidRequest`."""
    check_home(settings.home)
    check_database(settings.database_url)
    try:
        return Service(engine_options(settings, **changes))
    except DatabaseError as error:
        name = "EIS_HOME" if settings.database_url is None else "EIS_DATABASE_URL"
        told = without_password(" ".join(str(error.orig).split()), settings.database_url)
        raise InvalidRequest(f"{name}: the job store cannot be opened: {told.rstrip('.')}.") from None


def without_password(told: str, url: str | None) -> str:
    """What a driver said, which may have repeated what it was given."""
    password = make_url(url).password if url is not None else None
    return told.replace(password, "***") if password else told


def check_home(home: Path) -> None:
    """A folder that can be made and written to."""
    try:
        home.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise InvalidRequest(f"EIS_HOME: the folder cannot be made: {error.strerror}.") from None
    if not os.access(home, os.W_OK | os.X_OK):
        raise InvalidRequest("EIS_HOME: the folder cannot be written to.")


def check_database(url: str | None) -> None:
    """A URL of PostgreSQL with the driver that is used, or of a SQLite file that can be opened."""
    if url is None:
        return
    wrong = (
        "EIS_DATABASE_URL: the job store needs a URL like sqlite:////var/lib/eis/jobs.sqlite "
        "or postgresql+psycopg://user:password@host/database"
    )
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise InvalidRequest(f"{wrong}.") from None
    if parsed.drivername == POSTGRES:
        return
    if parsed.get_backend_name() != "sqlite" or parsed.database in {None, "", ":memory:"}:
        raise InvalidRequest(f"{wrong}.")
    try:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(parsed.database, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise InvalidRequest(f"EIS_DATABASE_URL: the file cannot be opened: {error.strerror}.") from None


def build(settings: Settings, **changes: Any) -> Application:
    """The whole application, not yet started: its lifespan starts and stops the service."""
    service = build_service(settings, **changes)
    client = GuardedClient(settings.trusted_hosts)
    options = ApiOptions(
        host=settings.host,
        api_keys=tuple(key.get_secret_value() for key in settings.api_keys),
        admin_keys=tuple(key.get_secret_value() for key in settings.admin_keys),
        allowed_hosts=settings.allowed_hosts,
        max_body_bytes=settings.max_body_bytes,
        max_model_bytes=settings.max_model_bytes,
        drain_seconds=settings.drain_seconds,
        version=own_version(),
    )
    fetch = partial(client.get_bytes, limit=settings.max_body_bytes)
    page = partial(browser_page, service, settings.max_body_bytes) if settings.ui else None
    return Application(settings, service, create_api(service, options, fetch=fetch, page=page))


def browser_page(service: Service, max_file_bytes: int) -> FastAPI:
    """In a thread, after the server answers: import the page's library and build the page at `/`."""
    from app.ui.app import mount_ui

    return mount_ui(service, version=own_version(), max_upload_bytes=max_file_bytes)


class Server(uvicorn.Server):
    """uvicorn's server, which tells long requests at once that it stops."""

    def __init__(self, config: uvicorn.Config, application: Application, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self.application = application
        self.announce = announce
        self.loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's, remembering the loop for the signal handler; then say where it listens."""
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self.announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """On SIGTERM and Ctrl-C: begin to drain; a second Ctrl-C waits for no job.

        uvicorn's own would also raise the signal again at the end: a stop that was asked for is no failure.
        """
        again = self.should_exit and sig == signal.SIGINT
        self.force_exit = again
        self.should_exit = True
        # Not here: the signal may have come while this thread holds a lock that is needed.
        threading.Thread(target=self._heed, args=(again,), name="stop", daemon=True).start()
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.application.api.state.draining.begin)

    def _heed(self, again: bool) -> None:
        service = self.application.service
        if again:
            service.hurry()
        elif service.readiness()["running"]:
            seconds = self.application.settings.drain_seconds
            print(
                f"Stopping: running jobs have {seconds:g} s to end, the others wait for the next start. "
                "Ctrl-C again waits for none.",
                flush=True,
            )


def listen(host: str, port: int) -> socket.socket:
    """A bound socket; `InvalidRequest` says why there is none."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError:
        raise InvalidRequest(f"{host} is no address of this machine.") from None
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise InvalidRequest(f"Port {port} is in use; another one: eis serve --port {port + 1}") from None
        if error.errno == errno.EACCES:
            raise InvalidRequest(f"Port {port} needs more rights than this user has.") from None
        raise InvalidRequest(f"Cannot listen on {host}: {error.strerror}.") from None
    return listener


def check_posture(settings: Settings) -> None:
    """Refuse to be open to a network without a key."""
    if not is_loopback(settings.host) and not settings.api_keys and not settings.allow_open_network:
        raise InvalidRequest(
            f"{settings.host} can be reached from other machines: set EIS_API_KEYS, "
            "or EIS_ALLOW_OPEN_NETWORK=true if everyone there may use it."
        )
    if old := outdated():
        raise DependencyMissing(" ".join(old))


def announce(settings: Settings, service: Service, bound: tuple[Any, ...]) -> None:
    """The few lines that a person needs."""
    host, port = bound[:2]
    shown = "127.0.0.1" if host in {"0.0.0.0", "::"} else host
    address = f"http://{f'[{shown}]' if ':' in shown else shown}:{port}"
    try:
        row = service.models.choose(("text-to-image",))
        model = f"{row.spec.id} ({row.spec.title})"
    except ServiceError as error:
        model = f"none: {error.message}"
    print(f"Edit Image Service {own_version()}")
    print(f"  page    {address}" + ("" if settings.ui else "  (off: EIS_UI=false)"))
    print(f"  API     {address}/docs")
    print(f"  model   {model}")
    print(f"  home    {settings.home}", flush=True)


def serve(settings: Settings) -> int:
    """Serve until a signal comes; the answer is the exit status."""
    logging.basicConfig(
        level=settings.log_level.upper(), stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    for chatty in ("httpx", "httpcore", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, logging.getLogger().level))
    check_posture(settings)
    listener = listen(settings.host, settings.port)
    with collector_at_rest():
        application = build(settings)
    tell = partial(announce, settings, application.service, listener.getsockname())
    make_server(application, tell).run(sockets=[listener])
    return 0


def make_server(application: Application, announce: Callable[[], None]) -> Server:
    """uvicorn as this service runs it: with the receive deadline, without WebSockets and access log."""
    settings = application.settings
    config = uvicorn.Config(
        application.api,
        http=deadline_protocol(settings.receive_seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=settings.log_level == "debug",
        server_header=False,
        timeout_graceful_shutdown=int(settings.drain_seconds) + 5,
    )
    return Server(config, application, announce)
