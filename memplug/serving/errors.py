"""Every error as the OpenAI API gives it: ``{"error": {message, type, param, code}}``."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from ..edits import UnknownEditError
from ..store.errors import StoreError
from ..text.printable import printable
from .batching import QueueFull, Stopped
from .jobs import Taken
from .schemas import ErrorBody

__all__ = ["ApiError", "body_of", "handle_errors", "response"]

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES = {404: "not_found", 405: "method_not_allowed"}


class ApiError(HTTPException):
    """An error with the field that is wrong and a name for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.code, self.param = code, param


def response(error: Exception) -> JSONResponse:
    """The answer that tells of an error. What the server itself did wrong is named by its class alone."""
    status, body, headers = body_of(error)
    return JSONResponse({"error": body.model_dump()}, status, headers)


def body_of(error: Exception) -> tuple[int, ErrorBody, dict[str, str]]:
    """Status, body and headers for an error."""
    headers: dict[str, str] = {}
    message, param, code = str(error), None, None
    if isinstance(error, RequestValidationError):
        status, (message, param, code) = 422, _wrong_field(error.errors()[0])
    elif isinstance(error, StarletteHTTPException):
        status, message, headers = error.status_code, str(error.detail), dict(error.headers or {})
        code, param = getattr(error, "code", None) or _CODES.get(status), getattr(error, "param", None)
    elif isinstance(error, QueueFull):
        status, code, headers = 429, "queue_full", {"Retry-After": str(error.after)}
    elif isinstance(error, Taken):
        status, code = 409, "edit_in_progress"
    elif isinstance(error, Stopped):
        status, code = 503, "shutting_down"
    elif isinstance(error, UnknownEditError):
        status, code = 404, "edit_not_found"
    elif isinstance(error, StoreError):
        status, code = 503, "store_failed"
    elif isinstance(error, ValueError):
        status = 422
    else:
        status, message = 500, f"{type(error).__name__} on the server; the request can be sent again"
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return status, ErrorBody(message=printable(message), type=kind, param=param, code=code), headers


def _wrong_field(found: dict[str, Any]) -> tuple[str, str | None, str]:
    # Without where it stands, and without the types of which it might have been one.
    place = [str(part) for part in found["loc"][1:] if part != "str" and "[" not in str(part)]
    param = printable(".".join(place)) or None
    if found["type"] == "extra_forbidden":
        return f"{param} is not supported here; leave it out", param, "unsupported_parameter"
    if found["type"] == "json_invalid":
        return f"the body is no JSON: {found['ctx']['error']}", None, "invalid_json"
    return f"{param or 'the body'}: {found['msg']}", param, "invalid_value"


def handle_errors(app: FastAPI) -> None:
    """Let an application answer with `response`, whatever goes wrong in it."""

    async def handle(_request: Request, error: Exception) -> JSONResponse:
        return response(error)

    for kind in (RequestValidationError, StarletteHTTPException, QueueFull, Taken, Stopped, ValueError):
        app.add_exception_handler(kind, handle)
