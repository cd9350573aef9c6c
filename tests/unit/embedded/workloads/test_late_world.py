"""Controllers whose picture of the world is behind: nothing is made twice, nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from shallop.kube.objects import is_condition_true, is_deleting

Object = dict[str, Any]
Behaviours = dict[str, Callable[..., dict[str, Any]]]
SEEDS = range(4)


class Census:
    """Counts the Pods that were ever made and the most that were alive at once."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.made: set[str] = set()
        self.most = 0
        self._alive: set[str] = set()

    async def take(self) -> None:
        start = await self.world.client.list(self.world.gvk("Pod"))
        async for event in self.world.client.watch(self.world.gvk("Pod"), resource_version=start.resource_version):
            uid = event.object["metadata"]["uid"]
            self.made.add(uid)
            phase = (event.object.get("status") or {}).get("phase")
            if event.type == "DELETED" or is_deleting(event.object) or phase in ("Succeeded", "Failed"):
                self._alive.discard(uid)
            else:
                self._alive.add(uid)
            self.most = max(self.most, len(self._alive))


def template(image: str) -> Object:
    return {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "a", "image": image}]}}


@pytest.mark.parametrize("seed", SEEDS)
def test_replicas_are_never_exceeded(run: Callable[..., None], seed: int) -> None:
    async def scenario(world: Any) -> None:
        census = Census(world)
        counting = asyncio.ensure_future(census.take())
        rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
        spec = {"replicas": 3, "selector": {"matchLabels": {"app": "d"}}, "template": template("i:1")}
        await world.create("Deployment", "d", spec=spec | {"strategy": rolling})

        async def complete() -> bool:
            obj = await world.get("Deployment", "d")
            status = obj.get("status") or {}
            counts = [status.get(name, 0) for name in ("updatedReplicas", "replicas", "availableReplicas")]
            return status.get("observedGeneration") == obj["metadata"]["generation"] and counts == [3] * 3

        await world.eventually(complete)
        assert len(census.made) == 3
        await world.patch("Deployment", "d", {"spec": {"template": template("i:2")}})
        await world.eventually(complete)
        counting.cancel()
        assert census.most <= 4
        assert len(census.made) == 6

    run(scenario, late=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_job_makes_as_many_pods_as_it_needs(run: Callable[..., None], pods_that: Behaviours, seed: int) -> None:
    async def scenario(world: Any) -> None:
        world.behave = pods_that["end"]
        census = Census(world)
        counting = asyncio.ensure_future(census.take())
        pod_spec = {"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}]}
        for name, mode in (("plain", "NonIndexed"), ("indexed", "Indexed")):
            spec = {"completions": 6, "parallelism": 3, "completionMode": mode, "template": {"spec": pod_spec}}
            await world.create("Job", name, spec=spec)

        async def complete() -> bool:
            jobs = await world.list("Job")
            return all(is_condition_true(job, "Complete") for job in jobs)

        await world.eventually(complete, deadline_s=15)
        counting.cancel()
        assert [job["status"]["succeeded"] for job in await world.list("Job")] == [6, 6]
        assert census.most <= 6
        # Events that come late cost no work: every Pod counted, none made for nothing.
        assert len(census.made) == 12

    run(scenario, late=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_gpu_is_never_promised_twice(run: Callable[..., None], pods_that: Behaviours, seed: int) -> None:
    async def scenario(world: Any) -> None:
        world.behave = pods_that["end"]
        container = {"name": "a", "image": "i", "resources": {"limits": {"nvidia.com/gpu": "1"}}}
        holders: set[str] = set()
        most = 0

        async def observe() -> None:
            nonlocal most
            start = await world.client.list(world.gvk("Pod"))
            async for event in world.client.watch(world.gvk("Pod"), resource_version=start.resource_version):
                pod = event.object
                holds = pod["spec"].get("nodeName") and pod["status"]["phase"] not in ("Succeeded", "Failed")
                (holders.add if holds else holders.discard)(pod["metadata"]["uid"])
                most = max(most, len(holders))

        observing = asyncio.ensure_future(observe())
        for number in range(8):
            await world.create("Pod", f"p{number}", spec={"restartPolicy": "Never", "containers": [container]})

        async def all_ended() -> bool:
            return all(pod["status"]["phase"] == "Succeeded" for pod in await world.list("Pod"))

        await world.eventually(all_ended)
        observing.cancel()
        assert most == 1

    run(scenario, late=seed)
