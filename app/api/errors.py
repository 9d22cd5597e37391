"""Errors as HTTP: the class decides the status, and every body is `{"error": {"code", "message", "details"}}`.

No answer holds a path, a stack trace, an address that a name resolved to, or the caller's input: validation
messages say what a field should be, never what it was.
"""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app import errors, strict_json
from app.api.answers import answer

log = logging.getLogger(__name__)

STATUS: dict[type[errors.ServiceError], int] = {
    errors.InvalidRequest: 422,
    errors.UnreadableImage: 415,
    errors.TooLarge: 413,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.NotPermitted: 403,
    errors.WeightsMissing: 409,
    errors.Unavailable: 503,
    errors.OutOfMemory: 507,
    errors.WorkerLost: 503,
    errors.ServiceError: 500,
}
"""The nearest class in the order of inheritance rules."""

RETRY_AFTER_SECONDS = {"draining": 30, "queue_full": 5, "storage_full": 60, "no_device": 10, "worker_lost": 5}
FIELD_NAME_LIMIT = 80
LISTED_ERRORS = 20

HTTP_CODES: dict[str, tuple[int, str]] = {
    "bad_request": (400, "The request cannot be understood: a form that is cut off, a field given twice."),
    "invalid_json": (400, "The body is no JSON, or JSON with NaN, half a surrogate pair, a key twice, absurd depth."),
    "key_required": (401, "No key or an unknown one."),
    "host_refused": (403, "The Host header names no host of this server."),
    "origin_refused": (403, "A page of another site asked for a change."),
    "method_not_allowed": (405, "The address does not take this method."),
    "head_too_large": (431, "The request's address and headers are longer than 64 KiB."),
    "request_timeout": (408, "The request did not arrive whole in time."),
    "unsupported_media_type": (415, "The body is of a type that this address does not take."),
    "internal": (500, "A fault of the server; its log says which."),
    "draining": (503, "The server stops."),
}
"""What HTTP itself refuses, beside the codes of `app.errors`."""

HTTP_EXCEPTIONS = {
    404: ("not_found", "There is nothing at this address."),
    405: ("method_not_allowed", "This address does not take this method."),
    413: ("too_large", "The request is too large."),
}


class Refusal(Exception):
    """A request that is turned away by HTTP's own rules, before the service is asked; `code` is of `HTTP_CODES`."""

    def __init__(self, code: str, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = HTTP_CODES[code][0]
        self.code = code
        self.message = message
        self.headers = dict(headers or {})

    def answer(self) -> Response:
        """The uniform body, with when to come back where that is due."""
        headers = retry_headers(self.status, self.code) | self.headers
        return error_answer(self.status, self.code, self.message, headers=headers)


def status_of(kind: type[errors.ServiceError], *, in_job: bool = False) -> int:
    """The status of an error class; `in_job` when it ended a job rather than a submission."""
    if in_job and issubclass(kind, errors.StorageFull):
        return 507
    return next(STATUS[ancestor] for ancestor in kind.__mro__ if ancestor in STATUS)


def error_answer(
    status: int,
    code: str,
    message: str,
    details: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The uniform body."""
    body = {"error": {"code": code, "message": message, "details": dict(details or {})}}
    return answer(body, status, {"Cache-Control": "no-store", **(headers or {})})


def retry_headers(status: int, code: str) -> dict[str, str]:
    """503 and 429 say when to come back."""
    return {"Retry-After": str(RETRY_AFTER_SECONDS.get(code, 10))} if status in {429, 503} else {}


def service_error_answer(error: errors.ServiceError, **details: Any) -> Response:
    """What a `ServiceError` looks like to a caller."""
    status = status_of(type(error))
    if isinstance(error, errors.UnreadableImage) and error.details.get("reason") == "broken":
        status = 422
    return error_answer(
        status, error.code, error.message, {**error.details, **details}, retry_headers(status, error.code)
    )


def field_errors(problems: Iterable[Mapping[str, Any]]) -> list[dict[str, str]]:
    """pydantic's list as `{"field", "message"}`, without the input."""
    listed = []
    for problem in problems:
        where = ".".join(str(part) for part in problem["loc"] if part not in {"body", "query", "header", "path"})
        message = "There is no such field." if problem["type"] == "extra_forbidden" else str(problem["msg"])
        listed.append({"field": where[:FIELD_NAME_LIMIT], "message": message})
        if len(listed) == LISTED_ERRORS:
            break
    return listed


def invalid_request(problems: Iterable[Mapping[str, Any]]) -> errors.InvalidRequest:
    """One sentence that names the first wrong field; `details.errors` lists all."""
    listed = field_errors(problems)
    first = listed[0] if listed else {"field": "", "message": "The request is not valid."}
    sentence = f"{first['field']}: {first['message']}" if first["field"] else first["message"]
    return errors.InvalidRequest(sentence, errors=listed)


def install(api: FastAPI) -> None:
    """Give the application these handlers instead of FastAPI's own."""
    api.add_exception_handler(errors.ServiceError, on_service_error)
    api.add_exception_handler(Refusal, on_refusal)
    api.add_exception_handler(strict_json.NotStrictJson, on_not_strict_json)
    api.add_exception_handler(RequestValidationError, on_validation_error)
    api.add_exception_handler(HTTPException, on_http_exception)
    api.add_exception_handler(ClientDisconnect, on_disconnect)
    api.add_exception_handler(Exception, on_fault)


def on_service_error(_: Request, error: errors.ServiceError) -> Response:
    if status_of(type(error)) == 500:
        log.error("unexpected service error", exc_info=error)
    return service_error_answer(error)


def on_refusal(_: Request, error: Refusal) -> Response:
    return error.answer()


def on_not_strict_json(_: Request, error: strict_json.NotStrictJson) -> Response:
    return Refusal("invalid_json", str(error)).answer()


def on_validation_error(_: Request, error: RequestValidationError) -> Response:
    return service_error_answer(invalid_request(error.errors()))


def on_http_exception(_: Request, error: HTTPException) -> Response:
    code, message = HTTP_EXCEPTIONS.get(error.status_code, ("bad_request", "The request was refused."))
    return error_answer(error.status_code, code, message, headers=error.headers)


def on_disconnect(_: Request, __: ClientDisconnect) -> Response:
    return Refusal("bad_request", "The request ended before its body did.").answer()


def on_fault(_: Request, error: Exception) -> Response:
    log.error("fault while answering", exc_info=error)
    return Refusal("internal", "Something went wrong on the server; its log says what.").answer()
