"""The states of a run's tasks as they change: ``GET /apis/v2beta1/runs/{id}:watch``, server-sent events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from shallop.controller import Services
from shallop.errors import BadRequestError, NotFoundError
from shallop.pipelines import tables
from shallop.pipelines.access import Access
from shallop.pipelines.errors_wire import endpoint
from shallop.pipelines.http import json_text
from shallop.pipelines.messages import RUN, render
from shallop.pipelines.podends import pod_namespace
from shallop.pipelines.rerender import POD, render_again
from shallop.pipelines.runs_api import run_message
from shallop.pipelines.signals import signals_of
from shallop.pipelines.taskdetails import task_views

__all__ = ["WatchApi"]

_ENDED = ("SUCCEEDED", "FAILED", "SKIPPED", "CANCELED")
# A comment line keeps proxies from closing a quiet stream.
_HEARTBEAT_S = 15.0
# Between two looks, so that a run of thousands of tasks does not spend its time on being watched.
_MIN_PAUSE_S = 0.05


class WatchApi:
    """Handlers over the rows of ``services``."""

    def __init__(self, services: Services, access: Access) -> None:
        self._access = access
        self._database = services.database
        self._client = services.client
        self._artifacts = services.settings.artifacts
        self._signals = signals_of(services.database)

    def routes(self) -> list[BaseRoute]:
        one = "/apis/v2beta1/runs/{run_id}"
        return [
            Route(f"{one}:watch", endpoint(self.watch), methods=["GET"]),
            Route(f"{one}/tasks", endpoint(self.tasks), methods=["GET"]),
            Route(f"{one}/tasks/{{task_id}}/pod", endpoint(self.pod), methods=["GET"]),
        ]

    async def tasks(self, request: Request) -> Response:
        """Send the tasks of a run with parameters, attempts and cache notes, and the outputs of the run."""
        run_id = request.path_params["run_id"]
        await self._allow(request)
        text = await self._database.read(lambda c: _tasks_text(c, run_id))
        if text is None:
            raise NotFoundError(f"run_id: no run {run_id!r}; list them with GET /apis/v2beta1/runs.")
        return Response(text, media_type="application/json")

    async def pod(self, request: Request) -> Response:
        """Send the Pod of a step: the last one while it is kept, else rendered again from the step's row."""
        run_id, task_id = request.path_params["run_id"], request.path_params["task_id"]

        def read(connection: sa.Connection) -> tuple[tables.Row, tables.Row, tables.Row] | None:
            run, task = tables.get_run(connection, run_id), tables.get_task(connection, task_id)
            if run is None or task is None or task["run_id"] != run_id:
                return None
            return run, task, tables.get_specs(connection, [run["spec_digest"]])[run["spec_digest"]]

        found = await self._database.read(read)
        if found is None:
            raise NotFoundError(f"task_id: no task {task_id!r} in run {run_id!r}; GET the run for its task_details.")
        run, task, document = found
        await self._access.allow(request, "get", "runs", run)
        if task["kind"] != "container":
            raise BadRequestError(f"task_id: {task['path']!r} is a {task['kind']}: only container steps have a Pod.")
        if task["pods"]:
            try:
                return JSONResponse(await self._client.get(POD, task["pods"][-1]["name"], pod_namespace(run)))
            except NotFoundError:
                pass
        return JSONResponse(
            await asyncio.to_thread(render_again, run, task, document, str(self._artifacts / run["namespace"]))
        )

    async def watch(self, request: Request) -> Response:
        """
        Stream a run until it is over.

        Events: ``run`` with the Run whenever its state is new, ``tasks`` with the tasks that are new or have changed,
        ``end`` at the end. The first two are sent at once with all there is.
        """
        run_id = request.path_params["run_id"]
        await self._allow(request)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(self._events(run_id), media_type="text/event-stream", headers=headers)

    async def _allow(self, request: Request) -> None:
        run_id = request.path_params["run_id"]
        row = await self._database.read(lambda c: tables.get_run(c, run_id))
        if row is None:
            raise NotFoundError(f"run_id: no run {run_id!r}; list them with GET /apis/v2beta1/runs.")
        await self._access.allow(request, "get", "runs", row)

    async def _events(self, run_id: str) -> AsyncIterator[str]:
        sent: dict[str, int] = {}  # hashes of what was sent last
        is_first = True
        with self._signals.subscribed(run_id) as news:
            while True:
                changed = None if is_first else news.take()
                began = time.monotonic()
                look = await self._look(run_id, changed)
                is_first = False
                if look is None:
                    yield "event: end\ndata: {}\n\n"
                    return
                if sent.get("") != hash(look.run):
                    sent[""] = hash(look.run)
                    yield f"event: run\ndata: {look.run}\n\n"
                fresh = {id_: text for id_, text in look.tasks.items() if sent.get(id_) != hash(text)}
                if fresh:
                    sent |= {id_: hash(text) for id_, text in fresh.items()}
                    yield f"event: tasks\ndata: [{','.join(fresh.values())}]\n\n"
                if look.is_over:
                    yield "event: end\ndata: {}\n\n"
                    return
                await asyncio.sleep(max(_MIN_PAUSE_S, 4 * (time.monotonic() - began)))
                try:
                    async with asyncio.timeout(_HEARTBEAT_S):
                        await news.wait()
                except TimeoutError:
                    yield ": still here\n\n"

    async def _look(self, run_id: str, changed: list[str] | None) -> _Look | None:
        """Look at a run and the tasks that have changed; None: at all, and so where it is over."""
        look = await self._database.read(lambda c: _look(c, run_id, changed))
        if look is None or not look.is_over or changed is None:
            return look
        # Rows are written before the news of them comes: of the end nothing may be missed.
        return await self._database.read(lambda c: _look(c, run_id))


class _Look(NamedTuple):
    """A run at one moment as JSON texts; made in the reader's thread, a run may have thousands of tasks."""

    run: str
    tasks: dict[str, str]
    is_over: bool


def _look(connection: sa.Connection, run_id: str, ids: Sequence[str] | None = None) -> _Look | None:
    """Look at a run and all of its tasks, or those with ``ids``."""
    row = tables.get_run(connection, run_id)
    if row is None:
        return None
    # The document does not change and may be large: a watcher gets it with GET.
    run = json_text(render(RUN, run_message(row, {})))
    tasks = tables.get_tasks(connection, run_id, ids)
    views = task_views(tasks, tables.get_run_links(connection, run_id, ids))
    return _Look(run, {view["task_id"]: json_text(view) for view in views}, row["state"] in _ENDED)


def _tasks_text(connection: sa.Connection, run_id: str) -> str | None:
    look = _look(connection, run_id)
    row = tables.get_run(connection, run_id)
    if look is None or row is None:
        return None
    tasks = ",".join(look.tasks.values())
    return f'{{"run": {look.run}, "outputs": {json_text(row["outputs"])}, "tasks": [{tasks}]}}'
