"""The controller of OptimizationJobs on the API in memory, killed at each of its writes; a task plays the trainer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from shallop.controller.manager import Manager
from shallop.embedded.apiserver import ApiServer
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, Object, is_condition_true
from shallop.settings import Settings
from shallop.store.database import Database
from shallop.training import PART as TRAINING
from shallop.tuning import PART
from shallop.tuning.engine import Searches
from shallop.tuning.optimizationjob import optimizationjob_kind

pytestmark = pytest.mark.anyio
TRAINJOB = Gvk("trainer.kubeflow.org/v1alpha1", "TrainJob")
SEARCH = Gvk("trainer.kubeflow.org/v1alpha1", "OptimizationJob")
GRID = {
    "searchAlgorithm": {"grid": {}},
    "parameters": [
        {"name": "a", "searchSpace": {"categorical": {"choices": ["1", "2", "3"]}}},
        {"name": "b", "searchSpace": {"categorical": {"choices": ["10", "20"]}}},
    ],
    "numTrials": 10,
}
TPE = {
    "parameters": [
        {"name": name, "searchSpace": {"uniform": {"type": "Float", "min": "0", "max": "1"}}} for name in ("a", "b")
    ],
    "numTrials": 7,
}


class DyingClient:
    """A client whose process is killed at its last write: after it was done, or before when there is none."""

    def __init__(self, client: Client, writes: int) -> None:
        self._client = client
        self._left = writes
        self.dead = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        original = getattr(self._client, name)
        if name not in ("create", "patch", "patch_status"):
            return original

        async def write(first: Any, *arguments: Any, **more: Any) -> Any:
            if (first.kind if isinstance(first, Gvk) else first["kind"]) == "Event":
                return await original(first, *arguments, **more)
            if self._left:
                await original(first, *arguments, **more)
                self._left -= 1
            self.dead.set()
            await asyncio.Event().wait()

        return write


@asynccontextmanager
async def controllers(client: Client, database: Database, folder: Path) -> AsyncIterator[None]:
    """Run the controller of a process that remembers nothing."""
    manager = Manager(client, Settings(home=folder), database, [optimizationjob_kind(Searches())])
    running = asyncio.ensure_future(manager.run())
    try:
        yield
        if running.done():
            running.result()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await manager.events.flush()


async def train(client: Client) -> None:
    """Let every TrainJob end with the product of its values as score."""
    listing = await client.list(TRAINJOB)
    async for event in client.watch(TRAINJOB, resource_version=listing.resource_version):
        job = event.object
        if event.type == "ADDED":
            values = [float(one["value"]) for one in job["spec"]["trainer"]["env"]]
            score = {"name": "score", "value": str(values[0] * values[1])}
            now = job["metadata"]["creationTimestamp"]
            condition = {
                "type": "Complete",
                "status": "True",
                "reason": "Played",
                "message": "",
                "lastTransitionTime": now,
            }
            trainer = {"metrics": [score], "lastUpdatedTime": now}
            status = {"conditions": [condition], "trainerStatus": trainer}
            await client.patch_status(job, status)


@pytest.mark.parametrize(("search", "algorithm", "trials"), [(GRID, "", 6), (TPE, "tpe", 7)])
async def test_a_controller_that_is_killed_at_every_write_makes_no_trial_twice(
    tmp_path: Path, search: dict[str, Any], algorithm: str, trials: int
) -> None:
    database = await asyncio.to_thread(Database, f"sqlite:///{tmp_path / 'rows.db'}")
    await asyncio.to_thread(database.migrate, "tuning", PART.migrations)
    server = ApiServer(None, admin_token="x")
    await server.start()
    await server.register_kinds([*TRAINING.kinds, *PART.kinds])
    client = server.client()
    for obj in TRAINING.objects:
        await client.apply(obj)
    trainer = asyncio.ensure_future(train(client))
    template = {"spec": {"runtimeRef": {"name": "plain"}, "trainer": {"image": "python:3.11", "command": ["x"]}}}
    spec = {"objectives": [{"metric": "score", "direction": "Maximize"}], "parallelTrials": 2} | search
    metadata: Object = {"name": "search", "namespace": "default"}
    if algorithm:
        metadata["annotations"] = {"tuning.shallop.dev/algorithm": algorithm}
    body = {"apiVersion": SEARCH.api_version, "kind": SEARCH.kind, "metadata": metadata}
    await client.create(body | {"spec": spec | {"trainJobTemplate": template}})
    lives, found = 0, await client.get(SEARCH, "search", "default")
    try:
        async with asyncio.timeout(60):
            while not is_condition_true(found, "Complete"):
                dying = DyingClient(client, lives % 2)
                async with controllers(cast(Client, dying), database, tmp_path):
                    await dying.dead.wait()
                lives += 1
                found = await client.get(SEARCH, "search", "default")
    finally:
        trainer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await trainer
        await server.stop()
        await asyncio.to_thread(database.close)
    jobs = (await client.list(TRAINJOB, "default")).items
    assert lives > trials and len(jobs) == trials, (lives, [job["metadata"]["name"] for job in jobs])
    scores = {job["metadata"]["name"]: float(job["status"]["trainerStatus"]["metrics"][0]["value"]) for job in jobs}
    assert scores[found["status"]["result"]["trainJobName"]] == max(scores.values())
    if not algorithm:
        assert {one["name"]: one["value"] for one in found["status"]["result"]["parameters"]} == {"a": "3", "b": "20"}
