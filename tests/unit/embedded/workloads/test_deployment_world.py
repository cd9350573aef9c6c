"""Deployments on the real API server: rollouts, roll-backs, scaling, and what is put back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from shallop.kube.objects import find_condition, is_condition_true, is_deleting

Object = dict[str, Any]


def template(image: str = "app:1", **spec: Any) -> Object:
    return {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{"name": "a", "image": image}], **spec}}


def deployment(replicas: int = 2, image: str = "app:1", **spec: Any) -> Object:
    return {"replicas": replicas, "selector": {"matchLabels": {"app": "d"}}, "template": template(image), **spec}


async def complete(world: Any, name: str = "d") -> Object:
    """Wait as ``kubectl rollout status`` does."""

    async def done() -> Object | None:
        obj: Object = await world.get("Deployment", name)
        status, wanted = obj.get("status") or {}, obj["spec"]["replicas"]
        if status.get("observedGeneration", 0) < obj["metadata"]["generation"]:
            return None
        counts = [status.get(key, 0) for key in ("updatedReplicas", "replicas", "availableReplicas")]
        return obj if counts == [wanted] * 3 else None

    result: Object = await world.eventually(done)
    return result


async def images(world: Any) -> list[str]:
    pods = [pod for pod in await world.list("Pod") if not is_deleting(pod)]
    return sorted(pod["spec"]["containers"][0]["image"] for pod in pods)


def test_a_deployment_becomes_available(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("Deployment", "d", spec=deployment())
        status = (await complete(world))["status"]
        assert status["readyReplicas"] == 2
        assert "unavailableReplicas" not in status
        assert find_condition({"status": status}, "Available")["reason"] == "MinimumReplicasAvailable"
        assert find_condition({"status": status}, "Progressing")["reason"] == "NewReplicaSetAvailable"
        (rs,) = await world.list("ReplicaSet")
        assert rs["metadata"]["annotations"] == {
            "deployment.kubernetes.io/desired-replicas": "2",
            "deployment.kubernetes.io/max-replicas": "3",
            "deployment.kubernetes.io/revision": "1",
        }
        assert rs["metadata"]["labels"]["pod-template-hash"] in rs["metadata"]["name"]

    run(scenario)


def test_an_update_rolls_and_undo_rolls_back(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("Deployment", "d", spec=deployment(3))
        await complete(world)
        await world.patch("Deployment", "d", {"spec": {"template": template("app:2")}})
        updated = await complete(world)
        assert updated["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "2"
        assert await images(world) == ["app:2"] * 3
        old = next(rs for rs in await world.list("ReplicaSet") if rs["spec"]["replicas"] == 0)
        # kubectl rollout undo puts the template of the old ReplicaSet back, without its hash label.
        before = old["spec"]["template"]
        labels = {k: v for k, v in before["metadata"]["labels"].items() if k != "pod-template-hash"}
        undo = [{"op": "replace", "path": "/spec/template", "value": {**before, "metadata": {"labels": labels}}}]
        await world.patch("Deployment", "d", undo, patch_type="json")
        back = await complete(world)
        assert back["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == "3"
        assert await images(world) == ["app:1"] * 3
        assert len(await world.list("ReplicaSet")) == 2
        rs = await world.get("ReplicaSet", old["metadata"]["name"])
        assert rs["metadata"]["annotations"]["deployment.kubernetes.io/revision-history"] == "1"

    run(scenario)


def test_a_rollout_never_leaves_its_bounds(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        rolling = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}}
        await world.create("Deployment", "d", spec=deployment(3, strategy=rolling))
        await complete(world)
        counts: list[tuple[int, int]] = []

        async def observe() -> None:
            start = await world.client.list(world.gvk("Pod"))
            pods = {pod["metadata"]["uid"]: pod for pod in start.items}
            async for event in world.client.watch(world.gvk("Pod"), resource_version=start.resource_version):
                pods[event.object["metadata"]["uid"]] = event.object
                if event.type == "DELETED":
                    del pods[event.object["metadata"]["uid"]]
                alive = [pod for pod in pods.values() if not is_deleting(pod)]
                counts.append((len(alive), sum(is_condition_true(pod, "Ready") for pod in alive)))

        watcher = asyncio.ensure_future(observe())
        for number in range(2, 5):
            await world.patch("Deployment", "d", {"spec": {"template": template(f"app:{number}")}})
            await complete(world)
        watcher.cancel()
        assert max(total for total, _ in counts) == 4
        assert min(ready for _, ready in counts) == 3

    run(scenario)


def test_recreate_never_runs_old_and_new_together(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("Deployment", "d", spec=deployment(2, strategy={"type": "Recreate"}))
        await complete(world)
        seen: list[set[str]] = []

        async def observe() -> None:
            start = await world.client.list(world.gvk("Pod"))
            pods = {pod["metadata"]["uid"]: pod for pod in start.items}
            async for event in world.client.watch(world.gvk("Pod"), resource_version=start.resource_version):
                pods[event.object["metadata"]["uid"]] = event.object
                if event.type == "DELETED":
                    del pods[event.object["metadata"]["uid"]]
                seen.append({pod["spec"]["containers"][0]["image"] for pod in pods.values()})

        watcher = asyncio.ensure_future(observe())
        await world.patch("Deployment", "d", {"spec": {"template": template("app:2")}})
        await complete(world)
        watcher.cancel()
        assert all(len(together) <= 1 for together in seen)

    run(scenario)


def test_a_paused_deployment_scales_and_does_not_roll(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("Deployment", "d", spec=deployment(1))
        await complete(world)
        await world.patch("Deployment", "d", {"spec": {"paused": True, "template": template("app:2"), "replicas": 3}})

        async def scaled() -> bool:
            return await images(world) == ["app:1"] * 3

        await world.eventually(scaled)
        paused = await world.get("Deployment", "d")
        assert len(await world.list("ReplicaSet")) == 1
        assert find_condition(paused, "Progressing")["reason"] == "DeploymentPaused"
        await world.patch("Deployment", "d", {"spec": {"paused": None}})
        await complete(world)
        assert await images(world) == ["app:2"] * 3

    run(scenario)


def test_a_rollout_that_makes_no_progress_says_so(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        world.behave = lambda pod: None
        await world.create("Deployment", "d", spec=deployment(1, progressDeadlineSeconds=1))

        async def timed_out() -> bool:
            condition = find_condition(await world.get("Deployment", "d"), "Progressing") or {}
            return condition.get("reason") == "ProgressDeadlineExceeded"

        await world.eventually(timed_out)

    run(scenario)


def test_what_a_hand_changed_is_put_back(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("Deployment", "d", spec=deployment(2))
        await complete(world)
        (rs,) = await world.list("ReplicaSet")
        victim = (await world.list("Pod"))[0]
        await world.delete("Pod", victim["metadata"]["name"])
        await world.gone("Pod", victim["metadata"]["name"])
        await complete(world)
        await world.patch("ReplicaSet", rs["metadata"]["name"], {"spec": {"replicas": 5}})

        async def back() -> bool:
            return len(await images(world)) == 2 and len(await world.list("Pod")) == 2

        await world.eventually(back)
        await world.delete("ReplicaSet", rs["metadata"]["name"])
        await world.eventually(back)
        await complete(world)

    run(scenario)


def test_history_is_limited(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("Deployment", "d", spec=deployment(1, revisionHistoryLimit=1))
        for number in range(2, 5):
            await complete(world)
            await world.patch("Deployment", "d", {"spec": {"template": template(f"app:{number}")}})
        await complete(world)

        async def two() -> bool:
            return len(await world.list("ReplicaSet")) == 2

        await world.eventually(two)
        revisions = [
            rs["metadata"]["annotations"]["deployment.kubernetes.io/revision"] for rs in await world.list("ReplicaSet")
        ]
        assert sorted(revisions) == ["3", "4"]

    run(scenario)


def test_a_deleted_deployment_takes_its_pods_along(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("Deployment", "d", spec=deployment(2))
        await complete(world)
        await world.delete("Deployment", "d")

        async def nothing() -> bool:
            return not await world.list("ReplicaSet") and not await world.list("Pod")

        await world.eventually(nothing)

    run(scenario)


def test_orphans_are_adopted_by_a_deployment_that_comes_back(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("Deployment", "d", spec=deployment(2))
        await complete(world)
        names = {pod["metadata"]["name"] for pod in await world.list("Pod")}
        await world.delete("Deployment", "d", propagation="Orphan")
        await world.gone("Deployment", "d")
        assert {pod["metadata"]["name"] for pod in await world.list("Pod")} == names
        await world.create("Deployment", "d", spec=deployment(2))
        await complete(world)
        assert {pod["metadata"]["name"] for pod in await world.list("Pod")} == names

    run(scenario)


def test_a_pod_that_leaves_its_replicaset_is_replaced_and_may_come_back(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("Deployment", "d", spec=deployment(1))
        await complete(world)
        (pod,) = await world.list("Pod")
        name = pod["metadata"]["name"]
        await world.patch("Pod", name, {"metadata": {"labels": {"app": "free"}}})

        async def replaced() -> bool:
            return len(await world.list("Pod")) == 2

        await world.eventually(replaced)
        assert not (await world.get("Pod", name))["metadata"].get("ownerReferences")
        await world.patch("Pod", name, {"metadata": {"labels": {"app": "d"}}})

        async def one() -> bool:
            return len(await world.list("Pod")) == 1

        await world.eventually(one)

    run(scenario)
