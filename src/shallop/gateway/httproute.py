"""
HTTPRoute: what comes to the gateway for some host names and paths goes to Services, by weight.

Honoured: matches of path, method, headers and query parameters, the filters URLRewrite of a path and
RequestHeaderModifier, weights, ``timeouts.request`` and ``retry.attempts`` for predictions. What else a route asks for
is named in ``status.parents``.

Source: Gateway API v1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shallop.controller import Column, Context, Kind, Resource, Result
from shallop.kube.objects import set_condition

__all__ = ["HTTPROUTE", "find_unsupported"]

CONTROLLER = "shallop.dev/gateway"
_PRESERVED = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_NAME = {"type": "string", "minLength": 1, "maxLength": 253}

_BACKEND = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "group": {"type": "string"},
        "kind": {"type": "string"},
        "name": _NAME,
        "namespace": {"type": "string"},
        "port": {"type": "integer", "minimum": 1, "maximum": 65535},
        "weight": {"type": "integer", "minimum": 0, "maximum": 1000000},
        "filters": {"type": "array", "items": _PRESERVED},
    },
}
_MATCH = {
    "type": "object",
    "properties": {
        "path": {
            "type": "object",
            "properties": {
                "type": {"type": "string", "enum": ["Exact", "PathPrefix", "RegularExpression"]},
                "value": {"type": "string", "maxLength": 1024, "pattern": "^/"},
            },
        },
        "headers": {"type": "array", "items": _PRESERVED},
        "queryParams": {"type": "array", "items": _PRESERVED},
        "method": {"type": "string"},
    },
}
_SCHEMA = {
    "type": "object",
    "required": ["spec"],
    "properties": {
        "spec": {
            "type": "object",
            "properties": {
                "parentRefs": {"type": "array", "items": _PRESERVED},
                "hostnames": {"type": "array", "items": {"type": "string", "maxLength": 253}},
                "rules": {
                    "type": "array",
                    "maxItems": 64,
                    "items": {
                        "type": "object",
                        "properties": {
                            "name": {"type": "string"},
                            "matches": {"type": "array", "items": _MATCH},
                            "filters": {"type": "array", "items": _PRESERVED},
                            "backendRefs": {"type": "array", "items": _BACKEND},
                            "timeouts": _PRESERVED,
                            "retry": _PRESERVED,
                        },
                    },
                },
            },
        },
        "status": _PRESERVED,
    },
}


def find_unsupported(spec: Mapping[str, Any]) -> list[str]:
    """Return the fields of a route that the gateway does not honour."""
    return list(_unsupported(spec))


def _unsupported(spec: Mapping[str, Any]) -> Iterator[str]:
    for index, rule in enumerate(spec.get("rules") or ()):
        where = f"spec.rules[{index}]"
        for number, item in enumerate(rule.get("filters") or ()):
            kind = item.get("type")
            if kind == "URLRewrite":
                if (item.get("urlRewrite") or {}).get("hostname"):
                    yield f"{where}.filters[{number}].urlRewrite.hostname"
            elif kind != "RequestHeaderModifier":
                yield f"{where}.filters[{number}] ({kind})"
        for number, backend in enumerate(rule.get("backendRefs") or ()):
            if backend.get("filters"):
                yield f"{where}.backendRefs[{number}].filters"
            if (backend.get("kind") or "Service", backend.get("group") or "") != ("Service", ""):
                yield f"{where}.backendRefs[{number}].kind"
        if (rule.get("timeouts") or {}).get("backendRequest"):
            yield f"{where}.timeouts.backendRequest"


async def reconcile(ctx: Context, route: Resource[Any]) -> Result:
    """
    Say what the gateway makes of a route.

    Routes of controllers, four for each InferenceService, hear only what is wrong with them.
    """
    parents = route.status.get("parents") or []
    ours = next((item for item in parents if item.get("controllerName") == CONTROLLER), None)
    unsupported = find_unsupported(route.spec)
    if ours is None and not unsupported and route.raw["metadata"].get("ownerReferences"):
        return Result()
    accepted = ("True", "Accepted", "")
    if unsupported:
        accepted = ("False", "UnsupportedValue", f"not honoured by this gateway: {', '.join(unsupported)}")
    conditions = list((ours or {}).get("conditions") or [])
    for type_, (value, reason, message) in {"Accepted": accepted, "ResolvedRefs": ("True", "ResolvedRefs", "")}.items():
        conditions = set_condition(conditions, type_, value, reason, message, ctx.now())
    generation = route.raw["metadata"].get("generation", 0)
    conditions = [item | {"observedGeneration": generation} for item in conditions]
    others = [item for item in parents if item.get("controllerName") != CONTROLLER]
    references = route.spec.get("parentRefs") or [{"name": "shallop"}]
    mine = [{"parentRef": item, "controllerName": CONTROLLER, "conditions": conditions} for item in references]
    await ctx.client.patch_status(route.raw, {"parents": [*others, *mine]})
    return Result()


HTTPROUTE = Kind(
    api_version="gateway.networking.k8s.io/v1",
    kind="HTTPRoute",
    plural="httproutes",
    categories=("gateway-api",),
    schema=_SCHEMA,
    columns=(
        Column("Hostnames", "string", ".spec.hostnames"),
        Column("Age", "date", ".metadata.creationTimestamp"),
    ),
    reconcile=reconcile,
)
