"""
PodGroup: Pods that start together or not at all, in the words of scheduler-plugins and of Volcano.

Honoured: ``minMember`` and ``minResources``. Nothing is held while a group waits, so ``scheduleTimeoutSeconds`` has
nothing to end; ``queue``, ``priorityClassName``, ``minTaskMember`` and ``networkTopology`` are stored. A Pod names its
group by the label ``scheduling.x-k8s.io/pod-group`` or by Volcano's annotation ``scheduling.k8s.io/group-name``.

Source: scheduler-plugins v0.33, pkg/coscheduling; Volcano v1.12, scheduling.volcano.sh/v1beta1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from shallop.controller import Column, Context, Kind, Resource, Result, Watch
from shallop.embedded.workloads.pods import POD, phase_of
from shallop.embedded.workloads.statuses import write_status
from shallop.kube.objects import Gvk, Key, Object, annotations_of, is_deleting, key_of, labels_of, parse_quantity

__all__ = ["GANG_SCHEDULERS", "POD_GROUPS", "Gang", "gang_of", "lacking_in_all", "members_of"]

_LABEL, _ANNOTATION = "scheduling.x-k8s.io/pod-group", "scheduling.k8s.io/group-name"
_BY_LABEL = Gvk("scheduling.x-k8s.io/v1alpha1", "PodGroup")
_BY_ANNOTATION = Gvk("scheduling.volcano.sh/v1beta1", "PodGroup")
# Whom Pods of groups ask for elsewhere; here there is one scheduler for all.
GANG_SCHEDULERS = ("scheduler-plugins-scheduler", "volcano")


class Gang(NamedTuple):
    """Which group a Pod belongs to."""

    gvk: Gvk
    key: Key


def gang_of(pod: Object) -> Gang | None:
    if name := labels_of(pod).get(_LABEL):
        return Gang(_BY_LABEL, Key(key_of(pod).namespace, name))
    if name := annotations_of(pod).get(_ANNOTATION):
        return Gang(_BY_ANNOTATION, Key(key_of(pod).namespace, name))
    return None


def members_of(gang: Gang, pods: Iterable[Object]) -> list[Object]:
    """Return the Pods that count: all but those that are going or have failed, whose places are empty."""
    return [pod for pod in pods if gang_of(pod) == gang and not is_deleting(pod) and phase_of(pod) != "Failed"]


def lacking_in_all(
    wanted: Mapping[str, Any], nodes: Iterable[Mapping[str, Decimal]], usage: Iterable[Mapping[str, Decimal]]
) -> list[str]:
    """
    Return the resources that all nodes together have too little of.

    Args:
        wanted: ``minResources``.
        nodes, usage: what each node can give, and has given.
    """
    free: dict[str, Decimal] = {}
    for sign, group in ((1, nodes), (-1, usage)):
        for amounts in group:
            for name, amount in amounts.items():
                free[name] = free.get(name, Decimal(0)) + sign * amount
    return [name for name, amount in wanted.items() if parse_quantity(amount) > free.get(name, Decimal(0))]


async def reconcile(ctx: Context, group: Resource[dict[str, Any]]) -> Result:
    """Count the Pods of a group."""
    if is_deleting(group.raw):
        return Result()
    gang = Gang(Gvk(group.raw["apiVersion"], "PodGroup"), group.key)
    pods = [pod for pod in ctx.cache(POD).list(group.namespace) if gang_of(pod) == gang and not is_deleting(pod)]
    status = plan_status(group.spec, pods)
    if status != {name: group.status.get(name) for name in status}:
        await write_status(ctx, group.raw, {**group.status, **status})
    return Result()


def plan_status(spec: Mapping[str, Any], pods: Iterable[Object]) -> dict[str, Any]:
    """Return phase and numbers as both kinds of groups have them."""
    phases = Counter("Scheduled" if phase_of(pod) == "Pending" and _has_node(pod) else phase_of(pod) for pod in pods)
    least = int(spec.get("minMember") or 0)
    running, succeeded, failed = (phases[name] for name in ("Running", "Succeeded", "Failed"))
    if failed:
        phase = "Failed"
    elif succeeded and succeeded >= least:
        phase = "Finished"
    elif running + succeeded >= max(least, 1):
        phase = "Running"
    else:
        phase = "Scheduling" if phases["Scheduled"] else "Pending"
    return {"phase": phase, "running": running, "succeeded": succeeded, "failed": failed}


def _has_node(pod: Object) -> bool:
    return bool(pod["spec"].get("nodeName"))


def _keys_of(gvk: Gvk) -> Callable[[Object], list[Key]]:
    def keys(pod: Object) -> list[Key]:
        gang = gang_of(pod)
        return [gang.key] if gang is not None and gang.gvk == gvk else []

    return keys


_ANY: dict[str, Any] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_SPEC: dict[str, Any] = {
    "type": "object",
    "x-kubernetes-preserve-unknown-fields": True,
    "properties": {
        "minMember": {"type": "integer", "format": "int32"},
        "minResources": {
            "type": "object",
            "additionalProperties": {
                "anyOf": [{"type": "integer"}, {"type": "string"}],
                "x-kubernetes-int-or-string": True,
            },
        },
        "scheduleTimeoutSeconds": {"type": "integer", "format": "int32"},
    },
}


def _kind(gvk: Gvk, *short_names: str) -> Kind:
    return Kind(
        api_version=gvk.api_version,
        kind=gvk.kind,
        plural="podgroups",
        short_names=short_names,
        schema={"type": "object", "properties": {"spec": _SPEC, "status": _ANY}},
        columns=(
            Column("Phase", "string", ".status.phase"),
            Column("MinMember", "integer", ".spec.minMember"),
            Column("Running", "integer", ".status.running"),
            Column("Age", "date", ".metadata.creationTimestamp"),
        ),
        reconcile=reconcile,
        watches=(Watch(POD, _keys_of(gvk)),),
        workers=1,
    )


POD_GROUPS = (_kind(_BY_LABEL, "pg"), _kind(_BY_ANNOTATION))
