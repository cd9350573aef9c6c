"""Pipelines of others, broken at random: each is refused with its fields or run to an end; nothing crashes or hangs."""

from __future__ import annotations

import asyncio
import copy
import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from shallop.controller import Services
from shallop.embedded.apiserver import ApiServer
from shallop.errors import ApiError, NotFoundError
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, Object, is_deleting, key_of
from shallop.pipelines import tables
from shallop.pipelines.access import Access
from shallop.pipelines.driver import Driver
from shallop.pipelines.errors_wire import http_status
from shallop.pipelines.ir import load_package
from shallop.pipelines.runs_api import RunsApi
from shallop.settings import Settings
from shallop.store.database import Database

FIXTURES = Path(__file__).parents[3] / ".." / "shared" / "fixtures" / "kfp"
FILES = sorted(FIXTURES.glob("*.yaml"))
POD = Gvk("v1", "Pod")
SCALARS = ("", "x", "x/../y", "a'b\"c", "{{$}}", "{{$.inputs.parameters['x']}}", "1s", "é\u0000", -1, 0, 1.5, 10**20)
VALUES: tuple[Any, ...] = (*SCALARS, None, True, [], {}, [[]], {"x": {}}, ["x"], [None], {"": None})
GIVEN = {"STRING": "t", "NUMBER_INTEGER": 5, "NUMBER_DOUBLE": 1.5, "BOOLEAN": True, "LIST": ["x"], "STRUCT": {"A": 1}}
OUTPUT = {"STRING": "s", "NUMBER_INTEGER": 1, "NUMBER_DOUBLE": 1.5, "BOOLEAN": True, "LIST": [1, 2], "STRUCT": {"a": 1}}

pytestmark = pytest.mark.skipif(not FILES, reason="the shared fixtures are not beside this checkout")
Place = tuple[Any, Any]  # a container and a key, or an index, in it


def places(value: Any) -> Iterator[Place]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def mutate(document: dict[str, Any], chance: random.Random) -> None:
    """Break one place: remove it, put something else there, rename it, or exchange it with another one."""
    found = list(places(document))
    holder, key = chance.choice(found)
    how = chance.randrange(5)
    if how == 0:
        del holder[key]
    elif how == 1:
        holder[key] = copy.deepcopy(chance.choice(VALUES))
    elif how == 2 and isinstance(holder, dict):
        holder[f"{key}{chance.choice(('X', '.', '/', ''))}"] = holder.pop(key)
    elif how == 3 and isinstance(holder[key], str):
        at = chance.randrange(len(holder[key]) + 1)
        holder[key] = holder[key][:at] + str(chance.choice(SCALARS)) + holder[key][at:]
    else:
        other, there = chance.choice(found)
        holder[key] = copy.deepcopy(other[there])


def body_of(file: Path, chance: random.Random) -> bytes:
    spec, platform = load_package(file.read_bytes(), file.stem)
    definitions = (spec.get("root") or {}).get("inputDefinitions", {}).get("parameters", {})
    parameters = {name: GIVEN[one["parameterType"]] for name, one in definitions.items() if "defaultValue" not in one}
    document = {"pipeline_spec": spec, "platform_spec": platform} if platform else spec
    message = {"display_name": "mutated", "pipeline_spec": document, "runtime_config": {"parameters": parameters}}
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        mutate(message["pipeline_spec"] if chance.random() < 0.9 else message, chance)
        if not isinstance(message.get("pipeline_spec"), dict):
            break
    return json.dumps(message).encode()


class World:
    """An API server, a driver, and a node whose Pods end at once with what they declare, or fail."""

    def __init__(self, home: Path, client: Client, database: Database) -> None:
        self.client, self.database = client, database
        self.services = Services(Settings(home=home), client, database, lambda: datetime.now(UTC))
        self.api = RunsApi(self.services, Access(self.services))

    async def node(self) -> None:
        listing = await self.client.list(POD)
        async for event in self.client.watch(POD, resource_version=listing.resource_version):
            if event.type == "ADDED":
                await self._end(event.object)
            elif event.type == "MODIFIED" and is_deleting(event.object):
                try:
                    await self.client.delete(POD, key_of(event.object).name, "kubeflow", grace_period_s=0)
                except NotFoundError:
                    pass

    async def _end(self, pod: Object) -> None:
        task = json.loads(pod["spec"]["containers"][0]["args"][1])
        failed = task["name"].startswith("fail")
        given = task["executorInput"].get("outputs", {}).get("artifacts", {})
        outputs = {name: OUTPUT.get(kind) for name, kind in task["outputParameters"].items()}
        result: dict[str, Any] = {"state": "SUCCEEDED", "parameters": outputs}
        result["artifacts"] = {name: one["artifacts"] for name, one in given.items()}
        if failed:
            result = {"state": "FAILED", "exitCode": 1, "error": {"message": "as wanted"}}
        await asyncio.to_thread(leave, Path(task["dir"]), result)
        state = {"terminated": {"exitCode": int(failed)}}
        container = {"name": "main", "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}
        try:
            phase = "Failed" if failed else "Succeeded"
            await self.client.patch_status(pod, {"phase": phase, "containerStatuses": [container]})
        except ApiError:
            pass  # deleted meanwhile

    async def submit(self, body: bytes) -> str:
        """Return the id of the run; empty: it was refused as a wrong request."""

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        request = Request({"type": "http", "query_string": b"", "headers": [], "path_params": {}}, receive)
        try:
            answer = await self.api.create(request)
        except ApiError as error:
            assert http_status(error) == 400, error
            assert error.message.strip(), "an error says something"
            return ""
        return str(json.loads(bytes(answer.body))["run_id"])

    async def ended(self, run_id: str) -> str:
        async with asyncio.timeout(60):
            while True:
                run = await self.database.read(lambda c: tables.get_run(c, run_id))
                assert run is not None
                if run["state"] in ("SUCCEEDED", "FAILED"):
                    return str(run["state"])
                await asyncio.sleep(0.002)


def leave(folder: Path, result: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result))


async def play(home: Path, seeds: range) -> dict[str, int]:
    """Submit one mutation for each seed; return how many were refused, succeeded, failed."""
    server = ApiServer(None, admin_token="unused")
    await server.start()
    database = Database(f"sqlite:///{home}/rows.db")
    database.migrate("pipelines", tables.MIGRATIONS)
    world = World(home, server.client(), database)
    tasks = [asyncio.ensure_future(world.node()), asyncio.ensure_future(Driver(world.services).run())]
    counts = {"refused": 0, "SUCCEEDED": 0, "FAILED": 0}
    try:
        for seed in seeds:
            chance = random.Random(seed)
            body = body_of(chance.choice(FILES), chance)
            try:
                run_id = await world.submit(body)
                counts[await world.ended(run_id) if run_id else "refused"] += 1
                for task in tasks:
                    if task.done():
                        task.result()
            except Exception as error:
                error.add_note(f"seed {seed}: {body.decode()}")
                raise
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.stop()
        database.close()
    return counts


def test_a_broken_pipeline_is_refused_or_ends(tmp_path: Path) -> None:
    counts = asyncio.run(play(tmp_path, range(150)))
    # Both happen often: neither everything is refused, nor nothing.
    assert counts["refused"] > 20
    assert counts["SUCCEEDED"] > 12
