"""A control plane that is gone in the middle of its work: the next one goes on, and does nothing twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from shallop.kube.objects import is_condition_true

Object = dict[str, Any]
Behaviours = dict[str, Callable[..., dict[str, Any]]]


def test_work_goes_on_after_a_restart(restarted: Callable[..., None], pods_that: Behaviours) -> None:
    pod_spec = {"restartPolicy": "Never", "containers": [{"name": "a", "image": "i"}]}
    template = {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "a", "image": "i"}]}}
    uids: set[str] = set()

    async def before(world: Any) -> None:
        ended = 0

        def some_end(pod: Object) -> Object | None:
            nonlocal ended
            if not pod["metadata"]["name"].startswith("j-"):
                return pods_that["run"](pod)
            ended += 1
            return pods_that["end"](pod) if ended <= 2 else None

        world.behave = some_end
        spec = {"completions": 6, "parallelism": 3, "template": {"spec": pod_spec}}
        await world.create("Job", "j", spec=spec)
        spec = {"replicas": 3, "selector": {"matchLabels": {"app": "d"}}, "template": template}
        await world.create("Deployment", "d", spec=spec)

        async def under_way() -> bool:
            running = [pod for pod in await world.list("Pod", "app=d") if pod["status"]["phase"] == "Running"]
            return len(running) == 3 and len(await world.list("Pod", "job-name=j")) == 5

        await world.eventually(under_way)

    async def observe(world: Any) -> None:
        uids.update(pod["metadata"]["uid"] for pod in await world.list("Pod"))
        world.behave = lambda pod: None
        # Long enough for every key to be looked at.
        while not world.manager.idle:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        assert {pod["metadata"]["uid"] for pod in await world.list("Pod")} == uids

    async def after(world: Any) -> None:
        world.behave = pods_that["end"]

        async def complete() -> bool:
            return is_condition_true(await world.get("Job", "j"), "Complete")

        await world.eventually(complete)
        assert (await world.get("Job", "j"))["status"]["succeeded"] == 6
        assert len(await world.list("Pod", "job-name=j")) == 6
        assert len(await world.list("Pod", "app=d")) == 3

    restarted(before, observe, after)
