"""Selecting objects of one resource by labels and fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shallop.embedded.apiserver.resources import Resource
from shallop.errors import BadRequestError
from shallop.kube.objects import Object
from shallop.kube.selectors import matches, parse_field_selector, parse_label_selector

__all__ = ["Predicate", "select", "selected_name"]

Predicate = Callable[[Object], bool]
# Absent reads as these where the field has a default that is not written.
_ABSENT = {"spec.unschedulable": "false", "spec.hostNetwork": "false", "status.succeeded": "0"}
_ALIASES = {"status.podIPs": "status.podIP", "status.successful": "status.succeeded"}


def select(resource: Resource, label_selector: str, field_selector: str) -> Predicate | None:
    """
    Build the test of a list or watch; None when everything is selected.

    Raises:
        BadRequestError: wrong syntax, or a field that this resource cannot be selected by.
    """
    labels = parse_label_selector(label_selector)
    fields = parse_field_selector(field_selector)
    known = {"metadata.name", *(("metadata.namespace",) if resource.namespaced or not resource.custom else ())}
    for requirement in fields:
        if requirement.key not in known and requirement.key not in resource.fields:
            raise BadRequestError(_unsupported(resource, requirement.key))
    if not labels and not fields:
        return None

    def selected(obj: Object) -> bool:
        if fields and not matches(fields, lambda key: _field(obj, key)):
            return False
        return not labels or matches(labels, (obj["metadata"].get("labels") or {}).get)

    return selected


def _unsupported(resource: Resource, key: str) -> str:
    if resource.fields:
        return f"field label not supported: {key}"
    return f'"{key}" is not a known field selector: only "metadata.name", "metadata.namespace"'


def selected_name(field_selector: str) -> str:
    """Return the one name that ``metadata.name=x`` asks for, or the empty string."""
    for requirement in parse_field_selector(field_selector):
        if requirement.key == "metadata.name" and requirement.operator == "in":
            return requirement.values[0]
    return ""


def _field(obj: Object, path: str) -> str:
    if path == "source":
        return str((obj.get("source") or {}).get("component", "") or obj.get("reportingComponent", ""))
    path = _ALIASES.get(path, path)
    value: Any = obj
    for step in path.split("."):
        value = value.get(step) if isinstance(value, dict) else None
        if value is None:
            return _ABSENT.get(path, "")
    return str(value).lower() if isinstance(value, bool) else str(value)
