"""
PodGroups of trainings: which Pods start together or not at all. Pure.

The scheduler decides by the object and by the mark that its Pods carry; other schedulers read the same. A step that
waits for another one of its group is not a member: it does not exist when the others start. An MPI launcher that is of
a group does not wait: it is made with its workers, and calls them until they answer (``shallop_pod.rsh``).

Source: Kubeflow Trainer 2.3, plug-ins coscheduling and volcano; training-operator 1.9, schedulingPolicy.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from shallop.kube.objects import Object, annotations_of, parse_quantity
from shallop.training.classic_view import JobView
from shallop.training.podsets import NODE, TRAINER, PodSet, Training

__all__ = ["POD_GROUP", "gang_types", "group_pods", "render_classic_group"]

POD_GROUP = "scheduling.x-k8s.io/pod-group"
_GROUP_NAME = "scheduling.k8s.io/group-name"
_QUEUE = "scheduling.volcano.sh/queue-name"
_COSCHEDULING, _VOLCANO = "scheduling.x-k8s.io/v1alpha1", "scheduling.volcano.sh/v1beta1"


def group_pods(training: Training, policy: Mapping[str, Any]) -> Object | None:
    """
    Mark the Pods of a TrainJob and return their PodGroup; None when its runtime asks for none.

    Args:
        policy: ``podGroupPolicy`` of the runtime.
    """
    if "coscheduling" not in policy and "volcano" not in policy:
        return None
    steps = [pods for pods in training.pod_sets if pods.ancestor == TRAINER or pods.name == NODE]
    names = {pods.name for pods in steps}
    if "mpi" in training.policy:
        _wait_for_none(steps, names)
    members = [pods for pods in steps if not names & {other["name"] for other in pods.job.get("dependsOn") or ()}]
    volcano = "volcano" in policy
    for pods in members:
        metadata = pods.job["template"]["spec"]["template"].setdefault("metadata", {})
        field, name = ("annotations", _GROUP_NAME) if volcano else ("labels", POD_GROUP)
        metadata[field] = {**(metadata.get(field) or {}), name: training.name}
    least = sum(pods.count for pods in members)
    spec: dict[str, Any] = {"minMember": least, "minResources": _resources_of(steps)}
    if volcano:
        template = training.template.get("metadata") or {}
        queue = (template.get("annotations") or {}).get(_QUEUE) or annotations_of(training.job).get(_QUEUE)
        spec |= {"queue": queue} if queue else {}
        spec |= policy["volcano"] or {}
    else:
        spec["scheduleTimeoutSeconds"] = (policy["coscheduling"] or {}).get("scheduleTimeoutSeconds", 60)
    return _render(_VOLCANO if volcano else _COSCHEDULING, training.name, training.job["metadata"]["namespace"], spec)


def _wait_for_none(steps: list[PodSet], names: set[str]) -> None:
    """Take away what lets one of the steps wait until another one of them is ready."""
    for pods in steps:
        kept = [
            other
            for other in pods.job.get("dependsOn") or ()
            if other["name"] not in names or other.get("status") != "Ready"
        ]
        pods.job.pop("dependsOn", None)
        if kept:
            pods.job["dependsOn"] = kept


def _resources_of(steps: list[PodSet]) -> dict[str, str]:
    total: dict[str, Decimal] = {}
    for pods in steps:
        for container in pods.containers:
            resources = container.get("resources") or {}
            for name, amount in {**(resources.get("limits") or {}), **(resources.get("requests") or {})}.items():
                total[name] = total.get(name, Decimal(0)) + parse_quantity(amount) * pods.count
    return {name: f"{amount.normalize():f}" for name, amount in total.items()}


def gang_types(job: JobView) -> tuple[str, ...]:
    """Return the replica types of a classic job that start together; none when it has no ``schedulingPolicy``."""
    if not (job.spec.get("runPolicy") or {}).get("schedulingPolicy"):
        return ()
    return tuple(job.specs)


def render_classic_group(job: JobView) -> Object | None:
    """Return the PodGroup of a classic job; None when it asks for none."""
    types = gang_types(job)
    if not types:
        return None
    policy = job.spec["runPolicy"]["schedulingPolicy"]
    total = sum(job.count(type_) for type_ in types)
    least = policy.get("minAvailable") or (job.spec.get("elasticPolicy") or {}).get("minReplicas") or total
    spec = {"minMember": min(int(least), total)}
    for name in ("minResources", "scheduleTimeoutSeconds"):
        if policy.get(name):
            spec[name] = policy[name]
    return _render(_COSCHEDULING, job.name, job.namespace, spec)


def _render(api_version: str, name: str, namespace: str, spec: dict[str, Any]) -> Object:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": api_version, "kind": "PodGroup", "metadata": metadata, "spec": spec}
