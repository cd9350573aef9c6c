"""Calls of an ASGI application without a server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import anyio
import pytest
from starlette.applications import Starlette
from starlette.routing import BaseRoute


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


Get = Callable[..., Answer]


@pytest.fixture
def call() -> Callable[..., Answer]:
    """Return ``call(routes, path, method="GET", body=b"", **headers)``; the path goes in as a server decodes it."""

    def send(routes: Sequence[BaseRoute], path: str, method: str = "GET", body: bytes = b"", **headers: str) -> Answer:
        async def run() -> Answer:
            messages: list[dict[str, Any]] = []
            path_only, _, query = path.partition("?")
            scope = {
                "type": "http",
                "http_version": "1.1",
                "method": method,
                "path": path_only,
                "raw_path": path_only.encode(),
                "query_string": query.encode(),
                "root_path": "",
                "scheme": "http",
                "headers": [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()],
                "server": ("127.0.0.1", 8080),
                "client": ("127.0.0.1", 1),
            }
            requests = iter([{"type": "http.request", "body": body}])

            async def receive() -> dict[str, Any]:
                for message in requests:
                    return message
                # The client stays until it has its answer.
                await anyio.sleep_forever()
                raise AssertionError

            async def note(message: Any) -> None:
                messages.append(message)

            await Starlette(routes=list(routes))(scope, receive, note)
            start = messages[0]
            found = {name.decode(): value.decode() for name, value in start["headers"]}
            return Answer(start["status"], found, b"".join(message.get("body", b"") for message in messages[1:]))

        return anyio.run(run)

    return send
