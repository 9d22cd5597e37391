"""Batches: one job or many through one door, asked about, cancelled, tried again, moved in the queue; and its pause.

A batch is accepted whole or not at all: every wish is checked before any picture is stored, and what was stored for a
batch that is then refused is taken away again.
"""

from typing import Annotated, Any, TypeVar

from anyio import CancelScope, to_thread
from fastapi import APIRouter, Header, Query
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app.api import chains
from app.api.answers import answer
from app.api.batch_schemas import (
    BatchAnswer,
    BatchList,
    BatchWish,
    JobWish,
    PriorityWish,
    QueueAnswer,
    batch_summary,
    batch_url,
)
from app.api.capabilities import REFUSALS, Submission, SubmitQuery
from app.api.draining import Draining
from app.api.errors import Refusal, invalid_request
from app.api.operators import ADMIN, REFUSED
from app.api.payload import JSON_TYPE, media_type, read_json
from app.api.pictures import PictureResolver, Resolved, each, is_new
from app.api.schemas import PREFIX, ErrorAnswer, JobAnswer, documented, job_view
from app.core.batching import BatchView, Wish, named
from app.core.callbacks import CheckedUrl
from app.core.capability import Capability, image_fields
from app.core.combining import combine, count_wishes
from app.core.jobs import Job, JobStatus
from app.core.service import Service
from app.errors import InvalidRequest

ADDRESSES_LIMIT = 16
"""Different callback addresses that one batch may name: each is looked up before the answer."""

UNKNOWN = {404: documented(ErrorAnswer, "No such job or batch, or another key's.")}
EITHER = {
    "description": "The job, or the batch with its jobs.",
    "content": {
        "application/json": {
            "schema": {
                "oneOf": [{"$ref": f"#/components/schemas/{kind.__name__}"} for kind in (JobAnswer, BatchAnswer)]
            }
        }
    },
}
IdempotencyKey = Annotated[
    str | None, Header(min_length=1, max_length=200, description="The same key and body: the same job or batch.")
]
Body = TypeVar("Body", bound=BaseModel)


class PageQuery(BaseModel):
    """Which part of a list."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(100, ge=1, le=1000)
    offset: int = Field(0, ge=0, le=2**31)


def takes(wish: type[BaseModel]) -> dict[str, Any]:
    """A JSON body, for the document: it is read and checked here, as strictly as every other body."""
    schema = {"$ref": f"#/components/schemas/{wish.__name__}"}
    return {"requestBody": {"required": True, "content": {JSON_TYPE: {"schema": schema}}}}


async def read_body(request: HttpRequest, kind: type[Body]) -> Body:
    """The body as this model; a refusal names the field, and of a list the index."""
    if media_type(request) != JSON_TYPE:
        raise Refusal("unsupported_media_type", f"Send {JSON_TYPE}.")
    value = await read_json(request)
    try:
        return kind.model_validate(value, strict=True)
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)
        refusal = invalid_request(found)
        where = found[0]["loc"]
        index = {"index": where[1]} if where[:1] == ("jobs",) and len(where) > 1 else {}
        raise InvalidRequest(refusal.message, **refusal.details, **index) from None


def expand(wish: BatchWish, service: Service) -> list[JobWish]:
    """The jobs that a batch asks for, with the batch's own word where a job has none."""
    if (wish.jobs is None) == (wish.request is None):
        raise InvalidRequest("Give either `jobs`, or `request` with `values`.", field="jobs")
    if wish.jobs is not None:
        if wish.values is not None or wish.handler is not None:
            raise InvalidRequest("`handler` and `values` belong to `request`; with `jobs` each job says its own.")
        service.check_batch_size(len(wish.jobs))
        jobs = wish.jobs
    else:
        if wish.handler is None:
            raise InvalidRequest("handler: name the capability.", field="handler")
        values = wish.values or {}
        service.check_batch_size(count_wishes(values, wish.combine))
        requests = combine(wish.request or {}, values, wish.combine)
        jobs = [JobWish.model_construct(handler=wish.handler, request=one) for one in requests]
    own = {"priority": wish.priority, "callback_url": wish.callback_url, "then": wish.then}
    return [
        job.model_copy(update={name: value for name, value in own.items() if getattr(job, name) is None})
        for job in jobs
    ]


class BatchSubmission:
    """What the route of a batch does with it."""

    def __init__(self, submission: Submission) -> None:
        self.submission = submission
        self.service = submission.service
        self.resolver = submission.resolver

    def check(self, wish: BatchWish) -> list[tuple[Capability, JobWish, chains.Chain]]:
        """Blocking: every wish is of a known capability and its fields are valid; nothing is stored yet."""
        checked = []
        for index, job in enumerate(expand(wish, self.service)):
            with named(index):
                capability = self.service.handler(job.handler)
                self.resolver.validate(job.request, capability.request)
                chain = chains.checked(self.service, self.resolver, capability, job.then)
            checked.append((capability, job, chain))
        addresses = {job.callback_url for _, job, _ in checked if job.callback_url is not None}
        if len(addresses) > ADDRESSES_LIMIT:
            raise InvalidRequest(f"A batch may name {ADDRESSES_LIMIT} callback addresses.", field="callback_url")
        return checked

    async def take(self, wish: BatchWish, key: str | None, owner: str) -> BatchView:
        """The accepted batch."""
        checked = await run_in_threadpool(self.check, wish)
        callbacks: dict[str | None, CheckedUrl | None] = {None: None}
        for index, (_, job, _) in enumerate(checked):
            if job.callback_url not in callbacks:
                with named(index):
                    callbacks[job.callback_url] = await self.submission.check_callback(job.callback_url)
        stored, payloads = await self.resolve(checked)
        wishes = [
            Wish(capability.name, payload, job.priority or 0, callbacks[job.callback_url], then)
            for (capability, job, _), (payload, then) in zip(checked, payloads, strict=True)
        ]
        return await run_in_threadpool(self.accept, wishes, stored, key, owner)

    async def resolve(
        self, checked: list[tuple[Capability, JobWish, chains.Chain]]
    ) -> tuple[Resolved, list[tuple[dict[str, Any], list[dict[str, Any]] | None]]]:
        """Store the pictures that are given, each once however many wishes share it; the fields and what follows."""
        stored, payloads = Resolved({}), []
        known: dict[tuple[str, str], str] = {}
        try:
            for index, (capability, job, chain) in enumerate(checked):
                kinds = {name: kind.removesuffix("s") for name, kind in image_fields(capability.request).items()}
                payload = {**job.request}
                for name in kinds.keys() & payload.keys():
                    payload[name] = shared(payload[name], kinds[name], known)
                with named(index):
                    resolved = await self.resolver.resolve(payload, capability.request)
                stored.stored.update(resolved.stored)
                for name in kinds.keys() & payload.keys():
                    pairs = zip(each(payload[name]), each(resolved.payload[name]), strict=True)
                    known.update({(given, kinds[name]): made for given, made in pairs if is_new(given)})
                with named(index):
                    payloads.append((resolved.payload, await chains.resolve(self.resolver, chain, stored)))
        except BaseException:
            with CancelScope(shield=True):
                await to_thread.run_sync(self.resolver.undo, stored)
            raise
        return stored, payloads

    def accept(self, wishes: list[Wish], stored: Resolved, key: str | None, owner: str) -> BatchView:
        """Blocking: submit, and take the pictures away again if the batch is refused or was known already."""
        try:
            for picture, kind in stored.stored.values():
                self.service.record_upload(picture, owner=owner, kind=kind)
            batch, new = self.service.submit_batch(wishes, owner=owner, idempotency_key=key)
        except BaseException:
            self.submission.forget(stored, owner)
            raise
        if not new:
            self.submission.forget(stored, owner)
        return self.service.batch(batch.id, owner)


def shared(given: Any, kind: str, known: dict[tuple[str, str], str]) -> Any:
    """A given picture, or each of a list, as the reference under which an earlier wish of the batch stored it."""
    if isinstance(given, list):
        return [shared(one, kind, known) for one in given]
    return known.get((given, kind), given) if isinstance(given, str) else given


def batch_router(service: Service, resolver: PictureResolver, draining: Draining) -> APIRouter:
    """Everything under `/api/v1/batch`."""
    router = APIRouter(prefix=f"{PREFIX}/batch", tags=["batch"])
    submission = Submission(service, resolver, draining)
    batches = BatchSubmission(submission)

    def view_job(job: Job) -> dict[str, Any]:
        return job_view(job, service.position(job.id) if job.status is JobStatus.QUEUED else None)

    def view(found: Job | BatchView, owner: str, limit: int = 100, offset: int = 0) -> dict[str, Any]:
        if isinstance(found, Job):
            return view_job(found)
        jobs = service.jobs_of_batch(found.batch.id, owner, limit=limit, offset=offset)
        paused = service.queue_state()["paused"]
        return {**batch_summary(found), "paused": paused, "jobs": [view_job(job) for job in jobs]}

    @router.post(
        "/submit",
        status_code=202,
        summary="Submit one job and do not wait for it",
        description=(
            "`handler` names the capability and `request` holds its fields, pictures included. The answer comes once "
            "the job is on the disk; with `callback_url` its end is told there, signed."
        ),
        openapi_extra=takes(JobWish),
        responses={202: documented(JobAnswer, "Accepted; `Location` is where to ask."), **REFUSALS},
    )
    async def submit(request: HttpRequest, idempotency_key: IdempotencyKey = None) -> Response:
        owner = request.state.owner
        wish = await read_body(request, JobWish)
        capability = await run_in_threadpool(service.handler, wish.handler)
        chain = await run_in_threadpool(chains.checked, service, resolver, capability, wish.then)
        callback = await submission.check_callback(wish.callback_url)
        resolved, then = await submission.resolve(capability, wish.request, chain)
        priority = 5 if wish.priority is None else wish.priority
        query = SubmitQuery(priority=priority, callback_url=wish.callback_url)
        told = (query, callback, idempotency_key, owner, then)
        job = await run_in_threadpool(submission.submit, capability, resolved, *told)
        return answer(await run_in_threadpool(view_job, job), 202, {"Location": batch_url(job.id)})

    @router.post(
        "/submit-batch",
        status_code=202,
        summary="Submit many jobs, all or none",
        description=(
            "`jobs` lists them one by one; or `request` is repeated over lists of `values`, line by line (`zip`) or in "
            "every combination (`product`). If one is refused none is accepted, and `details.index` says which, "
            "counted from 0."
        ),
        openapi_extra=takes(BatchWish),
        responses={202: documented(BatchAnswer, "Accepted with all its jobs."), **REFUSALS},
    )
    async def submit_batch(request: HttpRequest, idempotency_key: IdempotencyKey = None) -> Response:
        owner = request.state.owner
        found = await batches.take(await read_body(request, BatchWish), idempotency_key, owner)
        body = await run_in_threadpool(view, found, owner, found.total)
        return answer(body, 202, {"Location": batch_url(found.batch.id)})

    @router.get("", summary="List batches, newest first", responses={200: documented(BatchList, "One page.")})
    def list_batches(request: HttpRequest, query: Annotated[PageQuery, Query()]) -> Response:
        found, total = service.list_batches(owner=request.state.owner, limit=query.limit, offset=query.offset)
        page = {"total": total, "limit": query.limit, "offset": query.offset, "queue": service.queue_state()}
        return answer({"batches": [batch_summary(one) for one in found], **page})

    @router.get(
        "/status/{id}",
        summary="Ask for a job or a batch",
        description="Either id is taken. Of a batch's jobs `limit` are shown from `offset` on, in the batch's order.",
        responses={200: EITHER, 422: documented(ErrorAnswer, "No such page."), **UNKNOWN},
    )
    def status(request: HttpRequest, id: str, query: Annotated[PageQuery, Query()]) -> Response:
        owner = request.state.owner
        body = view(service.find(id, owner), owner, query.limit, query.offset)
        return answer(body, headers={"Cache-Control": "no-store"})

    def cancel(request: HttpRequest, id: str) -> Response:
        owner = request.state.owner
        act = service.cancel if isinstance(service.find(id, owner), Job) else service.cancel_batch
        return answer(view(act(id, owner), owner))

    cancelling = {
        "summary": "Cancel a job, or all of a batch that has not ended",
        "description": "What waits ends at once; what runs ends at its next step. What has ended stays as it is.",
        "responses": {200: EITHER, 409: documented(ErrorAnswer, "It has ended already."), **UNKNOWN},
    }
    router.add_api_route("/cancel/{id}", cancel, methods=["DELETE"], name="cancel_batch", **cancelling)
    router.add_api_route("/cancel/{id}", cancel, methods=["POST"], name="cancel_batch_by_post", **cancelling)

    @router.post(
        "/retry/{id}",
        summary="Run a failed job, or the failed ones of a batch, again",
        responses={200: EITHER, 409: documented(ErrorAnswer, "Nothing has failed."), **UNKNOWN},
    )
    def retry(request: HttpRequest, id: str) -> Response:
        owner = request.state.owner
        act = service.retry if isinstance(service.find(id, owner), Job) else service.retry_batch
        return answer(view(act(id, owner), owner))

    @router.post(
        "/priority/{id}",
        summary="Give a waiting job, or what waits of a batch, another priority",
        openapi_extra=takes(PriorityWish),
        responses={
            200: EITHER,
            409: documented(ErrorAnswer, "Nothing of it waits."),
            422: documented(ErrorAnswer, "No priority."),
            **UNKNOWN,
        },
    )
    async def reprioritise(request: HttpRequest, id: str) -> Response:
        owner = request.state.owner
        wish = await read_body(request, PriorityWish)
        found = await run_in_threadpool(service.reprioritise, id, wish.priority, owner)
        return answer(await run_in_threadpool(view, found, owner))

    turning = {"dependencies": ADMIN, "responses": {200: documented(QueueAnswer, "The queue."), **REFUSED}}

    @router.post("/pause", summary="Start nothing new, for any key, until it is resumed", **turning)
    def pause() -> Response:
        return answer(service.pause_queue(True))

    @router.post("/resume", summary="Start waiting jobs again", **turning)
    def resume() -> Response:
        return answer(service.pause_queue(False))

    return router
