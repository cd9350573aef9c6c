"""Recurring runs over REST: ``/apis/v2beta1/recurringruns``. When they start runs is ``scheduler``'s matter."""

from __future__ import annotations

import asyncio
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
from shallop.pipelines.cron import parse_cron
from shallop.pipelines.errors_wire import endpoint, precondition
from shallop.pipelines.http import empty, json_reply, list_text, read_message, reply, warned
from shallop.pipelines.listing import RECURRING_RUN_KEYS, parse_page
from shallop.pipelines.messages import RECURRING_RUN, RECURRING_RUN_LIST, to_micros
from shallop.pipelines.pipelines_api import spec_digest
from shallop.pipelines.signals import signals_of
from shallop.pipelines.submission import (
    Submission,
    allow_pipeline,
    check_name,
    namespace_listed,
    namespace_of_experiment,
    new_run,
    open_experiment,
    pipeline_of,
)

__all__ = ["RecurringRunsApi", "check_trigger", "refuse_archived"]

_MAX_CONCURRENCY = 10


def _message(row: Mapping[str, Any], specs: Mapping[str, Any]) -> dict[str, Any]:
    message = {**row, "recurring_run_id": row["id"], "display_name": row["name"]}
    message["mode"] = "ENABLE" if row["status"] == "ENABLED" else "DISABLE"
    message["runtime_config"] = {"parameters": row["parameters"], "pipeline_root": row["pipeline_root"]}
    message["pipeline_version_id"] = ""
    if row["pipeline_id"]:
        message["pipeline_version_reference"] = {
            "pipeline_id": row["pipeline_id"],
            "pipeline_version_id": row["pipeline_version_id"],
        }
    else:
        message["pipeline_spec"] = specs.get(row["spec_digest"])
    return message


def check_trigger(given: Mapping[str, Any]) -> None:
    """Refuse a recurring run whose trigger can never be followed."""
    trigger = given.get("trigger", {})
    cron, periodic = trigger.get("cron_schedule"), trigger.get("periodic_schedule")
    if cron is None and periodic is None:
        raise BadRequestError("recurring_run.trigger: required; send cron_schedule or periodic_schedule.")
    if cron is not None:
        try:
            parse_cron(cron.get("cron", ""))
        except ValueError as error:
            raise BadRequestError(f"recurring_run.trigger.cron_schedule.cron: {error}.") from error
    elif (periodic or {}).get("interval_second", 0) < 1:
        raise BadRequestError("recurring_run.trigger.periodic_schedule.interval_second: required; 1 or more seconds.")
    times = cron or periodic or {}
    if times.get("end_time") and times["end_time"] < times.get("start_time", 0):
        raise BadRequestError("recurring_run.trigger: end_time is before start_time; no run would ever start.")


def refuse_archived(connection: sa.Connection, row: Mapping[str, Any]) -> None:
    """Refuse to enable a recurring run whose experiment is archived."""
    experiment = tables.get_experiment(connection, row["experiment_id"])
    if experiment and experiment["storage_state"] == "ARCHIVED":
        raise precondition(f"recurring_run_id: experiment {experiment['name']!r} is archived; unarchive it first.")


class RecurringRunsApi:
    """Handlers over the rows of ``services``."""

    def __init__(self, services: Services, access: Access) -> None:
        self._services = services
        self._access = access
        self._database = services.database
        self._signals = signals_of(services.database)

    def routes(self) -> list[BaseRoute]:
        base = "/apis/v2beta1/recurringruns"
        one = f"{base}/{{recurring_run_id}}"
        return [
            Route(base, endpoint(self.list), methods=["GET"]),
            Route(base, endpoint(self.create), methods=["POST"]),
            Route(f"{one}:enable", endpoint(self.enable), methods=["POST"]),
            Route(f"{one}:disable", endpoint(self.disable), methods=["POST"]),
            Route(one, endpoint(self.get), methods=["GET"]),
            Route(one, endpoint(self.delete), methods=["DELETE"]),
        ]

    async def list(self, request: Request) -> Response:
        page = parse_page(request.query_params, RECURRING_RUN_KEYS)
        experiment = request.query_params.get("experiment_id", "")
        namespace = await namespace_listed(request, self._services, self._access, "jobs")

        def read(connection: sa.Connection) -> str:
            listed = tables.list_recurring_runs(connection, page, experiment, namespace)
            specs = tables.get_documents(connection, [row["spec_digest"] for row in listed.rows])
            messages = [_message(row, specs) for row in listed.rows]
            return list_text(RECURRING_RUN_LIST, "recurring_runs", messages, listed)

        return json_reply(await self._database.read(read))

    async def create(self, request: Request) -> Response:
        given = await read_message(request, RECURRING_RUN)
        check_name(given, "recurring_run")
        check_trigger(given)
        limit = given.get("max_concurrency", 0)
        if not 1 <= limit <= _MAX_CONCURRENCY:
            raise BadRequestError(f"recurring_run.max_concurrency: {limit}; use 1 to {_MAX_CONCURRENCY}.")
        experiment_id = given.get("experiment_id", "")
        namespace = await namespace_of_experiment(request, self._services, self._access, "jobs", experiment_id)
        reference, document = await self._database.read(lambda c: pipeline_of(c, given, "recurring_run"))
        await allow_pipeline(request, self._services, self._access, reference, namespace)
        now = to_micros(self._services.now())
        # What its runs will be checked for is checked now, where somebody reads the answer.
        trial = Submission(str(uuid.uuid4()), now, scheduled_at=now, index=1)
        _, text, warnings = await asyncio.to_thread(new_run, given, reference, document, self._services, trial)
        row = _new_row(given, reference, text, now)

        def insert(connection: sa.Connection) -> None:
            experiment = open_experiment(connection, experiment_id, now, "recurring_run")
            row.update(experiment_id=experiment["id"], namespace=experiment["namespace"])
            if row["spec_digest"]:
                tables.put_spec(connection, row["spec_digest"], text)
            tables.insert_recurring_run(connection, row)

        await self._database.write(insert)
        self._signals.reschedule()
        return warned(reply(RECURRING_RUN, _message(row, {row["spec_digest"]: tables.part_of_answer(text)})), warnings)

    async def get(self, request: Request) -> Response:
        row = await self._find(request, "get")
        specs = await self._database.read(lambda c: tables.get_documents(c, [row["spec_digest"]]))
        return reply(RECURRING_RUN, _message(row, specs))

    async def delete(self, request: Request) -> Response:
        """Delete a recurring run; runs that it has started stay, whatever ``propagation_policy`` says."""
        row = await self._find(request, "delete")
        await self._database.write(lambda c: tables.delete_recurring_run(c, row["id"]))
        return empty()

    async def enable(self, request: Request) -> Response:
        row = await self._find(request, "enable")
        now = to_micros(self._services.now())

        def store(connection: sa.Connection) -> None:
            refuse_archived(connection, row)
            tables.update_recurring_run(connection, row["id"], {"status": "ENABLED", "updated_at": now})

        await self._database.write(store)
        self._signals.reschedule()
        return empty()

    async def disable(self, request: Request) -> Response:
        row = await self._find(request, "disable")
        values = {"status": "DISABLED", "updated_at": to_micros(self._services.now())}
        await self._database.write(lambda c: tables.update_recurring_run(c, row["id"], values))
        return empty()

    async def _find(self, request: Request, verb: str) -> dict[str, Any]:
        id_ = request.path_params["recurring_run_id"]
        row = await self._database.read(lambda c: tables.get_recurring_run(c, id_))
        if row is None:
            raise NotFoundError(
                f"recurring_run_id: no recurring run {id_!r}; list them with GET /apis/v2beta1/recurringruns."
            )
        await self._access.allow(request, verb, "jobs", row)
        return row


def _new_row(given: Mapping[str, Any], reference: Mapping[str, str], text: str, now: int) -> dict[str, Any]:
    asked = given.get("pipeline_version_reference", {})
    config = given.get("runtime_config", {})
    return {
        "id": str(uuid.uuid4()),
        "experiment_id": "",
        "name": given["display_name"],
        "description": given.get("description", ""),
        # A reference to a pipeline alone stays one: each run then takes the newest version.
        "pipeline_id": reference.get("pipeline_id", ""),
        "pipeline_version_id": asked.get("pipeline_version_id", "") or given.get("pipeline_version_id", ""),
        "spec_digest": "" if reference else spec_digest(text),
        "parameters": config.get("parameters", {}),
        "pipeline_root": config.get("pipeline_root", ""),
        "service_account": given.get("service_account", ""),
        "max_concurrency": given["max_concurrency"],
        "trigger": given["trigger"],
        "status": "DISABLED" if given.get("mode") == "DISABLE" else "ENABLED",
        "no_catchup": given.get("no_catchup", False),
        "created_at": now,
        "updated_at": now,
        "error": None,
        "plugins_input": given.get("plugins_input", {}),
        "last_tick": 0,
        "last_index": 0,
        "namespace": "",
    }
