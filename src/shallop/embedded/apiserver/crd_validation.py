"""What a CustomResourceDefinition must look like to be served."""

from __future__ import annotations

import json
import re
from typing import Any

from shallop.embedded.apiserver.admission_validation import validate_client
from shallop.embedded.apiserver.jsonpath import compile_path
from shallop.embedded.apiserver.metadata import check_dns_label_1035, check_dns_subdomain
from shallop.embedded.apiserver.structural import check_crd_schema
from shallop.errors import FieldError
from shallop.kube.objects import Object

__all__ = ["validate_crd"]

_SCOPES = ("Cluster", "Namespaced")
_COLUMN_TYPES = ("boolean", "date", "integer", "number", "string")
_PROTECTED = re.compile(r"(.*\.)?(k8s|kubernetes)\.io")
_APPROVED = "api-approved.kubernetes.io"


def validate_crd(crd: Object, old: Object | None) -> list[FieldError]:
    spec = crd.get("spec") or {}
    errors = _names(crd, spec)
    versions = spec.get("versions") or []
    shown = [_go_version(version) for version in versions]
    storage = [version for version in versions if version.get("storage")]
    if len({version.get("name") for version in versions}) != len(versions):
        errors.append(_invalid("spec.versions", shown, "must contain unique version names"))
    if len(storage) != 1:
        errors.append(_invalid("spec.versions", shown, "must have exactly one version marked as storage version"))
    stored = (crd.get("status") or {}).get("storedVersions")
    if not stored:
        text = "must have at least one stored version"
        errors.append(_invalid("status.storedVersions", None, text))
    elif storage and storage[-1].get("name") not in stored:
        text = f"must have the storage version {storage[-1].get('name')}"
        errors.append(_invalid("status.storedVersions", stored, text))
    for index, version in enumerate(versions):
        errors += _version(version, index, single=len(versions) == 1)
    if versions:
        # The real server keeps the name of the first version here, too.
        name = versions[0].get("name", "")
        errors += [FieldError.invalid("spec.version", name, text) for text in check_dns_label_1035(name)]
    errors += _conversion(spec.get("conversion") or {})
    if spec.get("preserveUnknownFields"):
        text = "cannot set to true, set x-kubernetes-preserve-unknown-fields to true in spec.versions[*].schema instead"
        errors.append(FieldError.invalid("spec.preserveUnknownFields", True, text))
    if old is not None:
        errors += _changes(crd, spec, old)
    return errors


def _invalid(field: str, value: Any, detail: str) -> FieldError:
    return FieldError(
        "FieldValueInvalid", f"Invalid value: {json.dumps(value, separators=(',', ':'))}: {detail}", field
    )


def _go_version(version: Object) -> Object:
    return {
        "Name": version.get("name", ""),
        "Served": bool(version.get("served")),
        "Storage": bool(version.get("storage")),
        "Deprecated": bool(version.get("deprecated")),
        "DeprecationWarning": version.get("deprecationWarning"),
        "Schema": None,
        "Subresources": None,
        "AdditionalPrinterColumns": None,
        "SelectableFields": None,
    }


def _names(crd: Object, spec: Object) -> list[FieldError]:
    names = spec.get("names") or {}
    group, plural = spec.get("group", ""), names.get("plural", "")
    errors = []
    if not group:
        errors.append(FieldError.required("spec.group"))
    else:
        errors += [FieldError.invalid("spec.group", group, text) for text in check_dns_subdomain(group)]
    if spec.get("scope") not in _SCOPES:
        errors.append(FieldError.not_supported("spec.scope", spec.get("scope", ""), _SCOPES))
    errors += [
        FieldError.required(f"spec.names.{key}")
        for key in ("plural", "singular", "kind", "listKind")
        if not names.get(key)
    ]
    name = crd["metadata"].get("name", "")
    if plural and group and name != f"{plural}.{group}":
        errors.append(FieldError.invalid("metadata.name", name, 'must be spec.names.plural+"."+spec.group'))
    if _PROTECTED.fullmatch(group) and not (crd["metadata"].get("annotations") or {}).get(_APPROVED):
        text = (
            f'protected groups must have approval annotation "{_APPROVED}", see '
            "https://github.com/kubernetes/enhancements/pull/1111"
        )
        errors.append(FieldError.required(f"metadata.annotations[{_APPROVED}]", text))
    return errors


def _version(version: Object, index: int, *, single: bool) -> list[FieldError]:
    field = f"spec.versions[{index}]"
    name = version.get("name", "")
    errors = [FieldError.invalid(f"{field}.name", name, text) for text in check_dns_label_1035(name)]
    schema = (version.get("schema") or {}).get("openAPIV3Schema")
    if schema is None:
        errors.append(FieldError.required(f"{field}.schema.openAPIV3Schema"))
    else:
        path = "spec.validation.openAPIV3Schema" if single else f"{field}.schema.openAPIV3Schema"
        errors += check_crd_schema(schema, path)
    base = "spec" if single else field
    scale = (version.get("subresources") or {}).get("scale") or {}
    for key, root in (("specReplicasPath", "spec"), ("statusReplicasPath", "status")):
        path = str(scale.get(key) or "")
        if scale and not path:
            errors.append(FieldError.required(f"{base}.subresources.scale.{key}"))
        elif path and not path.startswith(f".{root}."):
            text = f"should be a json path under .{root}"
            errors.append(FieldError.invalid(f"{base}.subresources.scale.{key}", path, text))
    for number, column in enumerate(version.get("additionalPrinterColumns") or ()):
        errors += _column(column, f"{base}.additionalPrinterColumns[{number}]")
    return errors


def _column(column: Object, field: str) -> list[FieldError]:
    errors = [FieldError.required(f"{field}.name")] if not column.get("name") else []
    kind, path = column.get("type", ""), column.get("jsonPath", "")
    if kind not in _COLUMN_TYPES:
        errors.append(FieldError.invalid(f"{field}.type", kind, f"must be one of {','.join(_COLUMN_TYPES)}"))
    if not path.startswith("."):
        errors.append(FieldError.invalid(f"{field}.JSONPath", path, "must be a simple json path starting with ."))
        return errors
    try:
        compile_path(path)
    except ValueError as error:
        errors.append(FieldError.invalid(f"{field}.JSONPath", path, str(error)))
    return errors


def _conversion(conversion: Object) -> list[FieldError]:
    strategy, field = conversion.get("strategy", "None"), "spec.conversion"
    webhook = conversion.get("webhook") or {}
    config, versions = webhook.get("clientConfig"), webhook.get("conversionReviewVersions")
    if strategy == "None":
        return [
            FieldError.forbidden(f"{field}.{name}", "should not be set when strategy is not set to Webhook")
            for name, value in (("webhookClientConfig", config), ("conversionReviewVersions", versions))
            if value
        ]
    if strategy != "Webhook":
        return [FieldError.not_supported(f"{field}.strategy", strategy, ("None", "Webhook"))]
    errors: list[FieldError] = []
    if config:
        errors += validate_client(config, f"{field}.webhookClientConfig")
    else:
        text = "required when strategy is set to Webhook"
        errors.append(FieldError.required(f"{field}.webhookClientConfig", text))
    if not versions:
        errors.append(FieldError.required(f"{field}.conversionReviewVersions"))
    elif not {"v1", "v1beta1"} & set(versions):
        text = "must include at least one of v1, v1beta1"
        errors.append(_invalid(f"{field}.conversionReviewVersions", versions, text))
    return errors


def _changes(crd: Object, spec: Object, old: Object) -> list[FieldError]:
    before = old.get("spec") or {}
    errors = []
    established = any(
        condition["type"] == "Established" and condition["status"] == "True"
        for condition in (old.get("status") or {}).get("conditions") or ()
    )
    if established:
        for path in (("scope",), ("names", "kind")):
            new, known = spec, before
            for step in path:
                new, known = new.get(step) or {}, known.get(step) or {}
            if new != known:
                errors.append(FieldError.invalid(f"spec.{'.'.join(path)}", new, "field is immutable"))
    names = {version.get("name") for version in spec.get("versions") or ()}
    stored = (old.get("status") or {}).get("storedVersions") or []
    for index, name in enumerate(stored):
        if name not in names:
            text = (
                "missing from spec.versions; "
                + f"{name} was previously a storage version, and must remain in spec.versions "
            )
            text += "until a storage migration ensures no data remains persisted in "
            text += f"{name} and removes {name} from status.storedVersions"
            errors.append(FieldError.invalid(f"status.storedVersions[{index}]", name, text))
    return errors
