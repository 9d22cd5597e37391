"""Forms with files, read to their closing boundary: a form that was cut off is refused, not taken for a shorter one."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from starlette.datastructures import FormData
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from app.api.errors import Refusal

FORM_TYPE = "multipart/form-data"
PART_LIMIT = 2**31


class WholeFormParser(MultiPartParser):
    """Starlette's parser, which takes no text for another one and remembers whether the closing boundary came."""

    closed = False

    def on_part_end(self) -> None:
        """A field has ended; a text of it is UTF-8, whatever encoding the form claims to have."""
        part = self._current_part
        if part.file is None:
            self._charset = "utf-8"
            try:
                part.data.decode(self._charset)
            except UnicodeDecodeError:
                raise MultiPartException("a text is not UTF-8.") from None
        super().on_part_end()

    def on_end(self) -> None:
        """The closing boundary was read."""
        self.closed = True


@asynccontextmanager
async def whole_form(
    request: Request, *, files: int, fields: int, parser: Callable[..., WholeFormParser] = WholeFormParser
) -> AsyncIterator[FormData]:
    """The form of the body; its temporary files go with the block. The size is limited before anything gets here."""
    reader = parser(request.headers, request.stream(), max_files=files, max_fields=fields, max_part_size=PART_LIMIT)
    try:
        form = await reader.parse()
    except MultiPartException as error:
        raise Refusal("bad_request", f"The form cannot be read: {error.message}") from None
    try:
        if not reader.closed:
            raise Refusal("bad_request", "The form ends before its closing boundary.")
        yield form
    finally:
        await form.close()
