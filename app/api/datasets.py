"""Datasets: an archive, or a folder of the operator's, becomes stored pictures with their captions."""

from typing import Any

from anyio import to_thread
from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.datastructures import UploadFile
from starlette.responses import Response

from app.api.answers import answer
from app.api.errors import Refusal
from app.api.multipart import FORM_TYPE, whole_form
from app.api.payload import JSON_TYPE, media_type, read_json
from app.api.pictures import PictureResolver
from app.api.schemas import PREFIX, DatasetAnswer, documented, image_url
from app.core.datasets import Dataset
from app.core.service import Service
from app.errors import InvalidRequest

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
    if kind == JSON_TYPE:
        value = await read_json(request)
        if not isinstance(value, dict) or set(value) != {"folder"} or not isinstance(value["folder"], str):
            raise InvalidRequest("The body must be an object with the one text `folder`.")
        return value["folder"]
    if kind == FORM_TYPE:
        async with whole_form(request, files=1, fields=1) as form:
            files = [value for value in form.values() if isinstance(value, UploadFile)]
            if len(files) != 1 or len(form.multi_items()) != 1:
                raise InvalidRequest("The form must hold exactly one file, `archive`.")
            return await files[0].read()
    raise Refusal("unsupported_media_type", f"Send {FORM_TYPE}, the archive itself (zip or tar), or {JSON_TYPE}.")
