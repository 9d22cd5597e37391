"""Whether the server lives, whether it is ready, and its figures for Prometheus."""

from collections.abc import Iterator

from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.answers import answer
from app.api.draining import Draining
from app.api.errors import Refusal, error_answer
from app.core.jobs import Job, JobStatus
from app.core.service import Service

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
RUN_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)


class RequestCounter:
    """ASGI middleware, outermost, that counts answers by method, route and status: refusals and faults too.

    The route's pattern is the label, never the path: a stranger must not be able to add series. What was refused
    before it found its route counts as `other`.
    """

    def __init__(self, app: ASGIApp, *, counter: Counter) -> None:
        self.app = app
        self.counter = counter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        started = False

        def count(status: int) -> None:
            nonlocal started
            started = True
            route = getattr(scope.get("route"), "path", None) or "other"
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.counter.labels(method, route, str(status)).inc()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                count(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except Exception:
            # The framework answers a fault from outside of every middleware.
            if not started:
                count(500)
            raise


class ServiceFigures:
    """A Prometheus collector that asks the service when it is scraped."""

    def __init__(self, service: Service) -> None:
        self.service = service

    def collect(self) -> Iterator[Metric]:
        """Jobs, queue and workers."""
        figures = self.service.statistics()
        jobs = GaugeMetricFamily("eis_jobs", "Stored jobs by state.", labels=["status"])
        for status, count in figures["jobs"].items():
            jobs.add_metric([status], count)
        yield jobs
        yield GaugeMetricFamily("eis_queue_depth", "Jobs that wait.", value=figures["queued"])
        yield CounterMetricFamily("eis_jobs_submitted", "Jobs accepted since the start.", value=figures["submitted"])
        ended = CounterMetricFamily("eis_jobs_ended", "Jobs that ended since the start.", labels=["status"])
        for status in (status for status in JobStatus if status.is_terminal):
            ended.add_metric([status.value], figures["ended"].get(status.value, 0))
        yield ended
        yield CounterMetricFamily("eis_wait_seconds", "Seconds that jobs waited.", value=figures["wait_seconds"])
        workers = GaugeMetricFamily("eis_worker_state", "1 for the state of each worker.", labels=["device", "state"])
        for worker in figures["workers"]:
            workers.add_metric([worker["device"], worker["state"]], 1)
        yield workers


def observe_runs(service: Service, registry: CollectorRegistry) -> None:
    """A histogram of the seconds that jobs ran, by capability and how they ended."""
    seconds = Histogram(
        "eis_run_seconds",
        "Seconds from start to end of a job.",
        ["capability", "status"],
        buckets=RUN_BUCKETS,
        registry=registry,
    )

    def observe(job: Job) -> None:
        if job.started is not None and job.finished is not None:
            seconds.labels(job.capability, job.status.value).observe(max(0.0, job.finished - job.started))

    service.on_end.append(observe)


def status_router(service: Service, draining: Draining, registry: CollectorRegistry, version: str) -> APIRouter:
    """`/health`, `/ready` and `/metrics`."""
    router = APIRouter(tags=["status"])
    alive = answer({"status": "ok", "version": version}).body

    @router.get("/health", summary="Whether the process answers; needs no key")
    async def health() -> Response:
        # Not in a thread: this answer must not wait for one while others hold them all.
        return Response(alive, media_type="application/json", headers={"Cache-Control": "no-store"})

    @router.get("/ready", summary="Whether a worker takes jobs")
    def ready() -> Response:
        state = service.readiness()
        if draining.begun.is_set():
            return Refusal("draining", "The server stops.").answer()
        if not state["ready"]:
            message = "No worker is ready yet."
            return error_answer(503, "no_device", message, {"workers": state["workers"]}, {"Retry-After": "2"})
        return answer(state, headers={"Cache-Control": "no-store"})

    @router.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router


def request_counter(registry: CollectorRegistry) -> Counter:
    """The counter that `RequestCounter` increases."""
    return Counter("eis_http_requests", "Answers.", ["method", "route", "status"], registry=registry)
