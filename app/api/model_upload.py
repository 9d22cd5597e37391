"""A model file on its way in: written once, as it arrives, on the disk where the models are, and then looked at.

A form's reader would put it under the system's temporary folder, which is often small or memory, and it would be copied
from there.
"""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi.concurrency import contextmanager_in_threadpool
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from app.api.multipart import WholeFormParser, whole_form
from app.api.payload import form_text
from app.core.service import Service
from app.errors import InvalidRequest

UPLOAD_FIELDS = {"id", "title", "kind", "licence", "accept_licence"}
LONGEST_STEM = 200
TEXT_LIMIT = 64 * 1024
UPLOAD_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    "file": {"type": "string", "format": "binary", "description": "A .safetensors file."},
                    **{name: {"type": "string"} for name in sorted(UPLOAD_FIELDS)},
                },
                "required": ["file"],
            }
        }
    },
}


class ModelFormParser(WholeFormParser):
    """Writes the form's file to where it stays until the library has it."""

    def __init__(self, *arguments: Any, incoming: Any, **options: Any) -> None:
        super().__init__(*arguments, **{**options, "max_part_size": TEXT_LIMIT})
        self.incoming = incoming

    def on_headers_finished(self) -> None:
        """Put the models' disk in the place of the reader's own temporary file, which is empty and in memory."""
        super().on_headers_finished()
        upload = self._current_part.file
        if upload is not None:
            upload.file.close()
            upload.file = self.incoming.open(f"{harmless(stem_of(upload))}.safetensors")
            self._files_to_close_on_error.append(upload.file)


@asynccontextmanager
async def model_form(request: Request, service: Service) -> AsyncIterator[FormData]:
    """The form of the body; its file goes with the block."""
    async with contextmanager_in_threadpool(service.models.incoming()) as incoming:
        parser = partial(ModelFormParser, incoming=incoming)
        async with whole_form(request, files=1, fields=len(UPLOAD_FIELDS), parser=parser) as form:
            yield form


async def add_upload(request: Request, service: Service) -> Any:
    """Read the form and hand its file to the library, which looks at what it is; answers the model's row."""
    async with model_form(request, service) as form:
        file = form.get("file")
        texts = {name: value for name, value in form.multi_items() if name != "file"}
        if not isinstance(file, UploadFile) or not set(texts) <= UPLOAD_FIELDS:
            raise InvalidRequest("The form holds the file `file` and id, title, kind, licence, accept_licence.")
        given = {name: form_text(value) for name, value in texts.items() if value}
        given.setdefault("title", title_of(stem_of(file)))
        accepted = given.pop("accept_licence", "false")
        if accepted not in {"true", "false"}:
            raise InvalidRequest("accept_licence is true or false.", field="accept_licence")
        return await run_in_threadpool(service.models.add, file.file.path, **given, accept_licence=accepted == "true")


def stem_of(file: UploadFile) -> str:
    """What the sender calls the file; a checkpoint's or autoencoder's family may stand in it alone."""
    return Path(file.filename or "").stem


def title_of(stem: str) -> str:
    """What a person sees of a file's name."""
    return "".join(letter for letter in stem if letter.isprintable()).strip()[:LONGEST_STEM]


def harmless(stem: str) -> str:
    """The name as a file of this server may have it."""
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower()).strip("-._")[:60].rstrip("-._") or "upload"
