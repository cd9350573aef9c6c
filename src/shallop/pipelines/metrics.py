"""
``GET /metrics``: what the rows say about pipelines, as Prometheus text.

All are gauges: they count rows that are there, and fall when runs are deleted.
"""

from __future__ import annotations

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from shallop.controller import Services
from shallop.pipelines import tables
from shallop.pipelines.errors_wire import endpoint

__all__ = ["MetricsApi", "render_metrics"]

_STATES = ("PENDING", "RUNNING", "SUCCEEDED", "SKIPPED", "FAILED", "CANCELING", "CANCELED", "PAUSED")


def render_metrics(totals: tables.Totals) -> str:
    """Write the text format 0.0.4."""
    runs = dict.fromkeys(_STATES, 0) | totals.runs
    lines: list[str] = []

    def add(name: str, text: str, samples: dict[str, float]) -> None:
        full = f"shallop_pipelines_{name}"
        lines.extend((f"# HELP {full} {text}", f"# TYPE {full} gauge"))
        lines.extend(f"{full}{labels} {value:.17g}" for labels, value in samples.items())

    add("runs", "Runs by state.", _by_state(runs))
    add("tasks", "Container tasks by state; CACHED took outputs of an earlier one.", _by_state(totals.tasks))
    add("task_seconds", "Time that container tasks have taken, by state.", _by_state(totals.seconds))
    add("recurring_runs", "Recurring runs by status.", _by_state(totals.recurring_runs))
    add("cache_entries", "Outputs of tasks that are kept for later runs.", {"": totals.cache_entries})
    add("artifacts", "Artifacts that tasks have written, or that were imported or registered.", {"": totals.artifacts})
    add("artifact_bytes", "Size of their content.", {"": totals.artifact_bytes})
    return "\n".join(lines) + "\n"


def _by_state(counts: dict[str, float]) -> dict[str, float]:
    return {f'{{state="{state}"}}': count for state, count in sorted(counts.items())}


class MetricsApi:
    """Handlers over the rows of ``services``."""

    def __init__(self, services: Services) -> None:
        self._database = services.database

    def routes(self) -> list[BaseRoute]:
        return [Route("/metrics", endpoint(self.metrics), methods=["GET"])]

    async def metrics(self, request: Request) -> Response:
        def read(connection: sa.Connection) -> str:
            return render_metrics(tables.read_totals(connection))

        return Response(await self._database.read(read), media_type="text/plain; version=0.0.4; charset=utf-8")
