"""
ReplicaSet: keeps a number of Pods of one template.

Honours replicas, selector, template and minReadySeconds; adopts and releases Pods by the selector; scales down in the
order of Kubernetes, including the annotation ``controller.kubernetes.io/pod-deletion-cost``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from shallop.controller import Context, Kind, Resource, Result, Watch
from shallop.embedded.workloads.children import Children, is_namespace_ending
from shallop.embedded.workloads.claiming import claim_pods
from shallop.embedded.workloads.pods import POD, available_in_s, is_active, is_ready, is_terminal, phase_of
from shallop.embedded.workloads.selecting import Selectors
from shallop.embedded.workloads.statuses import write_status
from shallop.errors import ApiError
from shallop.kube.objects import (
    Gvk,
    Key,
    Object,
    annotations_of,
    controller_of,
    find_condition,
    is_deleting,
    labels_of,
    parse_time,
    set_condition,
)

__all__ = [
    "REPLICASET",
    "ReplicaSets",
    "plan_scale",
    "rank_for_deletion",
    "render_pod",
    "render_status",
]

REPLICASET_GVK = Gvk("apps/v1", "ReplicaSet")
_DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
_PHASES = {"Pending": 0, "Unknown": 1, "Running": 2}


def plan_scale(replicas: int, pods: Sequence[Object], now: datetime) -> tuple[int, list[Object]]:
    """Return how many Pods to create and which to delete; at most one of both is not empty."""
    active = [pod for pod in pods if is_active(pod)]
    missing = replicas - len(active)
    if missing >= 0:
        return missing, []
    return 0, rank_for_deletion(active, now)[:-missing]


def rank_for_deletion(pods: Sequence[Object], now: datetime) -> list[Object]:
    """Sort Pods, the one that hurts least first: not placed, not running, not ready, cheap, young, often restarted."""

    def rank(pod: Object) -> tuple[Any, ...]:
        ready = is_ready(pod)
        return (
            bool(pod["spec"].get("nodeName")),
            _PHASES.get(phase_of(pod), 0),
            ready,
            _deletion_cost(pod),
            -_ready_since(pod, now) if ready else 0.0,
            -_restarts(pod),
            -parse_time(pod["metadata"]["creationTimestamp"]).timestamp(),
            pod["metadata"]["name"],
        )

    return sorted(pods, key=rank)


def _deletion_cost(pod: Object) -> int:
    try:
        return int(annotations_of(pod).get(_DELETION_COST, "0"))
    except ValueError:
        return 0


def _ready_since(pod: Object, now: datetime) -> float:
    since = (find_condition(pod, "Ready") or {}).get("lastTransitionTime")
    return (parse_time(since) if since else now).timestamp()


def _restarts(pod: Object) -> int:
    statuses = (pod.get("status") or {}).get("containerStatuses") or ()
    return max((int(status.get("restartCount", 0)) for status in statuses), default=0)


def render_pod(owner: Object, template: Object) -> Object:
    """Return the Pod of a template; the server completes its name."""
    metadata = template.get("metadata") or {}
    # An owner's name may have 253 characters, a Pod's 253 with the suffix of five.
    prefix = owner["metadata"]["name"][:246]
    rendered: dict[str, Any] = {"generateName": f"{prefix}-", "namespace": owner["metadata"]["namespace"]}
    for name in ("labels", "annotations", "finalizers"):
        if metadata.get(name):
            rendered[name] = metadata[name]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": rendered, "spec": template["spec"]}


def render_status(replicaset: Object, pods: Sequence[Object], failure: str, now: datetime) -> dict[str, Any]:
    """
    Count Pods into a ReplicaSetStatus; counts of zero are left out as Kubernetes does.

    Args:
        failure: why the last create failed, empty when it did not.
    """
    spec = replicaset["spec"]
    template_labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    active = [pod for pod in pods if is_active(pod)]
    min_ready_s = spec.get("minReadySeconds") or 0
    counts = {
        "fullyLabeledReplicas": sum(template_labels.items() <= labels_of(pod).items() for pod in active),
        "readyReplicas": sum(is_ready(pod) for pod in active),
        "availableReplicas": sum(available_in_s(pod, min_ready_s, now) == 0.0 for pod in active),
    }
    status: dict[str, Any] = {"replicas": len(active)}
    status |= {name: count for name, count in counts.items() if count}
    status["terminatingReplicas"] = sum(is_deleting(pod) and not is_terminal(pod) for pod in pods)
    status["observedGeneration"] = replicaset["metadata"].get("generation", 1)
    conditions = list((replicaset.get("status") or {}).get("conditions") or ())
    if not failure:
        conditions = [condition for condition in conditions if condition["type"] != "ReplicaFailure"]
    elif not any(c["type"] == "ReplicaFailure" and c["status"] == "True" for c in conditions):
        # Kept as it was first: it names the Pod, another one in each attempt, and a changed status brings the next.
        conditions = set_condition(conditions, "ReplicaFailure", "True", "FailedCreate", failure, now)
    if conditions:
        status["conditions"] = conditions
    return status


class ReplicaSets:
    """The controller of ReplicaSets."""

    def __init__(self) -> None:
        self._pods = Children(POD)
        self._selectors = Selectors()

    async def reconcile(self, ctx: Context, replicaset: Resource[dict[str, Any]]) -> Result:
        """Create, adopt, release or delete Pods until ``replicas`` are active."""
        raw = replicaset.raw
        self._selectors.put(replicaset.key, replicaset.spec["selector"])
        owned = await claim_pods(ctx, self._pods, raw)
        failure: ApiError | None = None
        if not is_deleting(raw):
            missing, surplus = plan_scale(replicaset.spec.get("replicas", 1), owned, ctx.now())
            failure = await self._create(ctx, raw, missing)
            for pod in surplus:
                await self._pods.delete(ctx, raw, pod)
                ctx.events.record(raw, "SuccessfulDelete", f"Deleted pod: {pod['metadata']['name']}")
            if missing or surplus:
                owned = await self._pods.of(ctx, raw)
        now = ctx.now()
        await write_status(ctx, raw, render_status(raw, owned, failure.message if failure else "", now))
        if failure:
            raise failure
        return Result(_next_available_s(replicaset.spec.get("minReadySeconds") or 0, owned, now))

    async def on_gone(self, ctx: Context, key: Key) -> None:
        self._selectors.drop(key)

    def keys_of_orphan(self, pod: Object) -> list[Key]:
        """Return the ReplicaSets that may adopt a Pod."""
        keys = self._selectors.matching(pod)
        return [] if keys and controller_of(pod) else keys

    async def _create(self, ctx: Context, raw: Object, count: int) -> ApiError | None:
        for _ in range(count):
            try:
                pod = await self._pods.create(ctx, raw, render_pod(raw, raw["spec"]["template"]))
            except ApiError as error:
                if is_namespace_ending(error):
                    return None
                ctx.events.record(raw, "FailedCreate", f"Error creating: {error}", "Warning")
                return error
            ctx.events.record(raw, "SuccessfulCreate", f"Created pod: {pod['metadata']['name']}")
        return None


def _next_available_s(min_ready_s: int, pods: Iterable[Object], now: datetime) -> float | None:
    waits = [available_in_s(pod, min_ready_s, now) for pod in pods if is_active(pod)]
    return min((wait for wait in waits if wait), default=None)


_CONTROLLER = ReplicaSets()

REPLICASET = Kind(
    api_version="apps/v1",
    kind="ReplicaSet",
    plural="replicasets",
    reconcile=_CONTROLLER.reconcile,
    on_gone=_CONTROLLER.on_gone,
    owns=(POD,),
    watches=(Watch(POD, _CONTROLLER.keys_of_orphan),),
    component="replicaset-controller",
)
