"""The devices: how they are, and what an operator changes while the service runs."""

from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from app.api.answers import answer
from app.api.operators import ADMIN, REFUSED
from app.api.payload import JSON_TYPE, read_object
from app.api.schemas import PREFIX, DevicesAnswer, ErrorAnswer, documented
from app.core.device_configuration import DeviceConfiguration
from app.core.service import Service

CHANGE: dict[str, Any] = {
    "required": True,
    "content": {
        JSON_TYPE: {
            "schema": {"$ref": f"#/components/schemas/{DeviceConfiguration.__name__}"},
            "example": {"strategy": "least_loaded", "devices": {"cuda:1": {"enabled": False}}},
        }
    },
}


def gpu_router(service: Service) -> APIRouter:
    """Everything under `/api/v1/gpu`."""
    router = APIRouter(prefix=f"{PREFIX}/gpu", tags=["gpu"])

    @router.get(
        "/status",
        summary="Every device: memory, load, its worker, what it holds and what it did",
        description="A figure that the machine does not tell is null. Other keys' jobs are shown without their id.",
        responses={200: documented(DevicesAnswer, "As of the last two seconds.")},
    )
    def status(request: HttpRequest) -> Response:
        return answer(service.device_status(request.state.owner), headers={"Cache-Control": "no-store"})

    @router.post(
        "/configure",
        summary="Choose the strategy, enable devices, set memory limits and jobs at once; at once and for later starts",
        description=(
            "What is not named stays as it is; null goes back to the setting. A device that is disabled ends what it "
            "holds and is given nothing more. One device must stay enabled."
        ),
        dependencies=ADMIN,
        openapi_extra={"requestBody": CHANGE},
        responses={
            200: documented(DevicesAnswer, "As it is now."),
            400: documented(ErrorAnswer, "The body cannot be read."),
            415: documented(ErrorAnswer, "The body is no JSON."),
            422: documented(ErrorAnswer, "No such device or value, or no device would stay enabled."),
            **REFUSED,
        },
    )
    async def configure(request: HttpRequest) -> Response:
        await run_in_threadpool(service.devices.configure, await read_object(request))
        return answer(await run_in_threadpool(service.device_status, request.state.owner))

    return router
