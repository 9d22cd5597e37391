"""One running server for all tests that leave no mark on it."""

import io
from collections.abc import Iterator

import pytest
from PIL import Image

from tests.api.serving import Running, serving


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server whose worker is a thread of this process."""
    with serving(tmp_path_factory.mktemp("home")) as running:
        yield running


def picture(size: tuple[int, int] = (40, 30), colour: str = "red", mode: str = "RGB", kind: str = "PNG") -> bytes:
    """The bytes of a plain picture."""
    buffer = io.BytesIO()
    Image.new(mode, size, colour).save(buffer, kind)
    return buffer.getvalue()
