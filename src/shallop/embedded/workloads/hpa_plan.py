"""How many replicas a HorizontalPodAutoscaler wants: pure arithmetic of metrics, windows and policies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from shallop.embedded.workloads.pods import is_ready, is_terminal
from shallop.kube.objects import Object, is_deleting, parse_quantity

__all__ = ["History", "Limited", "Proposal", "Usage", "limit_replicas", "propose", "usage_of"]

_TOLERANCE = Decimal("0.1")
_PERIOD_S = 15
_DOWN: dict[str, Any] = {
    "stabilizationWindowSeconds": 300,
    "selectPolicy": "Max",
    "policies": [{"type": "Percent", "value": 100, "periodSeconds": _PERIOD_S}],
}
_UP: dict[str, Any] = {
    "stabilizationWindowSeconds": 0,
    "selectPolicy": "Max",
    "policies": [
        {"type": "Pods", "value": 4, "periodSeconds": _PERIOD_S},
        {"type": "Percent", "value": 100, "periodSeconds": _PERIOD_S},
    ],
}


class Usage(NamedTuple):
    """One Pod: what it uses of a resource (None when that is not known), what it requests, whether it serves."""

    used: Decimal | None
    requested: Decimal | None
    ready: bool


class Proposal(NamedTuple):
    """
    What one metric asks for.

    Args:
        current: the value as ``status.currentMetrics`` has it.
        text: what was measured, in words.
    """

    replicas: int
    current: dict[str, Any]
    text: str


def usage_of(
    pods: Iterable[Object], metrics: Mapping[str, Object], resource: str, container: str = ""
) -> dict[str, Usage]:
    """
    Bring Pods and their metrics together.

    Args:
        metrics: Pod name -> PodMetrics.
        container: only this container, all of them when empty.

    Returns:
        Pod name -> usage; ended and ending Pods are left out.
    """
    result = {}
    for pod in pods:
        if is_terminal(pod) or is_deleting(pod):
            continue
        name = str(pod["metadata"]["name"])
        containers = [c for c in pod["spec"].get("containers") or () if container in ("", c["name"])]
        requests = [((c.get("resources") or {}).get("requests") or {}).get(resource) for c in containers]
        requested = sum(map(parse_quantity, requests), Decimal(0)) if requests and all(requests) else None  # type: ignore[arg-type]
        result[name] = Usage(_used(metrics.get(name), resource, container), requested, is_ready(pod))
    return result


def _used(metrics: Object | None, resource: str, container: str) -> Decimal | None:
    if metrics is None:
        return None
    amounts = [
        parse_quantity(c["usage"][resource])
        for c in metrics.get("containers") or ()
        if container in ("", c["name"]) and resource in (c.get("usage") or {})
    ]
    return sum(amounts, Decimal(0)) if amounts else None


def propose(target: Mapping[str, Any], usage: Mapping[str, Usage], replicas: int, resource: str) -> Proposal:
    """
    Compute the replicas that bring a resource to its target.

    Args:
        target: of the metric: ``averageUtilization`` in percent of the request, or ``averageValue``.

    Raises:
        ValueError: it cannot be computed; the text says why.
    """
    known = [pod for pod in usage.values() if pod.used is not None]
    if not known:
        raise ValueError("no metrics returned from resource metrics API")
    used = sum((pod.used for pod in known if pod.used is not None), Decimal(0))
    average = used / len(known)
    if target.get("type", "Utilization") == "Utilization":
        for name, pod in usage.items():
            if not pod.requested:
                raise ValueError(f"missing request for {resource} in a container of Pod {name}")
        wanted = Decimal(int(target.get("averageUtilization") or 80)) / 100
        ratios = [_share(pod) / wanted for pod in known]
        total = sum((pod.requested for pod in known if pod.requested is not None), Decimal(0))
        ratio = used / total / wanted
        full = 1 / wanted
        current: dict[str, Any] = {
            "averageUtilization": int(used / total * 100),
            "averageValue": _text(average, resource),
        }
        text = f"{resource} resource utilization (percentage of request)"
    else:
        wanted = parse_quantity(target["averageValue"])
        ratios = [(pod.used or Decimal(0)) / wanted for pod in known]
        ratio, full = average / wanted, Decimal(1)
        current, text = {"averageValue": _text(average, resource)}, f"{resource} resource"
    return Proposal(_replicas(ratio, ratios, full, usage, replicas), current, text)


def _share(pod: Usage) -> Decimal:
    return (pod.used or Decimal(0)) / (pod.requested or Decimal(1))


def _replicas(
    ratio: Decimal, ratios: Sequence[Decimal], full: Decimal, usage: Mapping[str, Usage], replicas: int
) -> int:
    """Pods that are not measured, or not ready, are assumed to be what makes the change smaller."""
    unknown = len(usage) - len(ratios)
    unready = sum(pod.used is not None and not pod.ready for pod in usage.values())
    if abs(ratio - 1) <= _TOLERANCE:
        return replicas
    if ratio > 1 and (unknown or unready):
        ready = [
            r for r, pod in zip(ratios, (p for p in usage.values() if p.used is not None), strict=True) if pod.ready
        ]
        ratio = sum(ready, Decimal(0)) / len(usage)
        if ratio <= 1 + _TOLERANCE:
            return replicas
        return max(replicas, math.ceil(ratio * len(usage)))
    if ratio < 1 and unknown:
        ratio = (sum(ratios, Decimal(0)) + full * unknown) / len(usage)
        if ratio >= 1 - _TOLERANCE:
            return replicas
        return min(replicas, math.ceil(ratio * len(usage)))
    return math.ceil(ratio * len(ratios))


def _text(amount: Decimal, resource: str) -> str:
    return f"{math.ceil(amount * 1000)}m" if resource == "cpu" else str(math.ceil(amount))


@dataclass
class History:
    """What an autoscaler recommended and did lately; after a restart it begins anew, as upstream."""

    recommendations: list[tuple[datetime, int]] = field(default_factory=list)
    changes: list[tuple[datetime, int]] = field(default_factory=list)


class Limited(NamedTuple):
    """The replicas to have, and the condition ScalingLimited; ``stabilized`` says that an earlier wish was kept."""

    replicas: int
    limited: tuple[str, str, str]
    stabilized: str = ""


def limit_replicas(spec: Mapping[str, Any], current: int, desired: int, history: History, now: datetime) -> Limited:
    """Hold ``desired`` within the windows, the policies and the bounds; remembers it in ``history``."""
    behavior = spec.get("behavior") or {}
    up, down = {**_UP, **(behavior.get("scaleUp") or {})}, {**_DOWN, **(behavior.get("scaleDown") or {})}
    if not history.recommendations:
        history.recommendations.append((now, current))
    wanted = _stabilized(current, desired, up, down, history, now)
    kept = ""
    if wanted != desired:
        kept = "ScaleDownStabilized" if desired < current else "ScaleUpStabilized"
    least, most = int(spec.get("minReplicas") or 1), int(spec["maxReplicas"])
    bounded = min(max(wanted, least), most)
    if bounded > current:
        bounded = max(current, min(bounded, _up_limit(up, current, history, now)))
    elif bounded < current:
        bounded = min(current, max(bounded, _down_limit(down, current, history, now)))
    # Bounds come before policies: a target outside of them is brought back at once.
    bounded = min(max(bounded, least), most)
    if wanted > most:
        limited = ("True", "TooManyReplicas", "the desired replica count is more than the maximum replica count")
    elif wanted < least:
        limited = ("True", "TooFewReplicas", "the desired replica count is less than the minimum replica count")
    elif bounded != wanted:
        direction = "increasing faster" if wanted > current else "decreasing faster"
        reason = "ScaleUpLimit" if wanted > current else "ScaleDownLimit"
        limited = ("True", reason, f"the desired replica count is {direction} than the maximum scale rate")
    else:
        limited = ("False", "DesiredWithinRange", "the desired count is within the acceptable range")
    return Limited(bounded, limited, kept)


def _stabilized(
    current: int, desired: int, up: Mapping[str, Any], down: Mapping[str, Any], history: History, now: datetime
) -> int:
    up_s, down_s = int(up["stabilizationWindowSeconds"] or 0), int(down["stabilizationWindowSeconds"] or 0)
    low = high = desired
    kept = []
    for time, replicas in history.recommendations:
        age = (now - time).total_seconds()
        if age < up_s:
            low = min(low, replicas)
        if age < down_s:
            high = max(high, replicas)
        if age < max(up_s, down_s):
            kept.append((time, replicas))
    history.recommendations = [*kept, (now, desired)]
    return min(max(current, low), high)


def _changed(history: History, period_s: int, now: datetime) -> int:
    oldest = now - timedelta(seconds=period_s)
    return sum(change for time, change in history.changes if time > oldest)


def _up_limit(rules: Mapping[str, Any], current: int, history: History, now: datetime) -> int:
    if rules["selectPolicy"] == "Disabled":
        return current
    limits: list[int] = []
    for policy in rules["policies"]:
        started = current - max(0, _changed(history, policy["periodSeconds"], now))
        if policy["type"] == "Pods":
            limits.append(started + policy["value"])
        else:
            limits.append(math.ceil(started * (1 + policy["value"] / 100)))
    return max(limits) if rules["selectPolicy"] == "Max" else min(limits)


def _down_limit(rules: Mapping[str, Any], current: int, history: History, now: datetime) -> int:
    if rules["selectPolicy"] == "Disabled":
        return current
    limits: list[int] = []
    for policy in rules["policies"]:
        started = current - min(0, _changed(history, policy["periodSeconds"], now))
        if policy["type"] == "Pods":
            limits.append(started - policy["value"])
        else:
            limits.append(math.floor(started * (1 - policy["value"] / 100)))
    return min(limits) if rules["selectPolicy"] == "Max" else max(limits)
