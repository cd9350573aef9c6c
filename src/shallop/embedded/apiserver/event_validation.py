"""
Events: what each of their two versions asks of new and of changed ones.

Both versions show the same objects: ``core/v1`` for whoever reads, ``events.k8s.io/v1`` (stricter) for series of
repetitions, whose count and time of the last one is all that may change.
"""

from __future__ import annotations

import json

from shallop.embedded.apiserver.metadata import check_qualified_name
from shallop.errors import FieldError
from shallop.kube.objects import Object

__all__ = ["default_event", "validate_event"]

_NEW = "events.k8s.io/v1"
_MAX_TEXT, _MAX_NOTE = 128, 1024
_DEPRECATED = ("deprecatedFirstTimestamp", "deprecatedLastTimestamp", "deprecatedCount", "deprecatedSource")
_CHANGING = ("metadata", "series", "kind", "apiVersion")


def default_event(obj: Object, old: Object | None) -> Object:
    """Fill in what is always written, even empty."""
    empty: Object = {"eventTime": None}
    if obj["apiVersion"] != _NEW:
        times: Object = {"firstTimestamp": None, "lastTimestamp": None}
        empty |= times | {"source": {}, "reportingComponent": "", "reportingInstance": ""}
    return obj | {key: value for key, value in empty.items() if obj.get(key) is None}


def validate_event(obj: Object, old: Object | None) -> list[FieldError]:
    new_form = obj["apiVersion"] == _NEW
    errors = _check_namespace(obj)
    if obj.get("eventTime"):
        errors += _check_reporter(obj, "reportingController" if new_form else "reportingComponent")
    if not new_form:
        return errors
    if old is not None:
        return errors + _check_unchanged(obj, old)
    if not obj.get("eventTime"):
        errors.append(FieldError.required("eventTime"))
    if obj.get("type") not in ("Normal", "Warning"):
        given = obj.get("type") or ""
        errors.append(FieldError.invalid("type", given, f"has invalid value: {given}"))
    names = {name: name.removeprefix("deprecated") for name in _DEPRECATED}
    return errors + [
        FieldError.invalid(name[0].lower() + name[1:], str(obj[key]), "needs to be unset")
        for key, name in names.items()
        if obj.get(key)
    ]


def _check_namespace(obj: Object) -> list[FieldError]:
    involved = (obj.get("involvedObject") or obj.get("regarding") or {}).get("namespace") or ""
    namespace = obj["metadata"].get("namespace") or ""
    # What has no namespace is told of in "default".
    if namespace == (involved or "default"):
        return []
    return [FieldError.invalid("involvedObject.namespace", involved, "does not match event.namespace")]


def _check_reporter(obj: Object, controller: str) -> list[FieldError]:
    errors = []
    name = obj.get(controller) or ""
    if not name:
        errors.append(FieldError.required(controller))
    errors += [FieldError.invalid(controller, name, text) for text in check_qualified_name(name)]
    for key in ("reportingInstance", "action", "reason"):
        value = obj.get(key) or ""
        if not value:
            errors.append(FieldError.required(key))
        if len(value) > _MAX_TEXT:
            errors.append(FieldError.invalid(key, "", f"can have at most {_MAX_TEXT} characters"))
    if len(obj.get("message") or obj.get("note") or "") > _MAX_NOTE:
        errors.append(FieldError.invalid("message", "", f"can have at most {_MAX_NOTE} characters"))
    return errors


def _check_unchanged(obj: Object, old: Object) -> list[FieldError]:
    keys = sorted((obj.keys() | old.keys()) - set(_CHANGING))
    return [
        FieldError("FieldValueInvalid", f"Invalid value: {json.dumps(obj.get(key))}: field is immutable", key)
        for key in keys
        if (obj.get(key) or None) != (old.get(key) or None)
    ]
