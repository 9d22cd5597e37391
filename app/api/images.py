"""Stored pictures: upload, fetch in a wished format, thumbnail, metadata, search, delete."""

from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Query
from fastapi import Request as HttpRequest
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import FileResponse, Response

from app.api.answers import answer
from app.api.negotiation import FORMATS, IMAGE_TYPES, preferred
from app.api.payload import media_type, read_text_or_file
from app.api.pictures import PictureResolver
from app.api.schemas import PREFIX, ErrorAnswer, ImageAnswer, documented, image_url
from app.core.fields import SEED_LIMIT
from app.core.jobs import ImageRecord
from app.core.service import Service
from app.errors import UnknownImage
from app.imaging.metadata import can_hold

KEEP = {"Cache-Control": "private, max-age=31536000, immutable", "Vary": "Accept"}
UNKNOWN = {404: documented(ErrorAnswer, "No such picture, or another key's.")}
BINARY = {"schema": {"type": "string", "format": "binary"}}
PICTURE = {"description": "The picture.", "content": {kind: BINARY for kind in IMAGE_TYPES}}
UPLOAD_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {"type": "object", "properties": {"image": BINARY["schema"]}, "required": ["image"]}
        },
        "image/*": BINARY,
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "string", "description": "A data URI, base64, or an https URL."}},
                "required": ["image"],
            }
        },
    },
}


class UploadQuery(BaseModel):
    """What the picture is for."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["image", "mask"] = Field("image", description="A mask is kept as grey: white is repainted.")


class SearchQuery(BaseModel):
    """Which pictures to list."""

    model_config = ConfigDict(extra="forbid")

    prompt: str | None = Field(None, max_length=1000, description="Every one of these words stands in the prompt.")
    model: str | None = Field(None, max_length=200)
    seed: int | None = Field(None, ge=0, lt=SEED_LIMIT)
    capability: str | None = Field(None, max_length=100)
    kind: Literal["result", "image", "mask"] = Field("result", description="What was made, or what was uploaded.")
    limit: int = Field(50, ge=1, le=500)
    offset: int = Field(0, ge=0, le=2**31)


class FormatQuery(BaseModel):
    """In which format to answer."""

    model_config = ConfigDict(extra="forbid")

    format: Literal["png", "jpeg", "jpg", "webp"] | None = Field(None, description="Null: what Accept prefers.")


def image_router(service: Service, resolver: PictureResolver) -> APIRouter:
    """Everything under `/api/v1/images`."""
    router = APIRouter(prefix=f"{PREFIX}/images", tags=["images"])
    storage = service.storage

    def store(given: str | bytes, kind: str, owner: str) -> dict[str, Any]:
        stored = service.upload(resolver.bytes_of(given, "image"), kind=kind, owner=owner)
        return {
            "id": stored.id,
            "url": image_url(stored.id),
            "width": stored.width,
            "height": stored.height,
            "bytes": stored.bytes,
            "sha256": stored.sha256,
            "media_type": stored.media_type,
            "created": stored.created,
        }

    def owned(id: str, owner: str) -> None:
        if service.image_owner(id) != owner:
            raise UnknownImage("There is no picture with this id.")

    @router.post(
        "",
        status_code=201,
        summary="Upload a picture",
        responses={201: documented(ImageAnswer, "Stored.")},
        openapi_extra={"requestBody": UPLOAD_BODY},
    )
    async def upload(request: HttpRequest, query: Annotated[UploadQuery, Query()]) -> Response:
        given = await read_upload(request)
        with resolver.place_for([given]):
            given = await resolver.fetched(given)
        stored = await to_thread.run_sync(store, given, query.kind, request.state.owner, limiter=resolver.storing)
        return answer(stored, 201, {"Location": stored["url"]})

    @router.get("", summary="Search pictures that jobs made, newest first")
    def search(request: HttpRequest, query: Annotated[SearchQuery, Query()]) -> Response:
        found, total = service.search_images(owner=request.state.owner, **query.model_dump())
        images = [image_record(record) for record in found]
        return answer({"images": images, "total": total, "limit": query.limit, "offset": query.offset})

    @router.get("/{id}", summary="A picture", responses={200: PICTURE, **UNKNOWN}, response_class=Response)
    def get_image(request: HttpRequest, id: str, query: Annotated[FormatQuery, Query()]) -> Response:
        owned(id, request.state.owner)
        accept = request.headers.get("accept", "")
        wanted = FORMATS[query.format] if query.format else preferred(accept, IMAGE_TYPES)
        if not query.format and wanted == "image/webp":
            size = storage.size(id)
            wanted = preferred(accept, [kind for kind in IMAGE_TYPES if can_hold(kind, size)])
        if wanted in {None, "image/png"}:
            return FileResponse(storage.path(id), media_type="image/png", headers=KEEP)
        return Response(storage.encode(id, wanted), headers=KEEP, media_type=wanted)

    @router.get(
        "/{id}/thumbnail",
        summary="A small WebP of a picture",
        responses={200: {"content": {"image/webp": BINARY}}, **UNKNOWN},
        response_class=Response,
    )
    def thumbnail(request: HttpRequest, id: str, size: Annotated[int, Query(ge=16, le=1024)] = 256) -> Response:
        owned(id, request.state.owner)
        return Response(storage.thumbnail(id, size), headers=KEEP, media_type="image/webp")

    @router.get("/{id}/metadata", summary="What a picture's file says about how it was made", responses=UNKNOWN)
    def metadata(request: HttpRequest, id: str) -> Response:
        owned(id, request.state.owner)
        return answer({"id": id, **storage.metadata(id)})

    @router.delete(
        "/{id}",
        status_code=204,
        summary="Delete a picture",
        responses={**UNKNOWN, 409: documented(ErrorAnswer, "A job that has not ended needs the picture.")},
        response_class=Response,
    )
    def delete(request: HttpRequest, id: str) -> Response:
        service.delete_image(id, request.state.owner)
        return Response(status_code=204)

    return router


def image_record(record: ImageRecord) -> dict[str, Any]:
    """What a search tells of a picture."""
    told = {name: value for name, value in vars(record).items() if name not in {"owner"}}
    return {**told, "url": image_url(record.id)}


async def read_upload(request: HttpRequest) -> str | bytes:
    """The one picture of the body: a file, raw bytes, or a text that stands for it."""
    kind = media_type(request)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return await request.body()
    return await read_text_or_file(request, text="image", file="image", itself="the picture itself as image/*")
