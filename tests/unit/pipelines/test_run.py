"""The driver on the real API server in memory; Pods end as the test says, without processes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
from starlette.requests import Request

from shallop.controller import Services
from shallop.embedded.apiserver import ApiServer
from shallop.errors import ApiError, BadRequestError, NotFoundError
from shallop.kube.client import Client
from shallop.kube.objects import Gvk, Object, is_deleting, key_of
from shallop.pipelines import tables
from shallop.pipelines.access import Access
from shallop.pipelines.cachekey import cache_material, fingerprint
from shallop.pipelines.caching import Answer, look_up
from shallop.pipelines.claims import tidy_workspaces
from shallop.pipelines.compare import CompareApi
from shallop.pipelines.driver import Driver
from shallop.pipelines.ir import parse_pipeline
from shallop.pipelines.messages import to_micros
from shallop.pipelines.plan import Plan, StartTask
from shallop.pipelines.render import RUN_LABEL
from shallop.pipelines.runs_api import RunsApi
from shallop.pipelines.values import RunInfo, Values
from shallop.settings import Settings
from shallop.store.database import Database

POD = Gvk("v1", "Pod")
CLAIM = Gvk("v1", "PersistentVolumeClaim")
Behave = Callable[[Object, dict[str, Any]], Any]
INFO = RunInfo("r", "run", "p-12345", "/root", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z")
NEVER = "never"  # the Pod runs on
SILENT = "silent"  # the Pod ends well and leaves no result


def succeed(pod: Object, task: dict[str, Any]) -> dict[str, Any]:
    """Give each declared output its name, and write each artifact."""
    outputs = task["executorInput"].get("outputs", {})
    artifacts = {}
    for key, value in outputs.get("artifacts", {}).items():
        (given,) = value["artifacts"]
        Path(given["uri"]).parent.mkdir(parents=True, exist_ok=True)
        Path(given["uri"]).write_text(key)
        artifacts[key] = [{**given, "metadata": {"rows": 3}, "digest": f"sha256:{key}", "sizeBytes": len(key)}]
    return {
        "state": "SUCCEEDED",
        "parameters": dict.fromkeys(task["outputParameters"], "value"),
        "artifacts": artifacts,
    }


def failing(message: str) -> dict[str, Any]:
    return {"state": "FAILED", "exitCode": 1, "error": {"message": message}}


class World:
    """An API server, a database and a node; drivers come and go."""

    def __init__(self, home: Path, client: Client, database: Database) -> None:
        self.client, self.database = client, database
        self.settings = Settings(home=home)
        self.behave: Behave = succeed
        self.started: list[str] = []
        self.services = Services(self.settings, client, database, lambda: datetime.now(UTC))
        self.api = RunsApi(self.services, Access(self.services))

    async def node(self) -> None:
        listing = await self.client.list(POD)
        async for event in self.client.watch(POD, resource_version=listing.resource_version):
            pod = event.object
            if event.type == "ADDED":
                await self._run(pod)
            elif event.type == "MODIFIED" and is_deleting(pod):
                await self._remove(pod)

    async def _remove(self, pod: Object) -> None:
        try:
            await self.client.delete(POD, key_of(pod).name, "kubeflow", grace_period_s=0)
        except NotFoundError:
            pass

    async def _run(self, pod: Object) -> None:
        task = json.loads(pod["spec"]["containers"][0]["args"][1])
        self.started.append(task["name"])
        result = await asyncio.to_thread(self.behave, pod, task)
        if result == NEVER:
            return
        code = 0
        if isinstance(result, dict) and "state" in result:
            await asyncio.to_thread(_leave_result, Path(task["dir"]), result)
            code = result.get("exitCode", 0)
        status = result if isinstance(result, dict) and "phase" in result else ended(code)
        try:
            await self.client.patch_status(pod, status)
        except ApiError:
            pass

    async def submit(self, document: dict[str, Any], **parameters: Any) -> str:
        config = {"parameters": parameters}
        body = {"display_name": "run", "pipeline_spec": document, "runtime_config": config}
        answer = await self.api.create(_request(json.dumps(body).encode()))
        return str(json.loads(bytes(answer.body))["run_id"])

    async def over(self, run_id: str) -> dict[str, Any]:
        return await self.until(lambda run: run["state"] in ("SUCCEEDED", "FAILED"), run_id)

    async def until(self, wanted: Callable[[dict[str, Any]], bool], run_id: str) -> dict[str, Any]:
        async with asyncio.timeout(20):
            while True:
                run = await self.database.read(lambda c: tables.get_run(c, run_id))
                assert run is not None
                if wanted(run):
                    return run
                await asyncio.sleep(0.002)

    async def tasks(self, run_id: str) -> dict[str, dict[str, Any]]:
        rows = await self.database.read(lambda c: tables.get_tasks(c, run_id))
        return {row["path"].removeprefix("root/"): row for row in rows}

    async def pods(self) -> list[Object]:
        return (await self.client.list(POD, "kubeflow")).items


def _leave_result(folder: Path, result: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result))


def _request(body: bytes, **path: str) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    return Request({"type": "http", "query_string": b"", "headers": [], "path_params": path}, receive)


def ended(code: int) -> dict[str, Any]:
    status: dict[str, Any] = {"name": "main", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
    status["state"] = {"terminated": {"exitCode": code}}
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": [status]}


def waiting(reason: str, message: str) -> dict[str, Any]:
    status: dict[str, Any] = {"name": "main", "image": "i", "imageID": "", "ready": False, "restartCount": 0}
    status["state"] = {"waiting": {"reason": reason, "message": message}}
    return {"phase": "Pending", "containerStatuses": [status]}


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Callable[[World], Awaitable[None]]], None]:
    """Play a scenario with one driver from beginning to end."""

    def go(scenario: Callable[[World], Awaitable[None]], *, driven: bool = True) -> None:
        async def main() -> None:
            server = ApiServer(None, admin_token="unused")
            await server.start()
            database = Database(f"sqlite:///{tmp_path}/rows.db")
            database.migrate("pipelines", tables.MIGRATIONS)
            world = World(tmp_path, server.client(), database)
            tasks = [asyncio.ensure_future(world.node())]
            if driven:
                tasks.append(asyncio.ensure_future(Driver(world.services).run()))
            try:
                async with asyncio.timeout(30):
                    await scenario(world)
                for task in tasks:
                    if task.done():
                        task.result()
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                await server.stop()
                database.close()

        asyncio.run(main())

    return go


Play = Callable[..., None]


def pipeline(*tasks: dict[str, Any], name: str = "p", image: str = "alpine") -> dict[str, Any]:
    """Build a pipeline; a task has a ``name``, optionally ``needs``, ``out`` (an artifact), other task fields."""
    document: dict[str, Any] = {
        "pipelineInfo": {"name": name},
        "schemaVersion": "2.1.0",
        "root": {"dag": {"tasks": {}}},
        "components": {},
        "deploymentSpec": {"executors": {}},
    }
    for task in tasks:
        own = dict(task)
        label, out = own.pop("name"), own.pop("out", "")
        component: dict[str, Any] = {"executorLabel": f"exec-{label}"}
        if out:
            kind = {"artifactType": {"schemaTitle": "system.Dataset", "schemaVersion": "0.0.1"}}
            component["outputDefinitions"] = {"artifacts": {out: kind}}
        document["components"][f"comp-{label}"] = component
        container = {"image": image, "command": ["true", label]}
        document["deploymentSpec"]["executors"][f"exec-{label}"] = {"container": container}
        document["root"]["dag"]["tasks"][label] = {
            "componentRef": {"name": f"comp-{label}"},
            "taskInfo": {"name": label},
            "dependentTasks": own.pop("needs", []),
            **own,
        }
    return document


def states(tasks: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {path: row["state"] for path, row in tasks.items()}


CACHED = {"cachingOptions": {"enableCache": True}}


def retried(times: int) -> dict[str, Any]:
    return {"retryPolicy": {"maxRetryCount": times, "backoffDuration": "0s"}}


def test_a_run_succeeds_and_keeps_what_its_tasks_made(play: Play) -> None:
    async def scenario(world: World) -> None:
        id_ = await world.submit(pipeline({"name": "a", "out": "data"}, {"name": "b", "needs": ["a"]}))
        run = await world.over(id_)
        assert run["state"] == "SUCCEEDED"
        assert [entry["state"] for entry in run["state_history"]] == ["PENDING", "RUNNING", "SUCCEEDED"]
        assert run["finished_at"] >= run["created_at"]
        tasks = await world.tasks(id_)
        assert states(tasks) == {"root": "SUCCEEDED", "a": "SUCCEEDED", "b": "SUCCEEDED"}
        assert tasks["a"]["parent_id"] == tasks["root"]["id"]
        (link,) = await world.database.read(lambda c: tables.get_run_links(c, id_))
        artifact = await world.database.read(lambda c: tables.get_artifact(c, link["artifact_id"]))
        assert artifact is not None
        assert (artifact["type"], artifact["metadata"], artifact["size_bytes"]) == ("system.Dataset", {"rows": 3}, 4)
        assert (link["task_id"], link["type"], link["key"]) == (tasks["a"]["id"], "OUTPUT", "data")
        assert world.started == ["a", "b"]

    play(scenario)


def test_a_failed_task_fails_the_run_and_leaves_out_what_needs_it(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.behave = lambda pod, task: failing("out of luck") if task["name"] == "a" else succeed(pod, task)
        id_ = await world.submit(pipeline({"name": "a"}, {"name": "b", "needs": ["a"]}, {"name": "c"}))
        run = await world.over(id_)
        assert run["state"] == "FAILED"
        assert "out of luck" in run["error"]["message"]
        assert states(await world.tasks(id_)) == {"root": "FAILED", "a": "FAILED", "b": "OMITTED", "c": "SUCCEEDED"}

    play(scenario)


def test_a_task_is_tried_again_in_a_new_pod(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.behave = lambda pod, task: succeed(pod, task) if len(world.started) == 3 else failing("not yet")
        id_ = await world.submit(pipeline({"name": "a", **retried(2)}))
        assert (await world.over(id_))["state"] == "SUCCEEDED"
        task = (await world.tasks(id_))["a"]
        assert (len(task["pods"]), task["attempt"], task["error"]) == (3, 2, None)
        assert len(await world.pods()) == 3

    play(scenario)


def test_a_cached_run_needs_no_pod(play: Play) -> None:
    async def scenario(world: World) -> None:
        document = pipeline({"name": "a", "out": "data", **CACHED}, {"name": "b", "needs": ["a"], **CACHED})
        first = await world.submit(document)
        await world.over(first)
        second = await world.submit(document)
        assert (await world.over(second))["state"] == "SUCCEEDED"
        tasks = await world.tasks(second)
        assert states(tasks) == {"root": "SUCCEEDED", "a": "CACHED", "b": "CACHED"}
        assert first in tasks["a"]["note"]
        assert tasks["a"]["outputs"] == (await world.tasks(first))["a"]["outputs"]
        assert len(world.started) == 2

    play(scenario)


def test_the_cache_does_not_answer_with_artifacts_that_are_gone(play: Play) -> None:
    async def scenario(world: World) -> None:
        document = pipeline({"name": "a", "out": "data", **CACHED})
        first = await world.submit(document)
        await world.over(first)
        (item,) = (await world.tasks(first))["a"]["outputs"]["artifacts"]["data"]
        Path(item["uri"]).unlink()
        second = await world.submit(document)
        await world.over(second)
        task = (await world.tasks(second))["a"]
        assert task["state"] == "SUCCEEDED"
        assert "was removed" in task["note"]

    play(scenario)


def test_every_miss_of_the_cache_has_a_reason(play: Play) -> None:
    async def scenario(world: World) -> None:
        async def note(document: dict[str, Any], **changes: Any) -> str:
            world.services = replace(world.services, **changes)
            run_id = await world.submit(document)
            await world.over(run_id)
            return str((await world.tasks(run_id))["a"]["note"])

        document = pipeline({"name": "a", **CACHED})
        assert "has no kept outputs" in await note(document)
        assert "Outputs of run" in await note(document)
        document["deploymentSpec"]["executors"]["exec-a"]["container"]["command"] = ["false"]
        assert "command or arguments changed" in await note(document)
        assert "caching is off" in await note(pipeline({"name": "a"}))

    play(scenario)


def test_a_repeated_run_takes_over_what_would_be_the_same(play: Play) -> None:
    async def scenario(world: World) -> None:
        document = pipeline({"name": "a", "out": "data"}, {"name": "b", "needs": ["a"]}, {"name": "c", "needs": ["b"]})
        world.behave = lambda pod, task: failing("no") if task["name"] == "b" else succeed(pod, task)
        first = await world.submit(document)
        await world.over(first)
        world.behave = succeed
        world.started.clear()

        async def rerun(**body: Any) -> dict[str, Any]:
            api = CompareApi(world.services, Access(world.services))
            answer = await api.rerun(_request(json.dumps(body).encode(), run_id=first))
            run_id = str(json.loads(bytes(answer.body))["run_id"])
            assert (await world.over(run_id))["state"] == "SUCCEEDED"
            started, world.started[:] = list(world.started), []
            return {"started": started, "tasks": await world.tasks(run_id)}

        again = await rerun()
        assert again["started"] == ["b", "c"]
        assert f"Outputs of run {first}" in again["tasks"]["a"]["note"]
        assert (await rerun(from_task="a"))["started"] == ["a", "b", "c"]
        document["deploymentSpec"]["executors"]["exec-a"]["container"]["command"] = ["fixed"]
        assert (await rerun(pipeline_spec=document))["started"] == ["a", "b", "c"]
        with pytest.raises(BadRequestError, match="from_task: 'x': no such step; use one of a, b"):
            await rerun(from_task="x")

    play(scenario)


def test_a_run_ends_at_its_deadline(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.behave = lambda pod, task: NEVER
        config = {"platforms": {"kubernetes": {"pipelineConfig": {"activeDeadlineSeconds": 1}}}}
        document = {"pipeline_spec": pipeline({"name": "a"}), "platform_spec": config}
        run = await world.over(await world.submit(document))
        assert (run["state"], "longer than its 1 s" in run["error"]["message"]) == ("FAILED", True)
        assert await world.pods() == []

    play(scenario)


def test_the_cache_answers_only_for_the_same_packages_and_not_for_ever(tmp_path: Path) -> None:
    document = parse_pipeline(pipeline({"name": "a", **CACHED}))
    (action,) = (a for a in Plan(document, INFO, {}).begin() if isinstance(a, StartTask))
    services = Services(Settings(home=tmp_path), cast(Client, None), cast(Database, None), lambda: datetime.now(UTC))
    services = replace(services, environment_of=lambda image, argv: "sha256:1")
    database = Database(f"sqlite:///{tmp_path}/rows.db")
    database.migrate("pipelines", tables.MIGRATIONS)
    material = cache_material(document, action, "sha256:1")
    entry = {"pipeline_name": "p", "key": fingerprint(material), "run_id": "r", "task_id": "t", "outputs": {}}
    entry |= {"created_at": to_micros(datetime.now(UTC)) - 10_000_000, "component": "comp-a", "material": material}

    async def ask(services: Services) -> Answer:
        return await database.read(lambda c: look_up(c, services, document, action, ""))

    asyncio.run(database.write(lambda c: c.execute(tables.cache_entries.insert(), entry)))
    assert asyncio.run(ask(services)).outputs == Values()
    other = asyncio.run(ask(replace(services, environment_of=lambda image, argv: "sha256:2")))
    assert (other.outputs, "environment" in other.note) == (None, True)
    old = asyncio.run(ask(replace(services, settings=Settings(home=tmp_path, cache_max_age_s=5))))
    assert (old.outputs, "10 s old, more than 5 s" in old.note) == (None, True)
    database.close()


def test_a_terminated_run_stops_its_pods(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.behave = lambda pod, task: NEVER
        id_ = await world.submit(pipeline({"name": "a"}, {"name": "b", "needs": ["a"]}))
        while not world.started:
            await asyncio.sleep(0.002)
        await world.api.terminate(_request(b"", run_id=id_))
        run = await world.over(id_)
        assert (run["state"], run["error"]["message"]) == ("FAILED", "The run was terminated by user.")
        assert [entry["state"] for entry in run["state_history"]] == ["PENDING", "RUNNING", "CANCELING", "FAILED"]
        assert states(await world.tasks(id_)) == {"root": "CANCELED", "a": "CANCELED", "b": "CANCELED"}
        assert await world.pods() == []

    play(scenario)


@pytest.mark.parametrize("retries", [0, 1])
def test_a_pod_that_is_deleted_by_hand_is_a_failed_attempt(play: Play, retries: int) -> None:
    async def scenario(world: World) -> None:
        world.behave = lambda pod, task: NEVER if len(world.started) == 1 else succeed(pod, task)
        id_ = await world.submit(pipeline({"name": "a", **retried(retries)}))
        while not (pods := await world.pods()):
            await asyncio.sleep(0.002)
        await world.client.delete(POD, pods[0]["metadata"]["name"], "kubeflow", grace_period_s=0)
        run = await world.over(id_)
        assert run["state"] == ("SUCCEEDED" if retries else "FAILED")
        assert retries or "was deleted before the task ended" in run["error"]["message"]

    play(scenario)


def test_a_pod_without_a_result_is_explained(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.behave = lambda pod, task: SILENT
        run = await world.over(await world.submit(pipeline({"name": "a"})))
        assert "left no result.json" in run["error"]["message"]
        world.behave = lambda pod, task: ended(137)
        run = await world.over(await world.submit(pipeline({"name": "a"})))
        assert "exit code 137" in run["error"]["message"]

    play(scenario)


def test_an_image_that_nobody_can_resolve_is_not_tried_again(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.behave = lambda pod, task: waiting("ImagePullBackOff", "no environment for image 'acme/x'")
        run = await world.over(await world.submit(pipeline({"name": "a", **retried(5)})))
        assert "no environment for image 'acme/x'" in run["error"]["message"]
        assert len(world.started) == 1

    play(scenario)


def test_a_task_that_the_node_could_not_start_is_tried_twice_more(play: Play) -> None:
    def broken(pod: Object, task: dict[str, Any]) -> dict[str, Any]:
        status = ended(128)
        status["containerStatuses"][0]["state"]["terminated"]["reason"] = "StartError"
        return status

    async def scenario(world: World) -> None:
        world.behave = broken
        id_ = await world.submit(pipeline({"name": "a"}))
        assert (await world.over(id_))["state"] == "FAILED"
        assert len(world.started) == 3
        history = (await world.tasks(id_))["a"]["state_history"]
        assert ["error" in entry for entry in history if entry["state"] == "FAILED"][:2] == [True, True]

    play(scenario)


def test_a_task_that_was_killed_from_outside_runs_again(play: Play) -> None:
    def killed_once(pod: Object, task: dict[str, Any]) -> dict[str, Any] | None:
        if pod["metadata"]["name"].endswith("-0"):
            status = ended(137)
            status["containerStatuses"][0]["state"]["terminated"] |= {"reason": "Error", "signal": 9}
            return status
        return None

    async def scenario(world: World) -> None:
        well = world.behave
        world.behave = lambda pod, task: killed_once(pod, task) or well(pod, task)
        id_ = await world.submit(pipeline({"name": "a"}))
        assert (await world.over(id_))["state"] == "SUCCEEDED"
        assert len(world.started) == 2

    play(scenario)


def test_an_image_that_cannot_run_here_is_refused(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.services = replace(world.services, cannot_run=lambda image, argv: f"no environment for {image!r}")
        world.api = RunsApi(world.services, Access(world.services))
        with pytest.raises(BadRequestError, match="no environment for 'acme/x'"):
            await world.submit(pipeline({"name": "a"}, image="acme/x"))
        assert world.started == []

    play(scenario)


def importing(uri: str) -> dict[str, Any]:
    """A pipeline that brings an artifact to its workspace."""
    document = pipeline({"name": "a"})
    importer = {"artifactUri": {"constant": uri}, "typeSchema": {"schemaTitle": "system.Dataset"}}
    document["deploymentSpec"]["executors"]["exec-a"] = {"importer": importer | {"downloadToWorkspace": True}}
    return document


WITH_WORKSPACE = {"platforms": {"kubernetes": {"pipelineConfig": {"workspace": {"size": "1Gi"}}}}}


def test_an_importer_brings_its_artifact_to_the_workspace(play: Play, tmp_path_factory: Any) -> None:
    async def scenario(world: World) -> None:
        source = tmp_path_factory.mktemp("data") / "data.csv"
        source.write_text("a,b\n")
        document = importing(str(source))
        run_id = await world.submit({"pipeline_spec": document, "platform_spec": WITH_WORKSPACE})
        assert (await world.over(run_id))["state"] == "SUCCEEDED"
        (artifact,) = (await world.tasks(run_id))["a"]["outputs"]["artifacts"]["artifact"]
        assert artifact["metadata"] == {"_kfp_workspace": True}
        (brought,) = (world.settings.volumes / "kubeflow").glob("*/.artifacts/**/data.csv")
        assert brought.read_text() == "a,b\n"
        failed = await world.over(await world.submit(document))
        assert "the pipeline has no workspace" in failed["error"]["message"]

    play(scenario)


def test_an_importer_reads_nothing_of_the_platform(play: Play, tmp_path_factory: Any) -> None:
    async def scenario(world: World) -> None:
        outside = tmp_path_factory.mktemp("data")
        token = world.settings.home / "token"
        token.write_text("secret")
        (outside / "link").symlink_to(token)
        (outside / "folder").mkdir()
        (outside / "folder" / "link").symlink_to(world.settings.home)
        through = outside / "folder" / "x" / ".." / ".." / "link"
        for uri in (token, f"file://{token}", outside / "link", outside / "folder", through, "https:///../../x"):
            document = {"pipeline_spec": importing(str(uri)), "platform_spec": WITH_WORKSPACE}
            failed = await world.over(await world.submit(document))
            assert failed["state"] == "FAILED", uri
            message = failed["error"]["message"]
            assert "belongs to the platform" in message or "not a place in the workspace" in message, message
        assert not [path for path in world.settings.volumes.rglob("*") if path.is_file()]

    play(scenario)


def test_a_workspace_left_by_a_kill_is_removed(play: Play) -> None:
    async def scenario(world: World) -> None:
        metadata = {"name": "p-1-kfp-workspace", "namespace": "kubeflow", "labels": {"pipeline/runid": "gone"}}
        spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
        await world.client.create(claim)
        await tidy_workspaces(world.client, {"gone"})
        assert not is_deleting(await world.client.get(CLAIM, "p-1-kfp-workspace", "kubeflow"))
        await tidy_workspaces(world.client, set())
        # Whoever keeps the volume removes it, then its finalizer.
        assert is_deleting(await world.client.get(CLAIM, "p-1-kfp-workspace", "kubeflow"))

    play(scenario, driven=False)


def test_a_failed_run_is_retried_without_repeating_what_succeeded(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.behave = lambda pod, task: failing("no") if task["name"] == "b" else succeed(pod, task)
        id_ = await world.submit(pipeline({"name": "a"}, {"name": "b", "needs": ["a"]}, {"name": "c", "needs": ["b"]}))
        assert (await world.over(id_))["state"] == "FAILED"
        world.behave = succeed
        await world.api.retry(_request(b"", run_id=id_))
        run = await world.until(lambda run: run["state"] == "SUCCEEDED", id_)
        assert run["error"] is None
        assert world.started == ["a", "b", "b", "c"]

    play(scenario)


def test_a_deleted_run_stops_its_pods(play: Play) -> None:
    async def scenario(world: World) -> None:
        world.behave = lambda pod, task: NEVER
        id_ = await world.submit(pipeline({"name": "a"}))
        while not world.started:
            await asyncio.sleep(0.002)
        await world.api.delete(_request(b"", run_id=id_))
        while await world.pods():
            await asyncio.sleep(0.002)

    play(scenario)


def test_finished_pods_are_kept_but_not_for_ever(play: Play) -> None:
    async def scenario(world: World) -> None:
        run = await world.over(await world.submit(pipeline(*({"name": f"t{number}"} for number in range(120)))))
        assert run["state"] == "SUCCEEDED"
        while len(await world.pods()) > 100:
            await asyncio.sleep(0.002)
        assert len(await world.pods()) == 100

    play(scenario)


def test_claims_are_made_and_removed(play: Play) -> None:
    async def scenario(world: World) -> None:
        inputs = {"size": "1Gi", "pvc_name_suffix": "-data", "access_modes": ["ReadWriteOnce"]}
        parameters = {name: {"runtimeValue": {"constant": value}} for name, value in inputs.items()}
        document = pipeline({"name": "make", "inputs": {"parameters": parameters}}, image="argostub/createpvc")
        kinds = {"size": "STRING", "pvc_name_suffix": "STRING", "access_modes": "LIST"}
        document["components"]["comp-make"] |= {
            "inputDefinitions": {"parameters": {name: {"parameterType": kind} for name, kind in kinds.items()}},
            "outputDefinitions": {"parameters": {"name": {"parameterType": "STRING"}}},
        }
        id_ = await world.submit(document)
        run = await world.over(id_)
        assert run["state"] == "SUCCEEDED", run["error"]
        name = (await world.tasks(id_))["make"]["outputs"]["parameters"]["name"]
        assert name.endswith("-data")
        claim = await world.client.get(CLAIM, name, "kubeflow")
        assert claim["spec"]["resources"]["requests"] == {"storage": "1Gi"}
        assert world.started == []

    play(scenario)


class Killed(BaseException):
    """The process is gone."""


class Mortal:
    """Passes calls on until the one with a given number, which is made or not, and is the last."""

    def __init__(self, inner: Any, names: tuple[str, ...], clock: list[int], *, made: bool) -> None:
        self._inner, self._names, self._clock, self._made = inner, names, clock, made

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in self._names:
            return method

        async def call(*arguments: Any, **more: Any) -> Any:
            self._clock[0] -= 1
            if self._clock[0] < 0 or (self._clock[0] == 0 and not self._made):
                raise Killed
            result = await method(*arguments, **more)
            if self._clock[0] == 0:
                raise Killed
            return result

        return call


@pytest.mark.parametrize("made", [False, True])
@pytest.mark.parametrize("last", range(1, 10))
def test_killed_at_any_point_it_goes_on_and_repeats_nothing(play: Play, last: int, made: bool) -> None:
    async def scenario(world: World) -> None:
        document = pipeline(
            {"name": "a", "out": "data", **CACHED}, {"name": "b", "needs": ["a"]}, {"name": "c", "needs": ["b"]}
        )
        id_ = await world.submit(document)
        clock = [last]
        services = Services(
            world.settings,
            cast(Client, Mortal(world.client, ("create", "delete"), clock, made=made)),
            cast(Database, Mortal(world.database, ("write",), clock, made=made)),
            world.services.now,
        )
        try:
            async with asyncio.timeout(1):
                await Driver(services).run()
        except (Killed, TimeoutError):
            pass
        except BaseExceptionGroup as group:
            if group.split(Killed)[1] is not None:
                raise
        driver = asyncio.ensure_future(Driver(world.services).run())
        try:
            run = await world.over(id_)
        finally:
            driver.cancel()
            await asyncio.gather(driver, return_exceptions=True)
        assert run["state"] == "SUCCEEDED", run["error"]
        assert world.started == ["a", "b", "c"]
        assert states(await world.tasks(id_)) == dict.fromkeys(("root", "a", "b", "c"), "SUCCEEDED")
        assert len(await world.database.read(lambda c: tables.get_run_links(c, id_))) == 1

    play(scenario, driven=False)


def test_pods_of_a_run_go_when_its_pipeline_says(play: Play) -> None:
    async def scenario(world: World) -> None:
        config = {"platforms": {"kubernetes": {"pipelineConfig": {"resourceTtlOnSuccess": 1}}}}
        run_id = await world.submit({"pipeline_spec": pipeline({"name": "a"}), "platform_spec": config})
        other = await world.submit(pipeline({"name": "b"}))
        await world.over(run_id)
        await world.over(other)
        async with asyncio.timeout(20):
            while {pod["metadata"]["labels"][RUN_LABEL] for pod in await world.pods()} != {other}:
                await asyncio.sleep(0.01)

    play(scenario)
