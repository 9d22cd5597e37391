"""The HTTP application: all routes, and in front of them, in this order: the count, posture, size, HEAD."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from prometheus_client import CollectorRegistry

from app.api import errors
from app.api.batch import batch_router
from app.api.body_limit import BodyLimit, WideDoor
from app.api.browser_page import BrowserPage
from app.api.capabilities import capability_router
from app.api.datasets import dataset_router
from app.api.docs_page import docs_router
from app.api.draining import Draining
from app.api.events import event_router
from app.api.gpu import gpu_router
from app.api.head_answers import HeadAnswers
from app.api.images import image_router
from app.api.job_records import record_router
from app.api.jobs import job_router
from app.api.login import login_router
from app.api.memory import memory_router
from app.api.models import Pulls, model_router
from app.api.openapi import complete
from app.api.pictures import Fetch, PictureResolver
from app.api.posture import Hosts, Keys, Posture
from app.api.schemas import PREFIX
from app.api.search_results import search_result_router
from app.api.status import RequestCounter, ServiceFigures, observe_runs, request_counter, status_router
from app.core.capability import Capability
from app.core.service import Service

DESCRIPTION = "Self-hosted image generation and editing. Every capability takes JSON or a form."


@dataclass(frozen=True)
class ApiOptions:
    """What the operator decides about the HTTP face."""

    host: str
    api_keys: tuple[str, ...] = ()
    admin_keys: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    max_body_bytes: int = 64 * 2**20
    max_model_bytes: int = 32 * 2**30
    drain_seconds: float = 30.0
    version: str = "0"


def create_api(
    service: Service, options: ApiOptions, *, fetch: Fetch, page: Callable[[], Any] | None = None
) -> FastAPI:
    """The application; `fetch` is the guarded GET for pictures, `page` builds the browser page (None: none)."""
    pulls = Pulls(service)

    def stop(seconds: float) -> None:
        pulls.close()
        service.stop(seconds)

    draining = Draining(stop, options.drain_seconds)
    browser_page = BrowserPage(page) if page is not None else None

    @asynccontextmanager
    async def lifespan(api: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(service.start)
        if browser_page is not None:
            await browser_page.start()
        try:
            yield
        finally:
            draining.begin()
            if browser_page is not None:
                await browser_page.stop()
            await draining.finish()

    api = FastAPI(
        title="Edit Image Service",
        version=options.version,
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    errors.install(api)
    keys = Keys(options.api_keys, options.admin_keys)
    registry = CollectorRegistry()
    registry.register(ServiceFigures(service))
    observe_runs(service, registry)
    resolver = PictureResolver(service.storage, fetch)
    api.include_router(status_router(service, draining, registry, options.version))
    api.include_router(docs_router(api.title))
    api.include_router(login_router(keys))
    api.include_router(event_router(service, draining))
    api.include_router(job_router(service))
    api.include_router(search_result_router(service))
    api.include_router(gpu_router(service))
    api.include_router(memory_router(service))
    api.include_router(record_router(service))
    api.include_router(batch_router(service, resolver, draining))
    api.include_router(image_router(service, resolver))
    api.include_router(dataset_router(service, resolver))
    api.include_router(model_router(service, pulls))
    api.include_router(capability_router(service, resolver, draining))
    if browser_page is not None:
        # Not a mount: that would take wrong methods of real routes too, and answer 404 for 405.
        api.router.default = browser_page
    # Each stands in front of those before it.
    api.add_middleware(HeadAnswers)
    room = partial(check_room, service)
    models = WideDoor("POST", f"{PREFIX}/models", max(options.max_model_bytes, options.max_body_bytes), room)
    api.add_middleware(BodyLimit, limit=options.max_body_bytes, wide=models)
    api.add_middleware(Posture, hosts=Hosts(options.host, options.allowed_hosts), keys=keys)
    api.add_middleware(RequestCounter, counter=request_counter(registry))
    api.state.draining = draining
    add_openapi(api, service.catalog)
    return api


def check_room(service: Service, needed: int) -> None:
    """`StorageFull` unless a model of so many bytes fits on the disk."""
    service.models.check_room(needed)


def add_openapi(api: FastAPI, catalog: Sequence[Capability]) -> None:
    """The document at `/openapi.json`, built when it is first asked for."""

    def document() -> dict[str, Any]:
        if api.openapi_schema is None:
            schema = get_openapi(title=api.title, version=api.version, description=api.description, routes=api.routes)
            api.openapi_schema = complete(schema, catalog)
        return api.openapi_schema

    api.openapi = document
