"""Who may do what: Roles and bindings decide."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from shallop.embedded.apiserver.objects_store import Change, ObjectsStore, Stored
from shallop.embedded.apiserver.requests import MASTERS, User
from shallop.kube.objects import Object

__all__ = ["CLUSTER_BINDINGS", "CLUSTER_ROLES", "ROLES", "ROLE_BINDINGS", "Attributes", "Authorize", "Rbac"]

_RBAC = "rbac.authorization.k8s.io"
CLUSTER_ROLES, ROLES = f"clusterroles.{_RBAC}", f"roles.{_RBAC}"
CLUSTER_BINDINGS, ROLE_BINDINGS = f"clusterrolebindings.{_RBAC}", f"rolebindings.{_RBAC}"


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


class Grant(NamedTuple):
    """A binding that concerns a user, and the subject in it."""

    binding: Stored
    subject: Object


class Rbac:
    """
    Evaluates RBAC objects; call it as an ``Authorize``.

    Bindings are indexed by subject as they change, so a decision costs what the user's own bindings cost.
    """

    def __init__(self, store: ObjectsStore) -> None:
        self._store = store
        self._index: dict[str, dict[tuple[str, str, str], Grant]] = {}
        for resource in (CLUSTER_BINDINGS, ROLE_BINDINGS):
            for stored in store.list(resource):
                self._add(stored)
        store.listen((CLUSTER_BINDINGS, ROLE_BINDINGS), self._changed)

    def _changed(self, change: Change) -> None:
        if change.old is not None:
            key = _key(change.old)
            for subject in change.old.object.get("subjects") or ():
                self._index.get(_subject_name(subject, change.old.namespace), {}).pop(key, None)
        if not change.deleted:
            self._add(change.new)

    def _add(self, stored: Stored) -> None:
        for subject in stored.object.get("subjects") or ():
            name = _subject_name(subject, stored.namespace)
            self._index.setdefault(name, {}).setdefault(_key(stored), Grant(stored, subject))

    def __call__(self, user: User, attributes: Attributes) -> tuple[bool, str]:
        if MASTERS in user.groups:
            return True, ""
        for grant in self._grants(user, attributes.namespace):
            if any(covers(rule, attributes) for rule in self._rules_of(grant.binding)):
                return True, _reason(grant)
        return False, ""

    def rules_of(self, user: User, namespace: str) -> list[Object]:
        """Return the rules that apply to a user in a namespace; empty namespace = cluster-wide ones."""
        if MASTERS in user.groups:
            return [
                {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]},
                {"verbs": ["*"], "nonResourceURLs": ["*"]},
            ]
        return [rule for grant in self._grants(user, namespace) for rule in self._rules_of(grant.binding)]

    def role_rules(self, reference: Object, namespace: str) -> list[Object] | None:
        """Return the rules of a role that a binding in ``namespace`` refers to; None when it is not there."""
        if reference.get("kind") == "ClusterRole":
            stored = self._store.get(CLUSTER_ROLES, "", reference.get("name", ""))
        else:
            stored = self._store.get(ROLES, namespace, reference.get("name", ""))
        return None if stored is None else list(stored.object.get("rules") or ())

    def _grants(self, user: User, namespace: str) -> Iterator[Grant]:
        """Bindings that hold in a namespace, the cluster-wide first."""
        names = [f"User/{user.name}", *(f"Group/{group}" for group in user.groups)]
        found = [grant for name in names for grant in self._index.get(name, {}).values()]
        yield from (grant for grant in found if not grant.binding.namespace)
        if namespace:
            yield from (grant for grant in found if grant.binding.namespace == namespace)

    def _rules_of(self, binding: Stored) -> list[Object]:
        return self.role_rules(binding.object.get("roleRef") or {}, binding.namespace) or []


def _key(stored: Stored) -> tuple[str, str, str]:
    return stored.resource, stored.namespace, stored.name


def _subject_name(subject: Object, namespace: str) -> str:
    if subject.get("kind") == "ServiceAccount":
        return f"User/system:serviceaccount:{subject.get('namespace') or namespace}:{subject.get('name')}"
    return f"{subject.get('kind')}/{subject.get('name')}"


def covers(rule: Object, attributes: Attributes) -> bool:
    """Whether a rule of a role allows a request."""
    if not _has(rule.get("verbs"), attributes.verb):
        return False
    if attributes.path:
        return any(_matches_path(url, attributes.path) for url in rule.get("nonResourceURLs") or ())
    if not _has(rule.get("apiGroups"), attributes.group):
        return False
    resources = rule.get("resources") or ()
    subresource = attributes.resource.partition("/")[2]
    if not (_has(resources, attributes.resource) or (subresource and f"*/{subresource}" in resources)):
        return False
    names = rule.get("resourceNames")
    return not names or attributes.name in names


def _matches_path(url: str, path: str) -> bool:
    return path.startswith(url[:-1]) if url.endswith("*") else path == url


def _has(values: Iterable[str] | None, value: str) -> bool:
    values = values or ()
    return value in values or "*" in values


def _reason(grant: Grant) -> str:
    binding, subject = grant.binding, grant.subject
    reference = binding.object.get("roleRef") or {}
    kind = "RoleBinding" if binding.namespace else "ClusterRoleBinding"
    where = f"{binding.name}/{binding.namespace}" if binding.namespace else binding.name
    whom = subject.get("name", "")
    if subject.get("kind") == "ServiceAccount":
        whom = f"{whom}/{subject.get('namespace') or binding.namespace}"
    role = f'{reference.get("kind")} "{reference.get("name")}"'
    return f'RBAC: allowed by {kind} "{where}" of {role} to {subject.get("kind")} "{whom}"'
