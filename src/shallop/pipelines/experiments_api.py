"""Experiments over REST: ``/apis/v2beta1/experiments``."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from shallop.controller import Services
from shallop.errors import BadRequestError, NotFoundError
from shallop.pipelines import tables
from shallop.pipelines.access import Access
from shallop.pipelines.errors_wire import endpoint, precondition
from shallop.pipelines.http import empty, read_message, reply
from shallop.pipelines.listing import EXPERIMENT_KEYS, parse_page
from shallop.pipelines.messages import EXPERIMENT, EXPERIMENT_LIST, to_micros

__all__ = ["DEFAULT_EXPERIMENT", "ExperimentsApi", "ensure_default_experiment"]

DEFAULT_EXPERIMENT = "Default"
_MAX_NAME = 128


def ensure_default_experiment(connection: sa.Connection, now: int) -> dict[str, Any]:
    """Return the experiment of runs that name none, on a single-user server; make it when it is not there."""
    found = tables.get_experiment_named(connection, "", DEFAULT_EXPERIMENT)
    return found or tables.insert_experiment(connection, _new_row("", DEFAULT_EXPERIMENT, "", now))


def _new_row(namespace: str, name: str, description: str, now: int) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "namespace": namespace,
        "name": name,
        "description": description,
        "created_at": now,
        "last_run_created_at": 0,
        "storage_state": "AVAILABLE",
    }


def _message(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "experiment_id": row["id"], "display_name": row["name"]}


class ExperimentsApi:
    """Handlers over the rows of ``services``."""

    def __init__(self, services: Services, access: Access) -> None:
        self._services = services
        self._access = access
        self._database = services.database

    def routes(self) -> list[BaseRoute]:
        base = "/apis/v2beta1/experiments"
        one = f"{base}/{{experiment_id}}"
        return [
            Route(base, endpoint(self.list), methods=["GET"]),
            Route(base, endpoint(self.create), methods=["POST"]),
            Route(f"{one}:archive", endpoint(self.archive), methods=["POST"]),
            Route(f"{one}:unarchive", endpoint(self.unarchive), methods=["POST"]),
            Route(one, endpoint(self.get), methods=["GET"]),
            Route(one, endpoint(self.delete), methods=["DELETE"]),
        ]

    async def list(self, request: Request) -> Response:
        page = parse_page(request.query_params, EXPERIMENT_KEYS)
        namespace = await self._access.selection(request, "experiments", request.query_params.get("namespace", ""))
        listed = await self._database.read(lambda c: tables.list_experiments(c, page, namespace))
        experiments = [_message(row) for row in listed.rows]
        return reply(
            EXPERIMENT_LIST,
            {"experiments": experiments, "next_page_token": listed.next_page_token, "total_size": listed.total},
        )

    async def create(self, request: Request) -> Response:
        given = await read_message(request, EXPERIMENT)
        name = given.get("display_name", "")
        if not name.strip():
            raise BadRequestError("display_name: required; give the experiment a name.")
        if len(name) > _MAX_NAME:
            raise BadRequestError(f"display_name: {len(name)} characters; at most {_MAX_NAME} are allowed.")
        namespace = await self._access.place(request, "create", "experiments", given.get("namespace", ""))
        row = _new_row(namespace, name, given.get("description", ""), to_micros(self._services.now()))
        return reply(EXPERIMENT, _message(await self._database.write(lambda c: tables.insert_experiment(c, row))))

    async def get(self, request: Request) -> Response:
        return reply(EXPERIMENT, _message(await self._find(request, "get")))

    async def delete(self, request: Request) -> Response:
        row = await self._find(request, "delete")
        if row["name"] == DEFAULT_EXPERIMENT and not row["namespace"]:
            raise precondition("experiment_id: the default experiment cannot be deleted; archive it instead.")
        await self._database.write(lambda c: tables.delete_experiment(c, row["id"]))
        return empty()

    async def archive(self, request: Request) -> Response:
        return await self._store(request, "archive", "ARCHIVED")

    async def unarchive(self, request: Request) -> Response:
        return await self._store(request, "unarchive", "AVAILABLE")

    async def _store(self, request: Request, verb: str, state: str) -> Response:
        row = await self._find(request, verb)
        await self._database.write(lambda c: tables.set_experiment_storage(c, row["id"], state))
        return empty()

    async def _find(self, request: Request, verb: str) -> dict[str, Any]:
        id_ = request.path_params["experiment_id"]
        row = await self._database.read(lambda c: tables.get_experiment(c, id_))
        if row is None:
            raise NotFoundError(f"experiment_id: no experiment {id_!r}; list them with GET /apis/v2beta1/experiments.")
        await self._access.allow(request, verb, "experiments", row)
        return row
