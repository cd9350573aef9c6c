"""What controllers read from Pods."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal

from shallop.kube.objects import Gvk, Object, find_condition, is_condition_true, is_deleting, parse_quantity, parse_time

__all__ = [
    "POD",
    "available_in_s",
    "is_active",
    "is_available",
    "is_ready",
    "is_terminal",
    "phase_of",
    "requests_of",
]

POD = Gvk("v1", "Pod")


def phase_of(pod: Object) -> str:
    return str((pod.get("status") or {}).get("phase") or "Pending")


def is_terminal(pod: Object) -> bool:
    """True when no process of the Pod will ever run again."""
    return phase_of(pod) in ("Succeeded", "Failed")


def is_active(pod: Object) -> bool:
    return not is_terminal(pod) and not is_deleting(pod)


def is_ready(pod: Object) -> bool:
    return is_condition_true(pod, "Ready")


def available_in_s(pod: Object, min_ready_s: int, now: datetime) -> float | None:
    """Return seconds until a ready Pod counts as available, 0 when it does, None when it is not ready."""
    condition = find_condition(pod, "Ready")
    if not condition or condition.get("status") != "True":
        return None
    since = condition.get("lastTransitionTime")
    if not min_ready_s or not since:
        return 0.0
    return max(0.0, (parse_time(since) + timedelta(seconds=min_ready_s) - now).total_seconds())


def is_available(pod: Object, min_ready_s: int, now: datetime) -> bool:
    return available_in_s(pod, min_ready_s, now) == 0.0


def requests_of(pod: Object) -> dict[str, Decimal]:
    """
    Return what a Pod takes from its node: the sum of its containers, or its largest init container where that is more.

    Init containers with ``restartPolicy: Always`` (sidecars) run beside the containers and are added to both.
    """
    spec = pod["spec"]
    total: dict[str, Decimal] = {}
    for container in spec.get("containers") or ():
        _add(total, _container_requests(container))
    sidecars: dict[str, Decimal] = {}
    peaks: dict[str, Decimal] = {}
    for container in spec.get("initContainers") or ():
        requests = _container_requests(container)
        if container.get("restartPolicy") == "Always":
            _add(total, requests)
            _add(sidecars, requests)
            continue
        for name, amount in requests.items():
            peaks[name] = max(peaks.get(name, Decimal(0)), amount + sidecars.get(name, Decimal(0)))
    for name, amount in peaks.items():
        total[name] = max(total.get(name, Decimal(0)), amount)
    for name, text in (spec.get("overhead") or {}).items():
        _add(total, {name: parse_quantity(text)})
    return total


def _container_requests(container: Object) -> dict[str, Decimal]:
    resources = container.get("resources") or {}
    # The API server copies limits to absent requests; a real one does too, but Pods may come from elsewhere.
    merged = {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
    return {name: parse_quantity(text) for name, text in merged.items()}


def _add(total: dict[str, Decimal], more: dict[str, Decimal]) -> None:
    for name, amount in more.items():
        total[name] = total.get(name, Decimal(0)) + amount
