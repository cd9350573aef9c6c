"""Which requests a webhook or an admission policy wants to see."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from shallop.embedded.apiserver.authorization import Attributes, Authorize
from shallop.embedded.apiserver.cel import BOOL, DYN, CelError, Program, compile_expression
from shallop.embedded.apiserver.cel_authorizer import Authorizer
from shallop.embedded.apiserver.requests import User, WriteOptions
from shallop.embedded.apiserver.resources import Resource
from shallop.kube.objects import Gvk, Object, labels_of
from shallop.kube.selectors import match_selector

__all__ = ["REQUEST_VARIABLES", "Review", "compiled", "equivalent_resource", "matches_labels", "unmet_condition"]

# Configurations of admission are never admitted by admission: nobody could repair a bad one.
EXEMPT_GROUP = "admissionregistration.k8s.io"
REQUEST_VARIABLES = ("object", "oldObject", "request", "authorizer")
Labels = Callable[[str], dict[str, str]]


@dataclass(frozen=True)
class Review:
    """
    One write as admission sees it.

    Args:
        operation: CREATE, UPDATE, DELETE or CONNECT.
        obj: the new object, None for DELETE; ``old``: the stored one, None for CREATE and CONNECT.
        kind: of the objects, where it is not that of the resource: a Scale, the options of an exec.
        seen_as: the version of the objects, where it is not that of the request.
        authorize: answers what expressions ask of ``authorizer``.
    """

    resource: Resource
    operation: str
    namespace: str
    name: str
    obj: Object | None
    old: Object | None
    options: WriteOptions
    subresource: str = ""
    kind: Gvk | None = None
    seen_as: Resource | None = None
    authorize: Authorize | None = None

    def request(self, uid: str = "") -> Object:
        """Return the ``request`` of an AdmissionReview, without the objects."""
        seen = self.seen_as or self.resource
        user = self.options.user
        info: Object = {"username": user.name, "groups": list(user.groups)}
        if user.uid:
            info["uid"] = user.uid
        if user.extra:
            info["extra"] = {key: list(values) for key, values in user.extra.items()}
        kinds = {"CREATE": "CreateOptions", "UPDATE": "UpdateOptions", "DELETE": "DeleteOptions"}
        request: Object = {
            "uid": uid,
            "kind": _kind(self.kind or seen.gvk),
            "resource": _resource(seen),
            "requestKind": _kind(self.kind or self.resource.gvk),
            "requestResource": _resource(self.resource),
            "name": self.name,
            "namespace": self.namespace,
            "operation": self.operation,
            "userInfo": info,
            "dryRun": self.options.dry_run,
        }
        if self.operation in kinds:
            request["options"] = {"kind": kinds[self.operation], "apiVersion": "meta.k8s.io/v1"}
        if self.subresource:
            request |= {"subResource": self.subresource, "requestSubResource": self.subresource}
        return {key: value for key, value in request.items() if value not in ("", None)}

    @cached_property
    def values(self) -> Object:
        """The variables of CEL expressions."""
        plural = f"{self.resource.plural}/{self.subresource}" if self.subresource else self.resource.plural
        about = Attributes("", self.resource.group, plural, self.namespace, self.name)
        asked = Authorizer(self.authorize or _nobody, self.options.user, about)
        return {"object": self.obj, "oldObject": self.old, "request": self.request(), "authorizer": asked}


def _nobody(user: User, attributes: Attributes) -> tuple[bool, str]:
    return False, ""


def _kind(gvk: Gvk) -> Object:
    return {"group": gvk.group, "version": gvk.version, "kind": gvk.kind}


def _resource(resource: Resource) -> Object:
    return {"group": resource.group, "version": resource.version, "resource": resource.plural}


def equivalent_resource(
    review: Review, rules: Iterable[Object], policy: str, versions: Callable[[Resource], Iterable[Resource]]
) -> Resource | None:
    """
    Return the resource as which a rule matches a review; None when none does.

    Args:
        policy: ``Exact`` = only the version of the request; ``Equivalent`` = any version of the same objects.
        versions: all resources that are views of the same objects, the given one among them.
    """
    if review.resource.group == EXEMPT_GROUP:
        return None
    rules = list(rules)
    if any(_rule_matches(rule, review, review.resource) for rule in rules):
        return review.resource
    if policy == "Equivalent":
        for other in versions(review.resource):
            if any(_rule_matches(rule, review, other) for rule in rules):
                return other
    return None


def _rule_matches(rule: Object, review: Review, resource: Resource) -> bool:
    operations = rule.get("operations") or ()
    if "*" not in operations and review.operation not in operations:
        return False
    scope = rule.get("scope") or "*"
    if scope != "*" and (scope == "Namespaced") != resource.namespaced:
        return False
    for key, value in (("apiGroups", resource.group), ("apiVersions", resource.version)):
        if not {"*", value} & set(rule.get(key) or ()):
            return False
    names = rule.get("resourceNames")
    if names and review.name not in names:
        return False
    sub = review.subresource
    wanted = {f"{plural}/{sub}" for plural in ("*", resource.plural)} if sub else {"*", resource.plural}
    wanted |= {"*/*", f"{resource.plural}/*"}
    return bool(wanted & set(rule.get("resources") or ()))


def matches_labels(review: Review, selectors: Object, labels_of_namespace: Labels) -> bool:
    """Whether ``namespaceSelector`` and ``objectSelector`` of a webhook or policy pick a review."""
    resource = review.resource
    by_namespace = selectors.get("namespaceSelector")
    if by_namespace:
        labels: dict[str, str] | None = None
        if resource.storage == "namespaces":
            labels = labels_of(review.obj or review.old or {})
        elif resource.namespaced:
            labels = labels_of_namespace(review.namespace)
        if labels is not None and not match_selector(by_namespace, labels):
            return False
    by_object = selectors.get("objectSelector")
    if by_object:
        return any(obj is not None and match_selector(by_object, labels_of(obj)) for obj in (review.obj, review.old))
    return True


@lru_cache(maxsize=512)
def compiled(text: str, names: tuple[str, ...] = REQUEST_VARIABLES) -> Program:
    """
    Compile an expression over values without a schema; kept for the next time.

    Raises:
        CelError
    """
    return compile_expression(text, dict.fromkeys(names, DYN))


def unmet_condition(conditions: Iterable[Object], values: dict[str, Any], names: tuple[str, ...]) -> str | None:
    """
    Return the name of the first condition that is false; None when all hold.

    Raises:
        CelError: a condition cannot be decided, and none is false.
    """
    failure: CelError | None = None
    for condition in conditions:
        try:
            if compiled(condition["expression"], names).evaluate(**values) is not True:
                return str(condition.get("name", ""))
        except CelError as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return None


def condition_problem(expression: str, names: tuple[str, ...] = REQUEST_VARIABLES) -> str:
    """Say why an expression cannot be a condition; empty when it can."""
    try:
        program = compiled(expression, names)
    except CelError as error:
        return f"compilation failed: {error}"
    return "" if program.type in (BOOL, DYN) else "must evaluate to bool"
