"""A PostgreSQL server of the suite's own: real, in a temporary folder, with fsync on, on a free port and a socket.

Its programs are those that Debian installs. PostgreSQL refuses to run as root, so there it runs as the user `postgres`.
"""

import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
import pytest

REQUIRED = "EIS_REQUIRE_POSTGRES"
USER = "eis"
PASSWORD = "a secret of the suite"
START_SECONDS = 60.0
_POSTGRES = ("--reuid=postgres", "--regid=postgres", "--init-groups")


def programs() -> Path | None:
    """The folder of the newest installed server's programs."""
    folders = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    named = shutil.which("initdb")
    newest = max(folders, key=lambda folder: float(folder.parent.name), default=None)
    return newest or (Path(named).parent if named else None)


class Cluster:
    """One PostgreSQL server; `url` gives a new empty database in it."""

    def __init__(self, bin: Path) -> None:
        self._bin = bin
        self.folder = Path(tempfile.mkdtemp(prefix="eis-pg-"))
        self._data = self.folder / "data"
        self._numbers = itertools.count(1)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        secret = self.folder / "password"
        secret.write_text(PASSWORD)
        if os.geteuid() == 0:
            for path in (self.folder, secret):
                shutil.chown(path, "postgres", "postgres")
        self._run(
            "initdb", "-D", str(self._data), "-U", USER, "-E", "UTF8", "--no-locale",
            "--auth-local=trust", "--auth-host=scram-sha-256", f"--pwfile={secret}",
        )  # fmt: skip
        with (self._data / "postgresql.conf").open("a") as file:
            file.write(f"port = {self.port}\nlisten_addresses = '127.0.0.1'\n")
            file.write(f"unix_socket_directories = '{self.folder}'\nmax_connections = 200\n")
        self.start()
        self.ask("CREATE EXTENSION amcheck", "template1")

    def start(self) -> None:
        """Start it and wait until it answers; it ends with the process that started it."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*_as_its_user(), "--pdeathsig", "INT", str(self._bin / "postgres"), "-D", str(self._data)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
            )
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert self._process.poll() is None, f"PostgreSQL ended:\n{(self.folder / 'log').read_text()[-3000:]}"
            try:
                return self.ask("SELECT 1", "template1")
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, "PostgreSQL did not answer in time"
                time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it, cutting off who is connected; with SIGQUIT at once, as a crash would."""
        self._process.send_signal(how)
        self._process.wait(START_SECONDS)

    def close(self) -> None:
        """End it and remove what it wrote."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder)

    def url(self) -> str:
        """The URL of a new, empty database, through the socket."""
        name = f"jobs_{next(self._numbers)}"
        self.ask(f"CREATE DATABASE {name}", "postgres")
        return f"postgresql+psycopg://{USER}@/{name}?host={self.folder}&port={self.port}"

    def drop(self, url: str) -> None:
        """Remove a database that `url` gave."""
        self.ask(f"DROP DATABASE IF EXISTS {name_of(url)} WITH (FORCE)", "postgres")

    def address(self, password: str = PASSWORD, port: int | None = None) -> str:
        """The URL of the first database over TCP, which asks for the password."""
        secret = password.replace(" ", "%20")
        return f"postgresql+psycopg://{USER}:{secret}@127.0.0.1:{port or self.port}/postgres"

    def ask(self, statement: str, database: str = "postgres") -> None:
        """Run a statement as the owner of everything."""
        with psycopg.connect(
            host=str(self.folder), port=self.port, user=USER, dbname=database, autocommit=True
        ) as connection:
            connection.execute(statement)

    def _run(self, program: str, *arguments: str) -> None:
        command = [*_as_its_user(), str(self._bin / program), *arguments]
        finished = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd="/")
        assert finished.returncode == 0, f"{program}: {finished.stdout}{finished.stderr}"


def name_of(url: str) -> str:
    """The database's name in a URL that `Cluster.url` gave."""
    return url.partition("@/")[2].partition("?")[0]


def open_cluster() -> Cluster:
    """A running server; without PostgreSQL the test is skipped, or fails where it is required."""
    bin = programs()
    missing = None
    if bin is None:
        missing = "PostgreSQL's server is not installed (apt-get install postgresql)"
    elif os.geteuid() == 0 and not _has_user():
        missing = "there is no user `postgres`, and the server does not run as root"
    if missing is not None:
        assert not os.environ.get(REQUIRED), f"{REQUIRED} is set, and {missing}"
        pytest.skip(missing)
    return Cluster(bin)


def _as_its_user() -> list[str]:
    """The start of a command that runs as the server's user."""
    return ["setpriv", *(_POSTGRES if os.geteuid() == 0 else ())]


def _has_user() -> bool:
    try:
        pwd.getpwnam("postgres")
    except KeyError:
        return False
    return True
