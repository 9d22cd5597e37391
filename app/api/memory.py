"""The memory of the workers: how it is, how models may use it, and giving back what no job uses."""

from typing import Any, Literal

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app.api.answers import answer
from app.api.errors import invalid_request
from app.api.operators import ADMIN, REFUSED
from app.api.payload import JSON_TYPE, read_object
from app.api.schemas import PREFIX, CleanupAnswer, ErrorAnswer, MemoryAnswer, documented
from app.core.model_offload import PRECISIONS, STRATEGIES
from app.core.service import Service
from app.errors import InvalidRequest

FRESH = {"Cache-Control": "no-store"}
LARGEST = 2**60


class MemoryChange(BaseModel):
    """What is to hold from now on. A field that is left out stays as it is; null goes back to the setting."""

    model_config = ConfigDict(extra="forbid", strict=True)

    device: str | None = Field(None, description="The device that it holds for; null: for all of them.")
    strategy: Literal[STRATEGIES] | None = Field(
        None, description="How weights stand on a device; auto: what fits into the memory that is free."
    )
    precision: Literal[PRECISIONS] | None = Field(None, description="Number format of the models.")
    model_memory_bytes: int | None = Field(None, ge=2**20, le=LARGEST, description="Bytes of models on a device.")
    parked_memory_bytes: int | None = Field(None, ge=0, le=LARGEST, description="Bytes of models in RAM beside it.")


CHOICES = {
    "strategy": "offload",
    "precision": "precision",
    "model_memory_bytes": "memory_limit_bytes",
    "parked_memory_bytes": "parked_memory_bytes",
}
"""What may be changed, and the name under which it stands in the configuration of a device."""
CHANGE: dict[str, Any] = {
    "required": True,
    "content": {JSON_TYPE: {"schema": MemoryChange.model_json_schema(), "example": {"strategy": "vae"}}},
}


async def read_change(request: HttpRequest) -> MemoryChange:
    """The change as it was sent; `InvalidRequest` names the first field that is wrong."""
    body = await read_object(request)
    try:
        change = MemoryChange.model_validate(body)
    except ValidationError as error:
        raise invalid_request(error.errors()) from None
    if not change.model_fields_set & set(CHOICES):
        raise InvalidRequest(f"Name at least one of {', '.join(CHOICES)}.")
    return change


def memory_router(service: Service) -> APIRouter:
    """Everything under `/api/v1/memory`."""
    router = APIRouter(prefix=f"{PREFIX}/memory", tags=["memory"])

    @router.get(
        "/status",
        summary="Each worker's memory: reserved, allocated, free, models placed, parked and borrowed",
        description="Every worker is asked now; where `is_live` is false it did not answer, and the figures are old.",
        responses={200: documented(MemoryAnswer, "As the workers tell it now.")},
    )
    def status() -> Response:
        return answer(service.memory_status(), headers=FRESH)

    @router.post(
        "/configure",
        summary="Choose offload strategy, precision and bytes for models; at once and for later starts",
        description="It holds for every model that is borrowed from then on; one that a job uses stays as it is until "
        "the job ends. Models that were opened under another strategy or precision are dropped.",
        dependencies=ADMIN,
        openapi_extra={"requestBody": CHANGE},
        responses={
            **REFUSED,
            200: documented(MemoryAnswer, "As it is now."),
            422: documented(ErrorAnswer, "No such device or value, or the device cannot serve it."),
            503: documented(ErrorAnswer, "The package for this precision is not installed."),
        },
    )
    async def configure(request: HttpRequest) -> Response:
        change = await read_change(request)
        devices = service.devices.names if change.device is None else [change.device]
        values = {CHOICES[name]: getattr(change, name) for name in change.model_fields_set & set(CHOICES)}
        await run_in_threadpool(service.devices.configure, {"devices": {name: dict(values) for name in devices}})
        return answer(await run_in_threadpool(service.memory_status), headers=FRESH)

    @router.post(
        "/cleanup",
        summary="Drop every model that no job uses and give the memory back",
        description="A model that a job uses stays. The next job of a dropped model loads it anew.",
        dependencies=ADMIN,
        responses={200: documented(CleanupAnswer, "What was freed, and how it is now."), **REFUSED},
    )
    def cleanup() -> Response:
        return answer(service.memory_status(cleanup=True), headers=FRESH)

    return router
