"""Requests to an API server in memory, through its ASGI application."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from shallop.embedded.apiserver import ApiServer, User

USERS = {name: User(name, ("people", "system:authenticated")) for name in ("alice", "bob")}


class Answer(NamedTuple):
    status: int
    headers: list[tuple[bytes, bytes]]
    body: Any

    @property
    def message(self) -> str:
        return str(self.body["message"])

    @property
    def warnings(self) -> list[str]:
        return [value.decode() for name, value in self.headers if name == b"warning"]


class Http:
    """Sends requests; tokens are ``admin`` and the names in ``USERS``, None = no Authorization header."""

    def __init__(self, server: ApiServer) -> None:
        self.server = server

    async def __call__(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = "admin",
        headers: Iterable[tuple[str, str]] = (),
    ) -> Answer:
        raw = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        path, _, query = path.partition("?")
        given = [("host", "localhost"), ("user-agent", "test/1"), *headers]
        if token is not None:
            given.append(("authorization", f"Bearer {token}"))
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(name.lower().encode(), value.encode()) for name, value in given],
        }
        out: dict[str, Any] = {"body": b""}
        sent = False

        async def receive() -> dict[str, Any]:
            nonlocal sent
            if sent:
                await asyncio.Event().wait()
            sent = True
            return {"type": "http.request", "body": raw, "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                out.update(status=message["status"], headers=message["headers"])
            else:
                out["body"] += message.get("body", b"")

        await self.server.asgi(scope, receive, send)  # type: ignore[arg-type]
        text = out["body"]
        return Answer(out["status"], out["headers"], json.loads(text) if text[:1] == b"{" else text.decode())


@asynccontextmanager
async def serving() -> AsyncIterator[Http]:
    server = ApiServer(None, admin_token="admin", users=USERS)
    await server.start()
    try:
        yield Http(server)
    finally:
        await server.stop()


@pytest.fixture
def api() -> Callable[[Callable[[Http], Awaitable[None]]], None]:
    """Runs a test with a server of its own."""

    async def inside(test: Callable[[Http], Awaitable[None]]) -> None:
        async with serving() as http:
            await test(http)

    return lambda test: asyncio.run(inside(test))
