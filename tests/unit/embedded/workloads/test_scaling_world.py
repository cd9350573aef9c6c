"""Autoscalers and disruption budgets on the real API server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from shallop.errors import TooManyRequestsError
from shallop.kube.objects import Gvk, find_condition, is_condition_true, is_deleting

Object = dict[str, Any]
METRICS = Gvk("metrics.k8s.io/v1beta1", "PodMetrics")
CRD = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "pods.metrics.k8s.io", "annotations": {"api-approved.kubernetes.io": "unapproved"}},
    "spec": {
        "group": "metrics.k8s.io",
        "names": {"plural": "pods", "singular": "podmetrics", "kind": "PodMetrics", "listKind": "PodMetricsList"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1beta1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


def deployment(replicas: int) -> Object:
    resources = {"requests": {"cpu": "100m"}}
    spec = {"containers": [{"name": "a", "image": "app:1", "resources": resources}]}
    template = {"metadata": {"labels": {"app": "d"}}, "spec": spec}
    return {"replicas": replicas, "selector": {"matchLabels": {"app": "d"}}, "template": template}


async def running(world: Any, count: int) -> list[Object]:
    async def all_run() -> list[Object] | None:
        pods = [pod for pod in await world.list("Pod", "app=d") if not is_deleting(pod)]
        return pods if len(pods) == count and all(is_condition_true(pod, "Ready") for pod in pods) else None

    result: list[Object] = await world.eventually(all_run)
    return result


def test_load_makes_replicas(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.client.create(CRD)
        await world.create("Deployment", "d", spec=deployment(1))
        (pod,) = await running(world, 1)
        usage = {"containers": [{"name": "a", "usage": {"cpu": "300m", "memory": "10Mi"}}]}
        metadata = {"name": pod["metadata"]["name"], "namespace": "default", "labels": {"app": "d"}}
        metrics = {"apiVersion": METRICS.api_version, "kind": "PodMetrics", "metadata": metadata, **usage}

        async def served() -> bool:
            return any(type_.gvk == METRICS for type_ in await world.client.resource_types())

        await world.eventually(served)
        await world.client.create(metrics)
        target = {"type": "Utilization", "averageUtilization": 100}
        spec = {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"},
            "maxReplicas": 4,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
        }
        await world.create("HorizontalPodAutoscaler", "h", spec=spec)
        await running(world, 3)

        async def reported() -> Object | None:
            found: Object = await world.get("HorizontalPodAutoscaler", "h")
            return found if (found.get("status") or {}).get("desiredReplicas") == 3 else None

        status = (await world.eventually(reported))["status"]
        assert status["currentMetrics"][0]["resource"]["current"] == {"averageUtilization": 300, "averageValue": "300m"}
        assert {c["type"]: c["status"] for c in status["conditions"]} == {
            "AbleToScale": "True",
            "ScalingActive": "True",
            "ScalingLimited": "False",
        }

    run(scenario)


def test_an_autoscaler_without_metrics_says_so_and_changes_nothing(run: Callable[..., None]) -> None:
    async def scenario(world: Any) -> None:
        await world.create("Deployment", "d", spec=deployment(2))
        spec = {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "d"}, "maxReplicas": 4}
        await world.create("HorizontalPodAutoscaler", "h", spec=spec)

        async def told() -> Object | None:
            found = await world.get("HorizontalPodAutoscaler", "h")
            return find_condition(found, "ScalingActive")

        condition = await world.eventually(told)
        assert (condition["status"], condition["reason"]) == ("False", "FailedGetResourceMetric")
        await running(world, 2)

    run(scenario)


@pytest.mark.parametrize("late", [None, 8])
def test_evictions_stop_where_the_budget_ends(run: Callable[..., None], late: int | None) -> None:
    async def scenario(world: Any) -> None:
        await world.create("Deployment", "d", spec=deployment(3))
        pods = await running(world, 3)
        spec = {"minAvailable": 2, "selector": {"matchLabels": {"app": "d"}}}
        await world.create("PodDisruptionBudget", "b", spec=spec)

        async def allowed(number: int) -> bool:
            status = (await world.get("PodDisruptionBudget", "b")).get("status") or {}
            return bool(status.get("disruptionsAllowed") == number and status.get("currentHealthy") == 2 + number)

        await world.eventually(lambda: allowed(1))

        async def evict(pod: Object) -> bool:
            name = pod["metadata"]["name"]
            body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
            try:
                await world.client.create_subresource(Gvk("v1", "Pod"), name, "default", "eviction", body)
            except TooManyRequestsError:
                return False
            return True

        assert sorted(await asyncio.gather(*(evict(pod) for pod in pods))) == [False, False, True]
        # The Deployment makes up for it, and the budget allows one again.
        await running(world, 3)
        await world.eventually(lambda: allowed(1))

    run(scenario, late)
