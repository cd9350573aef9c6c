"""Runs repeated and compared: ``POST /runs/{id}:rerun``, ``GET /runs:compare``. No release of KFP has them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from shallop.controller import Services
from shallop.errors import BadRequestError, NotFoundError
from shallop.pipelines import tables
from shallop.pipelines.access import Access
from shallop.pipelines.errors_wire import endpoint
from shallop.pipelines.http import read_message, reply, warned
from shallop.pipelines.ir import parse_pipeline
from shallop.pipelines.messages import RERUN, RUN, format_micros
from shallop.pipelines.reuse import find_step, repeated_paths
from shallop.pipelines.runs_api import run_message
from shallop.pipelines.signals import signals_of
from shallop.pipelines.submission import Submission, insert_run, new_run
from shallop.pipelines.values import plain

__all__ = ["CompareApi", "comparison"]

_MAX_COMPARED = 100
Row = dict[str, Any]


class CompareApi:
    """Handlers over the rows of ``services``."""

    def __init__(self, services: Services, access: Access) -> None:
        self._services = services
        self._access = access
        self._database = services.database
        self._signals = signals_of(services.database)

    def routes(self) -> list[BaseRoute]:
        base = "/apis/v2beta1/runs"
        return [
            Route(f"{base}:compare", endpoint(self.compare), methods=["GET"]),
            Route(f"{base}/{{run_id}}:rerun", endpoint(self.rerun), methods=["POST"]),
        ]

    async def rerun(self, request: Request) -> Response:
        """
        Start a run that repeats another; steps that would do the same again are taken over from it.

        ``from_task`` is done again in any case, and what needs it. ``pipeline_spec`` is a corrected pipeline,
        ``parameters`` replace single values.
        """
        id_ = request.path_params["run_id"]
        given = await read_message(request, RERUN)
        loaded = await self._database.read(lambda c: _load(c, id_))
        if loaded is None:
            raise NotFoundError(f"run_id: no run {id_!r}; list them with GET /apis/v2beta1/runs.")
        earlier, document, paths = loaded
        await self._access.allow(request, "create", "runs", earlier)
        changed = given.get("pipeline_spec", document)
        reuse: Row = {"run_id": id_, "repeated": []}
        if wanted := given.get("from_task", ""):
            pipeline = await asyncio.to_thread(parse_pipeline, changed)
            reuse["repeated"] = sorted(repeated_paths(pipeline, find_step(paths, wanted)))
        config = {"parameters": earlier["parameters"] | given.get("parameters", {})}
        body: Row = {
            "display_name": given.get("display_name") or earlier["name"],
            "description": earlier["description"],
            "runtime_config": config | {"pipeline_root": earlier["pipeline_root"]},
            "service_account": earlier["service_account"],
            "plugins_input": earlier["plugins_input"],
        }
        names = ("pipeline_id", "pipeline_version_id")
        reference = {} if "pipeline_spec" in given else {name: earlier[name] for name in names}
        how = replace(Submission.at(self._services), reuse=reuse)
        row, text, warnings = await asyncio.to_thread(new_run, body, reference, changed, self._services, how)
        await self._database.write(lambda c: insert_run(c, row, earlier["experiment_id"], text))
        self._signals.request(row["id"])
        return warned(reply(RUN, run_message(row, {row["spec_digest"]: tables.part_of_answer(text)})), warnings)

    async def compare(self, request: Request) -> Response:
        """Show parameters, metrics, outputs and times of ``run_ids=a,b,...`` beside each other."""
        ids = [id_ for id_ in request.query_params.get("run_ids", "").split(",") if id_]
        if not 1 <= len(ids) <= _MAX_COMPARED:
            raise BadRequestError(f"run_ids: {len(ids)} runs; name 1 to {_MAX_COMPARED}, separated by commas.")

        def read(connection: sa.Connection) -> tuple[list[Row], dict[str, Row], list[Row]]:
            found = {id_: tables.get_run(connection, id_) for id_ in ids}
            missing = [id_ for id_, row in found.items() if row is None]
            if missing:
                raise NotFoundError(f"run_ids: no run {missing[0]!r}; list them with GET /apis/v2beta1/runs.")
            rows = [row for row in found.values() if row]
            specs = tables.get_specs(connection, list({row["spec_digest"] for row in rows}))
            return rows, specs, tables.get_metrics(connection, ids)

        rows, specs, metrics = await self._database.read(read)
        for row in {row["namespace"]: row for row in rows}.values():
            await self._access.allow(request, "get", "runs", row)
        defaults = {digest: _defaults(document) for digest, document in specs.items()}
        full = [row | {"parameters": defaults[row["spec_digest"]] | row["parameters"]} for row in rows]
        return JSONResponse(comparison(full, metrics))


def _load(connection: sa.Connection, id_: str) -> tuple[Row, Row, list[str]] | None:
    run = tables.get_run(connection, id_)
    if run is None:
        return None
    document = tables.get_specs(connection, [run["spec_digest"]])[run["spec_digest"]]
    return run, document, [task["path"] for task in tables.get_tasks(connection, id_)]


def _defaults(document: Mapping[str, Any]) -> Row:
    """Return the values of parameters that a run is not given."""
    definitions = document.get("pipeline_spec", document)["root"].get("inputDefinitions", {}).get("parameters", {})
    return {name: plain(one["defaultValue"]) for name, one in definitions.items() if "defaultValue" in one}


def comparison(rows: Sequence[Row], metrics: Sequence[Mapping[str, Any]]) -> Row:
    """
    Put runs beside each other.

    Returns:
        ``runs``, and in ``differing`` the parameters whose values are not the same in all of them.
    """
    values: dict[str, Row] = {row["id"]: {} for row in rows}
    for metric in metrics:
        for key, value in metric["metadata"].items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                values[metric["run_id"]][f"{metric['name']}.{key}"] = value
    names = dict.fromkeys(name for row in rows for name in row["parameters"])
    texts = {name: {json.dumps(row["parameters"].get(name), sort_keys=True) for row in rows} for name in names}
    return {
        "runs": [_compared(row, values[row["id"]]) for row in rows],
        "differing": [name for name in names if len(texts[name]) > 1],
    }


def _compared(row: Row, metrics: Row) -> Row:
    ended = row["finished_at"]
    return {
        "run_id": row["id"],
        "display_name": row["name"],
        "state": row["state"],
        "created_at": format_micros(row["created_at"]),
        "duration_s": round((ended - row["created_at"]) / 1e6, 3) if ended else None,
        "parameters": row["parameters"],
        "outputs": row["outputs"].get("parameters", {}),
        "metrics": metrics,
    }
