"""The dashboard: built web pages, the few reads that no other API offers, and users' reports on their own origin."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from starlette.routing import BaseRoute

from shallop.controller import Part, Services
from shallop.dashboard.api import DashboardApi
from shallop.dashboard.assets import Assets
from shallop.dashboard.content import Reports
from shallop.dashboard.live import live_of

__all__ = ["PART"]

_STATIC = Path(__file__).parent / "static"


def _routes(services: Services) -> Sequence[BaseRoute]:
    return [*DashboardApi(services).routes(), *Assets(_STATIC, services.settings.content_url).routes()]


def _content(services: Services) -> Sequence[BaseRoute]:
    return Reports(services.settings).routes()


def _tasks(services: Services) -> Sequence[Callable[[], Awaitable[None]]]:
    return [lambda: live_of(services.client).run(services.client)]


PART = Part("dashboard", routes=_routes, content=_content, tasks=_tasks)
