"""Small jobs of a form that is still being filled: somebody waits for their answer before there is a wish at all."""

import asyncio
from collections.abc import Mapping
from typing import Any

from app.core.jobs import JobStatus
from app.errors import InvalidRequest

PRIORITY = 7


async def answer_of(service: Any, capability: str, wish: Mapping[str, Any], owner: str, *, cancelled: str) -> Any:
    """The data of a job that is made now, when it has ended.

    `InvalidRequest` with what the job was refused for, or with `cancelled` where nothing was said.
    """
    job = await asyncio.to_thread(service.submit, capability, wish, owner=owner, priority=PRIORITY)
    async for _ in service.watch(job.id, owner):
        pass
    job = await asyncio.to_thread(service.get, job.id, owner)
    if job.status != JobStatus.SUCCEEDED:
        raise InvalidRequest((job.error or {}).get("message") or cancelled)
    return job.result["data"]
