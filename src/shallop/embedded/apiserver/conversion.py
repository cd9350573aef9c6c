"""Versions of one resource: what is stored in one version is read and written in another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shallop.embedded.apiserver.objects_store import Stored
from shallop.embedded.apiserver.resources import Resource
from shallop.errors import InternalError
from shallop.kube.objects import Object

__all__ = ["add_view", "is_viewable", "to_storage", "to_version", "view"]


def view(resource: Resource, stored: Stored) -> Object:
    """Return what is stored in the version of ``resource``; conversions by webhook are prepared by ``Converter``."""
    if resource.webhook is not None and (known := stored.views.get(resource.gvk)) is not None:
        return known[1]
    return to_version(resource, stored.object)


def is_viewable(resource: Resource, stored: Stored) -> bool:
    """Whether ``view`` knows the answer without asking a webhook."""
    known = stored.views.get(resource.gvk)
    if known is not None and known[0] is resource:
        return True
    return bool(stored.object["apiVersion"] == resource.api_version)


def add_view(resource: Resource, stored: Stored, obj: Object) -> None:
    # Known for this resource only: once its CRD is changed, another conversion may hold.
    stored.views = {**stored.views, resource.gvk: (resource, obj)}


def to_version(resource: Resource, stored: Object) -> Object:
    """Return a stored object in the version of ``resource``; the object itself when that is how it is stored."""
    if stored["apiVersion"] == resource.api_version:
        return stored
    if resource.webhook is not None:
        raise InternalError(f"{resource.qualified}: an object was not converted before it was asked for")
    converted = {"kind": resource.kind, "apiVersion": resource.api_version}
    converted |= {key: value for key, value in stored.items() if key not in converted}
    if resource.custom:
        # Conversion strategy None: the fields that the other version knows, with its defaults.
        return resource.schema.clean(converted)[0] if resource.schema else converted
    convert = _OUT.get((resource.group, resource.kind, resource.version))
    return convert(converted) if convert else converted


def to_storage(resource: Resource, obj: Object) -> Object:
    """Return an object as it is stored; private metadata stays private."""
    if resource.custom:
        stored = obj | {"apiVersion": f"{resource.group}/{resource.storage_version}"}
        # The stored version has defaults of its own, and fields that it does not know are lost.
        return resource.stored_schema.clean(stored)[0] if resource.stored_schema else stored
    convert = _IN.get((resource.group, resource.kind, resource.version))
    return convert(obj) if convert else obj


_EVENT_NAMES = {
    "involvedObject": "regarding",
    "message": "note",
    "source": "deprecatedSource",
    "firstTimestamp": "deprecatedFirstTimestamp",
    "lastTimestamp": "deprecatedLastTimestamp",
    "count": "deprecatedCount",
    "reportingComponent": "reportingController",
}
_EVENT_NAMES_BACK = {new: old for old, new in _EVENT_NAMES.items()}


def _event_out(event: Object) -> Object:
    return {_EVENT_NAMES.get(key, key): value for key, value in event.items()}


def _event_in(event: Object) -> Object:
    return {_EVENT_NAMES_BACK.get(key, key): value for key, value in event.items()} | {"apiVersion": "v1"}


def _hpa_out(hpa: Object) -> Object:
    """autoscaling/v1 shows the CPU utilisation target only."""
    spec = dict(hpa.get("spec") or {})
    for metric in spec.pop("metrics", None) or ():
        target = _cpu(metric).get("target") or {}
        if "averageUtilization" in target:
            spec["targetCPUUtilizationPercentage"] = target["averageUtilization"]
    spec.pop("behavior", None)
    status = dict(hpa.get("status") or {})
    status.pop("conditions", None)
    for metric in status.pop("currentMetrics", None) or ():
        current = _cpu(metric).get("current") or {}
        if "averageUtilization" in current:
            status["currentCPUUtilizationPercentage"] = current["averageUtilization"]
    return hpa | {"spec": spec, "status": status}


def _cpu(metric: Any) -> Object:
    resource = metric.get("resource") or {}
    return resource if resource.get("name") == "cpu" else {}


def _hpa_in(hpa: Object) -> Object:
    spec = dict(hpa.get("spec") or {})
    percentage = spec.pop("targetCPUUtilizationPercentage", None)
    if percentage is not None:
        target = {"type": "Utilization", "averageUtilization": percentage}
        spec["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]
    status = dict(hpa.get("status") or {})
    status.pop("currentCPUUtilizationPercentage", None)
    return hpa | {"apiVersion": "autoscaling/v2", "spec": spec, "status": status}


_Convert = Callable[[Object], Object]
_OUT: dict[tuple[str, str, str], _Convert] = {
    ("events.k8s.io", "Event", "v1"): _event_out,
    ("autoscaling", "HorizontalPodAutoscaler", "v1"): _hpa_out,
}
_IN: dict[tuple[str, str, str], _Convert] = {
    ("events.k8s.io", "Event", "v1"): _event_in,
    ("autoscaling", "HorizontalPodAutoscaler", "v1"): _hpa_in,
}
