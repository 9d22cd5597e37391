"""Every way of giving a picture becomes a stored reference before the wish is submitted.

A reference, a data URI, bare base64, an https URL or a file. The other fields are validated before anything is
fetched or stored, and what was stored for a wish that is then refused is taken away again: bad input leaves nothing
behind. Fetching waits for strangers and decoding for the processor, so each has threads of its own, and a wish without
a new picture needs neither.
"""

import base64
import binascii
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import orjson
from anyio import CancelScope, CapacityLimiter, to_thread
from pydantic import BaseModel, ValidationError

from app.api.errors import invalid_request
from app.api.few_at_once import FewAtOnce
from app.core.capability import image_fields
from app.core.storage import Storage, StoredImage
from app.errors import InvalidRequest, NotFound

REFERENCE = re.compile(r"[0-9a-z]{26}")
DATA_URI = re.compile(r"data:(?P<type>[\w.+-]+/[\w.+-]+)?(?:;[\w.+=-]+)*?;base64,", re.IGNORECASE)
URL = re.compile(r"https?://", re.IGNORECASE)
PLACEHOLDER = "0" * 26
STORED_AT_ONCE = 8
FETCHED_AT_ONCE = 16
FETCHES_WAITING = 32

Fetch = Callable[[str], bytes]


@dataclass
class Resolved:
    """A payload whose pictures are references, and what was stored for it with its kind, by reference."""

    payload: dict[str, Any]
    stored: dict[str, tuple[StoredImage, str]] = field(default_factory=dict)
    validated: bool = False


class PictureResolver:
    """Turns given pictures into references."""

    def __init__(self, storage: Storage, fetch: Fetch) -> None:
        self.storage = storage
        self.fetch = fetch
        self.storing = CapacityLimiter(STORED_AT_ONCE)
        self.fetching = FewAtOnce(
            FETCHED_AT_ONCE, FETCHES_WAITING, "Too many pictures are being fetched from their hosts; try again."
        )

    async def resolve(self, payload: dict[str, Any], wish: type[BaseModel]) -> Resolved:
        """Validate everything but the pixels, then store what was given; all or nothing is kept.

        A wish without a new picture comes back as it is, not yet validated.
        """
        kinds = image_fields(wish)
        given = [one for name in kinds for one in each(payload.get(name)) if is_new(one)]
        resolved = Resolved(dict(payload))
        if not given:
            return resolved
        await to_thread.run_sync(self.validate, payload, wish, limiter=self.storing)
        resolved.validated = True
        try:
            with self.place_for(given):
                for name, kind in kinds.items():
                    if kind == "images" and payload.get(name) is not None:
                        references = [await self.reference(one, "image", name, resolved) for one in payload[name]]
                        resolved.payload[name] = references
                    elif payload.get(name) is not None:
                        resolved.payload[name] = await self.reference(payload[name], kind, name, resolved)
        except BaseException:
            with CancelScope(shield=True):
                await to_thread.run_sync(self.undo, resolved, limiter=self.storing)
            raise
        return resolved

    @contextmanager
    def place_for(self, given: list[str | bytes]) -> Iterator[None]:
        """A place among those who fetch, where there is a URL among these; `Unavailable` when none is left."""
        if not any(is_url(one) for one in given):
            yield
            return
        with self.fetching.place():
            yield

    async def fetched(self, given: str | bytes) -> str | bytes:
        """The file behind a URL; anything else as it is."""
        return await self.fetching.run(self.fetch, given) if is_url(given) else given

    async def reference(self, given: str | bytes, kind: str, name: str, resolved: Resolved) -> str:
        """The reference of one given picture."""
        if not is_new(given):
            return given
        return await to_thread.run_sync(
            self.store, await self.fetched(given), kind, name, resolved, limiter=self.storing
        )

    def validate(self, payload: dict[str, Any], wish: type[BaseModel]) -> None:
        """Blocking: every field of the wish, with placeholders for the pictures; `InvalidRequest` names the wrong."""
        trial = dict(payload)
        for name, kind in image_fields(wish).items():
            given = payload.get(name)
            if kind == "images" and isinstance(given, list):
                trial[name] = [PLACEHOLDER if isinstance(one, str | bytes) else one for one in given]
            elif isinstance(given, str | bytes):
                trial[name] = PLACEHOLDER
        try:
            # As JSON and strictly: `true` is no number, "1_000" neither, and a list may stand for a tuple.
            wish.model_validate_json(orjson.dumps(trial), strict=True)
        except ValidationError as error:
            raise invalid_request(error.errors(include_input=False, include_url=False)) from None

    def store(self, given: str | bytes, kind: str, name: str, resolved: Resolved) -> str:
        """Blocking: the reference under which one picture is now kept."""
        stored = self.storage.put(self.bytes_of(given, name), kind=kind)
        resolved.stored[stored.id] = (stored, kind)
        return stored.id

    def bytes_of(self, given: str | bytes, name: str) -> bytes:
        """The file behind a file, a data URI or base64."""
        if isinstance(given, bytes):
            return given
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


def each(value: Any) -> Iterator[str | bytes]:
    """The pictures among what a field was given: the one, or those of a list."""
    for one in value if isinstance(value, list) else [value]:
        if isinstance(one, str | bytes):
            yield one


def is_new(given: str | bytes) -> bool:
    """Whether this is a picture that has yet to be stored."""
    return isinstance(given, bytes) or REFERENCE.fullmatch(given) is None


def is_url(given: str | bytes) -> bool:
    """Whether this is the address of a picture."""
    return isinstance(given, str) and URL.match(given) is not None
