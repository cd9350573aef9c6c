"""
``authorizer`` in the CEL of admission: whether whoever writes might do something else, too.

Source: Kubernetes "Common Expression Language in Kubernetes", authorizer library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from shallop.embedded.apiserver.authorization import Attributes, Authorize
from shallop.embedded.apiserver.cel_types import BOOL, DYN, STRING, CelError, Type
from shallop.embedded.apiserver.requests import AUTHENTICATED, User, account_groups

__all__ = ["METHODS", "Authorizer", "Check"]


@dataclass(frozen=True)
class Check:
    """A question under construction: ``group`` and ``path`` begin one, ``check`` asks it."""

    authorize: Authorize
    user: User
    attributes: Attributes


@dataclass(frozen=True)
class Authorizer:
    """What may be asked about a user; ``requestResource`` is what the request is about."""

    authorize: Authorize
    user: User
    about: Attributes

    def __getitem__(self, name: str) -> Check:
        if name != "requestResource":
            raise KeyError(name)
        return Check(self.authorize, self.user, self.about)


@dataclass(frozen=True)
class _Decision:
    allowed: bool
    reason: str
    # RBAC always knows an answer.
    errored: bool = False
    error: str = ""


def _account(authorizer: Authorizer, namespace: str, name: str) -> Authorizer:
    user = f"system:serviceaccount:{namespace}:{name}"
    groups = account_groups(user)
    if not groups:
        raise CelError(f'invalid service account "{namespace}/{name}"')
    return replace(authorizer, user=User(user, (*groups, AUTHENTICATED)))


def _path(authorizer: Authorizer, path: str) -> Check:
    if not path:
        raise CelError("path must not be empty")
    return Check(authorizer.authorize, authorizer.user, Attributes("", path=path))


def _group(authorizer: Authorizer, group: str) -> Check:
    return Check(authorizer.authorize, authorizer.user, Attributes("", group=group))


def _resource(check: Check, resource: str) -> Check:
    return replace(check, attributes=check.attributes._replace(resource=resource))


def _subresource(check: Check, subresource: str) -> Check:
    plural = check.attributes.resource.partition("/")[0]
    return _resource(check, f"{plural}/{subresource}" if subresource else plural)


def _namespace(check: Check, namespace: str) -> Check:
    return replace(check, attributes=check.attributes._replace(namespace=namespace))


def _name(check: Check, name: str) -> Check:
    return replace(check, attributes=check.attributes._replace(name=name))


def _selected(check: Check, selector: str) -> Check:
    # RBAC knows no selectors: whoever may do it to all may do it to some.
    return check


def _check(check: Check, verb: str) -> _Decision:
    return _Decision(*check.authorize(check.user, check.attributes._replace(verb=verb)))


_AUTHORIZER, _CHECK, _DECISION = map(
    Type, ("kubernetes.authorization.Authorizer", "kubernetes.authorization.Check", "kubernetes.authorization.Decision")
)
_A, _C, _D = (_AUTHORIZER.name,), (_CHECK.name,), (_DECISION.name,)
_Function = tuple[Any, tuple[str, ...], Type | Callable[[Type], Type]]
METHODS: Mapping[str, _Function] = {
    # Dynamic, as the variable is: both have a field.
    "serviceAccount": (_account, _A, DYN),
    "path": (_path, _A, _CHECK),
    "group": (_group, _A, _CHECK),
    "resource": (_resource, _C, _CHECK),
    "subresource": (_subresource, _C, _CHECK),
    "namespace": (_namespace, _C, _CHECK),
    "name": (_name, _C, _CHECK),
    "fieldSelector": (_selected, _C, _CHECK),
    "labelSelector": (_selected, _C, _CHECK),
    "check": (_check, _C, _DECISION),
    "allowed": (lambda decision: decision.allowed, _D, BOOL),
    "reason": (lambda decision: decision.reason, _D, STRING),
    "errored": (lambda decision: decision.errored, _D, BOOL),
    "error": (lambda decision: decision.error, _D, STRING),
}
