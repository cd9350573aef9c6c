"""Which resources the API server serves: descriptors, the built-in ones, a registry that CRDs extend at run time."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from shallop.controller.kind import Admission
from shallop.embedded.apiserver.schema import CompiledSchema, builtin_schema, crd_schema
from shallop.errors import FieldError
from shallop.kube.objects import Gvk, Object

__all__ = ["BUILTINS", "Registry", "Resource", "Subresource"]

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
# The order in which a real server lists them for custom resources.
_CUSTOM_VERBS = ("delete", "deletecollection", "get", "list", "patch", "create", "update", "watch")
_STATUS_VERBS = ("get", "patch", "update")


@dataclass(frozen=True)
class Subresource:
    """Something below an object, such as ``status``; ``gvk`` is the kind of its body, None = that of the object."""

    name: str
    verbs: tuple[str, ...] = _STATUS_VERBS
    gvk: Gvk | None = None


@dataclass(frozen=True, eq=False)
class Resource:
    """
    One resource in one version.

    Args:
        generation: whether objects count changes of their spec in ``metadata.generation``.
        storage_version: the version that is stored; objects are converted on the way in and out.
        fields: paths that field selectors may use besides name and namespace.
        crd: the version entry and the whole CRD of a custom resource; None when it is built in.
        default, validate: admission of a kind of ours, see ``controller.Kind``.
    """

    group: str
    version: str
    kind: str
    plural: str
    singular: str
    namespaced: bool
    list_kind: str
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    subresources: tuple[Subresource, ...] = ()
    generation: bool = False
    storage_version: str = ""
    fields: tuple[str, ...] = ()
    crd: Object | None = None
    crd_version: Object | None = None
    default: Callable[[Object], Object] | None = None
    validate: Callable[[Object, Object | None], list[FieldError]] | None = None

    @cached_property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @cached_property
    def gvk(self) -> Gvk:
        return Gvk(self.api_version, self.kind)

    @cached_property
    def storage(self) -> str:
        """Name in the store: one for all versions of the resource."""
        plural = _STORED_AS.get((self.group, self.plural), (self.plural, self.group))
        return ".".join(filter(None, plural))

    @cached_property
    def qualified(self) -> str:
        """``configmaps`` or ``deployments.apps``, as messages name it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @cached_property
    def custom(self) -> bool:
        return self.crd is not None

    @cached_property
    def webhook(self) -> Object | None:
        """Where versions of a custom resource are converted by a webhook: how to ask it."""
        declared = self.crd["spec"].get("conversion") or {} if self.crd is not None else {}
        return declared.get("webhook") or {} if declared.get("strategy") == "Webhook" else None

    @cached_property
    def schema(self) -> CompiledSchema | None:
        if self.crd_version is not None:
            return crd_schema((self.crd_version.get("schema") or {}).get("openAPIV3Schema") or {})
        return builtin_schema(self.gvk)

    @cached_property
    def stored_schema(self) -> CompiledSchema | None:
        """The schema of the version that is stored, where this is another one."""
        if self.crd is None or self.version == self.storage_version:
            return None
        stored = next(version for version in self.crd["spec"]["versions"] if version["name"] == self.storage_version)
        return crd_schema((stored.get("schema") or {}).get("openAPIV3Schema") or {})

    def subresource(self, name: str) -> Subresource | None:
        return next((sub for sub in self.subresources if sub.name == name), None)

    @cached_property
    def has_status(self) -> bool:
        return self.subresource("status") is not None


# Two APIs over the same objects: events.k8s.io shows what core/v1 stores.
_STORED_AS = {("events.k8s.io", "events"): ("events", "")}

_STATUS = Subresource("status")
_SCALE = Subresource("scale", gvk=Gvk("autoscaling/v1", "Scale"))
_CREATE = ("create",)
_CONNECT = ("create", "get")
_PROXY = ("create", "delete", "get", "patch", "update")


def _builtin(
    group: str,
    kind: str,
    plural: str = "",
    *,
    short: str = "",
    all_: bool = False,
    cluster: bool = False,
    status: bool = False,
    scale: bool = False,
    subresources: Iterable[Subresource] = (),
    verbs: tuple[str, ...] = ALL_VERBS,
    generation: bool = False,
    version: str = "v1",
    fields: tuple[str, ...] = (),
    categories: tuple[str, ...] = (),
) -> Resource:
    subs = (*subresources, *((_SCALE,) if scale else ()), *((_STATUS,) if status else ()))
    return Resource(
        group=group,
        version=version,
        kind=kind,
        plural=plural or kind.lower() + "s",
        singular=kind.lower(),
        namespaced=not cluster,
        list_kind=f"{kind}List",
        short_names=tuple(filter(None, short.split(","))),
        categories=("all",) if all_ else categories,
        verbs=verbs,
        subresources=tuple(sorted(subs, key=lambda sub: sub.name)),
        generation=generation,
        storage_version="v2" if group == "autoscaling" else "v1",
        fields=fields,
    )


_POD_FIELDS = [
    "spec.nodeName",
    "spec.restartPolicy",
    "spec.schedulerName",
    "spec.serviceAccountName",
    "spec.hostNetwork",
    "status.phase",
    "status.podIP",
    "status.podIPs",
    "status.nominatedNodeName",
]
_INVOLVED_FIELDS = ("kind", "namespace", "name", "uid", "apiVersion", "resourceVersion", "fieldPath")
_EVENT_FIELDS = (
    *(f"involvedObject.{field}" for field in _INVOLVED_FIELDS),
    "reason",
    "reportingComponent",
    "source",
    "type",
)
_RBAC = "rbac.authorization.k8s.io"

_ADMISSION = "admissionregistration.k8s.io"

BUILTINS: tuple[Resource, ...] = (
    _builtin("", "Binding", verbs=_CREATE),
    _builtin("", "ConfigMap", short="cm"),
    _builtin("", "Endpoints", "endpoints", short="ep"),
    _builtin("", "Event", short="ev", fields=_EVENT_FIELDS),
    _builtin("", "LimitRange", short="limits"),
    _builtin(
        "",
        "Namespace",
        short="ns",
        cluster=True,
        status=True,
        subresources=[Subresource("finalize", ("update",))],
        verbs=tuple(verb for verb in ALL_VERBS if verb != "deletecollection"),
        fields=("status.phase",),
    ),
    _builtin("", "Node", short="no", cluster=True, status=True, fields=("spec.unschedulable",)),
    _builtin("", "PersistentVolumeClaim", short="pvc", status=True),
    _builtin("", "PersistentVolume", short="pv", cluster=True, status=True),
    _builtin(
        "",
        "Pod",
        short="po",
        all_=True,
        status=True,
        generation=True,
        subresources=[
            *(
                Subresource(name, _CONNECT, Gvk("v1", f"Pod{kind}Options"))
                for name, kind in (("attach", "Attach"), ("exec", "Exec"), ("portforward", "PortForward"))
            ),
            Subresource("proxy", _PROXY, Gvk("v1", "PodProxyOptions")),
            Subresource("binding", _CREATE, Gvk("v1", "Binding")),
            Subresource("ephemeralcontainers"),
            Subresource("eviction", _CREATE, Gvk("policy/v1", "Eviction")),
            Subresource("log", ("get",)),
            Subresource("resize"),
        ],
        fields=tuple(_POD_FIELDS),
    ),
    _builtin("", "PodTemplate"),
    _builtin(
        "", "ReplicationController", short="rc", all_=True, status=True, scale=True, generation=True,
        fields=("status.replicas",),
    ),
    _builtin("", "ResourceQuota", short="quota", status=True),
    _builtin("", "Secret", fields=("type",)),
    _builtin(
        "",
        "ServiceAccount",
        short="sa",
        subresources=[Subresource("token", _CREATE, Gvk("authentication.k8s.io/v1", "TokenRequest"))],
    ),
    _builtin(
        "",
        "Service",
        short="svc",
        all_=True,
        status=True,
        subresources=[Subresource("proxy", _PROXY, Gvk("v1", "ServiceProxyOptions"))],
        fields=("spec.clusterIP", "spec.type"),
    ),
    _builtin("apps", "ControllerRevision"),
    _builtin("apps", "DaemonSet", short="ds", all_=True, status=True, generation=True),
    _builtin("apps", "Deployment", short="deploy", all_=True, status=True, scale=True, generation=True),
    _builtin(
        "apps", "ReplicaSet", short="rs", all_=True, status=True, scale=True, generation=True,
        fields=("status.replicas",),
    ),
    _builtin("apps", "StatefulSet", short="sts", all_=True, status=True, scale=True, generation=True),
    _builtin("events.k8s.io", "Event", short="ev", fields=("reason", "reportingController", "type", "regarding.name")),
    _builtin(
        _ADMISSION, "ValidatingAdmissionPolicy", "validatingadmissionpolicies", cluster=True, status=True,
        generation=True, categories=("api-extensions",),
    ),
    _builtin(
        _ADMISSION, "ValidatingAdmissionPolicyBinding", cluster=True, generation=True, categories=("api-extensions",)
    ),
    _builtin(
        _ADMISSION, "MutatingAdmissionPolicy", "mutatingadmissionpolicies", cluster=True, generation=True,
        categories=("api-extensions",),
    ),
    _builtin(
        _ADMISSION, "MutatingAdmissionPolicyBinding", cluster=True, generation=True, categories=("api-extensions",)
    ),
    _builtin(
        _ADMISSION, "MutatingWebhookConfiguration", cluster=True, generation=True, categories=("api-extensions",)
    ),
    _builtin(
        _ADMISSION, "ValidatingWebhookConfiguration", cluster=True, generation=True, categories=("api-extensions",)
    ),
    _builtin("authentication.k8s.io", "SelfSubjectReview", cluster=True, verbs=_CREATE),
    _builtin("authentication.k8s.io", "TokenReview", cluster=True, verbs=_CREATE),
    _builtin("authorization.k8s.io", "LocalSubjectAccessReview", verbs=_CREATE),
    _builtin("authorization.k8s.io", "SelfSubjectAccessReview", cluster=True, verbs=_CREATE),
    _builtin("authorization.k8s.io", "SelfSubjectRulesReview", cluster=True, verbs=_CREATE),
    _builtin("authorization.k8s.io", "SubjectAccessReview", cluster=True, verbs=_CREATE),
    _builtin("autoscaling", "HorizontalPodAutoscaler", short="hpa", all_=True, status=True, version="v2"),
    _builtin("autoscaling", "HorizontalPodAutoscaler", short="hpa", all_=True, status=True, version="v1"),
    _builtin("batch", "CronJob", short="cj", all_=True, status=True, generation=True),
    _builtin("batch", "Job", all_=True, status=True, generation=True, fields=("status.successful",)),
    _builtin("metrics.k8s.io", "NodeMetrics", "nodes", cluster=True, version="v1beta1", verbs=("get", "list")),
    _builtin("metrics.k8s.io", "PodMetrics", "pods", version="v1beta1", verbs=("get", "list")),
    _builtin("networking.k8s.io", "IngressClass", "ingressclasses", cluster=True, generation=True),
    _builtin("networking.k8s.io", "Ingress", "ingresses", short="ing", status=True, generation=True),
    _builtin("networking.k8s.io", "NetworkPolicy", "networkpolicies", short="netpol", generation=True),
    _builtin("policy", "PodDisruptionBudget", short="pdb", status=True, generation=True),
    _builtin(_RBAC, "ClusterRoleBinding", cluster=True),
    _builtin(_RBAC, "ClusterRole", cluster=True),
    _builtin(_RBAC, "RoleBinding"),
    _builtin(_RBAC, "Role"),
    _builtin("storage.k8s.io", "CSIDriver", cluster=True),
    _builtin("storage.k8s.io", "CSINode", cluster=True),
    _builtin("storage.k8s.io", "CSIStorageCapacity", "csistoragecapacities"),
    _builtin("storage.k8s.io", "StorageClass", "storageclasses", short="sc", cluster=True),
    _builtin("storage.k8s.io", "VolumeAttachment", cluster=True, status=True),
    _builtin("storage.k8s.io", "VolumeAttributesClass", "volumeattributesclasses", short="vac", cluster=True),
    _builtin(
        "apiextensions.k8s.io", "CustomResourceDefinition", short="crd,crds", cluster=True, status=True,
        generation=True, categories=("api-extensions",),
    ),
    _builtin("scheduling.k8s.io", "PriorityClass", "priorityclasses", short="pc", cluster=True, generation=True),
    _builtin("coordination.k8s.io", "Lease"),
    _builtin("discovery.k8s.io", "EndpointSlice", generation=True),
)  # fmt: skip


_DEPRECATED = {
    Gvk("v1", "Endpoints"): "v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice",
}


class Registry:
    """The resources served now; ``serial`` grows with each change, so that documents made from it can be cached."""

    def __init__(self, builtins: Iterable[Resource] = BUILTINS) -> None:
        self._resources: dict[tuple[str, str, str], Resource] = {}
        self._by_gvk: dict[Gvk, Resource] = {}
        self.serial = 0
        self._paths: tuple[int, set[tuple[str, str]], set[str]] = (-1, set(), set())
        self.admission: dict[Gvk, tuple[Any, Any]] = {}
        # Why objects of a kind may not be deleted, see ``controller.Kind.held``.
        self.held: dict[Gvk, Callable[[Object], str]] = {}
        # Changes to new objects that parts make, see ``controller.Part.admission``.
        self.mutating: dict[Gvk, list[Admission]] = {}
        for resource in builtins:
            self._add(resource)

    def _add(self, resource: Resource) -> None:
        self._resources[(resource.group, resource.version, resource.plural)] = resource
        self._by_gvk[resource.gvk] = resource
        self.serial += 1

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        return self._resources.get((group, version, plural))

    def by_gvk(self, gvk: Gvk) -> Resource | None:
        return self._by_gvk.get(gvk)

    def all(self) -> list[Resource]:
        return list(self._resources.values())

    def groups(self) -> dict[str, dict[str, list[Resource]]]:
        """Return group -> version -> resources, in the order they are listed by discovery."""
        groups: dict[str, dict[str, list[Resource]]] = {}
        for resource in self._resources.values():
            groups.setdefault(resource.group, {}).setdefault(resource.version, []).append(resource)
        return groups

    def has_version(self, group: str, version: str) -> bool:
        return any(key[:2] == (group, version) for key in self._resources)

    def has_group(self, group: str) -> bool:
        return any(key[0] == group for key in self._resources)

    def has_path(self, group: str, version: str) -> bool:
        """Whether anything answers below a version: built-in groups always do, custom ones for what they serve."""
        if self._paths[0] != self.serial:
            found = {key[:2] for key in self._resources}
            self._paths = (self.serial, found, {key[0] for key, known in self._resources.items() if not known.custom})
        return (group, version) in self._paths[1] or group in self._paths[2]

    def add_crd(self, crd: Object) -> None:
        """Serve the versions of an established CRD, instead of what it declared before."""
        self.remove_crd(crd)
        for resource in crd_resources(crd):
            default, validate = self.admission.get(resource.gvk, (None, None))
            self._add(replace(resource, default=default, validate=validate))

    def remove_crd(self, crd: Object) -> None:
        spec = crd["spec"]
        wanted = (spec["group"], spec["names"]["plural"])
        for key, resource in list(self._resources.items()):
            if (key[0], key[2]) == wanted and resource.custom:
                del self._resources[key]
                self._by_gvk.pop(resource.gvk, None)
                self.serial += 1


def deprecation_of(resource: Resource) -> str:
    """Return the warning that every use of a deprecated version brings; empty when it is not deprecated."""
    version = resource.crd_version
    if version is None:
        return _DEPRECATED.get(resource.gvk, "")
    if not version.get("deprecated"):
        return ""
    return version.get("deprecationWarning") or f"{resource.api_version} {resource.kind} is deprecated"


def crd_resources(crd: Object) -> list[Resource]:
    """Return one resource per served version, the newest stable version first."""
    spec = crd["spec"]
    names = spec["names"]
    storage = next(version["name"] for version in spec["versions"] if version.get("storage"))
    versions = sorted((v for v in spec["versions"] if v.get("served")), key=lambda v: version_priority(v["name"]))
    return [
        Resource(
            group=spec["group"],
            version=version["name"],
            kind=names["kind"],
            plural=names["plural"],
            singular=names.get("singular") or names["kind"].lower(),
            namespaced=spec["scope"] == "Namespaced",
            list_kind=names.get("listKind") or f"{names['kind']}List",
            verbs=_CUSTOM_VERBS,
            short_names=tuple(names.get("shortNames") or ()),
            categories=tuple(names.get("categories") or ()),
            subresources=_crd_subresources(version.get("subresources") or {}),
            generation=True,
            storage_version=storage,
            fields=tuple(field["jsonPath"].lstrip(".") for field in version.get("selectableFields") or ()),
            crd=crd,
            crd_version=version,
        )
        for version in versions
    ]


def _crd_subresources(declared: Object) -> tuple[Subresource, ...]:
    found = []
    if declared.get("scale") is not None:
        found.append(_SCALE)
    if declared.get("status") is not None:
        found.append(_STATUS)
    return tuple(found)


def version_priority(version: str) -> tuple[int, int, int, str]:
    """Sort key of Kubernetes: v2, v1, v1beta2, v1beta1, v1alpha1, then anything else by name."""
    for rank, stage in enumerate(("", "beta", "alpha")):
        head, separator, tail = version[1:].partition(stage) if stage else (version[1:], "", "0")
        if version.startswith("v") and head.isdigit() and tail.isdigit() and bool(separator) == bool(stage):
            return rank, -int(head), -int(tail), version
    return 3, 0, 0, version
