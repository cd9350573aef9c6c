"""What is installed into a cluster: types, the least roles that the controllers can work with, a Deployment; pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from shallop import gateway, serving
from shallop.controller import Kind, Part
from shallop.embedded.apiserver.resources import Registry
from shallop.kube.objects import Gvk, Object, gvk_of

__all__ = ["CLUSTER_PARTS", "LEASE_NAME", "MANAGED_BY", "Installation", "render_crds", "render_objects", "render_rules"]

# The parts whose controllers need nothing but the API: they run on any cluster.
CLUSTER_PARTS: tuple[Part, ...] = (serving.PART,)
LEASE_NAME = "shallop-controllers"
MANAGED_BY = {"app.kubernetes.io/managed-by": "shallop"}
_NAME = "shallop-controllers"
_HEALTH_PORT = 8080
_USER = 65532
_READ = ("get", "list", "watch")
# Server-side apply of an object that may not exist yet is "patch", and "create" when it does not.
_OWN = (*_READ, "create", "patch", "delete")


class Installation(NamedTuple):
    """What a user may choose."""

    namespace: str
    image: str
    replicas: int


def render_crds(parts: Iterable[Part] = CLUSTER_PARTS) -> list[Object]:
    """Render the CustomResourceDefinitions; two versions of a kind are one, the first is stored."""
    crds: dict[str, Object] = {}
    for kind in (kind for part in parts for kind in part.kinds if kind.schema is not None):
        crd = kind.crd()
        crd["metadata"] |= {"labels": dict(MANAGED_BY)}
        known = crds.setdefault(crd["metadata"]["name"], crd)
        if known is not crd:
            crd["spec"]["versions"][0]["storage"] = False
            known["spec"]["versions"] += crd["spec"]["versions"]
    return list(crds.values())


def render_rules(parts: Sequence[Part] = CLUSTER_PARTS) -> list[Object]:
    """
    Render the rules of the ClusterRole: what the kinds declare that they read and own, and nothing else.

    Our own kinds are read and their status is written; children are applied and deleted; other kinds are read.
    """
    kinds = [kind for part in parts for kind in part.kinds]
    registry, verbs = Registry(), defaultdict[tuple[str, str], set[str]](set)
    ours = {kind.gvk: kind for kind in (*gateway.PART.kinds, *kinds)}

    def grant(gvk: Gvk, granted: Iterable[str], subresource: str = "") -> None:
        plural = _plural(gvk, ours, registry)
        verbs[(gvk.group, f"{plural}/{subresource}" if subresource else plural)] |= set(granted)

    for kind in kinds:
        grant(kind.gvk, _READ)
        if kind.reconcile is None:
            continue
        if kind.status:
            grant(kind.gvk, ("patch",), "status")
        if kind.owns:
            # Clusters that guard owner references ask for this of whoever sets blockOwnerDeletion.
            grant(kind.gvk, ("update",), "finalizers")
        for gvk in kind.owns:
            grant(gvk, _OWN)
        for watch in kind.watches:
            grant(watch.gvk, _READ)
        for gvk in kind.reads:
            grant(gvk, ("get",))
    for obj in (obj for part in parts for obj in part.objects):
        grant(gvk_of(obj), ("create", "patch"))
    verbs[("", "events")] |= {"get", "create", "patch"}
    return [
        {"apiGroups": [group], "resources": [resource], "verbs": sorted(granted)}
        for (group, resource), granted in sorted(verbs.items())
    ]


def _plural(gvk: Gvk, ours: dict[Gvk, Kind], registry: Registry) -> str:
    if gvk in ours:
        return ours[gvk].plural
    resource = registry.by_gvk(gvk)
    if resource is None:
        raise ValueError(f"{gvk} is neither built in nor a kind of ours")
    return resource.plural


def render_objects(installation: Installation) -> list[Object]:
    """Render everything but the CRDs, in the order in which it must be applied."""
    namespace = installation.namespace
    subject = {"kind": "ServiceAccount", "name": _NAME, "namespace": namespace}
    lease = [
        {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "verbs": ["create"]},
        {
            "apiGroups": ["coordination.k8s.io"],
            "resources": ["leases"],
            "resourceNames": [LEASE_NAME],
            "verbs": ["get", "update"],
        },
    ]
    return [
        _object("v1", "Namespace", namespace, ""),
        _object("v1", "ServiceAccount", _NAME, namespace),
        _rbac("ClusterRole", "", rules=render_rules()),
        _rbac("ClusterRoleBinding", "", roleRef=_role("ClusterRole"), subjects=[subject]),
        _rbac("Role", namespace, rules=lease),
        _rbac("RoleBinding", namespace, roleRef=_role("Role"), subjects=[subject]),
        _object("apps/v1", "Deployment", _NAME, namespace, spec=_deployment_spec(installation)),
        _object(
            "v1",
            "Service",
            _NAME,
            namespace,
            spec={"selector": _labels(), "ports": [{"name": "health", "port": 80, "targetPort": "health"}]},
        ),
    ]


def _labels() -> dict[str, str]:
    return {"app.kubernetes.io/name": _NAME}


def _object(api_version: str, kind: str, name: str, namespace: str, **fields: object) -> Object:
    metadata: Object = {"name": name, "labels": _labels() | MANAGED_BY}
    if namespace:
        metadata["namespace"] = namespace
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **fields}


def _rbac(kind: str, namespace: str, **fields: object) -> Object:
    return _object("rbac.authorization.k8s.io/v1", kind, _NAME, namespace, **fields)


def _role(kind: str) -> Object:
    return {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": _NAME}


def _deployment_spec(installation: Installation) -> Object:
    def probe(path: str) -> Object:
        return {"httpGet": {"path": path, "port": "health"}, "periodSeconds": 5}

    container = {
        "name": "controllers",
        "image": installation.image,
        "command": ["shallop", "controllers", "--leader-elect", f"--health-port={_HEALTH_PORT}"],
        "env": [{"name": "SHALLOP_HOME", "value": "/data"}],
        "ports": [{"name": "health", "containerPort": _HEALTH_PORT}],
        "livenessProbe": probe("/healthz"),
        "readinessProbe": probe("/readyz"),
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
    }
    security = {"runAsNonRoot": True, "runAsUser": _USER, "seccompProfile": {"type": "RuntimeDefault"}}
    return {
        "replicas": installation.replicas,
        "selector": {"matchLabels": _labels()},
        "template": {
            "metadata": {"labels": _labels()},
            "spec": {
                "serviceAccountName": _NAME,
                "securityContext": security,
                "containers": [container],
                "volumes": [{"name": "data", "emptyDir": {}}],
            },
        },
    }
