"""What a StatefulSet does next: pure arithmetic of ordinals."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from shallop.embedded.workloads.pods import available_in_s, is_ready, is_terminal, phase_of
from shallop.embedded.workloads.revisions import HASH
from shallop.kube.objects import Object, is_deleting, labels_of

__all__ = ["StatefulSetPlan", "Step", "is_condemned", "ordinal_of", "plan_statefulset", "render_status"]


@dataclass
class Step:
    """Create the Pod of an ordinal from a revision, by its name."""

    ordinal: int
    revision: str


@dataclass
class StatefulSetPlan:
    """
    What a StatefulSet needs now.

    Args:
        create: Pods to create, in order.
        replace: Pods that have ended and make room for a new one.
        delete: Pods beyond the replicas, or of an old revision.
        requeue_after_s: when time alone changes the answer.
    """

    create: list[Step] = field(default_factory=list)
    replace: list[Object] = field(default_factory=list)
    delete: list[Object] = field(default_factory=list)
    requeue_after_s: float | None = None


def ordinal_of(name: str, pod: Object) -> int:
    """Return the ordinal of a Pod of the StatefulSet ``name``, -1 when its name is not of it."""
    found = re.fullmatch(re.escape(name) + r"-(0|[1-9][0-9]*)", pod["metadata"]["name"])
    return int(found[1]) if found else -1


def _start(spec: Mapping[str, Any]) -> int:
    return int((spec.get("ordinals") or {}).get("start") or 0)


def _replicas(spec: Mapping[str, Any]) -> int:
    return int(spec.get("replicas", 1))


def is_condemned(spec: Mapping[str, Any], ordinal: int) -> bool:
    return not _start(spec) <= ordinal < _start(spec) + _replicas(spec)


def plan_statefulset(statefulset: Object, pods: Sequence[Object], update: str, now: datetime) -> StatefulSetPlan:
    """
    Decide what a StatefulSet does next.

    Args:
        pods: all Pods that the StatefulSet controls, terminating ones included.
        update: name of the revision of its template.
    """
    spec, name = statefulset["spec"], statefulset["metadata"]["name"]
    by_ordinal = {ordinal_of(name, pod): pod for pod in pods}
    plan = StatefulSetPlan()
    min_ready_s = spec.get("minReadySeconds") or 0
    waits = [available_in_s(pod, min_ready_s, now) for pod in pods if not is_deleting(pod)]
    plan.requeue_after_s = min((wait for wait in waits if wait), default=None)
    parallel = spec.get("podManagementPolicy") == "Parallel"
    ordinals = range(_start(spec), _start(spec) + _replicas(spec))

    def is_healthy(ordinal: int) -> bool:
        pod = by_ordinal.get(ordinal)
        return pod is not None and _is_available(pod, min_ready_s, now)

    for ordinal in ordinals:
        pod = by_ordinal.get(ordinal)
        if pod is None:
            plan.create.append(Step(ordinal, _revision_for(statefulset, ordinal, update)))
        elif is_terminal(pod) and not is_deleting(pod):
            plan.replace.append(pod)
        if not parallel and not is_healthy(ordinal):
            return plan
    condemned = sorted((o for o in by_ordinal if is_condemned(spec, o)), reverse=True)
    if _scale_down(plan, condemned, by_ordinal, parallel=parallel, min_ready_s=min_ready_s, now=now):
        return plan
    if not plan.create and not plan.replace:
        plan.delete += _outdated(spec, by_ordinal, update, min_ready_s, now)
    return plan


def _is_available(pod: Object, min_ready_s: int, now: datetime) -> bool:
    return phase_of(pod) == "Running" and not is_deleting(pod) and available_in_s(pod, min_ready_s, now) == 0.0


def _scale_down(
    plan: StatefulSetPlan,
    condemned: Sequence[int],
    by_ordinal: Mapping[int, Object],
    *,
    parallel: bool,
    min_ready_s: int,
    now: datetime,
) -> bool:
    """Delete from the highest ordinal on, one after the other unless ``parallel``; True when the rest has to wait."""
    for ordinal in condemned:
        pod = by_ordinal[ordinal]
        if not is_deleting(pod):
            plan.delete.append(pod)
        if not parallel:
            return True
    return bool(condemned)


def _outdated(
    spec: Mapping[str, Any], by_ordinal: Mapping[int, Object], update: str, min_ready_s: int, now: datetime
) -> list[Object]:
    """Return the Pods of old revisions that go now, from the highest ordinal to the partition."""
    strategy = spec.get("updateStrategy") or {}
    if strategy.get("type") == "OnDelete":
        return []
    rolling = strategy.get("rollingUpdate") or {}
    start, replicas = _start(spec), _replicas(spec)
    limit = _limit(rolling.get("maxUnavailable"), replicas)
    unavailable, result = 0, []
    for ordinal in reversed(range(start + int(rolling.get("partition") or 0), start + replicas)):
        if unavailable >= limit:
            break
        pod = by_ordinal[ordinal]
        if labels_of(pod).get(HASH) != update and not is_deleting(pod):
            result.append(pod)
            unavailable += 1
        elif not _is_available(pod, min_ready_s, now):
            unavailable += 1
    return result


def _limit(value: int | str | None, replicas: int) -> int:
    if isinstance(value, str):
        value = math.ceil(int(value.rstrip("%")) * replicas / 100)
    return max(1, value or 1)


def _revision_for(statefulset: Object, ordinal: int, update: str) -> str:
    """Below the partition of a rolling update a Pod keeps the current revision, also when it has to be made again."""
    spec, status = statefulset["spec"], statefulset.get("status") or {}
    current = str(status.get("currentRevision") or update)
    strategy = spec.get("updateStrategy") or {}
    if strategy.get("type") == "OnDelete":
        return update
    partition = int((strategy.get("rollingUpdate") or {}).get("partition") or 0)
    return current if ordinal < _start(spec) + partition else update


def render_status(
    statefulset: Object, pods: Sequence[Object], update: str, collisions: int, now: datetime
) -> dict[str, Any]:
    """Count Pods into a StatefulSetStatus; the current revision moves on when a rolling update is over."""
    spec, before = statefulset["spec"], statefulset.get("status") or {}
    current = str(before.get("currentRevision") or update)
    kept = [pod for pod in pods if not is_terminal(pod) or is_deleting(pod)]
    alive = [pod for pod in pods if not is_deleting(pod) and not is_terminal(pod)]
    ready = [pod for pod in kept if phase_of(pod) == "Running" and is_ready(pod)]
    min_ready_s = spec.get("minReadySeconds") or 0
    updated = sum(labels_of(pod).get(HASH) == update for pod in alive)
    counts = {
        "readyReplicas": len(ready),
        "currentReplicas": sum(labels_of(pod).get(HASH) == current for pod in alive),
        "updatedReplicas": updated,
    }
    rolling = (spec.get("updateStrategy") or {}).get("type", "RollingUpdate") == "RollingUpdate"
    if rolling and current != update and updated == len(kept) == len(ready) == _replicas(spec):
        current, counts["currentReplicas"] = update, updated
    return {
        "observedGeneration": statefulset["metadata"].get("generation", 1),
        "replicas": len(kept),
        **{key: count for key, count in counts.items() if count},
        "currentRevision": current,
        "updateRevision": update,
        "collisionCount": collisions,
        "availableReplicas": sum(available_in_s(pod, min_ready_s, now) == 0.0 for pod in ready),
    }
