"""What is on record of a job: its way from state to state, and the callbacks that told of its end."""

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from app.api.answers import answer
from app.api.batch_schemas import CallbackLog, JobHistory, delivery_view, transition_views
from app.api.schemas import PREFIX, ErrorAnswer, documented
from app.core.service import Service

UNKNOWN = {404: documented(ErrorAnswer, "No such job, or another key's.")}


def record_router(service: Service) -> APIRouter:
    """`/api/v1/jobs/{id}/history` and `/callbacks`."""
    router = APIRouter(prefix=f"{PREFIX}/jobs", tags=["jobs"])

    @router.get(
        "/{id}/history",
        summary="What happened to a job: every attempt, and why it ended",
        responses={200: documented(JobHistory, "Oldest first."), **UNKNOWN},
    )
    def history(request: HttpRequest, id: str) -> Response:
        return answer({"transitions": transition_views(service.history(id, request.state.owner))})

    @router.get(
        "/{id}/callbacks",
        summary="What became of a job's callbacks",
        description=(
            "A receiver that does not answer 2xx is asked again with growing pauses for about three days, later if its "
            "`Retry-After` says so; 410 ends it at once."
        ),
        responses={200: documented(CallbackLog, "Oldest first."), **UNKNOWN},
    )
    def callbacks(request: HttpRequest, id: str) -> Response:
        rows = service.callbacks_of(id, request.state.owner)
        return answer({"callbacks": [delivery_view(row) for row in rows]})

    return router
