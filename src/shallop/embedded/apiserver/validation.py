"""Essential rules of built-in kinds, worded as a real API server words them."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Callable, Iterable
from typing import Any
from zoneinfo import available_timezones

from shallop.embedded.apiserver.admission_validation import validate_mutating_policy, validate_policy, validate_webhooks
from shallop.embedded.apiserver.crd_validation import validate_crd
from shallop.embedded.apiserver.event_validation import validate_event
from shallop.embedded.apiserver.limit_ranges import validate_limit_range
from shallop.embedded.apiserver.metadata import check_dns_subdomain, check_label_value, check_qualified_name
from shallop.embedded.apiserver.pod_validation import validate_pod, validate_pod_spec, validate_template
from shallop.embedded.apiserver.resources import Resource
from shallop.errors import FieldError
from shallop.kube.objects import Object, parse_quantity
from shallop.kube.selectors import match_selector

__all__ = ["validate"]

Validate = Callable[[Object, Object | None], list[FieldError]]
_MAX_DATA = 1024 * 1024
_DATA_KEY = re.compile(r"[-._a-zA-Z0-9]+")
_DATA_KEY_TEXT = (
    "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or "
    "'key-name', regex used for validation is '[-._a-zA-Z0-9]+')"
)
_NOT_NEGATIVE = "must be greater than or equal to 0"
_IMMUTABLE = "field is immutable"
_PERCENT = re.compile(r"[0-9]+%")


def validate(resource: Resource, obj: Object, old: Object | None) -> list[FieldError]:
    """Return what is wrong with a built-in object; ``old`` is the stored one on updates."""
    check = _VALIDATE.get(resource.storage)
    return check(obj, old) if check else []


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _invalid_json(field: str, value: Any, detail: str) -> FieldError:
    return FieldError("FieldValueInvalid", f"Invalid value: {_compact(value)}: {detail}", field)


def _not_negative(spec: Object, field: str, keys: Iterable[str]) -> list[FieldError]:
    return [
        FieldError.invalid(f"{field}.{key}", spec[key], _NOT_NEGATIVE)
        for key in keys
        if isinstance(spec.get(key), int) and spec[key] < 0
    ]


def _immutable(spec: Object, old: Object | None, field: str, keys: Iterable[str]) -> list[FieldError]:
    if old is None:
        return []
    before = old.get("spec") or {}
    return [
        _invalid_json(f"{field}.{key}", spec.get(key), _IMMUTABLE) for key in keys if spec.get(key) != before.get(key)
    ]


# ---- ConfigMap and Secret


def _config_map(obj: Object, old: Object | None) -> list[FieldError]:
    data, binary = obj.get("data") or {}, obj.get("binaryData") or {}
    errors = _data_keys(data, "data") + _data_keys(binary, "binaryData")
    errors += [
        FieldError.invalid(f"data[{key}]", key, "duplicate of key present in binaryData")
        for key in data
        if key in binary
    ]
    size = sum(len(value) for value in data.values()) + sum(len(value) * 3 // 4 for value in binary.values())
    errors += _too_long("[]", size)
    return errors + _locked(obj, old, ("data", "binaryData"))


def _data_keys(data: Object, field: str) -> list[FieldError]:
    return [FieldError.invalid(f"{field}[{key}]", key, _DATA_KEY_TEXT) for key in data if not _DATA_KEY.fullmatch(key)]


def _too_long(field: str, size: int) -> list[FieldError]:
    if size <= _MAX_DATA:
        return []
    return [FieldError("FieldValueTooLong", f"Too long: may not be more than {_MAX_DATA} bytes", field)]


def _locked(obj: Object, old: Object | None, keys: Iterable[str]) -> list[FieldError]:
    """An object that was marked immutable keeps its data and the mark."""
    if old is None or not old.get("immutable"):
        return []
    text = "field is immutable when `immutable` is set"
    errors = [] if obj.get("immutable") else [FieldError.forbidden("immutable", text)]
    return errors + [FieldError.forbidden(key, text) for key in keys if (obj.get(key) or {}) != (old.get(key) or {})]


_SECRET_KEYS = {
    "kubernetes.io/tls": ("tls.crt", "tls.key"),
    "kubernetes.io/ssh-auth": ("ssh-privatekey",),
    "kubernetes.io/dockerconfigjson": (".dockerconfigjson",),
    "kubernetes.io/dockercfg": (".dockercfg",),
}


def _secret(obj: Object, old: Object | None) -> list[FieldError]:
    data = obj.get("data") or {}
    kind = obj.get("type", "")
    errors = _data_keys(data, "data")
    errors += _too_long("data", sum(len(value) * 3 // 4 for value in data.values()))
    for key in _SECRET_KEYS.get(kind, ()):
        if key not in data:
            errors.append(FieldError.required(f"data[{key}]"))
        elif kind.startswith("kubernetes.io/docker"):
            try:
                json.loads(base64.b64decode(data[key]))
            except (ValueError, binascii.Error) as error:
                errors.append(FieldError.invalid(f"data[{key}]", "<secret contents redacted>", str(error)))
    if old is not None and old.get("type") != kind:
        errors.append(FieldError.invalid("type", kind, _IMMUTABLE))
    return errors + _locked(obj, old, ("data",))


# ---- Workloads


_SELECTOR_OPERATORS = ("In", "NotIn", "Exists", "DoesNotExist")


def _expression_errors(selector: Object, path: str) -> list[FieldError]:
    errors = []
    for index, expression in enumerate(selector.get("matchExpressions") or ()):
        field = f"{path}.matchExpressions[{index}]"
        operator, values = expression.get("operator", ""), expression.get("values") or ()
        if operator not in _SELECTOR_OPERATORS:
            errors.append(FieldError.invalid(f"{field}.operator", operator, "not a valid selector operator"))
        elif operator in ("In", "NotIn") and not values:
            text = "must be specified when `operator` is 'In' or 'NotIn'"
            errors.append(FieldError.required(f"{field}.values", text))
        elif operator in ("Exists", "DoesNotExist") and values:
            text = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
            errors.append(FieldError.forbidden(f"{field}.values", text))
        key = expression.get("key", "")
        errors += [FieldError.invalid(f"{field}.key", key, text) for text in check_qualified_name(key)]
    return errors


def _selector_errors(spec: Object, field: str = "spec") -> list[FieldError]:
    selector = spec.get("selector")
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels")
    errors = []
    errors += _expression_errors(selector or {}, f"{field}.selector")
    if selector is None:
        errors.append(FieldError.required(f"{field}.selector"))
    elif not selector.get("matchLabels") and not selector.get("matchExpressions"):
        errors.append(FieldError.invalid(f"{field}.selector", "{}", "empty selector is invalid for deployment"))
    if not match_selector(selector, labels or {}):
        text = "`selector` does not match template `labels`"
        errors.append(_invalid_json(f"{field}.template.metadata.labels", labels, text))
    return errors


def _deployment(obj: Object, old: Object | None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    errors = _not_negative(spec, "spec", ("replicas", "minReadySeconds", "revisionHistoryLimit"))
    errors += _selector_errors(spec)
    errors += validate_template(spec.get("template") or {}, "spec.template")
    errors += _strategy(spec.get("strategy") or {})
    return errors + _immutable(spec, old, "spec", ("selector",))


def _strategy(strategy: Object) -> list[FieldError]:
    kind = strategy.get("type")
    if kind not in ("Recreate", "RollingUpdate"):
        shown = _compact({"Type": kind, "RollingUpdate": None})
        text = f'Unsupported value: {shown}: supported values: "Recreate", "RollingUpdate"'
        return [FieldError("FieldValueNotSupported", text, "spec.strategy")]
    rolling = strategy.get("rollingUpdate")
    if kind == "Recreate" and rolling:
        text = "may not be specified when strategy `type` is 'Recreate'"
        return [FieldError.forbidden("spec.strategy.rollingUpdate", text)]
    errors = []
    for key in ("maxUnavailable", "maxSurge"):
        value = (rolling or {}).get(key)
        if isinstance(value, str) and not _PERCENT.fullmatch(value):
            text = (
                "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or "
                "'93%', regex "
                "used for validation is '[0-9]+%')"
            )
            errors.append(FieldError.invalid(f"spec.strategy.rollingUpdate.{key}", value, text))
    if rolling and not errors and _is_zero(rolling.get("maxUnavailable")) and _is_zero(rolling.get("maxSurge")):
        text = "may not be 0 when `maxSurge` is 0"
        errors.append(FieldError.invalid("spec.strategy.rollingUpdate.maxUnavailable", rolling["maxUnavailable"], text))
    return errors


def _is_zero(value: Any) -> bool:
    return value in (0, "0%")


def _replicaset(obj: Object, old: Object | None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    errors = _not_negative(spec, "spec", ("replicas", "minReadySeconds")) + _selector_errors(spec)
    errors += validate_template(spec.get("template") or {}, "spec.template")
    return errors + _immutable(spec, old, "spec", ("selector",))


_STATEFULSET_MAY = {
    "minReadySeconds", "ordinals", "persistentVolumeClaimRetentionPolicy", "replicas", "revisionHistoryLimit",
    "template", "updateStrategy",
}  # fmt: skip


def _statefulset(obj: Object, old: Object | None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    errors = _not_negative(spec, "spec", ("replicas", "minReadySeconds")) + _selector_errors(spec)
    errors += validate_template(spec.get("template") or {}, "spec.template")
    if old is not None:
        before = old.get("spec") or {}
        changed = {key for key in {*spec, *before} if spec.get(key) != before.get(key)} - _STATEFULSET_MAY
        if changed:
            text = (
                "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', "
                "'updateStrategy', "
                "'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"
            )
            errors.append(FieldError.forbidden("spec", text))
    return errors


_JOB_COUNTS = (
    "parallelism", "completions", "activeDeadlineSeconds", "backoffLimit", "backoffLimitPerIndex", "maxFailedIndexes",
    "ttlSecondsAfterFinished",
)  # fmt: skip


def _job(obj: Object, old: Object | None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    errors = _job_spec(spec, "spec")
    if old is None and not spec.get("manualSelector"):
        return errors + _generated_selector_errors(obj, spec)
    if old is None:
        return errors + _selector_errors(spec)
    before = old.get("spec") or {}
    new_template, old_template = (s.get("template", {}).get("spec") or {} for s in (spec, before))
    if before.get("suspend") and not (old.get("status") or {}).get("startTime"):
        # A Job that has not started may still be given another place to run.
        new_template, old_template = (
            {k: v for k, v in t.items() if k not in _PLACING} for t in (new_template, old_template)
        )
        new_template, old_template = _without_resources(new_template), _without_resources(old_template)
    if new_template != old_template:
        errors.append(_invalid_json("spec.template.spec", new_template, _IMMUTABLE))
    indexed = spec.get("completionMode") == "Indexed" and spec.get("completions") == spec.get("parallelism")
    fixed = ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy"]
    return errors + _immutable(spec, old, "spec", fixed if indexed else ["completions", *fixed])


def _generated_selector_errors(job: Object, spec: Object) -> list[FieldError]:
    selector = spec.get("selector") or {}
    key = "batch.kubernetes.io/controller-uid"
    if selector == {"matchLabels": {key: job["metadata"]["uid"]}}:
        return []
    errors = [_invalid_json("spec.selector", selector, "`selector` not auto-generated")]
    labels = (spec["template"].get("metadata") or {}).get("labels") or {}
    if not match_selector(selector, labels):
        text = "`selector` does not match template `labels`"
        errors.append(_invalid_json("spec.template.metadata.labels", labels, text))
    return errors


_PLACING = {"nodeSelector", "affinity", "tolerations", "schedulingGates", "topologySpreadConstraints"}


def _without_resources(template: Object) -> Object:
    containers = [{k: v for k, v in c.items() if k != "resources"} for c in template.get("containers") or ()]
    return template | {"containers": containers}


def _job_spec(spec: Object, field: str) -> list[FieldError]:
    errors = _not_negative(spec, field, _JOB_COUNTS)
    manager = spec.get("managedBy")
    if manager is not None and ("/" not in manager or check_dns_subdomain(manager.partition("/")[0])):
        text = 'must be a domain-prefixed path (such as "acme.io/foo")'
        errors.append(FieldError.invalid(f"{field}.managedBy", manager, text))
    template = (spec.get("template") or {}).get("spec") or {}
    errors += validate_pod_spec(template, f"{field}.template.spec")
    if template.get("restartPolicy") not in ("OnFailure", "Never"):
        path = f"{field}.template.spec.restartPolicy"
        errors.append(FieldError.required(path, 'valid values: "OnFailure", "Never"'))
    return errors + _job_indexes(spec, field)


def _job_indexes(spec: Object, field: str) -> list[FieldError]:
    """What only an Indexed Job, or one whose Pods never restart in place, can have."""
    errors = []
    for key in ("backoffLimitPerIndex", "successPolicy"):
        if spec.get(key) is not None and spec.get("completionMode") != "Indexed":
            errors.append(_invalid_json(f"{field}.{key}", spec[key], "requires indexed completion mode"))
    if spec.get("maxFailedIndexes") is not None and spec.get("backoffLimitPerIndex") is None:
        errors.append(FieldError.required(f"{field}.backoffLimitPerIndex", "when maxFailedIndexes is specified"))
    policy = ((spec.get("template") or {}).get("spec") or {}).get("restartPolicy")
    for key in ("podFailurePolicy", "backoffLimitPerIndex"):
        if spec.get(key) is not None and policy == "OnFailure":
            text = f'only "Never" is supported when {key} is specified'
            errors.append(FieldError.invalid(f"{field}.template.spec.restartPolicy", policy, text))
    return errors


def _cronjob(obj: Object, old: Object | None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    errors = _schedule(spec)
    policies = ("Allow", "Forbid", "Replace")
    if spec.get("concurrencyPolicy") not in policies:
        errors.append(FieldError.not_supported("spec.concurrencyPolicy", spec.get("concurrencyPolicy"), policies))
    errors += _not_negative(
        spec, "spec", ("startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit")
    )
    if old is None and len(obj["metadata"].get("name", "")) > 52:
        text = "must be no more than 52 characters"
        errors.append(FieldError.invalid("metadata.name", obj["metadata"]["name"], text))
    return errors + _job_spec((spec.get("jobTemplate") or {}).get("spec") or {}, "spec.jobTemplate.spec")


def _schedule(spec: Object) -> list[FieldError]:
    schedule = spec.get("schedule", "")
    errors = []
    if not schedule:
        errors.append(FieldError.required("spec.schedule"))
    elif "TZ" in schedule:
        text = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead"
        errors.append(FieldError.invalid("spec.schedule", schedule, text))
    elif not schedule.startswith("@") and len(schedule.split()) != 5:
        words = schedule.split()
        text = f"expected exactly 5 fields, found {len(words)}: [{' '.join(words)}]"
        errors.append(FieldError.invalid("spec.schedule", schedule, text))
    zone = spec.get("timeZone")
    if zone is not None and zone not in available_timezones():
        errors.append(FieldError.invalid("spec.timeZone", zone, f"unknown time zone {zone}"))
    return errors


# ---- Networking and storage

_SERVICE_TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
_PORT_RANGE = "must be between 1 and 65535, inclusive"


def _service(obj: Object, old: Object | None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    kind = spec.get("type")
    errors = []
    if kind not in _SERVICE_TYPES:
        errors.append(FieldError.not_supported("spec.type", kind, _SERVICE_TYPES))
    ports = spec.get("ports") or []
    if kind == "ExternalName":
        if not spec.get("externalName"):
            errors.append(FieldError.required("spec.externalName"))
    elif not ports and spec.get("clusterIP") != "None":
        errors.append(FieldError.required("spec.ports"))
    seen: dict[tuple[Any, Any], int] = {}
    for index, port in enumerate(ports):
        path = f"spec.ports[{index}]"
        if len(ports) > 1 and not port.get("name"):
            errors.append(FieldError.required(f"{path}.name"))
        for key in ("port", "targetPort"):
            value = port.get(key)
            if isinstance(value, int) and not 1 <= value <= 65535:
                errors.append(FieldError.invalid(f"{path}.{key}", value, _PORT_RANGE))
        identity = (port.get("protocol"), port.get("port"))
        if identity in seen:
            shown = {
                "Name": "", "Protocol": identity[0], "AppProtocol": None, "Port": identity[1], "TargetPort": 0,
                "NodePort": 0,
            }  # fmt: skip
            errors.append(FieldError("FieldValueDuplicate", f"Duplicate value: {_compact(shown)}", path))
        seen[identity] = index
    before = (old or {}).get("spec") or {}
    if old is not None and kind != "ExternalName" and before.get("clusterIP") and before.get("type") != "ExternalName":
        wanted = spec.get("clusterIP") or before["clusterIP"]
        if wanted != before["clusterIP"]:
            errors.append(_invalid_json("spec.clusterIPs[0]", [wanted], "may not change once set"))
    return errors


_ACCESS_MODES = ("ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod")


def _claim(obj: Object, old: Object | None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    if old is not None:
        return _claim_change(spec, old)
    modes = spec.get("accessModes") or []
    errors = [] if modes else [FieldError.required("spec.accessModes", "at least 1 access mode is required")]
    errors += [
        FieldError.not_supported("spec.accessModes", mode, _ACCESS_MODES) for mode in modes if mode not in _ACCESS_MODES
    ]
    requests = (spec.get("resources") or {}).get("requests") or {}
    if "storage" not in requests:
        errors.append(FieldError.required("spec.resources[storage]"))
    elif parse_quantity(requests["storage"]) <= 0:
        path = "spec.resources[storage]"
        errors.append(FieldError.invalid(path, str(requests["storage"]), "must be greater than zero"))
    return errors


def _claim_change(spec: Object, old: Object) -> list[FieldError]:
    before = old.get("spec") or {}
    # A volume is bound, and a class found, after creation.
    once = {key for key in ("volumeName", "storageClassName") if not before.get(key)}
    ignored = {"resources", "volumeAttributesClassName", *once}
    fixed = ({key: value for key, value in each.items() if key not in ignored} for each in (spec, before))
    new, known = (
        parse_quantity((s.get("resources") or {}).get("requests", {}).get("storage", "0")) for s in (spec, before)
    )
    bound = (old.get("status") or {}).get("phase") == "Bound"
    text = "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"
    left, right = fixed
    if left != right or (new != known and not bound):
        return [FieldError.forbidden("spec", text)]
    if new < known:
        detail = "field can not be less than status.capacity"
        return [FieldError.forbidden("spec.resources.requests.storage", detail)]
    return []


def _hpa(obj: Object, old: Object | None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    least, most = spec.get("minReplicas", 1), spec.get("maxReplicas", 0)
    errors = []
    if most < 1:
        errors.append(FieldError.invalid("spec.maxReplicas", most, "must be greater than 0"))
    if most < least:
        errors.append(FieldError.invalid("spec.maxReplicas", most, "must be greater than or equal to `minReplicas`"))
    target = spec.get("scaleTargetRef") or {}
    errors += [FieldError.required(f"spec.scaleTargetRef.{key}") for key in ("kind", "name") if not target.get(key)]
    if target.get("kind") and "/" not in target.get("apiVersion", "") and target["kind"] != "ReplicationController":
        text = "apiVersion must specify API group"
        errors.append(FieldError.invalid("spec.scaleTargetRef.apiVersion", target.get("apiVersion", ""), text))
    return errors


_PATH_TYPES = ("Exact", "ImplementationSpecific", "Prefix")


def _ingress(obj: Object, old: Object | None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    if not spec.get("rules") and not spec.get("defaultBackend"):
        return [_invalid_json("spec", spec.get("rules"), "either `defaultBackend` or `rules` must be specified")]
    errors = []
    for index, rule in enumerate(spec.get("rules") or ()):
        path = f"spec.rules[{index}]"
        host = rule.get("host", "").removeprefix("*.")
        if host:
            errors += [FieldError.invalid(f"{path}.host", host, text) for text in check_dns_subdomain(host)]
        for number, entry in enumerate((rule.get("http") or {}).get("paths") or ()):
            kind = entry.get("pathType")
            where = f"{path}.http.paths[{number}].pathType"
            if kind is None:
                errors.append(FieldError.required(where, "pathType must be specified"))
            elif kind not in _PATH_TYPES:
                errors.append(FieldError.not_supported(where, kind, _PATH_TYPES))
    return errors


def _role_binding(obj: Object, old: Object | None) -> list[FieldError]:
    reference = obj.get("roleRef") or {}
    kinds = ("ClusterRole",) if obj["kind"] == "ClusterRoleBinding" else ("Role", "ClusterRole")
    errors = []
    if reference.get("kind") not in kinds:
        errors.append(FieldError.not_supported("roleRef.kind", reference.get("kind", ""), kinds))
    if not reference.get("name"):
        errors.append(FieldError.required("roleRef.name"))
    if old is not None and old.get("roleRef") != reference:
        shown = {"APIGroup": reference.get("apiGroup"), "Kind": reference.get("kind"), "Name": reference.get("name")}
        errors.append(_invalid_json("roleRef", shown, "cannot change roleRef"))
    for index, subject in enumerate(obj.get("subjects") or ()):
        if not subject.get("name"):
            errors.append(FieldError.required(f"subjects[{index}].name"))
        if subject.get("kind") not in ("ServiceAccount", "User", "Group"):
            supported = ("ServiceAccount", "User", "Group")
            errors.append(FieldError.not_supported(f"subjects[{index}].kind", subject.get("kind", ""), supported))
    return errors


_EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")


def _node(obj: Object, old: Object | None) -> list[FieldError]:
    errors = []
    seen: set[tuple[str, str]] = set()
    for index, taint in enumerate((obj.get("spec") or {}).get("taints") or ()):
        path, key, effect = f"metadata.taints[{index}]", taint.get("key", ""), taint.get("effect", "")
        errors += [FieldError.invalid(f"{path}.key", key, text) for text in check_qualified_name(key)]
        value = taint.get("value") or ""
        errors += [FieldError.invalid(f"{path}.value", value, text) for text in check_label_value(value)]
        if not effect:
            errors.append(FieldError.required(f"{path}.effect"))
        elif effect not in _EFFECTS:
            errors.append(FieldError.not_supported(f"{path}.effect", effect, _EFFECTS))
        elif (key, effect) in seen:
            text = f"Duplicate value: {_compact(taint)}"
            errors.append(FieldError("FieldValueDuplicate", text, path))
        seen.add((key, effect))
    return errors


_QUOTA_NAMES = {
    "configmaps",
    "cpu",
    "ephemeral-storage",
    "memory",
    "persistentvolumeclaims",
    "pods",
    "replicationcontrollers",
    "resourcequotas",
    "secrets",
    "services",
    "services.loadbalancers",
    "services.nodeports",
    *(f"{which}.{what}" for which in ("limits", "requests") for what in ("cpu", "ephemeral-storage", "memory")),
    "requests.storage",
}
_QUOTA_COUNTS = {name for name in _QUOTA_NAMES if name.endswith("s") or name.startswith("services.")}


def _quota(obj: Object, old: Object | None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    errors = []
    for name, value in sorted((spec.get("hard") or {}).items()):
        path = f"spec.hard[{name}]"
        if "/" not in name and name not in _QUOTA_NAMES:
            for text in (
                "must be a standard resource type or fully qualified",
                "must be a standard resource for quota",
            ):
                errors.append(FieldError.invalid(path, name, text))
        amount = parse_quantity(value)
        if amount < 0:
            errors.append(FieldError.invalid(path, str(value), _NOT_NEGATIVE))
        elif (name in _QUOTA_COUNTS or name.startswith("count/")) and amount % 1:
            errors.append(FieldError.invalid(path, str(value), "must be an integer"))
    if old is not None:
        errors += _immutable(spec, old, "spec", ("scopes",))
    return errors


def _roles(obj: Object, old: Object | None) -> list[FieldError]:
    errors = []
    for index, rule in enumerate(obj.get("rules") or ()):
        path = f"rules[{index}]"
        if not rule.get("verbs"):
            errors.append(FieldError.required(f"{path}.verbs", "verbs must contain at least one value"))
        if rule.get("nonResourceURLs"):
            if obj["kind"] == "Role":
                text = "namespaced rules cannot apply to non-resource URLs"
                errors.append(_invalid_json(f"{path}.nonResourceURLs", rule["nonResourceURLs"], text))
            if any(rule.get(key) for key in ("apiGroups", "resources", "resourceNames")):
                text = "rules cannot apply to both regular resources and non-resource URLs"
                errors.append(_invalid_json(f"{path}.nonResourceURLs", rule["nonResourceURLs"], text))
            continue
        if not rule.get("apiGroups"):
            errors.append(FieldError.required(f"{path}.apiGroups", "resource rules must supply at least one api group"))
        if not rule.get("resources"):
            errors.append(FieldError.required(f"{path}.resources", "resource rules must supply at least one resource"))
    return errors


_VALIDATE: dict[str, Validate] = {
    "clusterrolebindings.rbac.authorization.k8s.io": _role_binding,
    "clusterroles.rbac.authorization.k8s.io": _roles,
    "configmaps": _config_map,
    "cronjobs.batch": _cronjob,
    "customresourcedefinitions.apiextensions.k8s.io": validate_crd,
    "daemonsets.apps": _replicaset,
    "deployments.apps": _deployment,
    "events": validate_event,
    "horizontalpodautoscalers.autoscaling": _hpa,
    "ingresses.networking.k8s.io": _ingress,
    "jobs.batch": _job,
    "nodes": _node,
    "mutatingadmissionpolicies.admissionregistration.k8s.io": validate_mutating_policy,
    "mutatingwebhookconfigurations.admissionregistration.k8s.io": validate_webhooks,
    "validatingadmissionpolicies.admissionregistration.k8s.io": validate_policy,
    "validatingwebhookconfigurations.admissionregistration.k8s.io": validate_webhooks,
    "limitranges": validate_limit_range,
    "persistentvolumeclaims": _claim,
    "pods": validate_pod,
    "replicasets.apps": _replicaset,
    "resourcequotas": _quota,
    "rolebindings.rbac.authorization.k8s.io": _role_binding,
    "roles.rbac.authorization.k8s.io": _roles,
    "secrets": _secret,
    "services": _service,
    "statefulsets.apps": _statefulset,
}
