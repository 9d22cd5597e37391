"""Chains: a job may name follow-ups, each of which works on every picture that the job before it made.

What must never happen: a chain that breaks between two links. It cannot, because what is to follow stands resolved in
the job's own row from its first commit on, and the jobs of the next link are made in the transaction that ends the job
before them. A job that fails or is cancelled is followed by nothing; tried again, it goes on with its chain.

`Job.share` is the part of its batch that ends with a job and with all that is still to follow it: 1 for a job that was
submitted. Whoever is followed keeps one link's worth and leaves the rest to its followers, so that a batch's progress
never jumps back, however many pictures a link makes.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from app.core.capability import Capability, image_fields
from app.core.jobs import Job, JobStatus, new_id
from app.errors import InvalidRequest, ServiceError, UnknownCapability

PICTURE = "image"
"""The field of a follow-up that its picture goes into."""

PICTURE_TO_COME = "0" * 26
"""What stands in it while there is no picture yet: no stored picture has this id."""

LINKS_LIMIT = 8
"""Follow-ups of one job."""


@contextmanager
def link(index: int) -> Iterator[None]:
    """Whatever is refused inside says which follow-up it is about: `then.0.scale`."""
    place = f"then.{index}"
    try:
        yield
    except ServiceError as error:
        details = dict(error.details)
        errors = [{**told, "field": f"{place}.{told['field']}".rstrip(".")} for told in details.get("errors") or ()]
        details["field"] = errors[0]["field"] if errors else f"{place}.{details.get('field') or ''}".rstrip(".")
        if errors:
            details["errors"] = errors
        is_named = bool(errors) and error.message.startswith(f"{error.details['errors'][0]['field']}:")
        message = f"{place}.{error.message}" if is_named else f"{details['field']}: {error.message}"
        raise type(error)(message, **details) from None


def follow_ups(
    capability: Capability, then: Any, handler: Callable[[str], Capability]
) -> list[tuple[Capability, dict[str, Any]]]:
    """Capability and fields of each follow-up of such a job, in an order that can be; no field is looked at yet.

    `handler` answers the capability that a name means. In place of the picture stands `PICTURE_TO_COME`.
    """
    found = []
    for index, (name, fields) in enumerate(_wishes(capability, then)):
        with link(index):
            try:
                found.append((handler(name), fields))
            except UnknownCapability as error:
                raise InvalidRequest(error.message, field="capability") from None
    _require_order([known for known, _ in found])
    return found


def _wishes(capability: Capability, then: Any) -> list[tuple[str, dict[str, Any]]]:
    if then is None:
        return []
    if not isinstance(then, list | tuple):
        raise InvalidRequest("then: this must be a list of follow-ups.", field="then")
    if len(then) > LINKS_LIMIT:
        raise InvalidRequest(f"then: a job may name {LINKS_LIMIT} follow-ups.", field="then")
    if then and not capability.gives_pictures:
        raise InvalidRequest(f"then: {capability.name} makes no picture that a follow-up could take.", field="then")
    wishes = []
    for index, wish in enumerate(then):
        with link(index):
            if not isinstance(wish, Mapping):
                raise InvalidRequest('This must be an object: {"capability": "upscale", "scale": 2}.')
            fields = dict(wish)
            name = fields.pop("capability", None)
            if not isinstance(name, str):
                raise InvalidRequest("Name the capability that follows.", field="capability")
            if PICTURE in fields:
                raise InvalidRequest("This is the picture that the job before makes; leave it out.", field=PICTURE)
        wishes.append((name, {**fields, PICTURE: PICTURE_TO_COME}))
    return wishes


def _require_order(capabilities: Sequence[Capability]) -> None:
    """Each follow-up takes a picture, and each but the last gives one."""
    for index, capability in enumerate(capabilities):
        with link(index):
            if image_fields(capability.request).get(PICTURE) != "image":
                raise InvalidRequest(f"{capability.name} takes no picture to work on.", field="capability")
            if index + 1 < len(capabilities) and not capability.gives_pictures:
                raise InvalidRequest(f"{capability.name} makes no picture that the next follow-up could take.")


def own_share(job: Job) -> float:
    """What the job itself is of its share: as much as each link that is to follow."""
    return job.share / (1 + len(job.then or ()))


def followers(job: Job, pictures: Sequence[Mapping[str, Any]]) -> list[Job]:
    """The jobs that follow one which made these pictures: one for each, as its first follow-up says."""
    if not job.then or not pictures:
        return []
    first, *rest = job.then
    share = (job.share - own_share(job)) / len(pictures)
    return [
        Job(
            id=new_id(),
            capability=first["capability"],
            request={**first["request"], PICTURE: picture["id"]},
            status=JobStatus.QUEUED,
            priority=job.priority,
            created=time.time(),
            max_attempts=first["max_attempts"],
            owner=job.owner,
            model=first["model"],
            callback_url=job.callback_url,
            batch_id=job.batch_id,
            then=rest or None,
            follows=job.id,
            share=share,
        )
        for picture in pictures
    ]


def why_nothing_follows(job: Job) -> str | None:
    """What a person is told of follow-ups that were named and will not begin; None while they may."""
    if not job.then or job.followed_by:
        return None
    match job.status:
        case JobStatus.FAILED:
            return "The job failed, so its follow-ups do not begin; tried again, it goes on with them."
        case JobStatus.CANCELLED:
            return "The job was cancelled, so its follow-ups do not begin; tried again, it goes on with them."
        case JobStatus.SUCCEEDED:
            return "The job made no picture, so its follow-ups have nothing to work on."
    return None
