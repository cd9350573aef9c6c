"""
The cache over REST: ``GET /apis/v2beta1/cache`` lists entries, ``DELETE`` invalidates them.

No release of KFP has such endpoints.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from shallop.controller import Services
from shallop.errors import BadRequestError
from shallop.pipelines import tables
from shallop.pipelines.access import Access
from shallop.pipelines.errors_wire import endpoint
from shallop.pipelines.messages import format_micros

__all__ = ["CacheApi"]

_MAX_ENTRIES = 200
_FILTERS = ("pipeline_name", "component", "run_id", "task_id", "key")


class CacheApi:
    """Handlers over the rows of ``services``."""

    def __init__(self, services: Services, access: Access) -> None:
        self._access = access
        self._database = services.database

    def routes(self) -> list[BaseRoute]:
        base = "/apis/v2beta1/cache"
        return [
            Route(base, endpoint(self.list), methods=["GET"]),
            Route(base, endpoint(self.delete), methods=["DELETE"]),
        ]

    async def list(self, request: Request) -> Response:
        """List entries, the newest first; ``pipeline_name``, ``component``, ``run_id``, ``task_id``, ``key`` select."""
        equals, before = _equals(request), _parse_token(request.query_params.get("page_token", ""))
        await self._own(request, "list", equals)
        rows, total = await self._database.read(
            lambda c: tables.list_cache_entries(c, before=before, limit=_MAX_ENTRIES, equals=equals)
        )
        answer: dict[str, Any] = {"entries": [_view(row) for row in rows], "total_size": total}
        if len(rows) == _MAX_ENTRIES:
            token = json.dumps([rows[-1]["created_at"], rows[-1]["key"]])
            answer["next_page_token"] = base64.urlsafe_b64encode(token.encode()).decode()
        return JSONResponse(answer)

    async def delete(self, request: Request) -> Response:
        """Remove the entries that the query selects; ``all=true`` where it selects none. Artifacts stay."""
        equals = _equals(request)
        if not equals and request.query_params.get("all", "").lower() != "true":
            raise BadRequestError(f"query: name what to remove by {', '.join(_FILTERS)}, or send all=true.")
        await self._own(request, "delete", equals)
        deleted = await self._database.write(lambda c: tables.delete_cache_entries(c, equals))
        return JSONResponse({"deleted": deleted})

    async def _own(self, request: Request, verb: str, equals: dict[str, str]) -> None:
        """Select the entries of the namespace that a multi-user server is asked for."""
        if self._access.is_multi_user:
            asked = request.query_params.get("namespace", "")
            equals["namespace"] = await self._access.place(request, verb, "runs", asked)


def _equals(request: Request) -> dict[str, str]:
    return {name: request.query_params[name] for name in _FILTERS if request.query_params.get(name)}


def _parse_token(token: str) -> tuple[int, str] | None:
    try:
        created, key = json.loads(base64.urlsafe_b64decode(token)) if token else (None, "")
        return None if created is None else (int(created), str(key))
    except (TypeError, ValueError):
        raise BadRequestError("page_token: not a token of this server; leave it out to start over.") from None


def _view(row: tables.Row) -> dict[str, Any]:
    names = ("namespace", "pipeline_name", "component", "key", "run_id", "task_id", "outputs", "material")
    return {name: row[name] for name in names} | {"created_at": format_micros(row["created_at"])}
