"""Nobody grants what he does not have: checks on writes of Roles and bindings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from shallop.embedded.apiserver import failures
from shallop.embedded.apiserver.authorization import (
    CLUSTER_BINDINGS,
    CLUSTER_ROLES,
    ROLE_BINDINGS,
    ROLES,
    Attributes,
    Rbac,
)
from shallop.embedded.apiserver.requests import MASTERS, User
from shallop.embedded.apiserver.resources import Resource
from shallop.errors import NotFoundError
from shallop.kube.objects import Object

__all__ = ["check_escalation", "uncovered_rules"]

_EVERYTHING: list[Object] = [
    {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
    {"verbs": ["*"], "nonResourceURLs": ["*"]},
]


def check_escalation(rbac: Rbac, resource: Resource, obj: Object, old: Object | None, user: User) -> None:
    """
    Refuse a Role or binding that would give more than its writer has, and an apply that creates without that right.

    Raises:
        ForbiddenError: the writer lacks a rule, and has neither ``escalate`` on roles nor ``bind`` on the role.
        NotFoundError: a binding to a role that does not exist, whose rules cannot be compared.
    """
    if MASTERS in user.groups:
        return
    if old is None:
        _check_creation(rbac, resource, obj, user)
    if resource.storage in (ROLES, CLUSTER_ROLES):
        _check_role(rbac, resource, obj, old, user)
    elif resource.storage in (ROLE_BINDINGS, CLUSTER_BINDINGS):
        _check_binding(rbac, resource, obj, old, user)


def _check_creation(rbac: Rbac, resource: Resource, obj: Object, user: User) -> None:
    metadata = obj["metadata"]
    name = metadata.get("name", "")
    attributes = Attributes("create", resource.group, resource.plural, metadata.get("namespace", ""), name)
    # A POST was allowed without a name; a rule with resourceNames allows an apply only.
    if not rbac(user, attributes)[0] and not rbac(user, attributes._replace(name=""))[0]:
        raise failures.forbidden(resource, name, attributes.describe(user))


def _check_role(rbac: Rbac, resource: Resource, obj: Object, old: Object | None, user: User) -> None:
    granted = ("rules", "aggregationRule")
    if old is not None and all(obj.get(key) == old.get(key) for key in granted):
        return
    metadata = obj["metadata"]
    namespace, name = metadata.get("namespace", ""), metadata.get("name", "")
    if rbac(user, Attributes("escalate", resource.group, resource.plural, namespace, name))[0]:
        return
    held = rbac.rules_of(user, namespace)
    if obj.get("aggregationRule") and uncovered_rules(held, _EVERYTHING):
        raise failures.forbidden(resource, name, "must have cluster-admin privileges to use an aggregationRule")
    if missing := uncovered_rules(held, obj.get("rules") or ()):
        raise failures.forbidden(resource, name, _describe(user, missing))


def _check_binding(rbac: Rbac, resource: Resource, obj: Object, old: Object | None, user: User) -> None:
    granted = ("subjects", "roleRef")
    if old is not None and all(obj.get(key) == old.get(key) for key in granted):
        return
    metadata, reference = obj["metadata"], obj.get("roleRef") or {}
    namespace = metadata.get("namespace", "")
    plural = "clusterroles" if reference.get("kind") == "ClusterRole" else "roles"
    role = reference.get("name", "")
    if rbac(user, Attributes("bind", resource.group, plural, namespace, role))[0]:
        return
    rules = rbac.role_rules(reference, namespace)
    if rules is None:
        details = {"name": role, "group": resource.group, "kind": plural}
        raise NotFoundError(f'{plural}.{resource.group} "{role}" not found', details=details)
    if missing := uncovered_rules(rbac.rules_of(user, namespace), rules):
        raise failures.forbidden(resource, metadata.get("name", ""), _describe(user, missing))


class _Atom(NamedTuple):
    """One thing that a rule allows: a verb on a resource (of one name or of any) or on a path."""

    verb: str
    group: str = ""
    resource: str = ""
    name: str = ""
    path: str = ""


def uncovered_rules(held: Sequence[Object], wanted: Iterable[Object]) -> list[Object]:
    """Return what of ``wanted`` the rules in ``held`` do not allow, as rules of one resource each."""
    missing: list[Object] = []
    for atom in dict.fromkeys(atom for rule in wanted for atom in _atoms(rule)):
        if not any(_holds(rule, atom) for rule in held):
            missing.append(_as_rule(atom))
    return _compact(missing)


def _atoms(rule: Object) -> Iterator[_Atom]:
    for verb in rule.get("verbs") or ():
        for path in rule.get("nonResourceURLs") or ():
            yield _Atom(verb, path=path)
        for group in rule.get("apiGroups") or ():
            for resource in rule.get("resources") or ():
                for name in rule.get("resourceNames") or ("",):
                    yield _Atom(verb, group, resource, name)


def _holds(rule: Object, atom: _Atom) -> bool:
    if atom.verb not in (verbs := rule.get("verbs") or ()) and "*" not in verbs:
        return False
    if atom.path:
        urls = rule.get("nonResourceURLs") or ()
        return any(url == atom.path or (url.endswith("*") and atom.path.startswith(url[:-1])) for url in urls)
    if atom.group not in (groups := rule.get("apiGroups") or ()) and "*" not in groups:
        return False
    resources = rule.get("resources") or ()
    subresource = atom.resource.partition("/")[2]
    if not (atom.resource in resources or "*" in resources or (subresource and f"*/{subresource}" in resources)):
        return False
    names = rule.get("resourceNames")
    return not names or (bool(atom.name) and atom.name in names)


def _as_rule(atom: _Atom) -> Object:
    if atom.path:
        return {"nonResourceURLs": [atom.path], "verbs": [atom.verb]}
    rule: Object = {"apiGroups": [atom.group], "resources": [atom.resource]}
    if atom.name:
        rule["resourceNames"] = [atom.name]
    return rule | {"verbs": [atom.verb]}


def _compact(rules: list[Object]) -> list[Object]:
    """Join rules that differ in their verbs only."""
    joined: dict[str, Object] = {}
    for rule in rules:
        key = json.dumps({name: value for name, value in rule.items() if name != "verbs"}, sort_keys=True)
        if key in joined:
            joined[key]["verbs"] += rule["verbs"]
        else:
            joined[key] = rule
    return list(joined.values())


_SHOWN = {
    "apiGroups": "APIGroups",
    "resources": "Resources",
    "resourceNames": "ResourceNames",
    "nonResourceURLs": "NonResourceURLs",
    "verbs": "Verbs",
}


def _describe(user: User, missing: Iterable[Object]) -> str:
    groups = " ".join(json.dumps(group) for group in user.groups)
    lines = [
        "{" + ", ".join(f"{_SHOWN[key]}:{json.dumps(value)}" for key, value in rule.items()) + "}" for rule in missing
    ]
    who = f"user {json.dumps(user.name)} (groups=[{groups}])"
    return f"{who} is attempting to grant RBAC permissions not currently held:\n" + "\n".join(sorted(lines))
