"""Datasets: an archive, or a folder of the operator's, becomes stored pictures with their captions."""

from typing import Any

from anyio import to_thread
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import Response

from app.api.answers import answer
from app.api.multipart import FORM_TYPE
from app.api.payload import JSON_TYPE, media_type, read_text_or_file
from app.api.pictures import PictureResolver
from app.api.schemas import PREFIX, DatasetAnswer, documented, image_url
from app.core.datasets import Dataset
from app.core.service import Service

ARCHIVE_TYPES = frozenset(
    {
        "application/zip",
        "application/x-zip-compressed",
        "application/x-tar",
        "application/gzip",
        "application/x-gzip",
        "application/octet-stream",
    }
)
BINARY = {"type": "string", "format": "binary"}
DATASET_BODY = {
    "required": True,
    "content": {
        FORM_TYPE: {"schema": {"type": "object", "properties": {"archive": BINARY}, "required": ["archive"]}},
        "application/zip": {"schema": BINARY},
        "application/x-tar": {"schema": BINARY},
        JSON_TYPE: {
            "schema": {
                "type": "object",
                "properties": {"folder": {"type": "string", "description": "A folder under EIS_DATASET_FOLDER."}},
                "required": ["folder"],
            }
        },
    },
}


def dataset_router(service: Service, resolver: PictureResolver) -> APIRouter:
    """Everything under `/api/v1/datasets`."""
    router = APIRouter(prefix=f"{PREFIX}/datasets", tags=["datasets"])

    def take_in(source: bytes | str, owner: str) -> dict[str, Any]:
        return told(service.take_in_dataset(source, owner=owner))

    @router.post(
        "",
        status_code=201,
        summary="Take in a dataset for training",
        responses={201: documented(DatasetAnswer, "Its pictures are stored.")},
        openapi_extra={"requestBody": DATASET_BODY},
    )
    async def create(request: HttpRequest) -> Response:
        source = await read_source(request)
        taken = await to_thread.run_sync(take_in, source, request.state.owner, limiter=resolver.storing)
        return answer(taken, 201)

    return router


def told(dataset: Dataset) -> dict[str, Any]:
    """The answer's body."""
    images = [
        {
            "id": picture.image.id,
            "url": image_url(picture.image.id),
            "width": picture.image.width,
            "height": picture.image.height,
            "name": picture.name,
            "caption": picture.caption,
        }
        for picture in dataset.pictures
    ]
    groups = [list(group) for group in dataset.duplicates]
    return {"images": images, "duplicates": groups, "ignored": [name[:200] for name in dataset.ignored[:100]]}


async def read_source(request: HttpRequest) -> bytes | str:
    """The archive's bytes, or the name of the operator's folder."""
    kind = media_type(request)
    if kind in ARCHIVE_TYPES:
        return await request.body()
    itself = "the archive itself (zip or tar)"
    return await read_text_or_file(request, text="folder", file="archive", itself=itself)
