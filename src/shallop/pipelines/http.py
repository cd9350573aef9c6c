"""Bodies of requests and answers of the v2beta1 API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shallop.errors import TooLargeError
from shallop.pipelines.messages import Message, parse_body, render

__all__ = ["MAX_BODY_BYTES", "empty", "read_body", "read_message", "reply"]

# An upload has at most 32 MiB; the same document inside JSON is a little longer.
MAX_BODY_BYTES = 48 * 1024 * 1024


async def read_body(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """Read a body of at most ``limit`` bytes; TooLargeError as soon as it is longer."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise TooLargeError(f"request body: more than {limit} bytes; split the pipeline or embed less.")
    return bytes(body)


async def read_message(request: Request, message: Message) -> dict[str, Any]:
    return parse_body(message, await read_body(request))


def reply(message: Message, value: Mapping[str, Any]) -> Response:
    return JSONResponse(render(message, value))


def empty() -> Response:
    return JSONResponse({})
