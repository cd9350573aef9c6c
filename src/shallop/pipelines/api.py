"""
The KFP v2beta1 REST API: what it serves, put together.

The server is single-user: the namespace in requests is accepted and ignored. Not served, and answered with 501:
reports of a workflow controller, which does not exist here, and the retired visualization service.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from shallop.controller import Services
from shallop.errors import NotFoundError
from shallop.pipelines.artifacts_api import ArtifactsApi
from shallop.pipelines.cache_api import CacheApi
from shallop.pipelines.compare import CompareApi
from shallop.pipelines.errors_wire import endpoint, not_implemented
from shallop.pipelines.experiments_api import ExperimentsApi
from shallop.pipelines.http import empty
from shallop.pipelines.logs import LogsApi
from shallop.pipelines.pipelines_api import PipelinesApi
from shallop.pipelines.podends import NAMESPACE
from shallop.pipelines.recurring_api import RecurringRunsApi
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
        # Clients older than 2.0 ask here whether the server lives.
        Route("/apis/v1beta1/healthz", endpoint(_healthz), methods=["GET"]),
        Route(f"{_BASE}/filters", endpoint(_filters), methods=["GET"]),
        Route(f"{_BASE}/workflows", endpoint(_report), methods=["POST"]),
        Route(f"{_BASE}/scheduledworkflows", endpoint(_report), methods=["POST"]),
        Route(f"{_BASE}/visualizations/{{namespace}}", endpoint(_visualization), methods=["POST"]),
        *RecurringRunsApi(services).routes(),
        *ExperimentsApi(services).routes(),
        *PipelinesApi(services).routes(),
        *LogsApi(services, NAMESPACE).routes(),
        *WatchApi(services).routes(),
        *CompareApi(services).routes(),
        *RunsApi(services).routes(),
        *ArtifactsApi(services).routes(),
        *CacheApi(services).routes(),
        Route(f"{_BASE}/{{rest:path}}", endpoint(_unknown), methods=_METHODS),
    ]


async def _healthz(request: Request) -> Response:
    # False is sent although proto JSON leaves it out: clients ask for this field.
    return JSONResponse({"multi_user": False, "pipeline_store": "database", "tag_name": "2.17.0"})


async def _auth(request: Request) -> Response:
    return empty()


async def _filters(request: Request) -> Response:
    # It exists upstream only so that the Filter message is in the API's description.
    return empty()


async def _report(request: Request) -> Response:
    raise not_implemented("Reports come from a workflow controller; this server runs pipelines itself.")


async def _visualization(request: Request) -> Response:
    raise not_implemented("Visualizations are artifacts: return HTML or Markdown from a component.")


async def _unknown(request: Request) -> Response:
    raise NotFoundError(f"{request.method} {request.url.path}: no such endpoint; the API is KFP v2beta1.")
