"""The registry's routes over a database in a temporary folder, called in process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlencode

import anyio
import pytest
from starlette.applications import Starlette

from shallop.controller.kind import Services
from shallop.kube.client import Client
from shallop.registry import PART
from shallop.settings import Settings
from shallop.store.database import Database


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Call = Callable[..., Answer]


async def _call(app: Starlette, method: str, path: str, query: dict[str, Any], body: bytes) -> Answer:
    sent: list[dict[str, Any]] = []
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": urlencode(query).encode(),
        "headers": [],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, cast(Any, send))
    headers = {key.decode(): value.decode() for key, value in sent[0]["headers"]}
    return Answer(sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:]))


@pytest.fixture
def call(tmp_path: Path) -> Iterator[Call]:
    """Return ``call(method, path, body=None, version="v1", **query)``; ``path`` is below the version."""
    database = Database(f"sqlite:///{tmp_path}/rows.db")
    database.migrate(PART.name, PART.migrations)
    now = datetime(2026, 1, 2, tzinfo=UTC)
    services = Services(Settings(home=tmp_path), cast(Client, None), database, lambda: now)
    assert PART.routes is not None
    app = Starlette(routes=list(PART.routes(services)))

    def do(method: str, path: str, body: Any = None, *, version: str = "v1", **query: Any) -> Answer:
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        full = path if path.startswith("/") else f"/api/model_registry/{version}/{path}"
        return anyio.run(_call, app, method, full, query, data)

    yield do
    database.close()
