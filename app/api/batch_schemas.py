"""What a batch looks like to a caller, on its way in and out."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.api.chains import THEN_TEXT
from app.api.schemas import PREFIX, JobAnswer
from app.core.batching import BatchView

Priority = Annotated[int, Field(ge=0, le=10, description="10 goes first; within one priority the keys take turns.")]
CallbackUrl = Annotated[
    str | None, Field(max_length=2000, description="https address that is told, signed, when a job ends.")
]
Handler = Annotated[
    str,
    Field(
        min_length=1,
        max_length=100,
        description="A capability's name, or a short one: generate, edit, upscale, face_swap.",
    ),
]
Then = Annotated[list[Any] | None, Field(description=THEN_TEXT)]
Wished = Annotated[dict[str, Any], Field(description="The capability's fields, as its own route takes them.")]


class JobWish(BaseModel):
    """One job."""

    model_config = ConfigDict(extra="forbid")

    handler: Handler
    request: Wished
    priority: Priority | None = Field(None, description="10 goes first; null: the batch's, or 5.")
    callback_url: CallbackUrl = None
    then: Then = None


class BatchWish(BaseModel):
    """Many jobs: `jobs` lists them, or one `request` is repeated over lists of `values`."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "example": {
                "handler": "text-to-image",
                "request": {"num_inference_steps": 8},
                "values": {"prompt": ["a red car", "a blue boat"], "seed": [1, 2, 3]},
                "combine": "product",
                "priority": 3,
            }
        },
    )

    jobs: list[JobWish] | None = Field(None, description="The jobs one by one.")
    handler: Handler | None = None
    request: Wished | None = None
    values: dict[str, list[Any]] | None = Field(None, description="Field -> the values that it takes in turn.")
    combine: Literal["zip", "product"] = Field(
        "product", description="zip: the n-th values together; product: every combination."
    )
    priority: Priority = 5
    callback_url: CallbackUrl = None
    then: Then = None


class PriorityWish(BaseModel):
    """Another priority."""

    model_config = ConfigDict(extra="forbid")

    priority: Priority


class BatchCounts(BaseModel):
    """How many jobs are in each state."""

    queued: int
    running: int
    succeeded: int
    failed: int
    cancelled: int


class BatchLinks(BaseModel):
    """Where to go on."""

    self: str
    cancel: str
    retry: str


class BatchSummary(BaseModel):
    """A batch without its jobs."""

    id: str
    created: float = Field(description="Unix seconds.")
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"] = Field(
        description="`running` from the first start to the last end; then the worst end among the jobs."
    )
    total: int = Field(description="Jobs in the batch so far: a follow-up's are made when the job before it ends.")
    counts: BatchCounts
    priority: int | None = Field(description="The highest among its waiting jobs; null when none waits.")
    progress: float = Field(
        description="Share that is done, 0 to 1; steps of running jobs count, and follow-ups to come."
    )
    links: BatchLinks


class BatchAnswer(BatchSummary):
    """A batch and one page of its jobs."""

    paused: bool = Field(description="Whether the whole queue is paused.")
    jobs: list[JobAnswer] = Field(description="In the order in which they were asked for.")


class QueueAnswer(BaseModel):
    """The whole queue."""

    paused: bool
    paused_since: float | None = Field(description="Unix seconds; null while it is not paused.")
    queued: int
    running: int


class BatchList(BaseModel):
    """One page of batches, newest first, and the queue."""

    batches: list[BatchSummary]
    total: int
    limit: int
    offset: int
    queue: QueueAnswer


class Transition(BaseModel):
    """One step of a job from state to state."""

    before: str | None
    after: str
    attempt: int = Field(description="Attempts begun so far.")
    at: float = Field(description="Unix seconds.")
    reason: str = Field(description="Why; an attempt that is followed by another says what ended it.")


class JobHistory(BaseModel):
    """Everything that happened to a job, oldest first."""

    transitions: list[Transition]


class CallbackDelivery(BaseModel):
    """One signed message about a job's end, and what became of it."""

    id: str = Field(description="The `webhook-id` header: the same at each attempt.")
    url: str
    state: Literal["pending", "delivered", "failed", "gone"] = Field(
        description="failed: given up after three days; gone: the receiver answered 410."
    )
    attempts: int
    created: float
    next_attempt: float | None = Field(description="Unix seconds; null once it is over.")
    finished: float | None
    last_status: int | None = Field(description="Status of the receiver's last answer; null where none came.")
    last_error: str | None = Field(description="Why no answer came.")


class CallbackLog(BaseModel):
    """The callbacks of a job: one for each time it ended."""

    callbacks: list[CallbackDelivery]


BATCH_ANSWERS: tuple[type[BaseModel], ...] = (
    BatchAnswer,
    BatchList,
    BatchSummary,
    CallbackLog,
    JobHistory,
    QueueAnswer,
)
WISHES: tuple[type[BaseModel], ...] = (BatchWish, JobWish, PriorityWish)
"""What the document's answers and bodies refer to."""


def batch_url(id: str) -> str:
    return f"{PREFIX}/batch/status/{id}"


def batch_summary(view: BatchView) -> dict[str, Any]:
    """The dictionary of a `BatchSummary`."""
    batch = view.batch
    return {
        "id": batch.id,
        "created": batch.created,
        "status": view.status.value,
        "total": view.total,
        "counts": dict(view.counts),
        "priority": view.priority,
        "progress": round(view.progress, 4),
        "links": {
            "self": batch_url(batch.id),
            "cancel": f"{PREFIX}/batch/cancel/{batch.id}",
            "retry": f"{PREFIX}/batch/retry/{batch.id}",
        },
    }


def delivery_view(row: Mapping[str, Any]) -> dict[str, Any]:
    """The dictionary of a `CallbackDelivery`."""
    names = ("url", "state", "attempts", "created", "finished", "last_status", "last_error")
    due = row["not_before"] if row["state"] == "pending" else None
    return {"id": row["webhook_id"], **{name: row[name] for name in names}, "next_attempt": due}


def transition_views(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The dictionaries of `Transition`s."""
    names = ("before", "after", "attempt", "at", "reason")
    return [{name: row[name] for name in names} for row in rows]
