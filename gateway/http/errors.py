"""The tree of errors over HTTP: the status, and the body in the format of the API that the path belongs to."""

from __future__ import annotations

import math
from typing import Any

import orjson
from pydantic import BaseModel
from starlette.responses import Response

from services.kit.errors import InternalError, TidemillError

# https://cloud.google.com/apis/design/errors, and nginx's 499 for a caller that went away.
STATUS_OF_CODE = {
    "INVALID_ARGUMENT": 400,
    "FAILED_PRECONDITION": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "ABORTED": 409,
    "RESOURCE_EXHAUSTED": 429,
    "CANCELLED": 499,
    "DATA_LOSS": 500,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DEADLINE_EXCEEDED": 504,
}
# Statuses that are more specific than the canonical codes.
_STATUS_OF_REASON = {"BODY_TOO_LARGE": 413, "UNSUPPORTED_ENCODING": 415}
# For errors that only HTTP has, such as a wrong method.
_CODE_OF_STATUS = {
    value: key
    for key, value in STATUS_OF_CODE.items()
    if key not in ("FAILED_PRECONDITION", "ALREADY_EXISTS", "DATA_LOSS")
}
_TYPE = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
# Prefixes of our field paths that callers of OpenAI's API do not know.
_PREFIXES = ("sampling.", "conversation.")

# Key of a request's final canonical code in its ASGI scope, for the metrics.
CODE_KEY = "tidemill.code"


class ErrorDetail(BaseModel):
    """What went wrong. `code` is stable; `param` names the field that is wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """An error, as OpenAI's API has it."""

    error: ErrorDetail


class V2ErrorBody(BaseModel):
    """An error, as KServe V2 has it."""

    error: str


_DESCRIBED = {
    400: "The request is wrong; the error names the field",
    401: "The API key is missing, wrong, revoked or expired",
    403: "The API key lacks the role",
    404: "There is no such model, version or resource",
    409: "It cannot be done in the present state",
    413: "The body is too large",
    429: "A limit of the key or a queue is reached",
    503: "A part is unavailable, or memory is short",
}
_RETRY = {
    "Retry-After": {"schema": {"type": "integer"}, "description": "seconds after which another try may help"},
    "Retry-After-Ms": {"schema": {"type": "integer"}, "description": "the same in milliseconds"},
}


def described_errors(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """The OpenAPI description of failed requests, whose bodies are of this model."""
    found: dict[int | str, dict[str, Any]] = {
        status: {"model": model, "description": text, **({"headers": _RETRY} if status in (429, 503) else {})}
        for status, text in _DESCRIBED.items()
    }
    return {**found, "default": {"model": model, "description": "Any other error"}}


class ClientGone(Exception):  # noqa: N818 - not an error
    """The client disconnected before the response was ready."""


def unexpected(error: Exception) -> InternalError:
    """The error for a defect of ours, as callers see it."""
    return InternalError(
        "The request failed unexpectedly; the gateway's log has the details.",
        reason="UNEXPECTED",
        metadata={"type": type(error).__name__},
    )


def status_of(error: TidemillError) -> int:
    """The HTTP status of an error."""
    return _STATUS_OF_REASON.get(error.reason) or STATUS_OF_CODE.get(error.code, 500)


def code_of_status(status: int) -> str:
    """The canonical code for an HTTP status."""
    if status < 400:
        return "OK"
    return _CODE_OF_STATUS.get(status, "INVALID_ARGUMENT" if status < 500 else "INTERNAL")


def openai_error(error: TidemillError) -> dict[str, Any]:
    """The error in OpenAI's format."""
    status = status_of(error)
    param = error.violations[0].field if error.violations else None
    for prefix in _PREFIXES:
        param = param.removeprefix(prefix) if param else None
    kind = _TYPE.get(status, "invalid_request_error" if status < 500 else "server_error")
    detail = ErrorDetail(message=error.message, type=kind, param=param, code=error.reason.lower())
    return ErrorBody(error=detail).model_dump()


def error_response(error: TidemillError, path: str) -> Response:
    """The response of a failed request: KServe's format below /v2, OpenAI's elsewhere."""
    headers: dict[str, str] = {}
    if error.wait_s is not None:
        # Whole seconds and never too early; OpenAI's clients read the finer one.
        headers["retry-after"] = str(max(1, math.ceil(error.wait_s)))
        headers["retry-after-ms"] = str(max(1, math.ceil(error.wait_s * 1000)))
    status = status_of(error)
    if status == 401:
        headers["www-authenticate"] = 'Bearer realm="tidemill"'
    body = V2ErrorBody(error=error.message).model_dump() if path.startswith("/v2") else openai_error(error)
    return Response(orjson.dumps(body), status, headers, media_type="application/json")
