"""Shared picture stores that really work: a folder, and a bucket of an S3 server on loopback."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moto.server import ThreadedMotoServer

KEYS = {"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "a-secret", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """An S3 server; the environment that leads to it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield {**KEYS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}
    finally:
        server.stop()


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """These variables are set while the block runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def make_bucket(name: str) -> None:
    """An empty bucket on the server that the environment leads to."""
    import botocore.session

    botocore.session.get_session().create_client("s3").create_bucket(Bucket=name)


def folder_url(folder: Path) -> str:
    """The setting for a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return f"file://{folder}"
