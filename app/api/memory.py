"""The memory of the devices: `/api/v1/memory/status`, `/configure` and `/cleanup`."""

from typing import Any, Literal

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app.api.answers import answer
from app.api.errors import Refusal, invalid_request
from app.api.payload import JSON_TYPE, media_type, read_json
from app.api.schemas import PREFIX, ErrorAnswer, documented
from app.core.service import Service
from app.errors import InvalidRequest

FRESH = {"Cache-Control": "no-store"}
LARGEST = 2**60


class MemoryWish(BaseModel):
    """What is to hold from now on; a field that is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", strict=True)

    strategy: Literal["auto", "none", "attention", "vae", "model_cpu", "sequential_cpu", "streamed"] = Field(
        "auto", description="How weights stand on a device; auto: what fits into the memory that is free."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16", "float8", "int8", "int4"] = Field(
        "auto", description="Number format of the models."
    )
    model_memory_bytes: int | None = Field(
        None, ge=1, le=LARGEST, description="Bytes of models on a device; null: what the device reports as free."
    )
    parked_memory_bytes: int | None = Field(
        None, ge=0, le=LARGEST, description="Bytes of models in RAM beside it; null: half of the machine's memory."
    )


BODY = {
    "required": True,
    "content": {JSON_TYPE: {"schema": MemoryWish.model_json_schema(), "example": {"strategy": "vae"}}},
}


def device_view(device: dict[str, Any]) -> dict[str, Any]:
    """One worker's memory; every number is null as long as its worker has told nothing."""
    memory = device["memory"]
    models = [
        {
            "model": model["model"],
            "state": model["state"],
            "bytes": model["bytes"],
            "pinned": model["borrowed"],
            "strategy": model["strategy"],
        }
        for model in memory.get("models", ())
    ]
    return {
        "device": memory.get("device", device["worker"]),
        "worker": device["worker"],
        "pid": device["pid"],
        "state": device["state"],
        "answered": device["answered"],
        "reason": device["reason"],
        "strategy": memory.get("strategy"),
        "precision": memory.get("precision"),
        "allocated_bytes": memory.get("allocated_bytes"),
        "reserved_bytes": memory.get("used_bytes"),
        "free_bytes": memory.get("free_bytes"),
        "total_bytes": memory.get("total_bytes"),
        "model_bytes": memory.get("placed_bytes"),
        "parked_bytes": memory.get("parked_bytes"),
        "models": models,
    }


def status_view(status: dict[str, Any]) -> dict[str, Any]:
    """The settings in force and every device."""
    return {**status, "devices": [device_view(device) for device in status["devices"]]}


async def read_wish(request: HttpRequest) -> dict[str, Any]:
    """The fields that were given; `InvalidRequest` names the first wrong one."""
    if media_type(request) != JSON_TYPE:
        raise Refusal("unsupported_media_type", f"Send {JSON_TYPE}.")
    body = await read_json(request)
    if not isinstance(body, dict) or not body:
        raise InvalidRequest("The body must be a JSON object with at least one field.")
    try:
        return MemoryWish.model_validate(body).model_dump(exclude_unset=True)
    except ValidationError as error:
        raise invalid_request(error.errors()) from None


def memory_router(service: Service) -> APIRouter:
    """Everything under `/api/v1/memory`."""
    router = APIRouter(prefix=f"{PREFIX}/memory", tags=["memory"])

    @router.get("/status", summary="The memory of every device and the models in it")
    def memory_status() -> Response:
        return answer(status_view(service.memory.status()), headers=FRESH)

    @router.post(
        "/configure",
        summary="Other memory settings without a restart",
        description="They hold for every model that is borrowed from now on, until the service stops.",
        openapi_extra={"requestBody": BODY},
        responses={
            422: documented(ErrorAnswer, "No such setting, or the device cannot serve it."),
            503: documented(ErrorAnswer, "The package for this precision is not installed."),
        },
    )
    async def configure_memory(request: HttpRequest) -> Response:
        wish = await read_wish(request)
        status = await run_in_threadpool(service.memory.configure, wish)
        return answer(status_view(status), headers=FRESH)

    @router.post("/cleanup", summary="Drop the models that no job uses and give free memory back")
    def clean_memory() -> Response:
        return answer(service.memory.cleanup(), headers=FRESH)

    return router
