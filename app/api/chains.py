"""Follow-ups on their way in: read, checked before anything is stored, and their own pictures made references."""

from typing import Any

from anyio import CancelScope, to_thread

from app import strict_json
from app.api.pictures import PictureResolver, Resolved
from app.core.capability import Capability
from app.core.chains import LINKS_LIMIT, PICTURE, link
from app.core.service import Service

THEN = "then"
THEN_TEXT = (
    "Follow-ups, each run on every picture that the one before it makes: the name of a capability that takes an "
    "`image`, and its other fields beside it. All of them are one batch."
)
THEN_SCHEMA: dict[str, Any] = {
    "title": "Then",
    "description": THEN_TEXT,
    "type": "array",
    "maxItems": LINKS_LIMIT,
    "items": {
        "type": "object",
        "properties": {"capability": {"type": "string", "minLength": 1}},
        "required": ["capability"],
        "additionalProperties": True,
    },
    "examples": [[{"capability": "upscale", "scale": 2}, {"capability": "tag-image"}]],
}
"""The field that a body has beside those of every capability that gives pictures."""

Chain = list[tuple[Capability, dict[str, Any]]]


def take_then(payload: dict[str, Any]) -> Any:
    """Take the follow-ups out of a body; a form sends them as JSON."""
    then = payload.pop(THEN, None)
    return strict_json.loads(then.encode()) if isinstance(then, str) and then.lstrip().startswith("[") else then


def checked(service: Service, resolver: PictureResolver, capability: Capability, then: Any) -> Chain:
    """Blocking: the follow-ups of a wish to this capability, every field valid; nothing is stored yet."""
    chain = service.follow_ups(capability, then)
    for index, (known, payload) in enumerate(chain):
        with link(index):
            resolver.validate(payload, known.request)
    return chain


async def resolve(resolver: PictureResolver, chain: Chain, resolved: Resolved) -> list[dict[str, Any]] | None:
    """The follow-ups with references for the pictures that they bring; what is stored belongs to `resolved`.

    The wish that they follow must be valid: what is stored is taken away again only where a follow-up is refused.
    """
    then = []
    try:
        for index, (capability, payload) in enumerate(chain):
            with link(index):
                own = await resolver.resolve(payload, capability.request)
            resolved.stored.update(own.stored)
            fields = {name: value for name, value in own.payload.items() if name != PICTURE}
            then.append({"capability": capability.name, **fields})
    except BaseException:
        with CancelScope(shield=True):
            await to_thread.run_sync(resolver.undo, resolved)
        raise
    return then or None
