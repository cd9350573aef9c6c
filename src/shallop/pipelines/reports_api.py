"""
What upstream's controllers tell its API server, and its retired visualizations: ``/workflows``,
``/scheduledworkflows`` and ``/visualizations``.

Here no controller of others carries out runs or schedules: a report of a ScheduledWorkflow changes the recurring run
whose id is its UID, as upstream's does; a report of a Workflow is refused, because this server carries out the run
itself and knows its state. There is no visualization service, as in an installation of upstream without one.

Source: upstream's report and visualization servers: what they check, in which order.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from shallop.controller import Services
from shallop.errors import BadRequestError, NotFoundError, UnavailableError
from shallop.pipelines import tables
from shallop.pipelines.access import Access
from shallop.pipelines.errors_wire import endpoint, precondition
from shallop.pipelines.http import empty, read_body, read_message
from shallop.pipelines.messages import RECURRING_RUN, VISUALIZATION, parse_body, to_micros
from shallop.pipelines.recurring_api import check_trigger, refuse_archived
from shallop.pipelines.render import RUN_LABEL
from shallop.pipelines.signals import signals_of

__all__ = ["ReportsApi", "parse_schedule"]

_MAX_REPORT_BYTES = 4 << 20


class ReportsApi:
    """Handlers over the rows of ``services``."""

    def __init__(self, services: Services, access: Access) -> None:
        self._services = services
        self._access = access
        self._database = services.database

    def routes(self) -> list[BaseRoute]:
        base = "/apis/v2beta1"
        return [
            Route(f"{base}/workflows", endpoint(self.workflow), methods=["POST"]),
            Route(f"{base}/scheduledworkflows", endpoint(self.scheduled_workflow), methods=["POST"]),
            Route(f"{base}/visualizations/{{namespace}}", endpoint(self.visualization), methods=["POST"]),
        ]

    async def workflow(self, request: Request) -> Response:
        """Refuse a report of a Workflow, saying what about it is wrong."""
        reported = await _reported(request, "workflow")
        await self._access.check(request, "report", "workflows", "")
        run_id = str((reported["metadata"].get("labels") or {}).get(RUN_LABEL) or "")
        if not run_id:
            raise BadRequestError(f"workflow.metadata.labels: {RUN_LABEL!r} is required; it names the run.")
        if await self._database.read(lambda c: tables.get_run(c, run_id)) is None:
            raise NotFoundError(f"workflow.metadata.labels: no run {run_id!r}; list them with GET /apis/v2beta1/runs.")
        raise precondition(
            f"workflow: run {run_id!r} is carried out by this server, which knows its state; use :terminate or :retry "
            "of /apis/v2beta1/runs to change it."
        )

    async def scheduled_workflow(self, request: Request) -> Response:
        """Take what a ScheduledWorkflow says now into the recurring run that it stands for."""
        reported = await _reported(request, "scheduled_workflow")
        await self._access.check(request, "report", "scheduledworkflows", "")
        id_ = str(reported["metadata"]["uid"])
        row = await self._database.read(lambda c: tables.get_recurring_run(c, id_))
        if row is None:
            raise NotFoundError(
                f"scheduled_workflow.metadata.uid: no recurring run {id_!r}; list them with GET "
                "/apis/v2beta1/recurringruns."
            )
        values = parse_schedule(reported) | {"updated_at": to_micros(self._services.now())}

        def store(connection: sa.Connection) -> None:
            if values["status"] == "ENABLED":
                refuse_archived(connection, row)
            tables.update_recurring_run(connection, id_, values)

        await self._database.write(store)
        signals_of(self._database).reschedule()
        return empty()

    async def visualization(self, request: Request) -> Response:
        given = await read_message(request, VISUALIZATION)
        await self._access.check(request, "create", "visualizations", request.path_params["namespace"])
        if not given.get("source"):
            raise BadRequestError("visualization.source: required; the path of the data to show.")
        try:
            json.loads(given.get("arguments") or "{}")
        except ValueError as error:
            raise BadRequestError(f"visualization.arguments: not JSON: {error}.") from error
        raise UnavailableError(
            "Cannot generate visualization: this server has no visualization service. Return an HTML or Markdown "
            "artifact from a component; the dashboard shows it."
        )


def parse_schedule(reported: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the columns of a recurring run that a ScheduledWorkflow sets.

    Raises:
        BadRequestError: its specification cannot be carried out.
    """
    spec = reported.get("spec") or {}
    try:
        trigger = spec.get("trigger") or {}
        given = {
            "trigger": {
                name: {key: value for key, value in (trigger.get(name) or {}).items() if value is not None}
                for name in ("cronSchedule", "periodicSchedule")
                if trigger.get(name)
            },
            "maxConcurrency": spec.get("maxConcurrency") or 1,
            "noCatchup": bool(spec.get("noCatchup")),
        }
    except AttributeError as error:
        raise BadRequestError(
            "scheduled_workflow.spec: must be an object with 'trigger', one schedule in it."
        ) from error
    parsed = parse_body(RECURRING_RUN, msgspec.json.encode(given))
    check_trigger(parsed)
    return {
        "trigger": parsed["trigger"],
        "max_concurrency": min(parsed["max_concurrency"], 10),
        "no_catchup": parsed.get("no_catchup", False),
        "status": "ENABLED" if spec.get("enabled") else "DISABLED",
    }


async def _reported(request: Request, name: str) -> dict[str, Any]:
    """Read a resource that is sent as a JSON string of its JSON text."""
    text = await read_body(request, _MAX_REPORT_BYTES)
    try:
        inner = json.loads(text)
        reported = json.loads(inner) if isinstance(inner, str) else None
    except ValueError as error:
        raise BadRequestError(f"{name}: not JSON: {error}.") from error
    if not isinstance(reported, dict):
        raise BadRequestError(f"{name}: send a JSON string that holds the resource as JSON text.")
    metadata = reported.get("metadata")
    for field in ("name", "namespace", "uid"):
        if not isinstance(metadata, dict) or not metadata.get(field):
            raise BadRequestError(f"{name}.metadata.{field}: required.")
    return reported
