"""One literal route for each capability, generated from its declaration by a closure.

Whatever waits for a result only watches: when the client goes away, the job goes on.
"""

import asyncio
import time
from contextlib import suppress
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app.api import chains
from app.api.answers import answer
from app.api.draining import Draining, until_gone
from app.api.errors import error_answer, retry_headers, service_error_answer, status_of
from app.api.few_at_once import FewAtOnce
from app.api.negotiation import IMAGE_TYPES, preferred
from app.api.openapi import wish_schema
from app.api.payload import read_payload
from app.api.pictures import PictureResolver, Resolved
from app.api.schemas import PREFIX, ErrorAnswer, JobAnswer, documented, job_url, job_view
from app.core.callbacks import CheckedUrl
from app.core.capability import Capability
from app.core.jobs import Job, JobStatus
from app.core.service import Service
from app.errors import Conflict, UnknownImage, error_class
from app.imaging.metadata import can_hold

WAIT_LIMIT = 600
CHECKED_AT_ONCE = 8
CHECKS_WAITING = 32
JSON_TYPE = "application/json"

BINARY = {"schema": {"type": "string", "format": "binary"}}
DONE = documented(JobAnswer, "The job with its result; with `Accept: image/...`, the first picture itself.")
REFUSALS: dict[int | str, dict[str, Any]] = {
    400: documented(ErrorAnswer, "The body cannot be read."),
    401: documented(ErrorAnswer, "A key is needed."),
    403: documented(ErrorAnswer, "Host or Origin is refused."),
    404: documented(ErrorAnswer, "No such picture or model."),
    409: documented(ErrorAnswer, "The model is not installed, or the idempotency key was used before."),
    413: documented(ErrorAnswer, "The body or a picture is too large."),
    415: documented(ErrorAnswer, "The body or a picture is of a type that is not taken."),
    422: documented(ErrorAnswer, "A field is not valid."),
    503: documented(ErrorAnswer, "Not now; `Retry-After` says when."),
    507: documented(ErrorAnswer, "Memory or disk did not suffice."),
}


class SubmitQuery(BaseModel):
    """How a wish is taken."""

    model_config = ConfigDict(extra="forbid")

    wait: float = Field(
        60, ge=0, le=WAIT_LIMIT, allow_inf_nan=False, description="Seconds to wait for the result before answering 202."
    )
    priority: int = Field(5, ge=0, le=10, description="10 goes first.")
    callback_url: str | None = Field(
        None, max_length=2000, description="https address that is told, signed, when the job ends."
    )


class Submission:
    """What every capability's route does with a wish."""

    def __init__(self, service: Service, resolver: PictureResolver, draining: Draining) -> None:
        self.service = service
        self.resolver = resolver
        self.draining = draining
        self.checking = FewAtOnce(
            CHECKED_AT_ONCE, CHECKS_WAITING, "Too many callback addresses are being looked up; try again."
        )

    async def check_callback(self, url: str | None) -> CheckedUrl | None:
        """The callback's address, looked up where a slow resolver holds up nobody else."""
        if url is None:
            return None
        with self.checking.place():
            return await self.checking.run(self.service.check_callback, url)

    def submit(
        self,
        capability: Capability,
        resolved: Resolved,
        query: SubmitQuery,
        callback: CheckedUrl | None,
        key: str | None,
        owner: str,
        then: list[dict[str, Any]] | None = None,
    ) -> Job:
        """Blocking: submit, and take the pictures away again if the wish is refused or was known already."""
        if not resolved.validated:
            self.resolver.validate(resolved.payload, capability.request)
        try:
            for stored, kind in resolved.stored.values():
                self.service.record_upload(stored, owner=owner, kind=kind)
            job = self.service.submit(
                capability.name,
                resolved.payload,
                owner=owner,
                priority=query.priority,
                idempotency_key=key,
                callback_url=callback,
                then=then,
            )
        except BaseException:
            self.forget(resolved, owner)
            raise
        requests = [job.request, *(link["request"] for link in job.then or ())]
        if not resolved.stored.keys() <= set().union(*map(named_in, requests)):
            self.forget(resolved, owner)
        return job

    def forget(self, resolved: Resolved, owner: str) -> None:
        """Take away what was stored for a wish that did not become a job of its own."""
        for reference in resolved.stored:
            with suppress(UnknownImage, Conflict):
                self.service.delete_image(reference, owner)

    async def resolve(
        self, capability: Capability, payload: dict[str, Any], chain: chains.Chain
    ) -> tuple[Resolved, list[dict[str, Any]] | None]:
        """The wish and its follow-ups with every picture stored; all or nothing is kept."""
        resolved = await self.resolver.resolve(payload, capability.request)
        if chain and not resolved.validated:
            await run_in_threadpool(self.resolver.validate, payload, capability.request)
            resolved.validated = True
        return resolved, await chains.resolve(self.resolver, chain, resolved)

    async def wait_for_all(self, request: HttpRequest, job: Job, seconds: float, owner: str) -> Job:
        """The job, or with follow-ups the first job of the last link; before that, the first that has not succeeded."""
        deadline = time.monotonic() + seconds
        jobs = [await self.wait(request, job, seconds, owner)]
        while True:
            for job in jobs:
                if job.status is not JobStatus.SUCCEEDED:
                    return job
            ids = [id for job in jobs for id in job.followed_by or ()]
            if not ids:
                return jobs[0]
            jobs = [await run_in_threadpool(self.service.get, id, owner) for id in ids]
            jobs = [await self.wait(request, job, deadline - time.monotonic(), owner) for job in jobs]

    async def wait(self, request: HttpRequest, job: Job, seconds: float, owner: str) -> Job:
        """The job at its end, or as it stands when the time is over, the client is gone or the server stops."""
        if job.status.is_terminal or seconds <= 0:
            return job
        end = asyncio.ensure_future(self.service.wait(job.id, seconds, owner))
        gone = asyncio.ensure_future(until_gone(request))
        stop = asyncio.ensure_future(self.draining.begun.wait())
        try:
            await asyncio.wait({end, gone, stop}, return_when=asyncio.FIRST_COMPLETED)
            if end.done():
                return end.result()
            job = await run_in_threadpool(self.service.get, job.id, owner)
            if stop.done() and job.status is JobStatus.RUNNING:
                await asyncio.wait({end, gone}, timeout=self.draining.seconds, return_when=asyncio.FIRST_COMPLETED)
                return end.result() if end.done() else job
            return job
        finally:
            for task in (end, gone, stop):
                task.cancel()

    async def reply(self, request: HttpRequest, job: Job) -> Response:
        """200 with the result or the first picture, 202 while it runs, or the error that ended it."""
        if not job.status.is_terminal:
            position = await run_in_threadpool(self.service.position, job.id)
            return answer(job_view(job, position), 202, {"Location": job_url(job.id), "Retry-After": "1"})
        if job.status is JobStatus.CANCELLED:
            return service_error_answer(Conflict("The job was cancelled."), job=job.id)
        if job.status is JobStatus.FAILED:
            return failure(job)
        headers = {"Location": job_url(job.id), "X-Job-Id": job.id}
        images = (job.result or {}).get("images", [])
        first = images[0] if images else None
        fitting = [kind for kind in IMAGE_TYPES if first and can_hold(kind, (first["width"], first["height"]))]
        wanted = preferred(request.headers.get("accept", ""), (JSON_TYPE, *fitting))
        if wanted in fitting:
            # A replay may come after the picture was deleted: the job is still the answer.
            with suppress(UnknownImage):
                data = await run_in_threadpool(self.service.storage.encode, first["id"], wanted)
                if first.get("seed") is not None:
                    headers["X-Seed"] = str(first["seed"])
                return Response(data, 200, headers | {"X-Image-Id": first["id"], "Vary": "Accept"}, wanted)
        return answer(job_view(job, None), 200, headers | {"Vary": "Accept"})


def failure(job: Job) -> Response:
    """The error that ended a job, with the job's id."""
    error = job.error or {}
    code = error.get("code", "internal")
    status = status_of(error_class(code), in_job=True)
    message = error.get("message", "The job failed.")
    return error_answer(status, code, message, {"job": job.id}, retry_headers(status, code))


def named_in(request: dict[str, Any]) -> set[str]:
    """Every text of a request that may be a reference."""
    found: set[str] = set()
    for value in request.values():
        found.update(text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str))
    return found


def capability_router(service: Service, resolver: PictureResolver, draining: Draining) -> APIRouter:
    """The routes of the whole catalog."""
    router = APIRouter(tags=["capabilities"])
    submission = Submission(service, resolver, draining)
    for capability in service.catalog:
        add_route(router, capability, submission)

    @router.get(f"{PREFIX}/capabilities", summary="Everything that the service can do")
    def list_capabilities() -> Response:
        return answer({"capabilities": [describe(capability) for capability in service.catalog]})

    return router


def add_route(router: APIRouter, capability: Capability, submission: Submission) -> None:
    """`POST /api/v1/<name>` of one capability."""

    async def submit(
        request: HttpRequest,
        query: Annotated[SubmitQuery, Query()],
        idempotency_key: Annotated[
            str | None, Header(min_length=1, max_length=200, description="The same key and body: the same job.")
        ] = None,
    ) -> Response:
        owner = request.state.owner
        payload = await read_payload(request, capability.request)
        then = chains.take_then(payload)
        chain = await run_in_threadpool(chains.checked, submission.service, submission.resolver, capability, then)
        callback = await submission.check_callback(query.callback_url)
        resolved, then = await submission.resolve(capability, payload, chain)
        told = (query, callback, idempotency_key, owner, then)
        job = await run_in_threadpool(submission.submit, capability, resolved, *told)
        job = await submission.wait_for_all(request, job, query.wait, owner)
        return await submission.reply(request, job)

    router.add_api_route(
        f"{PREFIX}/{capability.name}",
        submit,
        methods=["POST"],
        name=capability.name,
        operation_id=f"run_{capability.name}".replace("-", "_").replace("/", "_"),
        summary=capability.title,
        description=capability.summary,
        responses={
            200: {**DONE, "content": {**DONE["content"], **{kind: BINARY for kind in IMAGE_TYPES}}},
            202: documented(JobAnswer, "Accepted; `Location` is where to ask."),
            **REFUSALS,
        },
    )


def describe(capability: Capability) -> dict[str, Any]:
    """A capability as data: for programs that build their own forms."""
    components: dict[str, Any] = {}
    schema = wish_schema(capability, components, prefix="#/$defs/")
    own = components.pop(schema["$ref"].rsplit("/", 1)[-1])
    return {
        "name": capability.name,
        "title": capability.title,
        "summary": capability.summary,
        "group": capability.group,
        "group_title": capability.group_title or capability.title,
        "needs": list(capability.needs),
        "url": f"{PREFIX}/{capability.name}",
        "schema": {**own, "$defs": components} if components else own,
        "example": dict(capability.example),
    }
