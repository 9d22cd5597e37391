"""The memory of the workers: how it is, and giving back what no job uses."""

from fastapi import APIRouter
from starlette.responses import Response

from app.api.answers import answer
from app.api.operators import ADMIN, REFUSED
from app.api.schemas import PREFIX, CleanupAnswer, MemoryAnswer, documented
from app.core.service import Service


def memory_router(service: Service) -> APIRouter:
    """Everything under `/api/v1/memory`."""
    router = APIRouter(prefix=f"{PREFIX}/memory", tags=["memory"])

    @router.get(
        "/status",
        summary="Each worker's memory: used, allocated, free, models placed, parked and borrowed",
        description="Every worker is asked now; where `is_live` is false it did not answer, and the figures are old.",
        responses={200: documented(MemoryAnswer, "As the workers tell it now.")},
    )
    def status() -> Response:
        return answer(service.memory_status(), headers={"Cache-Control": "no-store"})

    @router.post(
        "/cleanup",
        summary="Drop every model that no job uses and give the memory back",
        description="A model that a job uses stays. The next job of a dropped model loads it anew.",
        dependencies=ADMIN,
        responses={200: documented(CleanupAnswer, "What was freed, and how it is now."), **REFUSED},
    )
    def cleanup() -> Response:
        return answer(service.memory_status(cleanup=True))

    return router
