"""
The KFP v2beta1 REST API: what it serves, put together.

A single-user server, the default, accepts and ignores the namespace in requests; see ``access`` for the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from shallop.controller import Services
from shallop.errors import BadRequestError, NotFoundError
from shallop.pipelines.access import Access
from shallop.pipelines.artifacts_api import ArtifactsApi
from shallop.pipelines.cache_api import CacheApi
from shallop.pipelines.compare import CompareApi
from shallop.pipelines.errors_wire import endpoint
from shallop.pipelines.experiments_api import ExperimentsApi
from shallop.pipelines.http import empty
from shallop.pipelines.logs import LogsApi
from shallop.pipelines.metrics import MetricsApi
from shallop.pipelines.pipelines_api import PipelinesApi
from shallop.pipelines.recurring_api import RecurringRunsApi
from shallop.pipelines.reports_api import ReportsApi
from shallop.pipelines.runs_api import RunsApi
from shallop.pipelines.ui_api import UiApi, redirect_to_pages
from shallop.pipelines.watch import WatchApi

__all__ = ["routes"]

_BASE = "/apis/v2beta1"
_METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]


def routes(services: Services) -> Sequence[BaseRoute]:
    """Return the routes for the web origin; the first that matches answers."""
    access = Access(services)
    health = endpoint(partial(_healthz, access))
    logs, artifacts = LogsApi(services, access), ArtifactsApi(services, access)
    known = [
        Route(f"{_BASE}/auth", endpoint(partial(_auth, access)), methods=["GET"]),
        Route(f"{_BASE}/filters", endpoint(_filters), methods=["GET"]),
        *ReportsApi(services, access).routes(),
        *RecurringRunsApi(services, access).routes(),
        *ExperimentsApi(services, access).routes(),
        *PipelinesApi(services, access).routes(),
        *logs.routes(),
        *WatchApi(services, access).routes(),
        *CompareApi(services, access).routes(),
        *RunsApi(services, access).routes(),
        *artifacts.routes(),
        *CacheApi(services, access).routes(),
        *UiApi(services, access, artifacts, logs).routes(),
        Route(f"{_BASE}/{{rest:path}}", endpoint(_unknown), methods=_METHODS),
    ]
    served = [
        Route(f"{_BASE}/healthz", health, methods=["GET"]),
        # Clients older than 2.0 ask here whether the server lives.
        Route("/apis/v1beta1/healthz", health, methods=["GET"]),
        *(map(partial(_for_known, access), known) if access.is_multi_user else known),
    ]
    # A whole Kubeflow has all of it below /pipeline, too: clients that were set up for one go on.
    pages = [Route("/healthz", health, methods=["GET"]), Route("/", redirect_to_pages, methods=["GET"])]
    return [*served, *MetricsApi(services).routes(), Mount("/pipeline", routes=[*served, *pages])]


def _for_known(access: Access, route: BaseRoute) -> BaseRoute:
    assert isinstance(route, Route)
    return Route(route.path, endpoint(access.authenticated(route.endpoint)), methods=list(route.methods or ()))


async def _healthz(access: Access, request: Request) -> Response:
    # False is sent although proto JSON leaves it out: clients ask for this field.
    return JSONResponse({"multi_user": access.is_multi_user, "pipeline_store": "database", "tag_name": "2.17.0"})


async def _auth(access: Access, request: Request) -> Response:
    query = request.query_params
    if access.is_multi_user:
        for name in ("namespace", "resources", "verb"):
            if not query.get(name) or query[name].startswith("UNASSIGNED"):
                raise BadRequestError(f"{name}: required; such as ?namespace=team&resources=VIEWERS&verb=GET.")
        await access.check(request, query["verb"].lower(), query["resources"].lower(), query["namespace"])
    return empty()


async def _filters(request: Request) -> Response:
    # It exists upstream only so that the Filter message is in the API's description.
    return empty()


async def _unknown(request: Request) -> Response:
    raise NotFoundError(f"{request.method} {request.url.path}: no such endpoint; the API is KFP v2beta1.")
