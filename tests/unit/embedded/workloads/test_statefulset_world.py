"""StatefulSets and DaemonSets on the real API server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shallop.kube.objects import is_deleting

Object = dict[str, Any]
Behaviours = dict[str, Callable[..., dict[str, Any]]]
LABELS = {"app": "s"}


def template(image: str = "app:1") -> Object:
    return {"metadata": {"labels": LABELS}, "spec": {"containers": [{"name": "a", "image": image}]}}


def stateful(replicas: int = 2, **more: Any) -> Object:
    return {
        "replicas": replicas,
        "serviceName": "s",
        "selector": {"matchLabels": LABELS},
        "template": template(),
        **more,
    }


def with_claims(**policy: str) -> Object:
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    return {
        "volumeClaimTemplates": [{"metadata": {"name": "data"}, "spec": claim}],
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain", **policy},
    }


async def until_status(world: Any, kind: str, **wanted: Any) -> Object:
    async def reached() -> Object | None:
        obj: Object = await world.get(kind, "s")
        status = obj.get("status") or {}
        observed = status.get("observedGeneration") == obj["metadata"]["generation"]
        return obj if observed and all(status.get(key, 0) == value for key, value in wanted.items()) else None

    result: Object = await world.eventually(reached)
    return result


async def images(world: Any) -> list[str]:
    pods = sorted(await world.list("Pod"), key=lambda pod: str(pod["metadata"]["name"]))
    return [pod["spec"]["containers"][0]["image"] for pod in pods if not is_deleting(pod)]


def test_pods_start_one_after_the_other(run: Callable[..., None], pods_that: Behaviours) -> None:
    async def scenario(world: Any) -> None:
        world.behave = lambda pod: None
        await world.create("StatefulSet", "s", spec=stateful(3))
        for number in range(3):

            async def placed(name: str = f"s-{number}") -> Object | None:
                pod: Object = await world.get("Pod", name)
                return pod if pod["spec"].get("nodeName") else None

            pod = await world.eventually(placed)
            await until_status(world, "StatefulSet", replicas=number + 1)
            assert len(await world.list("Pod")) == number + 1
            assert (pod["spec"]["hostname"], pod["spec"]["subdomain"]) == (f"s-{number}", "s")
            assert pod["metadata"]["labels"]["apps.kubernetes.io/pod-index"] == str(number)
            await world.set_status(pod, **pods_that["run"](pod))
        await until_status(world, "StatefulSet", readyReplicas=3, availableReplicas=3, currentReplicas=3)

    run(scenario)


def test_parallel_pods_start_at_once_from_the_first_ordinal(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        world.behave = lambda pod: None
        spec = stateful(3, podManagementPolicy="Parallel", ordinals={"start": 5})
        await world.create("StatefulSet", "s", spec=spec)
        await until_status(world, "StatefulSet", replicas=3)
        assert {pod["metadata"]["name"] for pod in await world.list("Pod")} == {"s-5", "s-6", "s-7"}

    run(scenario)


@pytest.mark.parametrize("late", [None, 5])
def test_a_new_template_rolls_down_to_the_partition(run: Callable[..., None], late: int | None) -> None:
    async def scenario(world: Any) -> None:
        strategy = {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}
        await world.create("StatefulSet", "s", spec=stateful(4, updateStrategy=strategy))
        first = (await until_status(world, "StatefulSet", readyReplicas=4))["status"]["updateRevision"]
        await world.patch("StatefulSet", "s", {"spec": {"template": template("app:2")}})
        half = await until_status(world, "StatefulSet", updatedReplicas=2, readyReplicas=4)
        assert await images(world) == ["app:1", "app:1", "app:2", "app:2"]
        assert half["status"]["currentRevision"] == first
        # Below the partition a Pod that is made again keeps the old template.
        await world.delete("Pod", "s-0")
        await until_status(world, "StatefulSet", readyReplicas=4, currentReplicas=2)
        await world.patch("StatefulSet", "s", {"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}})
        whole = await until_status(world, "StatefulSet", updatedReplicas=4, readyReplicas=4, currentReplicas=4)
        assert await images(world) == ["app:2"] * 4
        assert whole["status"]["currentRevision"] == whole["status"]["updateRevision"] != first
        revisions = await world.list("ControllerRevision")
        assert sorted(revision["revision"] for revision in revisions) == [1, 2]
        await world.patch("StatefulSet", "s", {"spec": {"template": template("app:1")}})
        back = await until_status(world, "StatefulSet", updatedReplicas=4, readyReplicas=4, currentReplicas=4)
        assert back["status"]["updateRevision"] == first
        assert sorted(r["revision"] for r in await world.list("ControllerRevision")) == [2, 3]

    run(scenario, late)


def test_claims_follow_the_retention_policy(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        spec = stateful(2, **with_claims(whenScaled="Delete", whenDeleted="Delete"))
        await world.create("StatefulSet", "s", spec=spec)
        await until_status(world, "StatefulSet", readyReplicas=2)
        pod = await world.get("Pod", "s-1")
        assert {"name": "data", "persistentVolumeClaim": {"claimName": "data-s-1"}} in pod["spec"]["volumes"]
        await world.patch("StatefulSet", "s", {"spec": {"replicas": 1}})
        await world.gone("PersistentVolumeClaim", "data-s-1")
        assert await world.get("PersistentVolumeClaim", "data-s-0")
        await world.delete("StatefulSet", "s")
        await world.gone("PersistentVolumeClaim", "data-s-0")
        await world.gone("Pod", "s-0")

    run(scenario)


def test_claims_are_kept_and_found_again(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("StatefulSet", "s", spec=stateful(2, **with_claims()))
        await until_status(world, "StatefulSet", readyReplicas=2)
        uid = (await world.get("PersistentVolumeClaim", "data-s-1"))["metadata"]["uid"]
        await world.patch("StatefulSet", "s", {"spec": {"replicas": 0}})
        await until_status(world, "StatefulSet", replicas=0)
        await world.patch("StatefulSet", "s", {"spec": {"replicas": 2}})
        await until_status(world, "StatefulSet", readyReplicas=2)
        assert (await world.get("PersistentVolumeClaim", "data-s-1"))["metadata"]["uid"] == uid

    run(scenario)


def test_orphaned_pods_are_adopted_by_their_names(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("StatefulSet", "s", spec=stateful(2))
        await until_status(world, "StatefulSet", readyReplicas=2)
        uids = {pod["metadata"]["uid"] for pod in await world.list("Pod")}
        await world.delete("StatefulSet", "s", propagation="Orphan")
        await world.gone("StatefulSet", "s")
        await world.create("StatefulSet", "s", spec=stateful(2))
        await until_status(world, "StatefulSet", readyReplicas=2)
        assert {pod["metadata"]["uid"] for pod in await world.list("Pod")} == uids

    run(scenario)


def test_a_failed_pod_is_made_again(run: Callable[..., None], pods_that: Behaviours) -> None:
    async def scenario(world: Any) -> None:
        await world.create("StatefulSet", "s", spec=stateful(1))
        await until_status(world, "StatefulSet", readyReplicas=1)
        pod = await world.get("Pod", "s-0")
        await world.set_status(pod, **pods_that["end"](pod, 1))

        async def replaced() -> bool:
            return bool((await world.get("Pod", "s-0"))["metadata"]["uid"] != pod["metadata"]["uid"])

        await world.eventually(replaced)
        await until_status(world, "StatefulSet", readyReplicas=1)

    run(scenario)


def daemon(**more: Any) -> Object:
    return {"selector": {"matchLabels": LABELS}, "template": template(), **more}


def node(name: str, **labels: str) -> Object:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "9"}},
    }


@pytest.mark.parametrize("late", [None, 6])
def test_every_node_gets_one_daemon(run: Callable[..., None], late: int | None) -> None:
    async def scenario(world: Any) -> None:
        await world.create("DaemonSet", "s", spec=daemon())
        await until_status(world, "DaemonSet", desiredNumberScheduled=1, numberAvailable=1)
        await world.client.create(node("second"))
        await until_status(world, "DaemonSet", desiredNumberScheduled=2, numberAvailable=2)
        assert {pod["spec"]["nodeName"] for pod in await world.list("Pod")} == {"shallop", "second"}
        await world.patch("DaemonSet", "s", {"spec": {"template": {"spec": {"nodeSelector": {"gpu": "yes"}}}}})
        await until_status(world, "DaemonSet", desiredNumberScheduled=0, numberMisscheduled=0)
        await world.patch("Node", "second", {"metadata": {"labels": {"gpu": "yes"}}}, "")
        await until_status(world, "DaemonSet", desiredNumberScheduled=1, numberAvailable=1)
        (pod,) = [pod for pod in await world.list("Pod") if not is_deleting(pod)]
        assert pod["spec"]["nodeName"] == "second"

    run(scenario, late)


@pytest.mark.parametrize("rolling", [{"maxUnavailable": 1}, {"maxUnavailable": 0, "maxSurge": 1}])
def test_daemons_are_replaced_within_the_bounds(run: Callable[..., None], rolling: Object) -> None:
    async def scenario(world: Any) -> None:
        await world.client.create(node("second"))
        strategy = {"type": "RollingUpdate", "rollingUpdate": rolling}
        await world.create("DaemonSet", "s", spec=daemon(updateStrategy=strategy))
        await until_status(world, "DaemonSet", numberAvailable=2)
        await world.patch("DaemonSet", "s", {"spec": {"template": template("app:2")}})
        await until_status(world, "DaemonSet", updatedNumberScheduled=2, numberAvailable=2)

        async def only_new() -> bool:
            return await images(world) == ["app:2", "app:2"]

        await world.eventually(only_new)
        assert sorted(r["revision"] for r in await world.list("ControllerRevision")) == [1, 2]

    run(scenario)


def test_a_daemon_that_fails_again_is_replaced_after_a_pause(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("DaemonSet", "s", spec=daemon())
        known: set[str] = set()

        async def fresh() -> Object | None:
            # One that runs: what the node is about to say of another would cover its failure.
            pods: list[Object] = await world.list("Pod")
            fresh = (pod for pod in pods if pod["metadata"]["uid"] not in known)
            return next((pod for pod in fresh if (pod.get("status") or {}).get("phase") == "Running"), None)

        for _ in range(2):
            pod = await world.eventually(fresh)
            known.add(pod["metadata"]["uid"])
            await world.set_status(pod, phase="Failed", reason="Evicted")
        await world.eventually(fresh)
        await until_status(world, "DaemonSet", desiredNumberScheduled=1, numberAvailable=1)
        assert "FailedDaemonPod" in {event["reason"] for event in await world.list("Event")}

    run(scenario)
