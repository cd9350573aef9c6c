"""
PodDisruptionBudget: how many Pods of a set may be evicted now; the API server asks it at each eviction.

Honours selector, minAvailable, maxUnavailable; ``unhealthyPodEvictionPolicy`` is honoured where evictions are decided.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from shallop.controller import Context, Kind, Resource, Result, Watch
from shallop.embedded.workloads.pods import POD, is_ready, is_terminal
from shallop.embedded.workloads.selecting import Selectors
from shallop.embedded.workloads.statuses import write_status
from shallop.kube.objects import (
    Gvk,
    Key,
    Object,
    controller_of,
    find_condition,
    format_time,
    is_deleting,
    labels_of,
    parse_time,
)
from shallop.kube.selectors import match_selector

__all__ = ["PODDISRUPTIONBUDGET", "Budgets", "plan_status"]

# After an eviction was allowed its Pod has so long to be seen ending, as upstream.
_EVICTION_S = 120
_SCALED = {"ReplicaSet": "apps/v1", "StatefulSet": "apps/v1", "Deployment": "apps/v1", "ReplicationController": "v1"}


def plan_status(budget: Object, pods: Sequence[Object], scale: int, now: datetime) -> dict[str, Any]:
    """
    Count what the budget allows.

    Args:
        pods: the Pods that the budget selects.
        scale: how many Pods their controllers want in all.
    """
    spec, before = budget["spec"], budget.get("status") or {}
    alive = [pod for pod in pods if not is_terminal(pod)]
    expected, desired = _bounds(spec, len(alive), scale)
    disrupted = _still_disrupted(before.get("disruptedPods") or {}, alive, now)
    healthy = sum(is_ready(pod) and not is_deleting(pod) and pod["metadata"]["name"] not in disrupted for pod in alive)
    allowed = max(0, healthy - desired) if expected else 0
    status: dict[str, Any] = {
        "observedGeneration": budget["metadata"].get("generation", 1),
        "disruptionsAllowed": allowed,
        "currentHealthy": healthy,
        "desiredHealthy": desired,
        "expectedPods": expected,
        "conditions": _conditions(budget, allowed > 0, now),
    }
    return status | ({"disruptedPods": disrupted} if disrupted else {})


def _bounds(spec: Mapping[str, Any], count: int, scale: int) -> tuple[int, int]:
    """Return how many Pods are expected and how many must stay healthy."""
    if spec.get("maxUnavailable") is not None:
        return scale, max(0, scale - _resolve(spec["maxUnavailable"], scale))
    least = spec.get("minAvailable", 1)
    if isinstance(least, str):
        return scale, _resolve(least, scale)
    return count, least


def _resolve(value: int | str, total: int) -> int:
    return math.ceil(int(value.rstrip("%")) * total / 100) if isinstance(value, str) else value


def _still_disrupted(known: Mapping[str, str], pods: Iterable[Object], now: datetime) -> dict[str, str]:
    names = {pod["metadata"]["name"] for pod in pods if not is_deleting(pod)}
    oldest = now - timedelta(seconds=_EVICTION_S)
    return {name: since for name, since in known.items() if name in names and parse_time(since) > oldest}


def _conditions(budget: Object, allowed: bool, now: datetime) -> list[dict[str, Any]]:
    before = find_condition(budget, "DisruptionAllowed") or {}
    status = "True" if allowed else "False"
    since = before.get("lastTransitionTime") if before.get("status") == status else None
    condition = {
        "type": "DisruptionAllowed",
        "status": status,
        "observedGeneration": budget["metadata"].get("generation", 1),
        "lastTransitionTime": since or format_time(now),
        "reason": "SufficientPods" if allowed else "InsufficientPods",
        "message": "",
    }
    others = (budget.get("status") or {}).get("conditions") or ()
    return [*(other for other in others if other["type"] != "DisruptionAllowed"), condition]


class Budgets:
    """The controller of disruption budgets."""

    def __init__(self) -> None:
        self._selectors = Selectors()

    async def reconcile(self, ctx: Context, budget: Resource[dict[str, Any]]) -> Result:
        """Count the Pods of a budget and write down what it allows."""
        raw = budget.raw
        selector = budget.spec.get("selector") or {}
        self._selectors.put(budget.key, selector)
        if is_deleting(raw):
            return Result()
        pods = [pod for pod in ctx.cache(POD).list(budget.namespace) if match_selector(selector, labels_of(pod))]
        status = plan_status(raw, pods, _scale_of(ctx, pods), ctx.now())
        await write_status(ctx, raw, status)
        return Result(_EVICTION_S if status.get("disruptedPods") else None)

    async def on_gone(self, ctx: Context, key: Key) -> None:
        self._selectors.drop(key)

    def keys_of_pod(self, pod: Object) -> list[Key]:
        return self._selectors.matching(pod)

    def keys_of_scaled(self, obj: Object) -> list[Key]:
        """Return the budgets that select the Pods of a controller: its number of replicas may have changed."""
        template = (obj.get("spec") or {}).get("template") or {}
        labels = (template.get("metadata") or {}).get("labels") or {}
        return self._selectors.matching({"metadata": {"namespace": obj["metadata"]["namespace"], "labels": labels}})


def _scale_of(ctx: Context, pods: Iterable[Object]) -> int:
    """Sum the replicas of the Pods' controllers; a Pod without one that scales stands for itself."""
    wanted: dict[str, int] = {}
    for pod in pods:
        if is_terminal(pod):
            continue
        owner = _scaled_owner(ctx, pod)
        if owner is None:
            wanted[pod["metadata"]["uid"]] = 1
        else:
            wanted[owner["metadata"]["uid"]] = int((owner.get("spec") or {}).get("replicas", 1))
    return sum(wanted.values())


def _scaled_owner(ctx: Context, obj: Object) -> Object | None:
    reference = controller_of(obj)
    if reference is None or _SCALED.get(reference["kind"]) != reference["apiVersion"]:
        return None
    key = Key(obj["metadata"]["namespace"], reference["name"])
    owner = ctx.cache(Gvk(reference["apiVersion"], reference["kind"])).get(key)
    if owner is None:
        return None
    return _scaled_owner(ctx, owner) or owner


_CONTROLLER = Budgets()

PODDISRUPTIONBUDGET = Kind(
    api_version="policy/v1",
    kind="PodDisruptionBudget",
    plural="poddisruptionbudgets",
    reconcile=_CONTROLLER.reconcile,
    on_gone=_CONTROLLER.on_gone,
    watches=(
        Watch(POD, _CONTROLLER.keys_of_pod),
        *(Watch(Gvk("apps/v1", kind), _CONTROLLER.keys_of_scaled) for kind in ("Deployment", "StatefulSet")),
    ),
)
