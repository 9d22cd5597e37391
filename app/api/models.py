"""Models: list, fetch in the background with progress and a way to stop it, add an uploaded file, remove.

A file comes in by upload only; a path of the server's disk is taken by the shell command and never over HTTP.
"""

import threading
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi import Request as HttpRequest
from starlette.responses import Response

from app.api.answers import answer
from app.api.errors import Refusal
from app.api.model_upload import UPLOAD_BODY, add_upload
from app.api.multipart import FORM_TYPE
from app.api.operators import ADMIN, REFUSED
from app.api.payload import media_type
from app.api.schemas import PREFIX, ErrorAnswer, documented
from app.core.service import Service
from app.errors import Conflict, ServiceError

UNKNOWN = {404: documented(ErrorAnswer, "No such model.")}
PULLS_AT_ONCE = 2
UNDER_WAY = {"waiting", "running", "cancelling"}


class Pull:
    """One download: its state, and how it is stopped."""

    def __init__(self, bytes_total: int, stop: Any) -> None:
        self.state: dict[str, Any] = {"status": "waiting", "bytes_done": 0, "bytes_total": bytes_total, "error": None}
        self.stop = stop


class Pulls:
    """The downloads of this process, at most two at once; the last state of each stays readable.

    Their threads are daemons: a pull goes on where it broke, so that it never has to hold up the end of the process.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.lock = threading.Lock()
        self.places = threading.Semaphore(PULLS_AT_ONCE)
        self.pulls: dict[str, Pull] = {}
        self.closed = False

    def state(self, id: str) -> dict[str, Any] | None:
        """Where the last pull of this model stands."""
        with self.lock:
            pull = self.pulls.get(id)
            return dict(pull.state) if pull else None

    def start(self, id: str, accept_licence: bool) -> None:
        """Begin a pull; `Conflict` when one runs, the licence's error when it must be accepted first."""
        row = self.service.models.get(id)
        if not accept_licence:
            self.service.models.check_licences(id)
        with self.lock:
            if self.closed:
                raise Refusal("draining", "The server stops; pull again when it is back.")
            if id in self.pulls and self.pulls[id].state["status"] in UNDER_WAY:
                raise Conflict("This model is being pulled already.")
            pull = self.pulls[id] = Pull(row.spec.bytes, self.service.models.new_stop())
        threading.Thread(target=self.run, args=(id, accept_licence, pull), name=f"pull-{id}", daemon=True).start()

    def run(self, id: str, accept_licence: bool, pull: Pull) -> None:
        """In a thread: wait for a place, fetch it and keep the state current."""

        def progress(done: int, total: int) -> None:
            self.update(pull, bytes_done=done, bytes_total=total)

        with self.places:
            try:
                with self.lock:
                    if pull.stop.asked:
                        return
                    pull.state["status"] = "running"
                self.service.models.pull(id, accept_licence=accept_licence, progress=progress, stop=pull.stop)
            except ServiceError as error:
                if pull.stop.asked:
                    self.update(pull, status="cancelled")
                else:
                    self.update(pull, status="failed", error={"code": error.code, "message": error.message})
            except Exception:
                self.update(pull, status="failed", error={"code": "internal", "message": "The pull failed."})
                raise
            else:
                self.update(pull, status="succeeded")

    def cancel(self, id: str) -> None:
        """End a pull; what has arrived is kept for the next one. `Conflict` when none is under way."""
        self.service.models.get(id)
        with self.lock:
            pull = self.pulls.get(id)
            if pull is None or pull.state["status"] not in UNDER_WAY:
                raise Conflict("This model is not being pulled.")
            pull.state["status"] = "cancelled" if pull.state["status"] == "waiting" else "cancelling"
            pull.stop.ask()

    def close(self) -> None:
        """End all pulls and begin no more: the process stops."""
        with self.lock:
            self.closed = True
            for pull in self.pulls.values():
                pull.stop.ask()

    def update(self, pull: Pull, **changes: Any) -> None:
        with self.lock:
            pull.state.update(changes)


def model_view(row: Any, pull: dict[str, Any] | None, demand: dict[str, Any], need: dict[str, Any]) -> dict[str, Any]:
    """A model without the paths of the server; `need` is what a pull of it asks for."""
    spec = row.spec
    return {
        "id": spec.id,
        "title": spec.title,
        "kind": spec.kind,
        "family": spec.family,
        "description": spec.description,
        "tasks": list(spec.tasks),
        "licence": asdict(spec.licence),
        "recommended": asdict(spec.recommended) if spec.recommended else None,
        "parts": list(spec.parts),
        "rank": spec.rank,
        "repo": spec.repo,
        **need,
        "revision": spec.revision,
        "bytes": spec.bytes,
        **demand,
        "embedded": spec.embedded is not None,
        "installed": row.installed,
        "bytes_on_disk": row.bytes_on_disk,
        "sha256": row.sha256,
        "pull": pull,
    }


def model_router(service: Service, pulls: Pulls) -> APIRouter:
    """Everything under `/api/v1/models`."""
    router = APIRouter(prefix=f"{PREFIX}/models", tags=["models"])

    def view(row: Any) -> dict[str, Any]:
        id, models = row.spec.id, service.models
        need = {
            "pullable": models.is_pullable(id),
            "licences_to_accept": [asdict(licence) for licence in models.licences_to_accept(id)],
        }
        return model_view(row, pulls.state(id), service.devices.demand(id), need)

    @router.get("", summary="Every known model, and whether this key may pull, add and remove")
    def list_models(
        request: HttpRequest,
        installed: bool | None = None,
        kind: Annotated[str | None, Query(max_length=40)] = None,
    ) -> Response:
        rows = service.models.rows()
        found = [
            view(row)
            for row in rows
            if (installed is None or row.installed == installed) and (kind is None or row.spec.kind == kind)
        ]
        return answer({"models": found, "total": len(found), "may_change": request.state.admin})

    @router.get("/{id}", summary="A model, and where its pull stands", responses=UNKNOWN)
    def get_model(id: str) -> Response:
        return answer(view(service.models.get(id)))

    @router.post(
        "/{id}/pull",
        status_code=202,
        summary="Fetch a model from its hub in the background",
        dependencies=ADMIN,
        responses={
            **UNKNOWN,
            **REFUSED,
            409: documented(ErrorAnswer, "Being pulled, or its licence must be accepted."),
        },
    )
    def pull_model(id: str, accept_licence: bool = False) -> Response:
        pulls.start(id, accept_licence)
        return answer(view(service.models.get(id)), 202, {"Location": f"{PREFIX}/models/{id}"})

    @router.delete(
        "/{id}/pull",
        status_code=202,
        summary="Stop a pull; what has arrived is kept for the next one",
        dependencies=ADMIN,
        responses={**UNKNOWN, **REFUSED, 409: documented(ErrorAnswer, "It is not being pulled.")},
    )
    def cancel_pull(id: str) -> Response:
        pulls.cancel(id)
        return answer(view(service.models.get(id)), 202, {"Location": f"{PREFIX}/models/{id}"})

    @router.post(
        "",
        status_code=201,
        summary="Add an uploaded .safetensors file",
        dependencies=ADMIN,
        openapi_extra={"requestBody": UPLOAD_BODY},
        responses=REFUSED,
    )
    async def add_model(request: HttpRequest) -> Response:
        if media_type(request) != FORM_TYPE:
            raise Refusal("unsupported_media_type", f"Send {FORM_TYPE} with the file in `file`.")
        row = await add_upload(request, service)
        return answer(view(row), 201, {"Location": f"{PREFIX}/models/{row.spec.id}"})

    @router.delete(
        "/{id}",
        status_code=204,
        summary="Remove a model's files",
        dependencies=ADMIN,
        responses={**UNKNOWN, **REFUSED},
        response_class=Response,
    )
    def remove_model(id: str) -> Response:
        service.models.remove(id)
        return Response(status_code=204)

    return router
