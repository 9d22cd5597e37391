"""The body of a wish: JSON or a form becomes one mapping, with picture fields still as they were given.

A form knows only texts, so each value is read by its field's type: a text stays a text, a list or object is JSON,
an empty value or `null` means null where the field allows it, and numbers and ticks are plain. What cannot be read
so stays a text, which the field then refuses.
"""

import math
import re
from collections.abc import Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.requests import Request

from app import strict_json
from app.api.errors import Refusal
from app.api.multipart import FORM_TYPE, whole_form
from app.core.capability import image_fields
from app.errors import InvalidRequest

JSON_TYPE = "application/json"
THREAD_THRESHOLD = 256 * 1024
FILES_LIMIT = 64
FIELDS_LIMIT = 256
PLAIN_INTEGER = re.compile(r"-?[0-9]{1,18}")
PLAIN_NUMBER = re.compile(r"-?(?:[0-9]{1,400}(?:\.[0-9]{0,400})?|\.[0-9]{1,400})(?:[eE][+-]?[0-9]{1,3})?")
TICKS = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}


def media_type(request: Request) -> str:
    """The type without its parameters, lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request) -> Any:
    """The body as a strict JSON value; a long one is parsed beside the event loop."""
    body = await request.body()
    if len(body) > THREAD_THRESHOLD:
        return await run_in_threadpool(strict_json.loads, body)
    return strict_json.loads(body)


async def read_object(request: Request) -> dict[str, Any]:
    """The body of a change: a JSON object, sent as one."""
    if media_type(request) != JSON_TYPE:
        raise Refusal("unsupported_media_type", f"Send {JSON_TYPE}.")
    value = await read_json(request)
    if not isinstance(value, dict):
        raise InvalidRequest("The body must be a JSON object.")
    return value


async def read_text_or_file(request: Request, *, text: str, file: str, itself: str) -> str | bytes:
    """The one text of a JSON object, or the one file of a form; `itself` names what else the route takes."""
    kind = media_type(request)
    if kind == JSON_TYPE:
        value = await read_json(request)
        if not isinstance(value, dict) or set(value) != {text} or not isinstance(value[text], str):
            raise InvalidRequest(f"The body must be an object with the one text `{text}`.")
        return value[text]
    if kind == FORM_TYPE:
        async with whole_form(request, files=1, fields=1) as form:
            files = [value for value in form.values() if isinstance(value, UploadFile)]
            if len(files) != 1 or len(form.multi_items()) != 1:
                raise InvalidRequest(f"The form must hold exactly one file, `{file}`.")
            return await files[0].read()
    raise Refusal("unsupported_media_type", f"Send {FORM_TYPE}, {itself}, or {JSON_TYPE}.")


async def read_payload(request: Request, wish: type[BaseModel]) -> dict[str, Any]:
    """The fields of the body; picture fields hold `bytes` where a file came and a text otherwise."""
    kind = media_type(request)
    if kind == JSON_TYPE or (kind.startswith("application/") and kind.endswith("+json")):
        value = await read_json(request)
        if not isinstance(value, dict):
            raise InvalidRequest("The body must be a JSON object.")
        return value
    if kind == FORM_TYPE:
        async with whole_form(request, files=FILES_LIMIT, fields=FIELDS_LIMIT) as form:
            return await read_form(form, wish)
    raise Refusal("unsupported_media_type", f"Send {JSON_TYPE} or {FORM_TYPE}.")


async def read_form(form: FormData, wish: type[BaseModel]) -> dict[str, Any]:
    """A form's values by their fields' types; a name twice is a list where the field is one, else refused."""
    pictures = image_fields(wish)
    payload: dict[str, Any] = {}
    for raw_name in form:
        name = raw_name.removesuffix("[]")
        strict_json.check_text(name)
        values = form.getlist(raw_name)
        if name in payload:
            raise Refusal("bad_request", "A form field is given twice.")
        if any(isinstance(value, UploadFile) for value in values) and name not in pictures:
            taking = f"; files go into {', '.join(pictures)}" if pictures else ""
            raise InvalidRequest(f"A file was sent in a field that takes none{taking}.")
        read = [await value.read() if isinstance(value, UploadFile) else form_text(value) for value in values]
        info = wish.model_fields.get(name)
        if name in pictures and pictures[name] != "images":
            payload[name] = single(read)
        elif name in pictures:
            payload[name] = read
        elif info is None:
            payload[name] = read[0]
        else:
            payload[name] = form_value(read, info.annotation)
    return payload


def form_text(value: str) -> str:
    strict_json.check_text(value)
    return value


def single(values: list[Any]) -> Any:
    if len(values) != 1:
        raise Refusal("bad_request", "A form field is given twice.")
    return values[0]


def form_value(texts: list[str], annotation: Any) -> Any:
    """What the texts of one form field mean for a field of this type."""
    kinds = plain_types(annotation)
    if kinds & {list, tuple}:
        if len(texts) == 1 and texts[0].lstrip().startswith("["):
            return strict_json.loads(texts[0].encode())
        if texts == [""]:
            return []
        return [strict_json.loads(text.encode()) if text.lstrip().startswith("{") else text for text in texts]
    text = single(texts)
    if NoneType in kinds and text.strip() in {"", "null"}:
        return None
    if dict in kinds:
        return strict_json.loads(text.encode())
    return text if str in kinds else plain_value(text, kinds)


def plain_value(text: str, kinds: set[Any]) -> Any:
    """A number or a tick in its plain spelling; any other text as it is."""
    if bool in kinds and text.lower() in TICKS:
        return TICKS[text.lower()]
    if int in kinds and PLAIN_INTEGER.fullmatch(text):
        return int(text)
    if float in kinds and PLAIN_NUMBER.fullmatch(text) and math.isfinite(number := float(text)):
        return number
    return text


def plain_types(annotation: Any) -> set[Any]:
    """The bare types that an annotation allows: unions opened, limits taken off, models as dict."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return plain_types(get_args(annotation)[0])
    if origin in {Union, UnionType}:
        return set().union(*(plain_types(part) for part in get_args(annotation)))
    if origin is Literal:
        return {type(value) for value in get_args(annotation)}
    if origin is not None:
        return {dict} if issubclass(origin, Mapping) else {origin}
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {dict}
    return {annotation}
