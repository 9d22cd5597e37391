"""What a job, a picture and a model look like to a caller.

The classes document the answers in `/openapi.json`; the answers themselves are plain dictionaries made by the
functions beside them, encoded once and not validated again.
"""

from typing import Any, Literal

from pydantic import BaseModel, Field

from app.core.chains import why_nothing_follows
from app.core.jobs import Job

PREFIX = "/api/v1"


class ErrorBody(BaseModel):
    """What went wrong."""

    code: str = Field(description="Stable slug for programs.")
    message: str = Field(description="A sentence for a person.")
    details: dict[str, Any] = Field(default_factory=dict, description="Facts for programs, such as a field's name.")


class ErrorAnswer(BaseModel):
    """The body of every refusal."""

    error: ErrorBody


class ResultImage(BaseModel):
    """One picture that a job made."""

    id: str
    url: str
    width: int
    height: int
    seed: int | None
    sha256: str


class JobResult(BaseModel):
    """What a job made."""

    images: list[ResultImage]
    data: dict[str, Any]
    notes: list[str]


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class Placement(BaseModel):
    """Where a job went, and why there."""

    device: str
    reason: str


class FollowUp(BaseModel):
    """What is to follow a job."""

    capability: str
    model: str | None
    request: dict[str, Any] = Field(description="The resolved request, but for the picture that is still to come.")


class JobLinks(BaseModel):
    """Where to go on."""

    self: str
    events: str
    cancel: str


class JobAnswer(BaseModel):
    """A job: the wish with everything filled in, where it stands, and what it made."""

    id: str
    capability: str
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    priority: int
    created: float = Field(description="Unix seconds.")
    started: float | None
    finished: float | None
    attempt: int = Field(description="Starts so far, those among them that an orderly stop of the service ended.")
    max_attempts: int = Field(
        description="The number that `attempt` may reach; a start that an orderly stop ended raises it by one."
    )
    starts_left: int = Field(
        description="How often it may still be started by itself, when its worker dies under it or memory runs out."
    )
    not_before: float | None = Field(description="When a job that pauses after a lost attempt waits again.")
    batch: str | None = Field(description="The batch that it came with, or that it and its follow-ups are.")
    then: list[FollowUp] = Field(description="What is to follow it, the next first, on each picture that it makes.")
    followed_by: list[str] = Field(description="The jobs that its pictures were given to, once it has made them.")
    follows: str | None = Field(description="The job whose picture it was given.")
    nothing_follows: str | None = Field(description="Why its follow-ups do not begin; null while they may.")
    step: int
    steps: int
    position: int | None = Field(description="Jobs before this one in the queue; null when it does not wait.")
    model: str | None
    device: str | None
    placement: Placement | None = Field(description="Where it ran and why there; null before it was first given out.")
    request: dict[str, Any] = Field(description="The resolved request: sending it again repeats the result.")
    result: JobResult | None
    error: JobError | None
    links: JobLinks


class JobList(BaseModel):
    """One page of jobs, newest first."""

    jobs: list[JobAnswer]
    total: int
    limit: int
    offset: int


class ImageAnswer(BaseModel):
    """A stored picture."""

    id: str
    url: str
    width: int
    height: int
    bytes: int
    sha256: str
    media_type: str
    created: float


class DatasetImage(BaseModel):
    """A picture of a dataset."""

    id: str = Field(description="What stands for it in a request's `images`.")
    url: str
    width: int
    height: int
    name: str
    caption: str = Field(description="What the text file beside it says; empty where there is none.")


class DatasetAnswer(BaseModel):
    """What was taken in: pictures, which of them look alike, and what was left out."""

    images: list[DatasetImage]
    duplicates: list[list[int]] = Field(description="Groups of positions in `images` that look alike.")
    ignored: list[str] = Field(description="Files that are neither a picture nor the caption of one.")


class DeviceJob(BaseModel):
    """A job that a device holds."""

    job: str | None = Field(description="Null where it is another key's.")
    capability: str
    model: str | None


class Operation(BaseModel):
    """What a device did."""

    job: str | None = Field(description="Null where it was another key's.")
    capability: str
    model: str | None
    seconds: float
    outcome: Literal["succeeded", "failed", "cancelled", "lost"]
    ended: float = Field(description="Unix seconds.")


class DeviceAnswer(BaseModel):
    """One device; a figure that nobody could tell is null."""

    device: str
    name: str
    kind: Literal["cuda", "cpu", "mps"]
    tier: Literal["HIGH", "MEDIUM", "LOW", "MINIMAL", "CPU"] | None
    simulated: bool = Field(description="Only described (EIS_FAKE_DEVICES): its jobs run on `runs_on`.")
    load_percent: float | None
    temperature_celsius: float | None
    total_bytes: int | None
    free_bytes: int | None
    enabled: bool
    state: Literal["starting", "idle", "busy", "elsewhere", "broken", "stopped", "finishing", "disabled", "unused"]
    runs_on: str | None = Field(None, description="The device that its worker really uses.")
    trouble: str | None = None
    memory_limit_bytes: int | None = None
    models_may_take_bytes: int | None = None
    jobs_at_once: int | None = None
    held: int = 0
    jobs: list[DeviceJob] = []
    resident_models: list[str] = []
    last_operations: list[Operation] = Field([], description="The last ten, newest first.")


class DevicesAnswer(BaseModel):
    """Every device of the service, and how one is chosen."""

    strategy: str
    strategies: list[str]
    simulated: bool
    devices: list[DeviceAnswer]


class ModelInMemory(BaseModel):
    """A model that a worker holds."""

    model: str
    state: Literal["gone", "parked", "placed"]
    bytes: int
    borrowed: bool = Field(description="A job uses it and pins it: it is neither moved nor dropped.")
    strategy: str | None = Field(description="How its weights stand on the device; null where they do not.")


class Forwards(BaseModel):
    """What the worker's forwards served since its start."""

    forwards: int
    calls: int = Field(description="Steps of jobs; more than `forwards` where jobs shared one.")
    rows: int
    largest: int = Field(description="Most jobs in one forward.")


class MemorySettings(BaseModel):
    """How models may use a device's memory, as `/memory/configure` or the settings say."""

    offload: str
    precision: str
    model_memory_bytes: int | None = Field(description="Null: what the device reports as free.")
    parked_memory_bytes: int | None = Field(description="Null: half of the machine's memory.")


class WorkerMemory(BaseModel):
    """One worker's memory; a figure is null until it has opened its device."""

    device: str
    runs_on: str
    state: str
    pid: int | None
    is_live: bool = Field(description="False: it did not answer in time, and these are the figures of its last job.")
    settings: MemorySettings
    precision: str | None = Field(description="The number format that the worker has opened its device with.")
    total_bytes: int | None
    free_bytes: int | None = Field(description="What models could still take.")
    reserved_bytes: int | None = Field(description="What the process holds of it; on a CPU its resident memory.")
    allocated_bytes: int | None = Field(description="What tensors hold of that.")
    placed_bytes: int | None
    parked_bytes: int | None
    models: list[ModelInMemory]
    forwards: Forwards | None


class FrontProcess(BaseModel):
    """The process that serves the API."""

    pid: int
    rss_bytes: int


class MemoryAnswer(BaseModel):
    """The memory of the front process and of every worker."""

    process: FrontProcess
    devices: list[WorkerMemory]


class CleanedWorker(WorkerMemory):
    """One worker's memory after a cleanup."""

    freed_bytes: int
    dropped_models: list[str]


class CleanupAnswer(MemoryAnswer):
    """What a cleanup freed."""

    devices: list[CleanedWorker]


ANSWERS: tuple[type[BaseModel], ...] = (
    ErrorAnswer,
    ImageAnswer,
    DatasetAnswer,
    JobAnswer,
    JobList,
    DevicesAnswer,
    MemoryAnswer,
    CleanupAnswer,
)
"""What the document's answers refer to."""


def documented(answer: type[BaseModel], description: str) -> dict[str, Any]:
    """One answer of an operation, for the document alone: FastAPI would build a validator for a `model`."""
    schema = {"$ref": f"#/components/schemas/{answer.__name__}"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def job_url(id: str) -> str:
    return f"{PREFIX}/jobs/{id}"


def image_url(id: str) -> str:
    return f"{PREFIX}/images/{id}"


def job_view(job: Job, position: int | None) -> dict[str, Any]:
    """The dictionary of a `JobAnswer`."""
    result = None
    if job.result is not None:
        images = [{**image, "url": image_url(image["id"])} for image in job.result.get("images", ())]
        result = {"images": images, "data": job.result.get("data", {}), "notes": job.result.get("notes", [])}
    url = job_url(job.id)
    return {
        "id": job.id,
        "capability": job.capability,
        "status": job.status.value,
        "priority": job.priority,
        "created": job.created,
        "started": job.started,
        "finished": job.finished,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "starts_left": job.starts_left,
        "not_before": job.not_before,
        "batch": job.batch_id,
        "then": [{name: link[name] for name in ("capability", "model", "request")} for link in job.then or ()],
        "followed_by": job.followed_by or [],
        "follows": job.follows,
        "nothing_follows": why_nothing_follows(job),
        "step": job.step,
        "steps": job.steps,
        "position": position,
        "model": job.model,
        "device": job.device,
        "placement": {"device": job.device, "reason": job.device_reason} if job.device is not None else None,
        "request": job.request,
        "result": result,
        "error": job.error,
        "links": {"self": url, "events": f"{url}/events", "cancel": f"{url}/cancel"},
    }
