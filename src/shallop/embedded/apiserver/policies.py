"""ValidatingAdmissionPolicy: rules in CEL that refuse a write or warn about it; and what all policies share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from shallop.embedded.apiserver import conversion, failures
from shallop.embedded.apiserver.admission_matching import (
    REQUEST_VARIABLES,
    Review,
    compiled,
    equivalent_resource,
    matches_labels,
    unmet_condition,
)
from shallop.embedded.apiserver.cel import CelError
from shallop.embedded.apiserver.converting import Converter
from shallop.embedded.apiserver.objects_store import Change, ObjectsStore
from shallop.embedded.apiserver.resources import Registry, Resource
from shallop.errors import ApiError
from shallop.kube.objects import Gvk, Object, labels_of
from shallop.kube.selectors import match_selector

__all__ = ["POLICY_VARIABLES", "BoundPolicies", "Policies", "denied"]

_GROUP = "admissionregistration.k8s.io"
POLICY_VARIABLES = (*REQUEST_VARIABLES, "params", "namespaceObject", "variables")
_CODES = {"Unauthorized": 401, "Forbidden": 403, "Invalid": 422, "RequestEntityTooLarge": 413}


class _Variables(dict[str, Any]):
    """The ``variables`` of a policy, each computed when first read."""

    def __init__(self, sources: Iterable[Object], values: Mapping[str, Any]) -> None:
        super().__init__()
        self._sources = {source["name"]: source["expression"] for source in sources}
        self._values = values

    def __contains__(self, name: object) -> bool:
        return name in self._sources

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self._sources else default

    def __missing__(self, name: str) -> Any:
        if name not in self._sources:
            raise KeyError(f"no such key: {name}")
        program = compiled(self._sources[name], POLICY_VARIABLES)
        self[name] = value = program.evaluate(**self._values, variables=self)
        return value


class BoundPolicies:
    """
    The policies that have a binding.

    Args:
        resource: ``validatingadmissionpolicies`` or ``mutatingadmissionpolicies``.
        bindings: the resource of its bindings.
    """

    def __init__(self, store: ObjectsStore, registry: Registry, resource: str, bindings: str) -> None:
        self._policies, self._bindings = f"{resource}.{_GROUP}", f"{bindings}.{_GROUP}"
        self._store = store
        self._registry = registry
        self._bound: list[tuple[Object, Object]] = []
        self._read()
        store.listen((self._policies, self._bindings), self._changed)

    def _changed(self, _: Change) -> None:
        self._read()

    def _read(self) -> None:
        self._bound = []
        for stored in self._store.list(self._bindings):
            binding = stored.object
            policy = self._store.get(self._policies, "", (binding.get("spec") or {}).get("policyName", ""))
            if policy is not None:
                self._bound.append((policy.object, binding))

    def concern(self) -> bool:
        return bool(self._bound)

    def matching(self, review: Review) -> list[tuple[Object, Object, Resource]]:
        """Return the policies that want to see a write, with their bindings and the resource as which they see it."""
        return [
            (policy, binding, seen_as)
            for policy, binding in self._bound
            if (seen_as := self._matches(policy, binding, review)) is not None
        ]

    def values(self, policy: Object, review: Review, params: Object | None) -> dict[str, Any]:
        """Return the variables of the expressions of a policy."""
        values: dict[str, Any] = {
            **review.values,
            "params": params,
            "namespaceObject": self._namespace(review.namespace),
        }
        values["variables"] = _Variables((policy.get("spec") or {}).get("variables") or (), dict(values))
        return values

    def _matches(self, policy: Object, binding: Object, review: Review) -> Resource | None:
        seen_as = self._matches_resources((policy.get("spec") or {}).get("matchConstraints") or {}, review)
        narrower = (binding.get("spec") or {}).get("matchResources")
        if narrower and self._matches_resources(narrower, review) is None:
            return None
        return seen_as

    def _matches_resources(self, wanted: Object, review: Review) -> Resource | None:
        match_policy = wanted.get("matchPolicy", "Equivalent")

        def picks(rules: Iterable[Object]) -> Resource | None:
            return equivalent_resource(review, rules, match_policy, self._versions)

        rules = wanted.get("resourceRules")
        seen_as = review.resource if rules is None else picks(rules)
        if seen_as is None or picks(wanted.get("excludeResourceRules") or ()) is not None:
            return None
        return seen_as if matches_labels(review, wanted, self._namespace_labels) else None

    def _versions(self, resource: Resource) -> Iterable[Resource]:
        return [other for other in self._registry.all() if other.storage == resource.storage]

    def _namespace(self, name: str) -> Object | None:
        stored = self._store.get("namespaces", "", name) if name else None
        return stored.object if stored else None

    def _namespace_labels(self, name: str) -> dict[str, str]:
        return labels_of(self._namespace(name) or {})

    def parameters(self, policy: Object, binding: Object, review: Review) -> list[Object | None]:
        """
        Return the parameter objects of a binding; one None where the policy has none.

        Raises:
            LookupError: there are none, and the binding does not allow that.
        """
        spec = policy.get("spec") or {}
        kind = spec.get("paramKind")
        reference = (binding.get("spec") or {}).get("paramRef")
        if not kind or not reference:
            return [None]
        resource = self._registry.by_gvk(Gvk(kind.get("apiVersion", ""), kind.get("kind", "")))
        found: list[Object | None] = []
        if resource is not None:
            namespace = (reference.get("namespace") or review.namespace) if resource.namespaced else ""
            found = [
                conversion.to_version(resource, stored.object)
                for stored in self._store.list(resource.storage, namespace)
                if stored.name == reference.get("name")
                or (not reference.get("name") and match_selector(reference.get("selector"), labels_of(stored.object)))
            ]
        if not found and reference.get("parameterNotFoundAction", "Deny") == "Deny":
            raise LookupError("no params found for policy binding with `Deny` parameterNotFoundAction")
        return found


class Policies:
    """Evaluates ValidatingAdmissionPolicies."""

    def __init__(self, store: ObjectsStore, registry: Registry, converter: Converter) -> None:
        self._converter = converter
        self._policies = BoundPolicies(
            store, registry, "validatingadmissionpolicies", "validatingadmissionpolicybindings"
        )

    def concern(self) -> bool:
        return self._policies.concern()

    async def validate(self, review: Review) -> None:
        """
        Raises:
            ApiError: a bound policy denies the write, or cannot be evaluated and its ``failurePolicy`` is Fail.
        """
        for policy, binding, seen_as in self._policies.matching(review):
            seen = await self._converter.seen(review, seen_as)
            actions = (binding.get("spec") or {}).get("validationActions") or ("Deny",)
            fails = (policy.get("spec") or {}).get("failurePolicy", "Fail") == "Fail"
            for message, reason in self._problems(policy, binding, seen, fails=fails):
                names = policy["metadata"]["name"], binding["metadata"]["name"]
                if "Warn" in actions:
                    text = f"Validation failed for ValidatingAdmissionPolicy '{names[0]}' with binding '{names[1]}'"
                    review.options.warnings.append(f"{text}: {message}")
                if "Deny" in actions:
                    raise denied(review, policy["kind"], names, message, reason)

    def _problems(self, policy: Object, binding: Object, review: Review, *, fails: bool) -> Iterator[tuple[str, str]]:
        """Yield message and reason of each failed validation."""
        spec = policy.get("spec") or {}
        try:
            parameters = self._policies.parameters(policy, binding, review)
        except LookupError as error:
            if fails:
                yield str(error.args[0]), "Invalid"
            return
        for params in parameters:
            values = self._policies.values(policy, review, params)
            try:
                if unmet_condition(spec.get("matchConditions") or (), values, POLICY_VARIABLES) is not None:
                    continue
            except CelError as error:
                if fails:
                    yield str(error), "Invalid"
                continue
            for validation in spec.get("validations") or ():
                problem = _failed(validation, values, fails=fails)
                if problem:
                    yield problem, validation.get("reason") or "Invalid"


def _failed(validation: Object, values: dict[str, Any], *, fails: bool) -> str:
    """Return why a validation does not hold; empty when it does."""
    expression = validation.get("expression", "")
    try:
        if compiled(expression, POLICY_VARIABLES).evaluate(**values) is True:
            return ""
    except CelError as error:
        return f"expression '{expression}' resulted in error: {error}" if fails else ""
    if source := validation.get("messageExpression"):
        try:
            text = compiled(source, POLICY_VARIABLES).evaluate(**values)
        except CelError:
            text = ""
        if isinstance(text, str) and text.strip():
            return text.strip()
    return validation.get("message") or f"failed expression: {expression.strip()}"


def denied(review: Review, kind: str, names: tuple[str, str], message: str, reason: str) -> ApiError:
    """
    What a client gets when a policy says no.

    Args:
        names: of the policy and of its binding.
    """
    why = f"{kind} '{names[0]}' with binding '{names[1]}' denied request: {message}"
    error: ApiError = failures.forbidden(review.resource, review.name, why)
    error.reason = reason
    error.code = _CODES.get(reason, 422)
    error.details = {**(error.details or {}), "causes": [{"message": message}]}
    return error
