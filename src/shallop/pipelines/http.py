"""Bodies of requests and answers of the v2beta1 API."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from shallop import webserver
from shallop.pipelines.messages import Message, parse_body, render
from shallop.pipelines.tables import Listed

__all__ = [
    "MAX_BODY_BYTES",
    "empty",
    "json_reply",
    "json_text",
    "list_text",
    "read_body",
    "read_message",
    "reply",
    "warned",
]

# An upload has at most 32 MiB; the same document inside JSON is a little longer.
MAX_BODY_BYTES = 48 * 1024 * 1024
_MUCH = 32 * 1024


async def read_body(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """Read a body of at most ``limit`` bytes; TooLargeError as soon as it is longer, or says that it will be."""
    return await webserver.read_body(
        request, limit, f"request body: more than {limit} bytes; split the pipeline or embed less."
    )


async def read_message(request: Request, message: Message) -> dict[str, Any]:
    body = await read_body(request)
    # The document of a pipeline of thousands of tasks takes a while.
    return parse_body(message, body) if len(body) < _MUCH else await asyncio.to_thread(parse_body, message, body)


def json_text(value: Any) -> str:
    """Write JSON, many times faster than ``json`` does; ``msgspec.Raw`` values are parts of it as they are."""
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:  # a lone surrogate in a user's text
        return json.dumps(value, default=lambda raw: json.loads(bytes(raw)))


def list_text(message: Message, name: str, items: Sequence[Mapping[str, Any]], listed: Listed) -> str:
    """Write one page of a list; ``name`` is that of the field with the items."""
    page = {name: items, "next_page_token": listed.next_page_token, "total_size": listed.total}
    return json_text(render(message, page))


def json_reply(text: str) -> Response:
    """Send JSON that was written already: what may be long is written in the thread that has read it."""
    return Response(text, media_type="application/json")


def reply(message: Message, value: Mapping[str, Any]) -> Response:
    return json_reply(json_text(render(message, value)))


def warned(response: Response, warnings: Iterable[str]) -> Response:
    """Add what has no effect here as Warning headers."""
    for text in warnings:
        quoted = text.encode("ascii", "replace").decode().replace("\\", "\\\\").replace('"', '\\"')
        response.headers.append("Warning", f'299 - "{quoted}"')
    return response


def empty() -> Response:
    return JSONResponse({})
