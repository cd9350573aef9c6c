"""LimitRange: defaults for containers that say nothing, and bounds for what they say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

from shallop.embedded.apiserver import failures
from shallop.embedded.apiserver.objects_store import ObjectsStore
from shallop.embedded.apiserver.quantities import format_quantity
from shallop.embedded.apiserver.resources import Resource
from shallop.embedded.apiserver.usage import Amounts, pod_amounts
from shallop.errors import FieldError
from shallop.kube.objects import Object, parse_quantity

__all__ = ["check_limits", "default_limit_range", "validate_limit_range", "with_limits"]

_RANGES = "limitranges"
_ANNOTATION = "kubernetes.io/limit-ranger"


def default_limit_range(obj: Object) -> Object:
    """Fill ``default`` from ``max``, and ``defaultRequest`` from ``default`` or ``min``."""
    spec = obj.get("spec") or {}
    limits = [_default_item(item) if item.get("type") == "Container" else item for item in spec.get("limits") or ()]
    return obj | {"spec": spec | {"limits": limits}}


def _default_item(item: Object) -> Object:
    limits = (item.get("max") or {}) | (item.get("default") or {})
    requests = (item.get("min") or {}) | limits | (item.get("defaultRequest") or {})
    return item | {key: value for key, value in (("default", limits), ("defaultRequest", requests)) if value}


_POD_ONLY = "may not be specified when `type` is Pod"


def validate_limit_range(obj: Object, old: Object | None) -> list[FieldError]:
    errors: list[FieldError] = []
    seen: set[str] = set()
    for index, item in enumerate((obj.get("spec") or {}).get("limits") or ()):
        path = f"spec.limits[{index}]"
        kind = item.get("type", "")
        if kind in seen:
            errors.append(FieldError("FieldValueDuplicate", f'Duplicate value: "{kind}"', f"{path}.type"))
        seen.add(kind)
        if kind == "Pod":
            errors += [
                FieldError.forbidden(f"{path}.{key}", _POD_ONLY)
                for key in ("default", "defaultRequest")
                if item.get(key)
            ]
        elif kind == "PersistentVolumeClaim" and not (item.get("min") or item.get("max")):
            text = "either minimum or maximum storage value is required, but neither was provided"
            errors.append(FieldError.required(path, text))
        errors += _validate_item(item, path)
    return errors


def _validate_item(item: Object, path: str) -> Iterator[FieldError]:
    parts: dict[str, Object] = {
        key: item.get(key) or {} for key in ("max", "min", "default", "defaultRequest", "maxLimitRequestRatio")
    }
    # (field, lower, upper, names of both in the message)
    orders = (
        ("min", "min", "max", "min value", "max value"),
        ("defaultRequest", "min", "defaultRequest", "min value", "default request value"),
        ("defaultRequest", "defaultRequest", "max", "default request value", "max value"),
        ("defaultRequest", "defaultRequest", "default", "default request value", "default limit value"),
        ("default", "min", "default", "min value", "default value"),
        ("default", "default", "max", "default value", "max value"),
    )
    for resource in sorted({key for values in parts.values() for key in values}):
        for field, low, high, low_name, high_name in orders:
            lower, upper = parts[low].get(resource), parts[high].get(resource)
            if lower is None or upper is None or parse_quantity(lower) <= parse_quantity(upper):
                continue
            text = f"{low_name} {lower} is greater than {high_name} {upper}"
            # The real server shows the lower bound for ``default``.
            shown = parts["min"].get(resource) if (field, low) == ("default", "min") else parts[field].get(resource)
            yield FieldError.invalid(f"{path}.{field}[{resource}]", str(shown), text)
        ratio = parts["maxLimitRequestRatio"].get(resource)
        if ratio is not None and parse_quantity(ratio) < 1:
            yield FieldError.invalid(f"{path}.maxLimitRequestRatio[{resource}]", ratio, f"ratio {ratio} is less than 1")


def _items(store: ObjectsStore, namespace: str, kind: str) -> list[Object]:
    return [
        item
        for stored in store.list(_RANGES, namespace)
        for item in (stored.object.get("spec") or {}).get("limits") or ()
        if item.get("type") == kind
    ]


def with_limits(store: ObjectsStore, resource: Resource, obj: Object) -> Object:
    """Return a new Pod with the default requests and limits of its namespace; everything else unchanged."""
    if resource.storage != "pods" or not store.list(_RANGES, obj["metadata"].get("namespace", "")):
        return obj
    items = _items(store, obj["metadata"].get("namespace", ""), "Container")
    limits = {key: value for item in reversed(items) for key, value in (item.get("default") or {}).items()}
    requests = {key: value for item in reversed(items) for key, value in (item.get("defaultRequest") or {}).items()}
    if not limits and not requests:
        return obj
    spec = dict(obj.get("spec") or {})
    notes: list[str] = []
    for key, kind in (("containers", "container"), ("initContainers", "init container")):
        if spec.get(key):
            spec[key] = [_with_defaults(container, kind, requests, limits, notes) for container in spec[key]]
    metadata = dict(obj["metadata"])
    if notes:
        text = f"LimitRanger plugin set: {'; '.join(notes)}"
        metadata["annotations"] = (metadata.get("annotations") or {}) | {_ANNOTATION: text}
    return obj | {"metadata": metadata, "spec": spec}


def _with_defaults(container: Object, kind: str, requests: Object, limits: Object, notes: list[str]) -> Object:
    resources = dict(container.get("resources") or {})
    for key, defaults, what in (("requests", requests, "request"), ("limits", limits, "limit")):
        given = resources.get(key) or {}
        if missing := sorted(defaults.keys() - given.keys()):
            resources[key] = given | {name: defaults[name] for name in missing}
            notes.append(f"{', '.join(missing)} {what} for {kind} {container.get('name', '')}")
    return container | {"resources": resources}


def check_limits(store: ObjectsStore, resource: Resource, obj: Object, old: Object | None) -> None:
    """
    Check a Pod or claim against the LimitRanges of its namespace.

    Raises:
        ForbiddenError: something is below a minimum, above a maximum, or not said where a bound needs it.
    """
    if resource.storage not in ("pods", "persistentvolumeclaims"):
        return
    if old is not None and (obj.get("spec") is old.get("spec") or _resources_of(obj) == _resources_of(old)):
        return
    problems = list(_problems(store, resource, obj))
    if problems:
        why = problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]"
        raise failures.forbidden(resource, obj["metadata"].get("name", ""), why)


def _resources_of(obj: Object) -> list[Any]:
    spec = obj.get("spec") or {}
    containers = (*(spec.get("containers") or ()), *(spec.get("initContainers") or ()))
    return [spec.get("resources"), *(container.get("resources") for container in containers)]


def _problems(store: ObjectsStore, resource: Resource, obj: Object) -> Iterator[str]:
    namespace, spec = obj["metadata"].get("namespace", ""), obj.get("spec") or {}
    if resource.storage == "persistentvolumeclaims":
        claimed = _parsed((spec.get("resources") or {}).get("requests"))
        for item in _items(store, namespace, "PersistentVolumeClaim"):
            yield from _below(item, claimed, None)
            for name, bound in _parsed(item.get("max")).items():
                if claimed.get(name, Decimal(0)) > bound:
                    yield _outside("maximum", name, item["type"], bound, "request", claimed[name])
        return
    for item in _items(store, namespace, "Container"):
        for container in (*(spec.get("containers") or ()), *(spec.get("initContainers") or ())):
            resources = container.get("resources") or {}
            yield from _bounds(item, _parsed(resources.get("requests")), _parsed(resources.get("limits")))
    for item in _items(store, namespace, "Pod"):
        yield from _bounds(item, pod_amounts(spec, "requests"), pod_amounts(spec, "limits"))


def _parsed(quantities: Object | None) -> Amounts:
    return {key: parse_quantity(value) for key, value in (quantities or {}).items()}


def _bounds(item: Object, requests: Amounts, limits: Amounts) -> Iterable[str]:
    yield from _below(item, requests, limits)
    for name, bound in _parsed(item.get("max")).items():
        if name not in limits:
            yield f"maximum {name} usage per {item['type']} is {_show(name, bound)}.  No limit is specified"
        elif limits[name] > bound:
            yield _outside("maximum", name, item["type"], bound, "limit", limits[name])
        elif requests.get(name, Decimal(0)) > bound:
            yield _outside("maximum", name, item["type"], bound, "request", requests[name])
    for name, bound in _parsed(item.get("maxLimitRequestRatio")).items():
        start = f"{name} max limit to request ratio per {item['type']} is {_show(name, bound)}, but"
        if not requests.get(name):
            yield f"{start} no request is specified or request is 0"
        elif not limits.get(name):
            yield f"{start} no limit is specified or limit is 0"
        elif limits[name] / requests[name] > bound:
            yield f"{start} provided ratio is {limits[name] / requests[name]:.6f}"


def _below(item: Object, requests: Amounts, limits: Amounts | None) -> Iterable[str]:
    for name, bound in _parsed(item.get("min")).items():
        if name not in requests:
            yield f"minimum {name} usage per {item['type']} is {_show(name, bound)}.  No request is specified"
        elif requests[name] < bound:
            yield _outside("minimum", name, item["type"], bound, "request", requests[name])
        elif limits is not None and limits.get(name, bound) < bound:
            yield _outside("minimum", name, item["type"], bound, "limit", limits[name])


def _outside(which: str, name: str, kind: str, bound: Decimal, what: str, found: Decimal) -> str:
    return f"{which} {name} usage per {kind} is {_show(name, bound)}, but {what} is {_show(name, found)}"


def _show(name: str, amount: Decimal) -> str:
    return format_quantity(amount, binary="memory" in name or "storage" in name)
