"""What must be right in webhook configurations and admission policies, and their defaults."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from shallop.embedded.apiserver.admission_matching import REQUEST_VARIABLES, condition_problem
from shallop.embedded.apiserver.mutating_policies import MUTATIONS, mutation_problem
from shallop.embedded.apiserver.policies import POLICY_VARIABLES
from shallop.errors import FieldError
from shallop.kube.objects import Object

__all__ = [
    "default_policy",
    "default_policy_binding",
    "default_webhooks",
    "validate_mutating_policy",
    "validate_policy",
    "validate_webhooks",
]

_OPERATIONS = ("*", "CONNECT", "CREATE", "DELETE", "UPDATE")
_QUALIFIED = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?){2,}")


def default_webhooks(obj: Object, old: Object | None) -> Object:
    if not obj.get("webhooks"):
        return obj
    mutating = obj["kind"] == "MutatingWebhookConfiguration"
    return obj | {"webhooks": [_default_webhook(hook, mutating=mutating) for hook in obj["webhooks"]]}


def _default_webhook(hook: Object, *, mutating: bool) -> Object:
    defaults: Object = {
        "failurePolicy": "Fail",
        "matchPolicy": "Equivalent",
        "namespaceSelector": {},
        "objectSelector": {},
        "timeoutSeconds": 10,
    }
    if mutating:
        defaults["reinvocationPolicy"] = "Never"
    hook = defaults | {key: value for key, value in hook.items() if value is not None}
    config = hook.get("clientConfig") or {}
    if config.get("service"):
        hook["clientConfig"] = config | {"service": {"port": 443} | config["service"]}
    if hook.get("rules"):
        hook["rules"] = [{"scope": "*"} | rule for rule in hook["rules"]]
    return hook


def _default_match(match: Object) -> Object:
    defaults: Object = {"matchPolicy": "Equivalent", "namespaceSelector": {}, "objectSelector": {}}
    match = defaults | match
    for key in ("resourceRules", "excludeResourceRules"):
        if match.get(key):
            match[key] = [{"scope": "*"} | rule for rule in match[key]]
    return match


def default_policy(obj: Object, old: Object | None) -> Object:
    spec = {"failurePolicy": "Fail"} | (obj.get("spec") or {})
    if spec.get("matchConstraints"):
        spec["matchConstraints"] = _default_match(spec["matchConstraints"])
    return obj | {"spec": spec}


def default_policy_binding(obj: Object, old: Object | None) -> Object:
    spec = dict(obj.get("spec") or {})
    if spec.get("matchResources"):
        spec["matchResources"] = _default_match(spec["matchResources"])
    return obj | {"spec": spec}


def validate_webhooks(obj: Object, old: Object | None) -> list[FieldError]:
    errors: list[FieldError] = []
    names: set[str] = set()
    for index, hook in enumerate(obj.get("webhooks") or ()):
        path = f"webhooks[{index}]"
        name = hook.get("name", "")
        if name in names:
            errors.append(FieldError("FieldValueDuplicate", f'Duplicate value: "{name}"', f"{path}.name"))
        names.add(name)
        if not _QUALIFIED.fullmatch(name):
            text = "should be a domain with at least three segments separated by dots"
            errors.append(FieldError.invalid(f"{path}.name", name, text))
        errors += _validate_webhook(hook, path)
    return errors


def _validate_webhook(hook: Object, path: str) -> Iterator[FieldError]:
    versions = hook.get("admissionReviewVersions")
    if not versions:
        text = "must specify one of v1, v1beta1"
        yield FieldError.required(f"{path}.admissionReviewVersions", text)
    elif not {"v1", "v1beta1"} & set(versions):
        text = "must include at least one of v1, v1beta1"
        yield FieldError.invalid(f"{path}.admissionReviewVersions", ", ".join(versions), text)
    effects = hook.get("sideEffects")
    if effects is None:
        yield FieldError.required(f"{path}.sideEffects", "must specify one of None, NoneOnDryRun")
    elif effects not in ("None", "NoneOnDryRun"):
        yield FieldError.not_supported(f"{path}.sideEffects", effects, ("None", "NoneOnDryRun"))
    choices = (
        ("failurePolicy", ("Fail", "Ignore")),
        ("matchPolicy", ("Equivalent", "Exact")),
        ("reinvocationPolicy", ("IfNeeded", "Never")),
    )
    for key, allowed in choices:
        if hook.get(key) is not None and hook[key] not in allowed:
            yield FieldError.not_supported(f"{path}.{key}", hook[key], allowed)
    timeout = hook.get("timeoutSeconds", 10)
    if isinstance(timeout, int) and not 1 <= timeout <= 30:
        yield FieldError.invalid(
            f"{path}.timeoutSeconds", timeout, "the timeout value must be between 1 and 30 seconds"
        )
    yield from validate_client(hook.get("clientConfig") or {}, f"{path}.clientConfig")
    yield from _validate_rules(hook.get("rules") or (), f"{path}.rules")
    yield from _validate_conditions(hook.get("matchConditions") or (), f"{path}.matchConditions", REQUEST_VARIABLES)


def validate_client(config: Object, path: str) -> Iterator[FieldError]:
    url, service = config.get("url"), config.get("service")
    if bool(url) == bool(service):
        yield FieldError.required(path, "exactly one of url or service is required")
    elif url:
        parts = urlsplit(url)
        if parts.scheme != "https":
            text = "'https' is the only allowed URL scheme; desired format: https://host[/path]"
            yield FieldError.invalid(f"{path}.url", parts.scheme, text)
        if not parts.netloc:
            yield FieldError.invalid(f"{path}.url", "", "host must be specified; desired format: https://host[/path]")
        for what, value in (
            ("user information", parts.username),
            ("fragments", parts.fragment),
            ("query", parts.query),
        ):
            if value:
                yield FieldError.invalid(f"{path}.url", value, f"{what} are not permitted in the URL")
    elif service:
        for key in ("namespace", "name"):
            if not service.get(key):
                yield FieldError.required(f"{path}.service.{key}", f"service {key} is required")
    if bundle := config.get("caBundle"):
        try:
            pem = base64.b64decode(bundle, validate=True)
        except (ValueError, binascii.Error):
            pem = b""
        if b"-----BEGIN CERTIFICATE-----" not in pem:
            yield FieldError.invalid(f"{path}.caBundle", bundle[:40], "unable to load root certificates")


def _validate_rules(rules: Iterable[Object], path: str) -> Iterator[FieldError]:
    for index, rule in enumerate(rules):
        for key in ("operations", "apiGroups", "apiVersions", "resources"):
            if not rule.get(key):
                yield FieldError.required(f"{path}[{index}].{key}")
        for operation in rule.get("operations") or ():
            if operation not in _OPERATIONS:
                yield FieldError.not_supported(f"{path}[{index}].operations[0]", operation, _OPERATIONS)
        for key in ("apiGroups", "apiVersions"):
            if len(rule.get(key) or ()) > 1 and "*" in rule[key]:
                text = "if '*' is present, must not specify other " + (
                    "API groups" if key == "apiGroups" else "versions"
                )
                yield FieldError.invalid(f"{path}[{index}].{key}", ", ".join(rule[key]), text)


def _validate_conditions(conditions: Iterable[Object], path: str, names: tuple[str, ...]) -> Iterator[FieldError]:
    for index, condition in enumerate(conditions):
        if not condition.get("name"):
            yield FieldError.required(f"{path}[{index}].name")
        expression = condition.get("expression") or ""
        if not expression.strip():
            yield FieldError.required(f"{path}[{index}].expression")
        elif problem := condition_problem(expression, names):
            yield FieldError.invalid(f"{path}[{index}].expression", expression, problem)


def validate_policy(obj: Object, old: Object | None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    errors: list[FieldError] = []
    if not (spec.get("matchConstraints") or {}).get("resourceRules"):
        errors.append(FieldError.required("spec.matchConstraints.resourceRules"))
    if not spec.get("validations") and not spec.get("auditAnnotations"):
        text = "validations or auditAnnotations must contain at least one item"
        errors.append(FieldError.required("spec.validations", text))
    for index, validation in enumerate(spec.get("validations") or ()):
        expression = validation.get("expression") or ""
        path = f"spec.validations[{index}].expression"
        if not expression.strip():
            errors.append(FieldError.required(path, "expression is not specified"))
        elif problem := condition_problem(expression, POLICY_VARIABLES):
            errors.append(FieldError.invalid(path, expression, problem))
    errors += _validate_conditions(spec.get("matchConditions") or (), "spec.matchConditions", POLICY_VARIABLES)
    return errors


def validate_mutating_policy(obj: Object, old: Object | None) -> list[FieldError]:
    spec = obj.get("spec") or {}
    errors: list[FieldError] = []
    if not (spec.get("matchConstraints") or {}).get("resourceRules"):
        errors.append(FieldError.required("spec.matchConstraints.resourceRules"))
    if not spec.get("mutations"):
        errors.append(FieldError.required("spec.mutations", "mutations must contain at least one item"))
    for index, mutation in enumerate(spec.get("mutations") or ()):
        errors += _validate_mutation(mutation, f"spec.mutations[{index}]")
    policy = spec.get("reinvocationPolicy")
    if not policy:
        errors.append(FieldError.required("spec.reinvocationPolicy"))
    elif policy not in ("IfNeeded", "Never"):
        errors.append(FieldError.not_supported("spec.reinvocationPolicy", policy, ("IfNeeded", "Never")))
    errors += _validate_conditions(spec.get("matchConditions") or (), "spec.matchConditions", POLICY_VARIABLES)
    return errors


def _validate_mutation(mutation: Object, path: str) -> Iterator[FieldError]:
    patch_type = mutation.get("patchType", "")
    if not patch_type:
        yield FieldError.required(f"{path}.patchType")
        return
    if patch_type not in MUTATIONS:
        yield FieldError.not_supported(f"{path}.patchType", patch_type, tuple(MUTATIONS))
        return
    for kind, key in MUTATIONS.items():
        if kind != patch_type and mutation.get(key):
            text = f"{key} is not allowed when patchType is {patch_type}"
            yield FieldError.invalid(f"{path}.{key}", "", text)
    key = MUTATIONS[patch_type]
    expression = (mutation.get(key) or {}).get("expression") or ""
    if not expression.strip():
        yield FieldError.required(f"{path}.{key}.expression", "expression is not specified")
    elif problem := mutation_problem(expression, patch_type):
        yield FieldError.invalid(f"{path}.{key}.expression", expression, problem)
