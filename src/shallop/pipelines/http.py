"""Bodies of requests and answers of the v2beta1 API."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shallop import webserver
from shallop.pipelines.messages import Message, parse_body, render

__all__ = ["MAX_BODY_BYTES", "empty", "json_text", "read_body", "read_message", "reply", "warned"]

# An upload has at most 32 MiB; the same document inside JSON is a little longer.
MAX_BODY_BYTES = 48 * 1024 * 1024


async def read_body(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """Read a body of at most ``limit`` bytes; TooLargeError as soon as it is longer, or says that it will be."""
    return await webserver.read_body(
        request, limit, f"request body: more than {limit} bytes; split the pipeline or embed less."
    )


async def read_message(request: Request, message: Message) -> dict[str, Any]:
    return parse_body(message, await read_body(request))


def json_text(value: Any) -> str:
    """Write JSON, many times faster than ``json`` does; for answers that can be large."""
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:  # a lone surrogate in a user's text
        return json.dumps(value)


def reply(message: Message, value: Mapping[str, Any]) -> Response:
    return Response(json_text(render(message, value)), media_type="application/json")


def warned(response: Response, warnings: Iterable[str]) -> Response:
    """Add what has no effect here as Warning headers."""
    for text in warnings:
        quoted = text.encode("ascii", "replace").decode().replace("\\", "\\\\").replace('"', '\\"')
        response.headers.append("Warning", f'299 - "{quoted}"')
    return response


def empty() -> Response:
    return JSONResponse({})
