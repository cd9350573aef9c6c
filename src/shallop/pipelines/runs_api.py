"""Runs over REST: ``/apis/v2beta1/runs``."""

from __future__ import annotations

import asyncio
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
from shallop.pipelines.http import empty, json_reply, json_text, list_text, read_message, reply, warned
from shallop.pipelines.listing import RUN_KEYS, next_token, parse_page
from shallop.pipelines.messages import RUN, RUN_LIST, render, to_micros
from shallop.pipelines.signals import signals_of
from shallop.pipelines.submission import (
    Submission,
    allow_pipeline,
    check_name,
    insert_run,
    namespace_listed,
    namespace_of_experiment,
    new_run,
    pipeline_of,
)
from shallop.pipelines.taskdetails import render_tasks

__all__ = ["RunsApi", "run_message"]


def run_message(row: Mapping[str, Any], specs: Mapping[str, Any]) -> dict[str, Any]:
    """Turn a row into a Run; a run made from a pipeline shows the reference, any other its own document."""
    message = {**row, "run_id": row["id"], "display_name": row["name"]}
    message["runtime_config"] = {"parameters": row["parameters"], "pipeline_root": row["pipeline_root"]}
    if row["pipeline_id"] or row["pipeline_version_id"]:
        message["pipeline_version_reference"] = {
            "pipeline_id": row["pipeline_id"],
            "pipeline_version_id": row["pipeline_version_id"],
        }
        message["pipeline_version_id"] = ""
    else:
        message["pipeline_spec"] = specs.get(row["spec_digest"])
    return message


class RunsApi:
    """Handlers over the rows of ``services``; the driver does what they ask for."""

    def __init__(self, services: Services, access: Access) -> None:
        self._services = services
        self._access = access
        self._database = services.database
        self._signals = signals_of(services.database)

    def routes(self) -> list[BaseRoute]:
        base = "/apis/v2beta1/runs"
        one = f"{base}/{{run_id}}"
        verbs = {
            "archive": self.archive,
            "unarchive": self.unarchive,
            "terminate": self.terminate,
            "retry": self.retry,
        }
        return [
            Route(base, endpoint(self.list), methods=["GET"]),
            Route(base, endpoint(self.create), methods=["POST"]),
            *(Route(f"{one}:{verb}", endpoint(handler), methods=["POST"]) for verb, handler in verbs.items()),
            Route(one, endpoint(self.get), methods=["GET"]),
            Route(one, endpoint(self.delete), methods=["DELETE"]),
            Route("/apis/v2beta1/tasks", endpoint(self.list_tasks), methods=["GET"]),
            Route("/apis/v2beta1/tasks/{task_id}", endpoint(self.get_task), methods=["GET"]),
        ]

    async def list(self, request: Request) -> Response:
        """List runs; with ``view=SUMMARY``, which no release of KFP has, without their documents."""
        page = parse_page(request.query_params, RUN_KEYS)
        experiment = request.query_params.get("experiment_id", "")
        is_summary = request.query_params.get("view", "").upper() == "SUMMARY"
        namespace = await namespace_listed(request, self._services, self._access, "runs")

        def read(connection: sa.Connection) -> str:
            listed = tables.list_runs(connection, page, experiment, namespace)
            specs = {} if is_summary else tables.get_documents(connection, _own_specs(listed.rows))
            return list_text(RUN_LIST, "runs", [run_message(row, specs) for row in listed.rows], listed)

        return json_reply(await self._database.read(read))

    async def create(self, request: Request) -> Response:
        given = await read_message(request, RUN)
        check_name(given, "run")
        experiment_id = given.get("experiment_id") or request.query_params.get("experiment_id", "")
        namespace = await namespace_of_experiment(request, self._services, self._access, "runs", experiment_id)
        reference, document = await self._database.read(lambda c: pipeline_of(c, given, "run"))
        await allow_pipeline(request, self._services, self._access, reference, namespace)
        how = Submission.at(self._services)
        row, text, warnings = await asyncio.to_thread(new_run, given, reference, document, self._services, how)
        await self._database.write(lambda c: insert_run(c, row, experiment_id, text))
        self._signals.request(row["id"])
        return warned(reply(RUN, run_message(row, {row["spec_digest"]: tables.part_of_answer(text)})), warnings)

    async def get(self, request: Request) -> Response:
        id_ = request.path_params["run_id"]
        if self._access.is_multi_user:
            await self._find(request, "get")

        # Rendered in the reader's thread: a run may have thousands of tasks.
        text = await self._database.read(lambda c: _run_text(c, id_))
        if text is None:
            raise _no_run(id_)
        return json_reply(text)

    async def list_tasks(self, request: Request) -> Response:
        """List the tasks of a run in the order in which they came to be; ``parent_id``: those directly below a task."""
        query = request.query_params
        run_id, parent = query.get("run_id", ""), query.get("parent_id", "")
        if not run_id:
            raise BadRequestError("run_id: required; the run whose tasks are listed.")
        await self._find(request, "get", run_id)
        page = parse_page({name: query.get(name, "") for name in ("page_size", "page_token")}, {})
        after = page.after[0] if page.after else 0

        def read(connection: sa.Connection) -> str:
            rows, total = tables.list_tasks(connection, run_id, parent, after=after, limit=page.size + 1)
            token = ""
            if len(rows) > page.size:
                rows.pop()
                token = next_token(page, rows[-1]["execution"], rows[-1]["id"])
            page_json = {"tasks": _some_details(connection, rows), "next_page_token": token, "total_size": total}
            return json_text({name: value for name, value in page_json.items() if value})

        return json_reply(await self._database.read(read))

    async def get_task(self, request: Request) -> Response:
        id_ = request.path_params["task_id"]
        run = await self._database.read(lambda c: tables.get_run_of_task(c, id_))
        if run is None:
            raise _no_task(id_)
        await self._access.allow(request, "get", "runs", run)

        def read(connection: sa.Connection) -> list[dict[str, Any]]:
            row = tables.get_task(connection, id_)
            return _some_details(connection, [row] if row else [])

        found = await self._database.read(read)
        if not found:
            raise _no_task(id_)
        return json_reply(json_text(found[0]))

    async def delete(self, request: Request) -> Response:
        row = await self._find(request, "delete")
        await self._database.write(lambda c: tables.delete_run(c, row["id"]))
        self._signals.request(row["id"])
        return empty()

    async def archive(self, request: Request) -> Response:
        row = await self._find(request, "archive")
        await self._database.write(lambda c: tables.update_run(c, row["id"], {"storage_state": "ARCHIVED"}))
        return empty()

    async def unarchive(self, request: Request) -> Response:
        row = await self._find(request, "unarchive")

        def store(connection: sa.Connection) -> None:
            experiment = tables.get_experiment(connection, row["experiment_id"])
            if experiment and experiment["storage_state"] == "ARCHIVED":
                raise precondition(
                    f"run_id: experiment {experiment['name']!r} of this run is archived; unarchive it first."
                )
            tables.update_run(connection, row["id"], {"storage_state": "AVAILABLE"})

        await self._database.write(store)
        return empty()

    async def terminate(self, request: Request) -> Response:
        row = await self._find(request, "terminate")
        now = to_micros(self._services.now())
        # Terminating a run that is over changes nothing and is no error: clients do it in their clean-up.
        await self._database.write(lambda c: tables.cancel_run(c, row["id"], now))
        self._signals.request(row["id"])
        return empty()

    async def retry(self, request: Request) -> Response:
        row = await self._find(request, "retry")
        now = to_micros(self._services.now())

        def restart(connection: sa.Connection) -> None:
            current = tables.get_run(connection, row["id"])
            if current is None or current["state"] not in ("FAILED", "CANCELED"):
                state = current["state"] if current else "gone"
                raise precondition(f"run_id: the run is {state}; only a run that FAILED can be retried.")
            tables.set_run_state(connection, row["id"], "RUNNING", None, now)

        await self._database.write(restart)
        self._signals.request(row["id"])
        return empty()

    async def _find(self, request: Request, verb: str, id_: str = "") -> dict[str, Any]:
        id_ = id_ or request.path_params["run_id"]
        row = await self._database.read(lambda c: tables.get_run(c, id_))
        if row is None:
            raise _no_run(id_)
        await self._access.allow(request, verb, "runs", row)
        return row


def _run_text(connection: sa.Connection, id_: str) -> str | None:
    row = tables.get_run(connection, id_)
    if row is None:
        return None
    if row["pipeline_version_id"] and tables.get_version(connection, row["pipeline_version_id"]) is None:
        # What it was made from is deleted: a reference would lead nowhere, its document is still there.
        row = row | {"pipeline_id": "", "pipeline_version_id": ""}
    message = run_message(row, tables.get_documents(connection, _own_specs([row])))
    answer = render(RUN, message)
    if details := _details(connection, id_):
        answer["run_details"] = {"task_details": details}
    return json_text(answer)


def _details(connection: sa.Connection, run_id: str) -> list[dict[str, Any]]:
    tasks = tables.get_task_states(connection, run_id)
    below = [(task["parent_id"], task["id"]) for task in tasks]
    return render_tasks(tasks, tables.get_run_links(connection, run_id), below) if tasks else []


def _some_details(connection: sa.Connection, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the details of some tasks of one run: of a large run one page costs what it shows."""
    if not rows:
        return []
    run_id, ids = rows[0]["run_id"], [row["id"] for row in rows]
    links = tables.get_run_links(connection, run_id, ids)
    return render_tasks(rows, links, tables.get_children(connection, run_id, ids))


def _no_task(id_: str) -> NotFoundError:
    return NotFoundError(f"task_id: no task {id_!r}; list them with GET /apis/v2beta1/tasks?run_id=...")


def _no_run(id_: str) -> NotFoundError:
    return NotFoundError(f"run_id: no run {id_!r}; list them with GET /apis/v2beta1/runs.")


def _own_specs(rows: list[dict[str, Any]]) -> list[str]:
    return [row["spec_digest"] for row in rows if not row["pipeline_version_id"]]
