"""Jobs: list, ask, cancel, retry."""

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from app.api.answers import answer
from app.api.schemas import PREFIX, ErrorAnswer, JobAnswer, JobList, documented, job_url, job_view
from app.core.jobs import Job, JobStatus
from app.core.service import Service

UNKNOWN = {404: documented(ErrorAnswer, "No such job, or another key's.")}
OFFSET_LIMIT = 2**31


class JobQuery(BaseModel):
    """Which jobs to list."""

    model_config = ConfigDict(extra="forbid")

    status: JobStatus | None = Field(None, description="Only jobs in this state.")
    capability: str | None = Field(None, max_length=100, description="Only jobs of this capability.")
    limit: int = Field(50, ge=1, le=500)
    offset: int = Field(0, ge=0, le=OFFSET_LIMIT)


def job_router(service: Service) -> APIRouter:
    """Everything under `/api/v1/jobs` but the events."""
    router = APIRouter(prefix=f"{PREFIX}/jobs", tags=["jobs"])

    def view(job: Job) -> dict:
        return job_view(job, service.position(job.id) if job.status is JobStatus.QUEUED else None)

    @router.get("", summary="List jobs, newest first", responses={200: documented(JobList, "One page.")})
    def list_jobs(request: HttpRequest, query: Annotated[JobQuery, Query()]) -> Response:
        jobs, total = service.list_jobs(
            owner=request.state.owner,
            status=query.status,
            capability=query.capability,
            limit=query.limit,
            offset=query.offset,
        )
        page = {"jobs": [view(job) for job in jobs], "total": total, "limit": query.limit, "offset": query.offset}
        return answer(page)

    @router.get("/{id}", summary="Ask for a job", responses={200: documented(JobAnswer, "The job."), **UNKNOWN})
    def get_job(request: HttpRequest, id: str) -> Response:
        return answer(view(service.get(id, request.state.owner)), headers={"Cache-Control": "no-store"})

    def cancel_job(request: HttpRequest, id: str) -> Response:
        return answer(view(service.cancel(id, request.state.owner)))

    cancelling = {
        "responses": {
            200: documented(JobAnswer, "A running job ends within one step."),
            409: documented(ErrorAnswer, "The job has ended already."),
            **UNKNOWN,
        }
    }
    router.add_api_route("/{id}", cancel_job, methods=["DELETE"], summary="Cancel a job", **cancelling)
    router.add_api_route(
        "/{id}/cancel", cancel_job, methods=["POST"], summary="Cancel a job", name="cancel_by_post", **cancelling
    )

    @router.post(
        "/{id}/retry",
        summary="Run a failed or cancelled job again",
        responses={
            200: documented(JobAnswer, "Queued again."),
            409: documented(ErrorAnswer, "The job has not failed."),
            **UNKNOWN,
        },
    )
    def retry_job(request: HttpRequest, id: str) -> Response:
        job = service.retry(id, request.state.owner)
        return answer(view(job), headers={"Location": job_url(job.id)})

    return router
