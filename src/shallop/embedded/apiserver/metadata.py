"""Rules for ``metadata``: names, labels, annotations, finalizers, owners; worded as a real API server words them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from shallop.embedded.apiserver.resources import Resource
from shallop.errors import FieldError
from shallop.kube.objects import Object

__all__ = ["check_dns_label", "check_dns_subdomain", "check_labels", "check_qualified_name", "validate_metadata"]

_LABEL = "[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_LABEL_1035 = "[a-z]([-a-z0-9]*[a-z0-9])?"
_QUALIFIED = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_VALUE = f"({_QUALIFIED})?"
_LABEL_RE = re.compile(_LABEL)
_SUBDOMAIN_RE = re.compile(_SUBDOMAIN)
_LABEL_1035_RE = re.compile(_LABEL_1035)
_QUALIFIED_RE = re.compile(_QUALIFIED)
_VALUE_RE = re.compile(_VALUE)

_SUBDOMAIN_TEXT = (
    "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must "
    "start and end "
    f"with an alphanumeric character (e.g. 'example.com', regex used for validation is '{_SUBDOMAIN}')"
)
_LABEL_TEXT = (
    "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and "
    "end with an "
    f"alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '{_LABEL}')"
)
_LABEL_1035_TEXT = (
    "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic "
    "character, and end "
    f"with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '{_LABEL_1035}')"
)
_NAME_PART_TEXT = (
    "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character "
    f"(e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '{_QUALIFIED}')"
)
_VALUE_TEXT = (
    "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must "
    "start and end "
    "with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is "
    f"'{_VALUE}')"
)
_MAX_ANNOTATIONS = 256 * 1024

# Kinds whose names are not DNS subdomains.
_LABEL_NAMES = {"Namespace"}
_PATH_NAMES = {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}
# The last one is what the server itself puts on CustomResourceDefinitions.
_STANDARD_FINALIZERS = {"kubernetes", "orphan", "foregroundDeletion", "customresourcecleanup.apiextensions.k8s.io"}


def check_dns_subdomain(name: str) -> list[str]:
    problems = [] if len(name) <= 253 else ["must be no more than 253 characters"]
    return problems if _SUBDOMAIN_RE.fullmatch(name) else [*problems, _SUBDOMAIN_TEXT]


def check_dns_label(name: str) -> list[str]:
    problems = [] if len(name) <= 63 else ["must be no more than 63 characters"]
    return problems if _LABEL_RE.fullmatch(name) else [*problems, _LABEL_TEXT]


def check_service_name(name: str) -> list[str]:
    problems = [] if len(name) <= 63 else ["must be no more than 63 characters"]
    if "." in name:
        return [*problems, "must not contain dots"]
    return problems if _LABEL_RE.fullmatch(name) else [*problems, _LABEL_TEXT]


def check_dns_label_1035(name: str) -> list[str]:
    problems = [] if len(name) <= 63 else ["must be no more than 63 characters"]
    return problems if _LABEL_1035_RE.fullmatch(name) else [*problems, _LABEL_1035_TEXT]


def check_path_segment(name: str) -> list[str]:
    if name in (".", ".."):
        return [f"may not be '{name}'"]
    return [f"may not contain '{char}'" for char in "/%" if char in name]


@lru_cache(maxsize=1000)
def check_qualified_name(name: str) -> tuple[str, ...]:
    """Check a label key or a finalizer, ``[subdomain/]name``; the same few come again and again."""
    prefix, slash, part = name.rpartition("/")
    problems = []
    if name.count("/") > 1:
        return (
            f"a valid label key {_NAME_PART_TEXT} with an optional DNS subdomain prefix and '/' (e.g. "
            "'example.com/MyName')",
        )
    if slash:
        if not prefix:
            problems.append("prefix part must be non-empty")
        problems += [f"prefix part {text}" for text in (check_dns_subdomain(prefix) if prefix else ())]
    if not part:
        problems.append("name part must be non-empty")
    elif len(part) > 63:
        problems.append("name part must be no more than 63 characters")
    if not _QUALIFIED_RE.fullmatch(part):
        problems.append(f"name part {_NAME_PART_TEXT}")
    return tuple(problems)


def check_label_value(value: str) -> list[str]:
    problems = [] if len(value) <= 63 else ["must be no more than 63 bytes"]
    return problems if _VALUE_RE.fullmatch(value) else [*problems, _VALUE_TEXT]


def check_labels(labels: Any, field: str) -> list[FieldError]:
    errors = []
    for key, value in (labels or {}).items():
        errors += [FieldError.invalid(field, key, text) for text in check_qualified_name(key)]
        errors += [FieldError.invalid(field, value, text) for text in check_label_value(str(value))]
    return errors


def name_check(resource: Resource) -> Callable[[str], list[str]]:
    if not resource.custom:
        if resource.kind in _LABEL_NAMES:
            return check_dns_label
        if resource.storage == "services":
            return check_service_name
        if resource.kind in _PATH_NAMES:
            return check_path_segment
    return check_dns_subdomain


def validate_metadata(resource: Resource, obj: Object, old: Object | None) -> list[FieldError]:
    """Return what is wrong with the metadata of a new or changed object; parts as they were stored are right."""
    metadata = obj["metadata"]
    before = old["metadata"] if old is not None else {}
    errors: list[FieldError] = []
    if old is None:
        errors += _name_errors(resource, metadata)
    for key, check in _CHECKS:
        value = metadata.get(key)
        if value and value is not before.get(key):
            errors += check(value)
    if old is not None:
        errors += _change_errors(metadata, old["metadata"])
    return errors


def _name_errors(resource: Resource, metadata: Object) -> list[FieldError]:
    check = name_check(resource)
    errors = []
    prefix = metadata.get("generateName")
    if prefix:
        # What is generated ends in a letter, so a trailing dash is fine.
        stem = prefix[:-1] + "a" if prefix.endswith("-") else prefix
        errors += [FieldError.invalid("metadata.generateName", prefix, text) for text in check(stem)]
    name = metadata.get("name", "")
    if not name:
        return [*errors, FieldError.required("metadata.name", "name or generateName is required")]
    return errors + [FieldError.invalid("metadata.name", name, text) for text in check(name)]


def _annotation_errors(annotations: Object) -> list[FieldError]:
    errors = []
    size = 0
    for key, value in annotations.items():
        errors += [FieldError.invalid("metadata.annotations", key, text) for text in check_qualified_name(key.lower())]
        size += len(key) + len(value.encode())
    if size > _MAX_ANNOTATIONS:
        text = f"Too long: may not be more than {_MAX_ANNOTATIONS} bytes"
        errors.append(FieldError("FieldValueTooLong", text, "metadata.annotations"))
    return errors


def _owner_errors(references: list[Object]) -> list[FieldError]:
    field = "metadata.ownerReferences"
    errors = []
    controllers = []
    for reference in references:
        if not reference.get("apiVersion"):
            errors.append(FieldError.invalid(f"{field}.apiVersion", "", "version must not be empty"))
        errors += [
            FieldError.invalid(f"{field}.{key}", "", "must not be empty")
            for key in ("kind", "name", "uid")
            if not reference.get(key)
        ]
        if reference.get("controller"):
            controllers.append(f"{reference.get('kind')}/{reference.get('name')}")
    if len(controllers) > 1:
        shown = json.dumps(references, separators=(",", ":"))
        names = " and ".join(controllers)
        text = f'Only one reference can have Controller set to true. Found "true" in references for {names}'
        errors.append(FieldError("FieldValueInvalid", f"Invalid value: {shown}: {text}", field))
    return errors


def _finalizer_errors(finalizers: list[str]) -> list[FieldError]:
    errors = []
    for index, name in enumerate(finalizers):
        problems = check_qualified_name(name)
        if problems:
            errors += [FieldError.invalid("metadata.finalizers", name, text) for text in problems]
        elif "/" not in name and name not in _STANDARD_FINALIZERS:
            text = "name is neither a standard finalizer name nor is it fully qualified"
            errors.append(FieldError.invalid(f"metadata.finalizers[{index}]", name, text))
    return errors


_CHECKS: tuple[tuple[str, Callable[[Any], list[FieldError]]], ...] = (
    ("annotations", _annotation_errors),
    ("labels", lambda labels: check_labels(labels, "metadata.labels")),
    ("ownerReferences", _owner_errors),
    ("finalizers", _finalizer_errors),
)


def _change_errors(metadata: Object, old: Object) -> list[FieldError]:
    if not old.get("deletionTimestamp"):
        return []
    added = [name for name in metadata.get("finalizers") or () if name not in (old.get("finalizers") or ())]
    if not added:
        return []
    shown = ", ".join(f'"{name}"' for name in added)
    text = f"no new finalizers can be added if the object is being deleted, found new finalizers []string{{{shown}}}"
    return [FieldError.forbidden("metadata.finalizers", text)]
