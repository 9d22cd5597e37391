"""What a web search found, as pictures: previews for a wall of results, and references for any capability."""

from typing import Annotated, Any

from fastapi import APIRouter, Path
from fastapi import Request as HttpRequest
from starlette.responses import Response

from app.api.answers import answer
from app.api.few_at_once import FewAtOnce
from app.api.schemas import PREFIX, ErrorAnswer, ImageAnswer, documented, image_url
from app.core.service import Service

FETCHED_AT_ONCE, WAITING = 6, 200
KEEP = {"Cache-Control": "private, max-age=3600"}
Number = Annotated[int, Path(ge=0, le=999, description="The result's place in the answer, from 0.")]


def search_result_router(service: Service) -> APIRouter:
    """Everything under `/api/v1/jobs/{id}/results`."""
    router = APIRouter(prefix=f"{PREFIX}/jobs/{{id}}/results", tags=["search"])
    fetching = FewAtOnce(FETCHED_AT_ONCE, WAITING, "Too many pictures of results are being fetched; try again.")
    refusals: dict[int | str, dict[str, Any]] = {
        404: documented(ErrorAnswer, "No such search, or no such result, of the caller's."),
        503: documented(ErrorAnswer, "The picture's host cannot be reached."),
    }

    @router.get(
        "/{number}/thumbnail",
        summary="A small WebP of a result's picture, fetched by the service",
        responses={200: {"content": {"image/webp": {"schema": {"type": "string", "format": "binary"}}}}, **refusals},
        response_class=Response,
    )
    async def thumbnail(request: HttpRequest, id: str, number: Number) -> Response:
        with fetching.place():
            small = await fetching.run(service.found.thumbnail, id, number, request.state.owner)
        return Response(small, headers=KEEP, media_type="image/webp")

    @router.post(
        "/{number}/image",
        status_code=201,
        summary="Fetch a result's picture as a reference that any capability takes",
        responses={201: documented(ImageAnswer, "Stored."), **refusals},
    )
    async def keep(request: HttpRequest, id: str, number: Number) -> Response:
        with fetching.place():
            stored = await fetching.run(service.found.keep, id, number, request.state.owner)
        told = {name: value for name, value in vars(stored).items()}
        return answer({**told, "url": image_url(stored.id)}, 201, {"Location": image_url(stored.id)})

    return router
