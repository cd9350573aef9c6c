"""
A KFP server for clients that are not ours: the real API server, routes and driver, and a node in place of the kubelet
that runs the launcher of each Pod with a given interpreter.

``python kfp_server.py HOME PYTHON PORT_FILE``: serves until it is killed. All is kept in HOME, another process may go
on where this one was killed; the tasks' processes outlive it and are adopted.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette

from shallop.controller import Services
from shallop.embedded.apiserver import ApiServer
from shallop.errors import ApiError
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, Object, is_deleting, key_of
from shallop.pipelines import PART
from shallop.settings import Settings
from shallop.store.database import Database

POD = Gvk("v1", "Pod")
SRC = Path(__file__).parents[2] / "src"

# Runs its arguments; each line of output gets what the CRI log format puts before it.
# Whoever makes the link runs the task: a server killed before it could note the process must not start it twice.
CRI = """echo $$ > "$PID_FILE.$$" && ln "$PID_FILE.$$" "$PID_FILE" 2>/dev/null || exit 99
"$0" "$@" > >(while IFS= read -r line; do echo "2026-01-01T00:00:00.000000000Z stdout F $line"; done) 2>&1
code=$?; wait; exit $code"""


_LOST_RACE = 99


class Node:
    """Runs each new Pod as one process."""

    def __init__(self, client: Client, settings: Settings, python: str) -> None:
        self._client, self._settings, self._python = client, settings, python
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._slots = asyncio.Semaphore(4)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            listing = await self._client.list(POD)
            seen: set[str] = set()
            for pod in listing.items:
                self._sync(group, pod, seen)
            async for event in self._client.watch(POD, resource_version=listing.resource_version):
                if event.type == "DELETED":
                    self._kill(event.object["metadata"]["uid"])
                else:
                    self._sync(group, event.object, seen)

    def _sync(self, group: asyncio.TaskGroup, pod: Object, seen: set[str]) -> None:
        uid = pod["metadata"]["uid"]
        if is_deleting(pod):
            self._kill(uid)
            group.create_task(self._remove(pod))
        elif uid not in seen and (pod.get("status") or {}).get("phase", "Pending") in ("Pending", "Running"):
            seen.add(uid)
            group.create_task(self._run(pod))

    def _kill(self, uid: str) -> None:
        if process := self._processes.get(uid):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    async def _remove(self, pod: Object) -> None:
        key = key_of(pod)
        with contextlib.suppress(ApiError):
            await self._client.delete(POD, key.name, key.namespace, grace_period_s=0)

    async def _run(self, pod: Object) -> None:
        async with self._slots:
            key, uid = key_of(pod), pod["metadata"]["uid"]
            container = pod["spec"]["containers"][0]
            env = {"PATH": f"{Path(self._python).parent}:/usr/bin:/bin", "PYTHONPATH": str(SRC), "HOME": "/nonexistent"}
            for item in container.get("env") or ():
                env[item["name"]] = await self._env_value(item, pod)
            logs = self._settings.logs / key.namespace / f"{key.name}_{uid}" / "main"
            logs.mkdir(parents=True, exist_ok=True)
            pid_file = self._settings.home / f"{uid}.pid"
            with (logs / "0.log").open("ab") as log, contextlib.suppress(ApiError):
                if pid_file.exists():
                    await self._end(pod, await _adopt(int(pid_file.read_text()), container))
                    return
                process = await asyncio.create_subprocess_exec(
                    "bash",
                    "-c",
                    CRI,
                    self._python,
                    *container["command"][1:],
                    *container["args"],
                    env=env | {"PID_FILE": str(pid_file)},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
                self._processes[uid] = process
                await self._client.patch_status(pod, {"phase": "Running"})
                code = await process.wait()
                del self._processes[uid]
                if code == _LOST_RACE:
                    code = await _adopt(int(pid_file.read_text()), container)
                await self._end(pod, code if code >= 0 else 128 - code)

    async def _end(self, pod: Object, code: int) -> None:
        status: dict[str, Any] = {"name": "main", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
        status["state"] = {"terminated": {"exitCode": code}}
        phase = "Failed" if code else "Succeeded"
        await self._client.patch_status(pod, {"phase": phase, "containerStatuses": [status]})

    async def _env_value(self, item: dict[str, Any], pod: Object) -> str:
        source = item.get("valueFrom") or {}
        if reference := source.get("secretKeyRef"):
            secret = await self._client.get(Gvk("v1", "Secret"), reference["name"], key_of(pod).namespace)
            return base64.b64decode(secret["data"][reference["key"]]).decode()
        if reference := source.get("fieldRef"):
            return str(pod["metadata"].get(reference["fieldPath"].removeprefix("metadata."), ""))
        return str(item.get("value", ""))


async def _adopt(pid: int, container: dict[str, Any]) -> int:
    """Wait for a process of an earlier server; return its exit code."""
    while Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z":
        await asyncio.sleep(0.02)
    result = Path(json.loads(container["args"][1])["dir"], "result.json")
    return int(json.loads(result.read_text())["exitCode"]) if result.exists() else 137


async def serve(home: Path, python: str, port_file: Path) -> None:
    settings = Settings(home=home)
    settings.artifacts.mkdir(parents=True, exist_ok=True)
    api = ApiServer(home / "objects.db", admin_token="unused")
    await api.start()
    client = api.client()
    for number, (key, value) in enumerate((("username", "user1"), ("password", "psw1"), ("password", "psw2")), 1):
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": f"test-secret-{number}", "namespace": "kubeflow"},
        }
        with contextlib.suppress(ApiError):
            await client.create(secret | {"stringData": {key: value}})
    database = Database(f"sqlite:///{home}/rows.db")
    database.migrate(PART.name, PART.migrations)
    services = Services(settings, client, database, lambda: datetime.now(UTC))
    assert PART.routes is not None
    assert PART.tasks is not None
    app = Starlette(routes=list(PART.routes(services)))
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    async with asyncio.TaskGroup() as group:
        for task in PART.tasks(services):
            group.create_task(task())  # type: ignore[arg-type]
        group.create_task(Node(client, settings, python).run())
        group.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        port_file.write_text(str(server.servers[0].sockets[0].getsockname()[1]))


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
