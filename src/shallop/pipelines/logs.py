"""Logs of tasks over REST: files in the CRI format that the node keeps after their Pod is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from shallop.controller import Services
from shallop.errors import BadRequestError, NotFoundError
from shallop.pipelines import tables
from shallop.pipelines.access import Access
from shallop.pipelines.errors_wire import endpoint
from shallop.pipelines.podends import pod_namespace
from shallop.pipelines.signals import signals_of

__all__ = ["LogsApi", "find_log", "read_log"]

_CHUNK_BYTES = 1 << 20
_ENDED = ("SUCCEEDED", "FAILED", "CANCELED", "CACHED", "SKIPPED", "OMITTED")
# A follower looks for new text this often; the end of the task wakes it at once.
_FOLLOW_S = 0.2


class LogFile(NamedTuple):
    """A file of the node; ``identity`` stays when the file is renamed by rotation."""

    path: Path
    identity: int


def find_log(logs: Path, namespace: str, pod: str) -> list[LogFile]:
    """Return the log files of a Pod in the order in which they were written; empty while there are none."""
    files = [(path.stat(), path) for path in (logs / namespace).glob(f"{pod}_*/*/*.log*")]
    files.sort(key=lambda file: (file[0].st_mtime_ns, file[1].name))
    return [LogFile(path, status.st_ino) for status, path in files]


async def read_log(logs: Path, namespace: str, pod: str) -> AsyncIterator[bytes]:
    """Yield what a Pod has printed until now; nothing for a Pod without a name."""
    for file in await asyncio.to_thread(find_log, logs, namespace, pod) if pod else ():
        position = 0
        while (chunk := await asyncio.to_thread(_read_from, file.path, position)).size:
            position += chunk.size
            yield chunk.text


class LogsApi:
    """Handlers over the log files of ``services``."""

    def __init__(self, services: Services, access: Access) -> None:
        self._access = access
        self._database = services.database
        self._logs = services.settings.logs
        self._signals = signals_of(services.database)

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/apis/v2beta1/runs/{run_id}/tasks/{task_id}/log", endpoint(self.log), methods=["GET"]),
            Route("/apis/v1alpha1/runs/{run_id}/nodes/{task_id}/log", endpoint(self.log), methods=["GET"]),
        ]

    async def log(self, request: Request) -> Response:
        """Send the log of a task, given by its id or the name of one of its Pods; ``attempt=N`` chooses the Nth Pod."""
        run_id, task_id = request.path_params["run_id"], request.path_params["task_id"]
        follow = request.query_params.get("follow", "").lower() in ("true", "1")
        found = await self._database.read(lambda c: _find_task(c, run_id, task_id))
        if found is None:
            raise NotFoundError(f"task_id: no task {task_id!r} in run {run_id!r}; GET the run for its task_details.")
        run, task = found
        await self._access.allow(request, "get", "runs", run)
        namespace = pod_namespace(run)
        pod = _choose_pod(task, task_id, request.query_params.get("attempt", ""))
        text = self._follow(namespace, task, pod) if follow else read_log(self._logs, namespace, pod)
        # Plain text that a browser must not take for HTML.
        headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
        return StreamingResponse(text, media_type="text/plain; charset=utf-8", headers=headers)

    async def _follow(self, namespace: str, task: Mapping[str, Any], pod: str) -> AsyncIterator[bytes]:
        positions: dict[int, int] = {}
        with self._signals.subscribed(task["run_id"], task["id"]) as news:
            while True:
                news.take()
                current = await self._database.read(lambda c: tables.get_task(c, task["id"]))
                pod = pod or (current["pods"][-1]["name"] if current and current["pods"] else "")
                for file in await asyncio.to_thread(find_log, self._logs, namespace, pod) if pod else ():
                    position = positions.get(file.identity, 0)
                    while (chunk := await asyncio.to_thread(_read_from, file.path, position)).size:
                        position = positions[file.identity] = position + chunk.size
                        yield chunk.text
                # Looked at before reading: what a task wrote before its end has been sent.
                if current is None or current["state"] in _ENDED or current["pods"][-1:] not in ([], [{"name": pod}]):
                    return
                try:
                    async with asyncio.timeout(_FOLLOW_S):
                        await news.wait()
                except TimeoutError:
                    pass


def _find_task(connection: sa.Connection, run_id: str, task_id: str) -> tuple[tables.Row, tables.Row] | None:
    """Return the run and its task, given by its id or the name of one of its Pods."""
    run, task = tables.get_run(connection, run_id), tables.get_task(connection, task_id)
    if run is None:
        return None
    if task:
        return (run, task) if task["run_id"] == run_id else None
    for other in tables.get_tasks(connection, run_id):
        if any(pod["name"] == task_id for pod in other["pods"]):
            return run, other
    return None


def _choose_pod(task: Mapping[str, Any], asked: str, attempt: str) -> str:
    pods: list[str] = [pod["name"] for pod in task["pods"]]
    if asked in pods:
        return asked
    if not attempt:
        return pods[-1] if pods else ""
    if not attempt.isdigit() or int(attempt) >= len(pods):
        raise BadRequestError(f"attempt: {attempt!r}: this task has the attempts 0 to {len(pods) - 1}.")
    return pods[int(attempt)]


class _Chunk(NamedTuple):
    text: bytes
    size: int


def _read_from(file: Path, position: int) -> _Chunk:
    """Read whole lines from a place on: their text, and how many bytes of the file they took."""
    try:
        with file.open("rb") as stream:
            stream.seek(position)
            data = stream.read(_CHUNK_BYTES)
    except FileNotFoundError:  # rotated away
        return _Chunk(b"", 0)
    data = data[: data.rfind(b"\n") + 1]
    return _Chunk(b"".join(map(_text, data.splitlines(keepends=True))), len(data))


def _text(line: bytes) -> bytes:
    """Take the text out of a line in the CRI format: time, stream, F or P (the line goes on), text."""
    parts = line.split(b" ", 3)
    if len(parts) < 4:
        return b""
    return parts[3].removesuffix(b"\n") if parts[2] == b"P" else parts[3]
