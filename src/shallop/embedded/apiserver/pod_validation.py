"""Rules for Pods and Pod templates, worded as a real API server words them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from shallop.embedded.apiserver.metadata import check_dns_label
from shallop.errors import FieldError
from shallop.kube.objects import Object, parse_quantity

__all__ = ["duplicate", "validate_pod", "validate_pod_spec", "validate_template"]

_POLICIES = ("Always", "OnFailure", "Never")
_PULL = ("Always", "IfNotPresent", "Never")
_PROTOCOLS = ("SCTP", "TCP", "UDP")
_HANDLERS = ("exec", "httpGet", "tcpSocket", "grpc", "sleep")
_PORTS = "must be between 1 and 65535, inclusive"
_CHANGEABLE = {"activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates", "nodeName"}
_FIELD_REFS = re.compile(
    r"metadata\.(name|namespace|uid)|metadata\.(labels|annotations)\['.+'\]"
    r"|spec\.(nodeName|serviceAccountName)|status\.(hostIP|hostIPs|podIP|podIPs)"
)
_FORBIDDEN_CHANGE = (
    "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,"
    "`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),"
    "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)


def duplicate(field: str, value: object) -> FieldError:
    shown = f'"{value}"' if isinstance(value, str) else str(value)
    return FieldError("FieldValueDuplicate", f"Duplicate value: {shown}", field)


def validate_pod(pod: Object, old: Object | None) -> list[FieldError]:
    spec = pod.get("spec") or {}
    if old is not None:
        before = old.get("spec") or {}
        return [] if spec is before else _pod_change(spec, before)
    errors = validate_pod_spec(spec, "spec")
    if spec.get("ephemeralContainers"):
        errors.append(FieldError.forbidden("spec.ephemeralContainers", "cannot be set on create"))
    return errors


def _pod_change(spec: Object, old: Object) -> list[FieldError]:
    for key, what in (("containers", "containers"), ("initContainers", "init containers")):
        if len(spec.get(key) or ()) != len(old.get(key) or ()):
            return [FieldError.forbidden(f"spec.{key}", f"pod updates may not add or remove {what}")]
    if _fixed_part(spec) != _fixed_part(old):
        return [FieldError.forbidden("spec", _FORBIDDEN_CHANGE)]
    names = {c["name"] for key in ("containers", "initContainers") for c in spec.get(key) or ()}
    errors = []
    for index, container in enumerate(spec.get("ephemeralContainers") or ()):
        field = f"spec.ephemeralContainers[{index}]"
        if container.get("name") in names:
            errors.append(duplicate(f"{field}.name", container["name"]))
        elif not container.get("image"):
            errors.append(FieldError.required(f"{field}.image"))
    return errors


def _fixed_part(spec: Object) -> Object:
    fixed = {key: value for key, value in spec.items() if key not in _CHANGEABLE and key != "ephemeralContainers"}
    for key in ("containers", "initContainers"):
        if fixed.get(key):
            # Resources change through pods/resize.
            fixed[key] = [
                {name: value for name, value in container.items() if name not in ("image", "resources")}
                for container in fixed[key]
            ]
    return fixed


def validate_template(template: Object, field: str, policies: Iterable[str] = ("Always",)) -> list[FieldError]:
    spec = template.get("spec") or {}
    errors = validate_pod_spec(spec, f"{field}.spec")
    allowed = tuple(policies)
    policy = spec.get("restartPolicy")
    if allowed == ("Always",) and policy in _POLICIES and policy not in allowed:
        errors.append(FieldError.not_supported(f"{field}.spec.restartPolicy", policy, allowed))
    return errors


def validate_pod_spec(spec: Object, field: str) -> list[FieldError]:
    """Return what is wrong with a Pod's spec at path ``field``."""
    volumes: set[str] = set()
    errors = []
    for index, volume in enumerate(spec.get("volumes") or ()):
        path = f"{field}.volumes[{index}].name"
        name = volume.get("name", "")
        if not name:
            errors.append(FieldError.required(path))
        elif name in volumes:
            errors.append(duplicate(path, name))
        else:
            errors += [FieldError.invalid(path, name, text) for text in check_dns_label(name)]
        volumes.add(name)
        sources = [key for key, value in volume.items() if key != "name" and value is not None]
        for extra in sources[1:]:
            where = f"{field}.volumes[{index}].{extra}"
            errors.append(FieldError.forbidden(where, "may not specify more than 1 volume type"))
    containers = spec.get("containers") or []
    if not containers:
        errors.append(FieldError.required(f"{field}.containers"))
    seen: set[str] = set()
    for key in ("containers", "initContainers"):
        for index, container in enumerate(spec.get(key) or ()):
            errors += _container(container, f"{field}.{key}[{index}]", seen, volumes)
    policy = spec.get("restartPolicy")
    if policy not in _POLICIES:
        errors.append(FieldError.not_supported(f"{field}.restartPolicy", policy, _POLICIES))
    errors += _pod_fields(spec, field)
    return errors


def _pod_fields(spec: Object, field: str) -> list[FieldError]:
    errors = []
    for key in ("hostname", "subdomain"):
        if spec.get(key):
            errors += [FieldError.invalid(f"{field}.{key}", spec[key], text) for text in check_dns_label(spec[key])]
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and not 1 <= deadline <= 2147483647:
        text = "must be between 1 and 2147483647, inclusive"
        errors.append(FieldError.invalid(f"{field}.activeDeadlineSeconds", deadline, text))
    for index, toleration in enumerate(spec.get("tolerations") or ()):
        errors += _toleration(toleration, f"{field}.tolerations[{index}]")
    required = ((spec.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if required is not None and not required.get("nodeSelectorTerms"):
        path = f"{field}.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
        errors.append(FieldError.required(path, "must have at least one node selector term"))
    return errors


def _toleration(toleration: Object, path: str) -> list[FieldError]:
    operator = toleration.get("operator", "")
    errors = []
    if not toleration.get("key") and operator != "Exists":
        text = 'operator must be Exists when `key` is empty, which means "match all values and all keys"'
        errors.append(FieldError.invalid(f"{path}.operator", operator, text))
    if operator not in ("", "Equal", "Exists"):
        errors.append(FieldError.not_supported(f"{path}.operator", operator, ("Equal", "Exists")))
    return errors


def _container(container: Object, path: str, seen: set[str], volumes: set[str]) -> list[FieldError]:
    errors = []
    name = container.get("name", "")
    if not name:
        errors.append(FieldError.required(f"{path}.name"))
    elif name in seen:
        errors.append(duplicate(f"{path}.name", name))
    else:
        errors += [FieldError.invalid(f"{path}.name", name, text) for text in check_dns_label(name)]
    seen.add(name)
    if not container.get("image"):
        errors.append(FieldError.required(f"{path}.image"))
    pull = container.get("imagePullPolicy")
    if pull not in _PULL:
        errors.append(FieldError.not_supported(f"{path}.imagePullPolicy", pull, _PULL))
    for index, port in enumerate(container.get("ports") or ()):
        errors += _port(port, f"{path}.ports[{index}]")
    for index, variable in enumerate(container.get("env") or ()):
        errors += _env(variable, f"{path}.env[{index}]")
    errors += _mounts(container, path, volumes)
    errors += _resources(container.get("resources") or {}, f"{path}.resources")
    for key in ("livenessProbe", "readinessProbe", "startupProbe"):
        if container.get(key) is not None:
            errors += _handler(container[key], f"{path}.{key}")
    return errors


def _port(port: Object, path: str) -> list[FieldError]:
    errors = []
    number = port.get("containerPort", 0)
    if not number:
        errors.append(FieldError.required(f"{path}.containerPort"))
    elif not 1 <= number <= 65535:
        errors.append(FieldError.invalid(f"{path}.containerPort", number, _PORTS))
    if port.get("protocol") not in _PROTOCOLS:
        errors.append(FieldError.not_supported(f"{path}.protocol", port.get("protocol"), _PROTOCOLS))
    return errors


def _env(variable: Object, path: str) -> list[FieldError]:
    errors = []
    if not variable.get("name"):
        errors.append(FieldError.required(f"{path}.name"))
    source = variable.get("valueFrom")
    if source is None:
        return errors
    if variable.get("value"):
        return [*errors, FieldError.invalid(f"{path}.valueFrom", "", "may not be specified when `value` is not empty")]
    kinds = [key for key, value in source.items() if value is not None]
    if len(kinds) != 1:
        text = (
            "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"
            if not kinds
            else "may not have more than one field specified at a time"
        )
        return [*errors, FieldError.invalid(f"{path}.valueFrom", "", text)]
    reference = source.get("fieldRef")
    if reference is not None and not _FIELD_REFS.fullmatch(reference.get("fieldPath", "")):
        text = f"error converting fieldPath: field label not supported: {reference.get('fieldPath', '')}"
        field = f"{path}.valueFrom.fieldRef.fieldPath"
        errors.append(FieldError.invalid(field, reference.get("fieldPath", ""), text))
    return errors


def _mounts(container: Object, path: str, volumes: set[str]) -> list[FieldError]:
    errors = []
    points: set[str] = set()
    for index, mount in enumerate(container.get("volumeMounts") or ()):
        where = f"{path}.volumeMounts[{index}]"
        name, point = mount.get("name", ""), mount.get("mountPath", "")
        if not name:
            errors.append(FieldError.required(f"{where}.name"))
        elif name not in volumes:
            errors.append(FieldError("FieldValueNotFound", f'Not found: "{name}"', f"{where}.name"))
        if not point:
            errors.append(FieldError.required(f"{where}.mountPath"))
        elif point in points:
            errors.append(FieldError.invalid(f"{where}.mountPath", point, "must be unique"))
        points.add(point)
    return errors


def _resources(resources: Object, path: str) -> list[FieldError]:
    errors = []
    parsed: dict[str, dict[str, Decimal]] = {"limits": {}, "requests": {}}
    for key, found in parsed.items():
        for name, text in (resources.get(key) or {}).items():
            try:
                found[name] = parse_quantity(text)
            except ValueError:
                continue
            if found[name] < 0:
                message = "must be greater than or equal to 0"
                errors.append(FieldError.invalid(f"{path}.{key}[{name}]", str(text), message))
    for name, value in parsed["requests"].items():
        limit = parsed["limits"].get(name)
        if limit is not None and value > limit:
            text = f"must be less than or equal to {name} limit of {resources['limits'][name]}"
            errors.append(FieldError.invalid(f"{path}.requests", str(resources["requests"][name]), text))
    return errors


def _handler(probe: Object, path: str) -> list[FieldError]:
    found: list[Any] = [key for key in _HANDLERS if probe.get(key) is not None]
    if not found:
        return [FieldError.required(path, "must specify a handler type")]
    return [FieldError.forbidden(f"{path}.{key}", "may not specify more than 1 handler type") for key in found[1:]]
