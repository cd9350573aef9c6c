"""
The KFP v2beta1 REST API: what it serves, put together.

The server is single-user: the namespace in requests is accepted and ignored. Recurring runs are not served: listing
them gives an empty list, everything else answers 501.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from shallop.controller import Services
from shallop.errors import NotFoundError
from shallop.pipelines.artifacts_api import ArtifactsApi
from shallop.pipelines.errors_wire import endpoint, not_implemented
from shallop.pipelines.experiments_api import ExperimentsApi
from shallop.pipelines.http import empty, reply
from shallop.pipelines.logs import LogsApi
from shallop.pipelines.messages import RECURRING_RUN_LIST
from shallop.pipelines.pipelines_api import PipelinesApi
from shallop.pipelines.podends import NAMESPACE
from shallop.pipelines.runs_api import RunsApi
from shallop.pipelines.watch import WatchApi

__all__ = ["routes"]

_BASE = "/apis/v2beta1"
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def routes(services: Services) -> Sequence[BaseRoute]:
    """Return the routes for the web origin; the first that matches answers."""
    return [
        Route(f"{_BASE}/healthz", endpoint(_healthz), methods=["GET"]),
        Route(f"{_BASE}/auth", endpoint(_auth), methods=["GET"]),
        Route(f"{_BASE}/recurringruns", endpoint(_list_recurring_runs), methods=["GET"]),
        Route(f"{_BASE}/recurringruns{{rest:path}}", endpoint(_recurring_run), methods=_METHODS),
        *ExperimentsApi(services).routes(),
        *PipelinesApi(services).routes(),
        *LogsApi(services, NAMESPACE).routes(),
        *WatchApi(services).routes(),
        *RunsApi(services).routes(),
        *ArtifactsApi(services).routes(),
        Route(f"{_BASE}/{{rest:path}}", endpoint(_unknown), methods=_METHODS),
    ]


async def _healthz(request: Request) -> Response:
    # False is sent although proto JSON leaves it out: clients ask for this field.
    return JSONResponse({"multi_user": False, "pipeline_store": "database", "tag_name": "2.17.0"})


async def _auth(request: Request) -> Response:
    return empty()


async def _list_recurring_runs(request: Request) -> Response:
    return reply(RECURRING_RUN_LIST, {})


async def _recurring_run(request: Request) -> Response:
    raise not_implemented("Recurring runs are not available on this server; create runs from a scheduler of your own.")


async def _unknown(request: Request) -> Response:
    raise NotFoundError(f"{request.method} {request.url.path}: no such endpoint; the API is KFP v2beta1.")
