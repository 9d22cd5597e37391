"""Server-sent events of one job: where it waits, its steps, what its stages came to, a preview, its end."""

import asyncio
from collections.abc import AsyncIterator

import orjson
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from app.api.draining import Draining
from app.api.schemas import PREFIX, job_view
from app.core.jobs import JobEvent, JobStatus
from app.core.service import Service

HEARTBEAT_SECONDS = 10.0
ENDS = {status.value for status in JobStatus if status.is_terminal}
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def event_router(service: Service, draining: Draining) -> APIRouter:
    """`GET /api/v1/jobs/{id}/events`."""
    router = APIRouter(tags=["jobs"])

    @router.get(
        f"{PREFIX}/jobs/{{id}}/events",
        summary="Watch a job",
        description=(
            "Server-sent events `queued`, `started`, `step`, `stages`, `preview`, `requeued` and one of `succeeded`, "
            "`failed`, `cancelled`, which is the last and carries the whole job."
        ),
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def watch(request: HttpRequest, id: str, preview: bool = True) -> Response:
        owner = request.state.owner
        await run_in_threadpool(service.get, id, owner)
        stream = event_stream(service, id, owner, preview, draining)
        return StreamingResponse(stream, media_type="text/event-stream", headers=HEADERS)

    return router


async def event_stream(
    service: Service, id: str, owner: str, preview: bool, draining: Draining
) -> AsyncIterator[bytes]:
    """The wire format; a comment goes out when nothing else did, so that proxies keep the connection."""
    events = service.watch(id, owner, preview=preview)
    stop = asyncio.ensure_future(draining.begun.wait())
    coming = asyncio.ensure_future(anext(events, None))
    try:
        yield b"retry: 2000\n\n"
        while True:
            await asyncio.wait({coming, stop}, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                event = coming.result()
                if event is None:
                    return
                yield await encode(service, event, owner)
                if event.kind in ENDS:
                    return
                coming = asyncio.ensure_future(anext(events, None))
            elif stop.done():
                yield b": the server stops; ask again\n\n"
                return
            else:
                yield b": still here\n\n"
    finally:
        stop.cancel()
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
        await events.aclose()


async def encode(service: Service, event: JobEvent, owner: str) -> bytes:
    """One event; the last carries the job as `GET /api/v1/jobs/{id}` answers it."""
    data = {"job_id": event.job_id, **event.data}
    if event.kind in ENDS:
        job = await run_in_threadpool(service.get, event.job_id, owner)
        data["job"] = job_view(job, None)
    return b"event: %s\ndata: %s\n\n" % (event.kind.encode(), orjson.dumps(data))
