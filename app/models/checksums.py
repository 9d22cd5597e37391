"""The hashes by which a file is known: counted as its bytes arrive, or read off a file that stands."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

BLOCK = 2**20


class Sums:
    """Running count and hash of a file's bytes, and git's hash, which begins with the size, where that is stated."""

    def __init__(self, size: int, sha256: str | None, git_sha1: str | None) -> None:
        self._size = size
        self._stated = (sha256, git_sha1)
        self._reset()

    def _reset(self) -> None:
        self.count = 0
        self._sha256 = hashlib.sha256()
        header = f"blob {self._size}\0".encode()
        self._git = hashlib.sha1(header, usedforsecurity=False) if self._stated[1] else None

    def add(self, data: bytes) -> None:
        self.count += len(data)
        self._sha256.update(data)
        if self._git:
            self._git.update(data)

    def read_from(self, file: Any, check: Callable[[], None]) -> None:
        """Hash what an earlier attempt left; the file is positioned at its end."""
        file.seek(0)
        while block := file.read(BLOCK):
            check()
            self.add(block)

    def restart(self, file: Any) -> None:
        """Throw away what is there."""
        file.truncate(0)
        file.seek(0)
        self._reset()

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def agree(self) -> bool:
        """Whether the bytes are those that the hub stated."""
        git = self._git.hexdigest() if self._git else None
        return self._stated[0] in (None, self.sha256) and self._stated[1] == git


def sha256_of(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of a file; `on_bytes` hears how many bytes were read."""
    digest, count = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            count += len(block)
            if on_bytes:
                on_bytes(count)
    return digest.hexdigest()


def sha256_of_texts(texts: Iterable[str]) -> str:
    """One hash for several."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
