"""A whole control plane in memory: the real API server, the real controllers, and a kubelet that does as it is told."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from shallop.controller import Kind, Manager, Watch
from shallop.embedded.apiserver import ApiServer
from shallop.embedded.apiserver.verbs import Verbs
from shallop.embedded.workloads import PART
from shallop.embedded.workloads.daemonset import DaemonSets
from shallop.embedded.workloads.garbage import GarbageCollector
from shallop.embedded.workloads.horizontalpodautoscaler import Autoscalers
from shallop.embedded.workloads.job import Jobs
from shallop.embedded.workloads.jobset import JobSets
from shallop.embedded.workloads.replicaset import ReplicaSets
from shallop.embedded.workloads.scheduler import Scheduler
from shallop.embedded.workloads.statefulset import StatefulSets
from shallop.errors import AlreadyExistsError, ConflictError, NotFoundError
from shallop.kube.client import Client, WatchEvent
from shallop.kube.objects import Gvk, Object, format_time, is_deleting, key_of
from shallop.settings import Settings
from shallop.store.database import Database

POD = Gvk("v1", "Pod")
KINDS = {
    "Deployment": "apps/v1",
    "ReplicaSet": "apps/v1",
    "StatefulSet": "apps/v1",
    "DaemonSet": "apps/v1",
    "ControllerRevision": "apps/v1",
    "Job": "batch/v1",
    "JobSet": "jobset.x-k8s.io/v1alpha2",
    "HorizontalPodAutoscaler": "autoscaling/v2",
    "PodDisruptionBudget": "policy/v1",
    "EndpointSlice": "discovery.k8s.io/v1",
    "StorageClass": "storage.k8s.io/v1",
    "PodGroup": "scheduling.x-k8s.io/v1alpha1",
}
DEADLINE_S = 5.0


class World:
    """One running control plane; ``behave`` decides what becomes of a Pod that has a node."""

    def __init__(self, client: Client, settings: Settings, manager: Manager) -> None:
        self.client = client
        self.settings = settings
        self.manager = manager
        self.behave: Callable[[Object], dict[str, Any] | None] = run_for_ever
        self.dead: asyncio.Event | None = None
        self.verbs: Verbs

    def gvk(self, kind: str) -> Gvk:
        return Gvk(KINDS.get(kind, "v1"), kind)

    async def create(self, kind: str, name: str, namespace: str = "default", **fields: Any) -> Object:
        gvk = self.gvk(kind)
        metadata = {"name": name, **({"namespace": namespace} if namespace else {}), **fields.pop("metadata", {})}
        return await self.client.create({"apiVersion": gvk.api_version, "kind": kind, "metadata": metadata, **fields})

    async def get(self, kind: str, name: str, namespace: str = "default") -> Object:
        return await self.client.get(self.gvk(kind), name, namespace)

    async def list(self, kind: str, selector: str = "", namespace: str = "default") -> list[Object]:
        if kind == "Event":
            await self.manager.events.flush()
        return (await self.client.list(self.gvk(kind), namespace, label_selector=selector)).items

    async def patch(self, kind: str, name: str, patch: Any, namespace: str = "default", **more: Any) -> Object:
        return await self.client.patch(self.gvk(kind), name, namespace, patch, **more)

    async def delete(self, kind: str, name: str, namespace: str = "default", **more: Any) -> None:
        await self.client.delete(self.gvk(kind), name, namespace, **more)

    async def set_status(self, pod: Object, **status: Any) -> None:
        await self.client.patch_status(pod, status)

    async def eventually(self, check: Callable[[], Awaitable[Any]], deadline_s: float = DEADLINE_S) -> Any:
        """Return the first true answer of ``check``; NotFoundError counts as no answer yet."""
        async with asyncio.timeout(deadline_s):
            while True:
                try:
                    if answer := await check():
                        return answer
                except NotFoundError:
                    pass
                await asyncio.sleep(0.002)

    async def gone(self, kind: str, name: str, namespace: str = "default") -> None:
        async def absent() -> bool:
            try:
                await self.get(kind, name, namespace)
            except NotFoundError:
                return True
            return False

        await self.eventually(absent)

    async def kubelet(self) -> None:
        """Run placed Pods as ``behave`` says and end deleted ones."""
        listing = await self.client.list(POD)
        for pod in listing.items:
            await self._sync(pod)
        async for event in self.client.watch(POD, resource_version=listing.resource_version):
            if event.type in ("ADDED", "MODIFIED"):
                await self._sync(event.object)

    async def _sync(self, pod: Object) -> None:
        key = key_of(pod)
        try:
            if is_deleting(pod):
                await self.client.delete(POD, key.name, key.namespace, grace_period_s=0, uid=pod["metadata"]["uid"])
                return
            waits = pod["spec"].get("nodeName") and (pod.get("status") or {}).get("phase") == "Pending"
            if waits and (status := self.behave(pod)):
                known = pod["status"].get("conditions") or []
                conditions = [*known, *(status.get("conditions") or [])]
                await self.client.patch_status(pod, {**status, "conditions": conditions})
        except (NotFoundError, ConflictError):
            pass


class LateClient:
    """A client whose watch events come late and bunched, as over a slow network; everything else is at once."""

    def __init__(self, client: Client, seed: int) -> None:
        self._client = client
        self._random = random.Random(seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    async def watch(self, gvk: Gvk, namespace: str = "", **more: Any) -> AsyncIterator[WatchEvent]:
        async for event in self._client.watch(gvk, namespace, **more):
            if self._random.random() < 0.5:
                await asyncio.sleep(self._random.uniform(0, 0.02))
            yield event

    async def follow(self, gvk: Gvk, *, resource_version: str, tell: Callable[[WatchEvent], None]) -> None:
        async for event in self.watch(gvk, resource_version=resource_version):
            tell(event)


class DyingClient:
    """A client whose process is killed right after a number of writes: the last one is done, nobody learns of it."""

    _WRITES = frozenset(("create", "update", "patch", "patch_status", "apply", "delete", "create_subresource"))

    def __init__(self, client: Client, writes: int) -> None:
        self._client = client
        self._left = writes
        self.dead = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        original = getattr(self._client, name)
        if name not in self._WRITES:
            return original

        async def write(*args: Any, **more: Any) -> Any:
            is_event = name == "create" and args[0]["kind"] == "Event"
            if self._left > 0 or is_event:
                result = await original(*args, **more)
                if is_event or self._left > 1:
                    self._left -= not is_event
                    return result
                self._left = 0
            self.dead.set()
            await asyncio.Event().wait()

        return write


def running(pod: Object, ip: str = "10.1.0.1") -> dict[str, Any]:
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": format_time(datetime.now(UTC))}
    return {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": [ready]}


def run_for_ever(pod: Object) -> dict[str, Any]:
    return running(pod)


def ended(pod: Object, code: int = 0) -> dict[str, Any]:
    state = {"terminated": {"exitCode": code, "finishedAt": format_time(datetime.now(UTC))}}
    name = pod["spec"]["containers"][0]["name"]
    status = {"name": name, "image": "i", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    return {"phase": "Failed" if code else "Succeeded", "containerStatuses": [status]}


NODE = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "shallop", "labels": {"kubernetes.io/hostname": "shallop"}},
    "status": {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110", "nvidia.com/gpu": "1"}},
}


def fresh_kinds(scheduler: Scheduler) -> list[Kind]:
    """The kinds of the part, with controllers that remember nothing, as after a start."""
    controllers: dict[str, Any] = {
        "ReplicaSet": ReplicaSets(),
        "StatefulSet": StatefulSets(),
        "DaemonSet": DaemonSets(),
        "Job": Jobs(),
        "JobSet": JobSets(),
        "Pod": scheduler,
        "HorizontalPodAutoscaler": Autoscalers(),
    }
    kinds = []
    for kind in PART.kinds:
        if controller := controllers.get(kind.kind):
            kind = replace(kind, reconcile=controller.reconcile, on_gone=getattr(controller, "on_gone", None))
            if isinstance(controller, ReplicaSets | StatefulSets):
                kind = replace(kind, watches=(Watch(POD, controller.keys_of_orphan),))
            elif isinstance(controller, DaemonSets):
                watches = (Watch(POD, controller.keys_of_orphan), Watch(Gvk("v1", "Node"), controller.keys_of_node))
                kind = replace(kind, watches=watches)
            elif isinstance(controller, Scheduler):
                kind = replace(kind, watches=tuple(Watch(w.gvk, controller.keys_to_wake) for w in kind.watches))
        kinds.append(kind)
    return kinds


@asynccontextmanager
async def open_world(
    home: Path,
    late: int | None = None,
    objects: Path | None = None,
    server: ApiServer | None = None,
    writes: int | None = None,
) -> AsyncIterator[World]:
    settings = Settings(home=home)
    running_already = server is not None
    if server is None:
        server = ApiServer(objects, admin_token="unused")
        await server.start()
        await server.register_kinds(PART.kinds)
    client = server.client()
    database = Database(f"sqlite:///{home}/rows.db")
    for_controllers = client if late is None else cast(Client, LateClient(client, late))
    dying = None if writes is None else DyingClient(client, writes)
    if dying is not None:
        for_controllers = cast(Client, dying)
    server.verbs.placing = scheduler = Scheduler()
    manager = Manager(for_controllers, settings, database, fresh_kinds(scheduler))
    world = World(client, settings, manager)
    world.verbs = server.verbs
    world.dead = None if dying is None else dying.dead
    for obj in (*PART.objects, NODE):
        with suppress(AlreadyExistsError):
            await client.create(obj)
    tasks = [
        asyncio.ensure_future(run()) for run in (manager.run, GarbageCollector(for_controllers).run, world.kubelet)
    ]
    try:
        yield world
        for task in tasks:
            if task.done():
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if dying is None:
            await manager.events.flush()
        if not running_already:
            await server.stop()
        database.close()


Run = Callable[..., None]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Run a scenario, a coroutine function of a World, to its end; ``late`` is the seed of late watch events."""

    def go(scenario: Callable[[World], Awaitable[None]], late: int | None = None) -> None:
        async def main() -> None:
            async with asyncio.timeout(30), open_world(tmp_path, late=late) as world:
                await scenario(world)

        asyncio.run(main())

    yield go


@pytest.fixture
def restarted(tmp_path: Path) -> Callable[..., None]:
    """Run scenarios one after the other on the same objects, each with a control plane of its own."""

    def go(*scenarios: Callable[[World], Awaitable[None]]) -> None:
        async def main(scenario: Callable[[World], Awaitable[None]]) -> None:
            async with asyncio.timeout(30), open_world(tmp_path, objects=tmp_path / "objects.db") as world:
                await scenario(world)

        for scenario in scenarios:
            asyncio.run(main(scenario))

    return go


@pytest.fixture
def killed_after(tmp_path: Path) -> Callable[..., None]:
    """Run a scenario whose controllers are killed after a number of writes, and another one that takes over."""

    def go(writes: int, before: Callable[[World], Awaitable[None]], after: Callable[[World], Awaitable[None]]) -> None:
        async def main() -> None:
            server = ApiServer(None, admin_token="unused")
            await server.start()
            await server.register_kinds(PART.kinds)
            try:
                async with asyncio.timeout(60):
                    async with open_world(tmp_path, server=server, writes=writes) as world:
                        await before(world)
                    async with open_world(tmp_path, server=server) as world:
                        await after(world)
            finally:
                await server.stop()

        asyncio.run(main())

    return go


@pytest.fixture
def pods_that() -> dict[str, Callable[..., dict[str, Any]]]:
    """What Pods can do: ``run`` for ever, or ``end`` with a code."""
    return {"run": running, "end": ended}
