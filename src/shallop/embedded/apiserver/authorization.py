"""Who may do what: everybody who is authenticated, or as RBAC objects say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from shallop.embedded.apiserver.objects_store import ObjectsStore
from shallop.embedded.apiserver.requests import MASTERS, User
from shallop.kube.objects import Object

__all__ = ["Attributes", "Authorize", "Rbac", "allow_authenticated"]

_RBAC = "rbac.authorization.k8s.io"
_PUBLIC_PATHS = ("/healthz", "/livez", "/readyz", "/version")
# What every authenticated user may read on a real cluster, too: clients need it before anything else.
_DISCOVERY_PATHS = ("/api", "/apis", "/openapi", "/version", "/healthz", "/livez", "/readyz")


class Attributes(NamedTuple):
    """A request as authorisation sees it: a resource (``pods``, ``pods/log``) or a ``path``."""

    verb: str
    group: str = ""
    resource: str = ""
    namespace: str = ""
    name: str = ""
    path: str = ""

    def describe(self, user: User) -> str:
        """Say what is refused, as a real API server says it."""
        if self.path:
            return f'User "{user.name}" cannot {self.verb} path "{self.path}"'
        where = f'in the namespace "{self.namespace}"' if self.namespace else "at the cluster scope"
        return f'User "{user.name}" cannot {self.verb} resource "{self.resource}" in API group "{self.group}" {where}'


# -> allowed, and why
Authorize = Callable[[User, Attributes], tuple[bool, str]]


def is_public(path: str) -> bool:
    return any(path == public or path.startswith(public + "/") for public in _PUBLIC_PATHS)


def allow_authenticated(user: User, attributes: Attributes) -> tuple[bool, str]:
    """One person's machine: whoever has a token may do everything."""
    if attributes.path and is_public(attributes.path):
        return True, ""
    return "system:authenticated" in user.groups, ""


class Rbac:
    """Roles and bindings decide; call it as an ``Authorize``."""

    def __init__(self, store: ObjectsStore) -> None:
        self._store = store

    def __call__(self, user: User, attributes: Attributes) -> tuple[bool, str]:
        if MASTERS in user.groups:
            return True, ""
        if attributes.path:
            if is_public(attributes.path):
                return True, ""
            if "system:authenticated" in user.groups and attributes.path.startswith(_DISCOVERY_PATHS):
                return True, ""
        elif attributes.verb == "create" and attributes.resource.startswith("selfsubject"):
            return "system:authenticated" in user.groups, ""
        for binding in self._store.list(f"clusterrolebindings.{_RBAC}"):
            if self._allows(binding.object, "", user, attributes):
                name = binding.name
                return True, f'RBAC: allowed by ClusterRoleBinding "{name}" of {_described(binding.object, user)}'
        if attributes.namespace:
            for binding in self._store.list(f"rolebindings.{_RBAC}", attributes.namespace):
                if self._allows(binding.object, attributes.namespace, user, attributes):
                    name = f"{binding.name}/{attributes.namespace}"
                    return True, f'RBAC: allowed by RoleBinding "{name}" of {_described(binding.object, user)}'
        return False, ""

    def rules_of(self, user: User, namespace: str) -> list[Object]:
        """Return the rules that apply to a user in a namespace."""
        rules: list[Object] = []
        bindings = [
            *self._store.list(f"clusterrolebindings.{_RBAC}"),
            *self._store.list(f"rolebindings.{_RBAC}", namespace),
        ]
        for binding in bindings:
            if _concerns(binding.object, user, binding.namespace):
                rules += self._rules(binding.object, binding.namespace)
        return rules

    def _allows(self, binding: Object, namespace: str, user: User, attributes: Attributes) -> bool:
        if not _concerns(binding, user, namespace):
            return False
        return any(_covers(rule, attributes) for rule in self._rules(binding, namespace))

    def _rules(self, binding: Object, namespace: str) -> list[Object]:
        reference = binding.get("roleRef") or {}
        if reference.get("kind") == "ClusterRole":
            stored = self._store.get(f"clusterroles.{_RBAC}", "", reference.get("name", ""))
        else:
            stored = self._store.get(f"roles.{_RBAC}", namespace, reference.get("name", ""))
        return list(stored.object.get("rules") or ()) if stored is not None else []


def _concerns(binding: Object, user: User, namespace: str) -> bool:
    for subject in binding.get("subjects") or ():
        kind, name = subject.get("kind"), subject.get("name")
        if kind == "User" and name == user.name:
            return True
        if kind == "Group" and name in user.groups:
            return True
        account = f"system:serviceaccount:{subject.get('namespace') or namespace}:{name}"
        if kind == "ServiceAccount" and user.name == account:
            return True
    return False


def _covers(rule: Object, attributes: Attributes) -> bool:
    if not _has(rule.get("verbs"), attributes.verb):
        return False
    if attributes.path:
        return any(
            attributes.path.startswith(url[:-1]) if url.endswith("*") else attributes.path == url
            for url in rule.get("nonResourceURLs") or ()
        )
    if not _has(rule.get("apiGroups"), attributes.group):
        return False
    subresource = attributes.resource.partition("/")[2]
    resources = rule.get("resources") or ()
    if not (_has(resources, attributes.resource) or (subresource and f"*/{subresource}" in resources)):
        return False
    names = rule.get("resourceNames")
    return not names or attributes.name in names


def _has(values: Iterable[str] | None, value: str) -> bool:
    return value in (values or ()) or "*" in (values or ())


def _described(binding: Object, user: User) -> str:
    reference = binding.get("roleRef") or {}
    subject = next((s for s in binding.get("subjects") or () if s.get("name") == user.name), None)
    whom = f'{subject["kind"]} "{user.name}"' if subject else f'Group of "{user.name}"'
    return f'{reference.get("kind")} "{reference.get("name")}" to {whom}'
