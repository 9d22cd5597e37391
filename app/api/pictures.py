"""Every way of giving a picture becomes a stored reference before the wish is submitted.

A reference, a data URI, bare base64, an https URL or a file. The other fields are validated before anything is
stored, and what was stored for a wish that is then refused is taken away again: bad input leaves nothing behind.
"""

import base64
import binascii
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from anyio import CapacityLimiter, to_thread
from pydantic import BaseModel, ValidationError

from app.api.errors import invalid_request
from app.core.capability import image_fields
from app.core.storage import Storage, StoredImage
from app.errors import InvalidRequest, NotFound

REFERENCE = re.compile(r"[0-9a-z]{26}")
DATA_URI = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w.+=-]+)*?;base64,", re.IGNORECASE)
URL = re.compile(r"https?://", re.IGNORECASE)
PLACEHOLDER = "0" * 26
AT_ONCE = 8

Fetch = Callable[[str], bytes]


@dataclass
class Resolved:
    """A payload whose pictures are references, and what was stored for it with its kind, by reference."""

    payload: dict[str, Any]
    stored: dict[str, tuple[StoredImage, str]] = field(default_factory=dict)


class PictureResolver:
    """Turns given pictures into references."""

    def __init__(self, storage: Storage, fetch: Fetch) -> None:
        self.storage = storage
        self.fetch = fetch
        self.limiter = CapacityLimiter(AT_ONCE)

    async def resolve_beside(self, payload: dict[str, Any], wish: type[BaseModel]) -> Resolved:
        """`resolve` in a thread of its own few, so that slow image hosts never hold up other requests."""
        return await to_thread.run_sync(self.resolve, payload, wish, limiter=self.limiter)

    def resolve(self, payload: dict[str, Any], wish: type[BaseModel]) -> Resolved:
        """Blocking: validate everything but the pixels, then store what was given; all or nothing is kept."""
        kinds = image_fields(wish)
        self.validate(payload, wish, kinds)
        resolved = Resolved(dict(payload))
        try:
            for name, kind in kinds.items():
                given = payload.get(name)
                if given is None:
                    continue
                if kind == "images":
                    resolved.payload[name] = [self.store(one, "image", name, resolved) for one in given]
                else:
                    resolved.payload[name] = self.store(given, kind, name, resolved)
        except BaseException:
            self.undo(resolved)
            raise
        return resolved

    def validate(self, payload: dict[str, Any], wish: type[BaseModel], kinds: dict[str, str]) -> None:
        """Every field of the wish with placeholders for the pictures; `InvalidRequest` names the wrong ones."""
        trial = dict(payload)
        for name, kind in kinds.items():
            given = payload.get(name)
            if kind == "images" and isinstance(given, list):
                trial[name] = [PLACEHOLDER if isinstance(one, str | bytes) else one for one in given]
            elif isinstance(given, str | bytes):
                trial[name] = PLACEHOLDER
        try:
            wish.model_validate(trial)
        except ValidationError as error:
            raise invalid_request(error.errors(include_input=False, include_url=False)) from None

    def store(self, given: str | bytes, kind: str, name: str, resolved: Resolved) -> str:
        """The reference of one given picture."""
        if isinstance(given, str) and REFERENCE.fullmatch(given):
            return given
        data = self.bytes_of(given, name)
        stored = self.storage.put(data, kind=kind)
        resolved.stored[stored.id] = (stored, kind)
        return stored.id

    def bytes_of(self, given: str | bytes, name: str) -> bytes:
        """The file behind a file, a URL, a data URI or base64."""
        if isinstance(given, bytes):
            return given
        if URL.match(given):
            return self.fetch(given)
        head = DATA_URI.match(given[:256])
        if head is None and given[:5].lower() == "data:":
            raise InvalidRequest(f"{name}: a data URI must be base64.", field=name)
        text = given[head.end() :] if head else given
        try:
            data = base64.b64decode("".join(text.split()), validate=True)
        except (binascii.Error, ValueError):
            data = b""
        if not data:
            raise InvalidRequest(
                f"{name}: neither a picture's reference, a data URI, base64 nor an https URL.", field=name
            )
        return data

    def undo(self, resolved: Resolved) -> None:
        """Take away what was stored for a wish that was refused."""
        for reference in resolved.stored:
            with suppress(NotFound):
                self.storage.delete(reference)
        resolved.stored.clear()
