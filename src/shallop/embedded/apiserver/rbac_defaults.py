"""The ClusterRoles and bindings that every cluster has, and the roles that are made of others by label."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from shallop.embedded.apiserver.authorization import CLUSTER_ROLES
from shallop.embedded.apiserver.objects_store import Change, ObjectsStore
from shallop.embedded.apiserver.resources import Registry
from shallop.embedded.apiserver.verbs import Verbs
from shallop.errors import ApiError, NotFoundError
from shallop.kube.objects import Gvk, Object, labels_of
from shallop.kube.selectors import match_selector

__all__ = ["AggregationController", "render_default_rbac"]

log = logging.getLogger(__name__)
_GROUP = "rbac.authorization.k8s.io"
_VERSION = f"{_GROUP}/v1"
_AGGREGATE = f"{_GROUP}/aggregate-to-"
_LABELS = {"kubernetes.io/bootstrapping": "rbac-defaults"}
_AUTOUPDATE = {"rbac.authorization.kubernetes.io/autoupdate": "true"}
_READ = ("get", "list", "watch")
_WRITE = ("create", "delete", "deletecollection", "patch", "update")
_AUTHENTICATED, _ANONYMOUS = "system:authenticated", "system:unauthenticated"

_SECRETIVE = ("pods/attach", "pods/exec", "pods/portforward", "pods/proxy", "secrets", "services/proxy")
_EDITED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("", ("pods", "pods/attach", "pods/exec", "pods/portforward", "pods/proxy")),
    (
        "",
        (
            "configmaps", "events", "persistentvolumeclaims", "replicationcontrollers", "replicationcontrollers/scale",
            "secrets", "serviceaccounts", "services", "services/proxy",
        ),
    ),
    (
        "apps",
        (
            "daemonsets", "deployments", "deployments/rollback", "deployments/scale", "replicasets",
            "replicasets/scale", "statefulsets", "statefulsets/scale",
        ),
    ),
    ("autoscaling", ("horizontalpodautoscalers",)),
    ("batch", ("cronjobs", "jobs")),
    ("policy", ("poddisruptionbudgets",)),
    ("networking.k8s.io", ("ingresses", "networkpolicies")),
    ("coordination.k8s.io", ("leases",)),
)  # fmt: skip
_SEEN: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "",
        (
            "configmaps", "endpoints", "persistentvolumeclaims", "persistentvolumeclaims/status", "pods",
            "replicationcontrollers", "replicationcontrollers/scale", "serviceaccounts", "services", "services/status",
        ),
    ),
    (
        "",
        (
            "bindings", "events", "limitranges", "namespaces/status", "pods/log", "pods/status",
            "replicationcontrollers/status", "resourcequotas", "resourcequotas/status",
        ),
    ),
    ("", ("namespaces",)),
    ("discovery.k8s.io", ("endpointslices",)),
    (
        "apps",
        (
            "controllerrevisions", "daemonsets", "daemonsets/status", "deployments", "deployments/scale",
            "deployments/status", "replicasets", "replicasets/scale", "replicasets/status", "statefulsets",
            "statefulsets/scale", "statefulsets/status",
        ),
    ),
    ("autoscaling", ("horizontalpodautoscalers", "horizontalpodautoscalers/status")),
    ("batch", ("cronjobs", "cronjobs/status", "jobs", "jobs/status")),
    ("policy", ("poddisruptionbudgets", "poddisruptionbudgets/status")),
    ("networking.k8s.io", ("ingresses", "ingresses/status", "networkpolicies")),
    ("metrics.k8s.io", ("pods", "nodes")),
)  # fmt: skip
_DISCOVERY = ("/api", "/api/*", "/apis", "/apis/*", "/healthz", "/livez", "/openapi", "/openapi/*", "/readyz")
_PUBLIC = ("/healthz", "/livez", "/readyz", "/version", "/version/")
_REVIEWS = "authorization.k8s.io"


def _rule(verbs: Sequence[str], group: str, *resources: str) -> Object:
    return {"verbs": list(verbs), "apiGroups": [group], "resources": list(resources)}


def _urls(*urls: str) -> Object:
    return {"verbs": ["get"], "nonResourceURLs": list(urls)}


def _role(name: str, rules: Iterable[Object], *, into: str = "", of: Sequence[str] = ()) -> Object:
    """A ClusterRole; ``into`` names the role that takes its rules, ``of`` the labels of roles whose rules it takes."""
    labels = _LABELS | ({f"{_AGGREGATE}{into}": "true"} if into else {})
    role: Object = {
        "apiVersion": _VERSION,
        "kind": "ClusterRole",
        "metadata": {"name": name, "labels": labels, "annotations": _AUTOUPDATE},
    }
    if of:
        selectors = [{"matchLabels": {f"{_AGGREGATE}{label}": "true"}} for label in of]
        return role | {"aggregationRule": {"clusterRoleSelectors": selectors}}
    return role | {"rules": list(rules)}


def _bind(name: str, *groups: str, role: str = "") -> Object:
    return {
        "apiVersion": _VERSION,
        "kind": "ClusterRoleBinding",
        "metadata": {"name": name, "labels": _LABELS, "annotations": _AUTOUPDATE},
        "subjects": [{"kind": "Group", "apiGroup": _GROUP, "name": group} for group in groups],
        "roleRef": {"apiGroup": _GROUP, "kind": "ClusterRole", "name": role or name},
    }


def render_default_rbac() -> Iterator[Object]:
    """
    Return the roles for people (``cluster-admin``, ``admin``, ``edit``, ``view``) and what everybody may do.

    Source: the tables of "Using RBAC Authorization", kubernetes.io.
    """
    everything = {"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}
    yield _role("cluster-admin", [everything, {"verbs": ["*"], "nonResourceURLs": ["*"]}])
    yield _role("admin", (), of=("admin", "edit", "view"))
    yield _role("edit", (), of=("edit", "view"))
    yield _role("view", (), of=("view",))
    yield _role(
        "system:aggregate-to-admin",
        [
            _rule(("create",), _REVIEWS, "localsubjectaccessreviews"),
            _rule((*_READ, *_WRITE), _GROUP, "rolebindings", "roles"),
        ],
        into="admin",
    )
    secretive = [_rule(_READ, "", *_SECRETIVE), _rule(("impersonate",), "", "serviceaccounts")]
    edited = [_rule(_WRITE, group, *resources) for group, resources in _EDITED]
    others = [
        _rule(("create",), "", "pods/eviction", "serviceaccounts/token"),
        _rule(_READ, "coordination.k8s.io", "leases"),
    ]
    yield _role("system:aggregate-to-edit", [*secretive, *edited, *others], into="edit")
    yield _role("system:aggregate-to-view", [_rule(_READ, group, *names) for group, names in _SEEN], into="view")
    yield _role(
        "system:basic-user",
        [
            _rule(("create",), _REVIEWS, "selfsubjectaccessreviews", "selfsubjectrulesreviews"),
            _rule(("create",), "authentication.k8s.io", "selfsubjectreviews"),
        ],
    )
    yield _role("system:discovery", [_urls(*_DISCOVERY, "/version", "/version/")])
    yield _role("system:public-info-viewer", [_urls(*_PUBLIC)])
    yield _role(
        "system:service-account-issuer-discovery", [_urls("/.well-known/openid-configuration", "/openid/v1/jwks")]
    )
    yield _role(
        "system:auth-delegator",
        [
            _rule(("create",), "authentication.k8s.io", "tokenreviews"),
            _rule(("create",), _REVIEWS, "subjectaccessreviews"),
        ],
    )
    yield _role("system:monitoring", [_urls("/metrics", "/healthz", "/healthz/*", "/livez", "/livez/*", "/readyz")])
    yield _bind("cluster-admin", "system:masters")
    yield _bind("system:basic-user", _AUTHENTICATED)
    yield _bind("system:discovery", _AUTHENTICATED)
    yield _bind("system:public-info-viewer", _AUTHENTICATED, _ANONYMOUS)
    yield _bind("system:service-account-issuer-discovery", "system:serviceaccounts")
    yield _bind("system:monitoring", "system:monitoring")


class AggregationController:
    """Keeps the rules of ClusterRoles that have an ``aggregationRule``."""

    def __init__(self, store: ObjectsStore, registry: Registry, verbs: Verbs) -> None:
        self._store = store
        self._registry = registry
        self._verbs = verbs
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when all rules are there."""
        self._store.listen((CLUSTER_ROLES,), self._notice)
        await self._reconcile()
        self._task = asyncio.get_running_loop().create_task(self._run(), name="aggregated roles")

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _notice(self, _: Change) -> None:
        self._changed.set()

    async def _run(self) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            try:
                await self._reconcile()
            except ApiError as error:
                log.warning("aggregated ClusterRoles: %s", error)

    async def _reconcile(self) -> None:
        resource = self._registry.by_gvk(Gvk(_VERSION, "ClusterRole"))
        if resource is None:
            return
        roles = [stored.object for stored in self._store.list(CLUSTER_ROLES)]
        for role in roles:
            if "aggregationRule" not in role:
                continue
            rules = aggregate_rules(role, roles)
            if rules == (role.get("rules") or []):
                continue

            def change(old: Object, rules: Any = rules) -> Object:
                return old | {"rules": rules}

            try:
                await self._verbs.change(resource, "", role["metadata"]["name"], change)
            except NotFoundError:
                continue


def aggregate_rules(role: Object, roles: Iterable[Object]) -> list[Object]:
    """Return the rules of all other roles that the selectors of ``role`` pick, each once."""
    rules: list[Object] = []
    for selector in (role.get("aggregationRule") or {}).get("clusterRoleSelectors") or ():
        for other in roles:
            if other["metadata"]["name"] == role["metadata"]["name"] or not match_selector(selector, labels_of(other)):
                continue
            rules += [rule for rule in other.get("rules") or () if rule not in rules]
    return rules
