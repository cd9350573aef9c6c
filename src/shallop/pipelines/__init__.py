"""Kubeflow Pipelines: the v2beta1 API, the planner of runs and the driver that starts their tasks as Pods."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from shallop.controller import Part, Services
from shallop.pipelines.access import ROLES
from shallop.pipelines.api import routes
from shallop.pipelines.driver import Driver
from shallop.pipelines.podends import NAMESPACE
from shallop.pipelines.retention import Retention, is_limited
from shallop.pipelines.scheduler import Scheduler
from shallop.pipelines.tables import MIGRATIONS

__all__ = ["PART"]


def _tasks(services: Services) -> Sequence[Callable[[], Awaitable[None]]]:
    tasks: list[Callable[[], Awaitable[None]]] = [Driver(services).run, Scheduler(services).run]
    return [*tasks, Retention(services).run] if is_limited(services.settings) else tasks


PART = Part(
    "pipelines",
    objects=({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}, *ROLES),
    migrations=MIGRATIONS,
    routes=routes,
    tasks=_tasks,
)
