"""Job, JobStatus, JobEvent, Batch, ImageRecord and the legal transitions between states."""

import secrets
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def new_id() -> str:
    """A random opaque id of 26 characters (134 bits)."""
    number = secrets.randbelow(36**26)
    digits = []
    for _ in range(26):
        number, digit = divmod(number, 36)
        digits.append(_DIGITS[digit])
    return "".join(digits)


class JobStatus(StrEnum):
    """The words of a job's state."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether the state is an end."""
        return self in {JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED}


TRANSITIONS: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELLED, JobStatus.FAILED}),
    JobStatus.RUNNING: frozenset({JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.QUEUED}),
    JobStatus.SUCCEEDED: frozenset(),
    JobStatus.FAILED: frozenset({JobStatus.QUEUED}),
    JobStatus.CANCELLED: frozenset({JobStatus.QUEUED}),
}
"""RUNNING -> QUEUED is a job going back after a loss or a trouble that may pass; FAILED and CANCELLED -> QUEUED is a
retry by hand."""


@dataclass(frozen=True)
class Job:
    """One Request on its way.

    `attempt` is counted at the claim and is the token that every later write must carry. Times are Unix seconds.
    `request` is the resolved request as JSON; `result` is `{"images": [{"id", "width", "height", "sha256", "seed"}],
    "data": {...}, "notes": [...], "model": id}` once succeeded; of a job that ended otherwise it holds the stages that
    were told before, and no pictures. `error` is `{"code", "message"}` once failed.
    `device_reason` says why the last attempt went to its device; it is kept with the claim's transition.
    `turn` orders an owner's jobs of one priority: the smaller is served first. `queued` is when it was submitted or
    last tried again by hand: what its ageing counts from. `batch_id` is the batch that it came with.
    `then` are its follow-ups, the next first, each `{"capability", "request", "model", "max_attempts"}` without its
    picture. `followed_by` are the jobs that its pictures went to, `follows` is the one whose picture it was given,
    and `share` is its part of the batch (`app.core.chains`).
    """

    id: str
    capability: str
    request: dict[str, Any]
    status: JobStatus
    priority: int
    created: float
    attempt: int = 0
    max_attempts: int = 3
    step: int = 0
    steps: int = 0
    owner: str = ""
    model: str | None = None
    device: str | None = None
    device_reason: str | None = None
    started: float | None = None
    finished: float | None = None
    not_before: float | None = None
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    callback_url: str | None = None
    idempotency_key: str | None = None
    cancel_requested: bool = False
    turn: int = 0
    batch_id: str | None = None
    queued: float | None = None
    then: list[dict[str, Any]] | None = None
    follows: str | None = None
    followed_by: list[str] | None = None
    share: float = 1.0

    @property
    def starts_left(self) -> int:
        """How often it may still be started by itself; what stopped it on purpose, or for another's sake, took none."""
        return 0 if self.status.is_terminal else max(0, self.max_attempts - self.attempt)


@dataclass(frozen=True)
class Batch:
    """Jobs that were submitted together, all or none; `size` is how many, without those that follow them."""

    id: str
    owner: str
    created: float
    size: int


@dataclass(frozen=True)
class ImageRecord:
    """What the service knows of a stored picture: whose it is, and which job made it with which words."""

    id: str
    kind: str
    width: int
    height: int
    bytes: int
    sha256: str
    media_type: str
    created: float
    owner: str = ""
    job_id: str | None = None
    capability: str | None = None
    model: str | None = None
    prompt: str | None = None
    seed: int | None = None
    position: int = 0


@dataclass(frozen=True)
class JobEvent:
    """Something that happened to a job, as watchers meet it.

    `kind` is one of queued, started, step, stages, preview, requeued, succeeded, failed, cancelled. `data` is
    JSON-able: `position` (queued; 0 is next), `step`, `steps`, `seconds_left` (step), `stages` (stages: all that were
    told so far), `image` (preview: a JPEG data URI).
    """

    job_id: str
    kind: str
    data: dict[str, Any] = field(default_factory=dict)
