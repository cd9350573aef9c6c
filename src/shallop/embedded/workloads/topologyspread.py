"""
Topology spread constraints that must hold (``whenUnsatisfiable: DoNotSchedule``): where a Pod may go. Pure.

Honours maxSkew, minDomains, topologyKey, labelSelector, matchLabelKeys, nodeAffinityPolicy and nodeTaintsPolicy.
``ScheduleAnyway`` only prefers, which nothing here does.

Source: Kubernetes, "Pod Topology Spread Constraints".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from shallop.kube.objects import Object, is_deleting, labels_of
from shallop.kube.selectors import match_selector

__all__ = ["has_spread", "spread_problem"]

_PROBLEM = "node(s) didn't match pod topology spread constraints"

Constraint = Mapping[str, Any]


def _constraints(pod: Object) -> list[Constraint]:
    listed = pod["spec"].get("topologySpreadConstraints") or ()
    return [item for item in listed if item.get("whenUnsatisfiable", "DoNotSchedule") == "DoNotSchedule"]


def has_spread(pod: Object) -> bool:
    """Say whether other Pods decide where this one may go, by constraints that must hold."""
    return bool(_constraints(pod))


def spread_problem(
    pod: Object,
    node: Object,
    nodes: Sequence[Object],
    placed: Sequence[Object],
    *,
    affine: Callable[[Object], bool],
    tolerated: Callable[[Object], bool],
) -> str:
    """
    Say why a Pod would not be spread as it asks on a node, in the words of kube-scheduler; empty when it would.

    Args:
        placed: Pods that have a node and have not ended.
        affine, tolerated: whether a node is one that the Pod's node affinity picks; whether it tolerates its taints.
    """
    constraints, here = _constraints(pod), labels_of(node)
    keys = {item["topologyKey"] for item in constraints}
    if not keys <= here.keys():
        return f"{_PROBLEM} (missing required label)"
    for item in constraints:
        key, counts = item["topologyKey"], dict[str, int]()
        domains: dict[str, str] = {}
        for other in nodes:
            labels = labels_of(other)
            if not keys <= labels.keys():
                continue
            if item.get("nodeAffinityPolicy", "Honor") == "Honor" and not affine(other):
                continue
            if item.get("nodeTaintsPolicy", "Ignore") == "Honor" and not tolerated(other):
                continue
            domains[other["metadata"]["name"]] = labels[key]
            counts.setdefault(labels[key], 0)
        for other in placed:
            domain = domains.get(other["spec"].get("nodeName", ""))
            if domain is not None and not is_deleting(other) and _is_counted(item, pod, other):
                counts[domain] += 1
        least = min(counts.values(), default=0) if len(counts) >= int(item.get("minDomains") or 1) else 0
        if counts.get(here[key], 0) + _is_counted(item, pod, pod) - least > int(item["maxSkew"]):
            return _PROBLEM
    return ""


def _is_counted(item: Constraint, pod: Object, other: Object) -> bool:
    if other["metadata"].get("namespace") != pod["metadata"].get("namespace") or item.get("labelSelector") is None:
        return False
    own, labels = labels_of(pod), labels_of(other)
    same = all(own[key] == labels.get(key) for key in item.get("matchLabelKeys") or () if key in own)
    return same and match_selector(item["labelSelector"], labels)
