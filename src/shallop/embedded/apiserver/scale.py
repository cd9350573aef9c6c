"""The scale subresource: one small object that every scalable kind can be seen as."""

from __future__ import annotations

from typing import Any

from shallop.embedded.apiserver.resources import Resource
from shallop.kube.objects import Gvk, Object

__all__ = ["GVK", "render_patch", "render_scale"]

GVK = Gvk("autoscaling/v1", "Scale")
_BUILTIN = {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}


def render_scale(resource: Resource, obj: Object) -> Object:
    """Return the Scale of an object."""
    paths = _paths(resource)
    metadata = obj["metadata"]
    kept = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")
    status: Object = {"replicas": _read(obj, paths["statusReplicasPath"]) or 0}
    selector = _selector(resource, obj, paths)
    if selector:
        status["selector"] = selector
    replicas = _read(obj, paths["specReplicasPath"])
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: metadata[key] for key in kept if key in metadata},
        "spec": {"replicas": replicas} if replicas else {},
        "status": status,
    }


def render_patch(resource: Resource, replicas: int) -> Object:
    """Return the merge patch that sets the number of replicas."""
    patch: Any = replicas
    for step in reversed(_paths(resource)["specReplicasPath"].strip(".").split(".")):
        patch = {step: patch}
    return dict(patch)


def _paths(resource: Resource) -> dict[str, str]:
    if resource.crd_version is None:
        return _BUILTIN
    return dict(resource.crd_version["subresources"]["scale"])


def _read(obj: Any, path: str) -> Any:
    for step in path.strip(".").split("."):
        obj = obj.get(step) if isinstance(obj, dict) else None
    return obj


def _selector(resource: Resource, obj: Object, paths: dict[str, str]) -> str:
    if resource.custom:
        return str(_read(obj, paths["labelSelectorPath"]) or "") if paths.get("labelSelectorPath") else ""
    return format_selector((obj.get("spec") or {}).get("selector") or {})


_OPERATORS = {"In": "in", "NotIn": "notin"}


def format_selector(selector: Object) -> str:
    """Write a label selector as text; a plain map (ReplicationController, Service) counts as ``matchLabels``."""
    labels = selector.get("matchLabels", selector if "matchExpressions" not in selector else {}) or {}
    parts = [f"{key}={value}" for key, value in sorted(labels.items())]
    for expression in selector.get("matchExpressions") or ():
        key, operator = expression.get("key", ""), expression.get("operator", "")
        if operator in _OPERATORS:
            parts.append(f"{key} {_OPERATORS[operator]} ({','.join(sorted(expression.get('values') or ()))})")
        else:
            parts.append(key if operator == "Exists" else f"!{key}")
    return ",".join(parts)
