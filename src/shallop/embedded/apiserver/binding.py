"""What a Pod looks like once it has a node."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from shallop.kube.objects import Object, set_condition

__all__ = ["place_on", "with_probe_times"]


def place_on(pod: Object, node: str, now: datetime, annotations: Mapping[str, str] | None = None) -> Object:
    """Return the Pod on its node, with the annotations that its Binding adds."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    if annotations:
        metadata = {**metadata, "annotations": {**(metadata.get("annotations") or {}), **annotations}}
    conditions = set_condition(status.get("conditions") or [], "PodScheduled", "True", "", "", now)
    return pod | {
        "metadata": metadata,
        "spec": (pod.get("spec") or {}) | {"nodeName": node},
        "status": status | {"conditions": with_probe_times(conditions)},
    }


def with_probe_times(conditions: list[Object]) -> list[Object]:
    """Conditions of a Pod always say when they were probed, if only that nobody knows."""
    return [{"lastProbeTime": None, **condition} for condition in conditions]
