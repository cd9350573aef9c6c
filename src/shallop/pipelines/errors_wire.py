"""Errors as KFP clients read them: the gRPC gateway's shape, and the older shape of the upload endpoints."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shallop.errors import (
    AlreadyExistsError,
    ApiError,
    BadRequestError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    TooLargeError,
    UnauthorizedError,
    UnavailableError,
)

__all__ = ["Handler", "endpoint", "error_response", "http_status", "precondition", "upload_endpoint"]

Handler = Callable[[Request], Awaitable[Response]]
log = logging.getLogger(__name__)

# HTTP status and gRPC code of each error; the first class that fits decides.
_CODES: tuple[tuple[type[ApiError], int, int], ...] = (
    (BadRequestError, 400, 3),
    (InvalidError, 400, 3),
    (TooLargeError, 413, 3),
    (NotFoundError, 404, 5),
    (AlreadyExistsError, 409, 6),
    (ConflictError, 409, 10),
    (UnauthorizedError, 401, 16),
    (ForbiddenError, 403, 7),
    (UnavailableError, 503, 14),
)


def precondition(message: str) -> BadRequestError:
    """Return the error of a request that is right but comes in the wrong state (FailedPrecondition, 400)."""
    error = BadRequestError(message)
    error.reason = "FailedPrecondition"
    return error


def _codes(error: ApiError) -> tuple[int, int]:
    if error.reason == "FailedPrecondition":
        return 400, 9
    for cls, http, grpc in _CODES:
        if isinstance(error, cls):
            return http, grpc
    return 500, 13


def http_status(error: ApiError) -> int:
    return _codes(error)[0]


def error_response(error: ApiError) -> Response:
    """Render ``{code, message, details}``; SDKs show the whole body, older gateways' ``error`` repeats the message."""
    http, grpc = _codes(error)
    detail = {"@type": "type.googleapis.com/google.rpc.Status", "code": grpc, "message": error.message}
    return JSONResponse(
        {"error": error.message, "code": grpc, "message": error.message, "details": [detail]}, status_code=http
    )


def _upload_error_response(error: ApiError) -> Response:
    http, _ = _codes(error)
    body: dict[str, Any] = {"error_message": error.message, "error_details": error.message}
    return JSONResponse(body, status_code=http)


def endpoint(handler: Handler) -> Handler:
    """Wrap a handler so that what it raises is answered in the gateway's shape."""
    return _guard(handler, error_response)


def upload_endpoint(handler: Handler) -> Handler:
    """Wrap an upload handler: its errors have a shape of their own."""
    return _guard(handler, _upload_error_response)


def _guard(handler: Handler, render: Callable[[ApiError], Response]) -> Handler:
    async def guarded(request: Request) -> Response:
        try:
            return await handler(request)
        except ApiError as error:
            return render(error)
        except Exception:
            # A defect of ours must still answer in the shape that clients parse; the log has the trace.
            log.exception("%s %s failed", request.method, request.url.path)
            return render(ApiError(f"{request.method} {request.url.path}: internal error; the server's log has more."))

    return guarded
