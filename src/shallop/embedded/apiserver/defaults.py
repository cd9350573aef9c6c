"""Defaults of built-in kinds, set at admission; the input is never changed."""

from __future__ import annotations

import base64
from collections.abc import Callable

from shallop.embedded.apiserver.admission_validation import default_policy, default_policy_binding, default_webhooks
from shallop.embedded.apiserver.event_validation import default_event
from shallop.embedded.apiserver.limit_ranges import default_limit_range
from shallop.embedded.apiserver.pod_defaults import complete_pod, default_pod, default_template
from shallop.embedded.apiserver.quantities import canonical_quantities
from shallop.embedded.apiserver.resources import Resource
from shallop.kube.objects import Object

__all__ = ["apply_defaults", "complete", "status_is_reset"]

Default = Callable[[Object, Object | None], Object]

# Kinds whose status a client may give at creation.
_STATUS_KEPT = {"nodes", "persistentvolumes"}


def status_is_reset(resource: Resource) -> bool:
    return resource.storage not in _STATUS_KEPT


def apply_defaults(resource: Resource, obj: Object, old: Object | None) -> Object:
    """Return ``obj`` with the defaults of its kind; ``old`` is the stored object on updates."""
    default = _DEFAULTS.get(resource.storage)
    return default(obj, old) if default else obj


def complete(resource: Resource, obj: Object) -> Object:
    """Return a new object with what the server itself adds at creation: status, finalizers, selectors, tokens."""
    finish = _COMPLETE.get(resource.storage)
    return finish(obj) if finish else obj


def _missing(values: Object, **defaults: object) -> Object:
    """Return ``values`` with the defaults that it lacks."""
    return {**{key: value for key, value in defaults.items() if values.get(key) is None}, **_present(values)}


def _present(values: Object) -> Object:
    return {key: value for key, value in values.items() if value is not None}


def _namespace(obj: Object, old: Object | None) -> Object:
    metadata = obj["metadata"]
    metadata["labels"] = {**(metadata.get("labels") or {}), "kubernetes.io/metadata.name": metadata["name"]}
    if old is None:
        return obj
    # Finalizers of the spec change through /finalize only.
    return obj | {"spec": old.get("spec") or {}, "status": obj.get("status") or {}}


def _complete_namespace(obj: Object) -> Object:
    spec = dict(obj.get("spec") or {})
    spec["finalizers"] = list(dict.fromkeys([*(spec.get("finalizers") or ()), "kubernetes"]))
    return obj | {"spec": spec, "status": {"phase": "Active"}}


def _secret(obj: Object, old: Object | None) -> Object:
    obj = dict(obj)
    texts = obj.pop("stringData", None)
    if texts:
        encoded = {key: base64.b64encode(value.encode()).decode() for key, value in texts.items()}
        obj["data"] = {**(obj.get("data") or {}), **encoded}
    obj["type"] = obj.get("type") or "Opaque"
    return obj


def _service(obj: Object, old: Object | None) -> Object:
    spec = _missing(obj.get("spec") or {}, sessionAffinity="None", type="ClusterIP")
    external = spec["type"] == "ExternalName"
    if spec.get("ports"):
        spec["ports"] = [_service_port(port, headless=spec.get("clusterIP") == "None") for port in spec["ports"]]
    if not external:
        spec = _missing(spec, ipFamilies=["IPv4"], ipFamilyPolicy="SingleStack", internalTrafficPolicy="Cluster")
    if spec["type"] in ("NodePort", "LoadBalancer"):
        spec = _missing(spec, externalTrafficPolicy="Cluster")
    if spec["type"] == "LoadBalancer":
        spec = _missing(spec, allocateLoadBalancerNodePorts=True)
    if spec["sessionAffinity"] == "ClientIP":
        spec = _missing(spec, sessionAffinityConfig={"clientIP": {"timeoutSeconds": 10800}})
    return obj | {"spec": spec}


def _service_port(port: Object, *, headless: bool) -> Object:
    return _missing(port, protocol="TCP", targetPort=port.get("port"))


def _limit_range(obj: Object, old: Object | None) -> Object:
    spec = obj.get("spec") or {}
    bounds = ("max", "min", "default", "defaultRequest", "maxLimitRequestRatio")
    limits = [
        item | {key: canonical_quantities(item[key]) for key in bounds if item.get(key)}
        for item in spec.get("limits") or ()
    ]
    return default_limit_range(obj | {"spec": spec | {"limits": limits}})


def _resource_quota(obj: Object, old: Object | None) -> Object:
    spec = obj.get("spec") or {}
    return obj | {"spec": spec | {"hard": canonical_quantities(spec["hard"])}} if spec.get("hard") else obj


def _claim(obj: Object, old: Object | None) -> Object:
    spec = _missing(obj.get("spec") or {}, volumeMode="Filesystem")
    resources = spec.get("resources") or {}
    spec["resources"] = resources | {
        key: canonical_quantities(resources[key]) for key in ("limits", "requests") if resources.get(key)
    }
    return obj | {"spec": spec}


def _protected(name: str) -> Callable[[Object], Object]:
    def protect(obj: Object) -> Object:
        metadata = obj["metadata"]
        metadata["finalizers"] = list(dict.fromkeys([*(metadata.get("finalizers") or ()), name]))
        return obj | {"status": {"phase": "Pending"}}

    return protect


def _complete_volume(obj: Object) -> Object:
    obj = _protected("kubernetes.io/pv-protection")(obj)
    since = {"lastPhaseTransitionTime": obj["metadata"]["creationTimestamp"]}
    return obj | {"status": obj["status"] | since}


def _volume(obj: Object, old: Object | None) -> Object:
    spec = _missing(obj.get("spec") or {}, persistentVolumeReclaimPolicy="Retain", volumeMode="Filesystem")
    if isinstance(spec.get("hostPath"), dict):
        spec["hostPath"] = {"type": ""} | spec["hostPath"]
    return obj | {"spec": spec}


def _deployment(obj: Object, old: Object | None) -> Object:
    spec = _missing(
        obj.get("spec") or {},
        replicas=1,
        revisionHistoryLimit=10,
        progressDeadlineSeconds=600,
    )
    strategy = _missing(spec.get("strategy") or {}, type="RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = _missing(strategy.get("rollingUpdate") or {}, maxUnavailable="25%", maxSurge="25%")
        strategy["rollingUpdate"] = rolling
    spec["strategy"] = strategy
    spec["template"] = default_template(spec.get("template") or {})
    return obj | {"spec": spec}


def _replicaset(obj: Object, old: Object | None) -> Object:
    spec = _missing(obj.get("spec") or {}, replicas=1)
    spec["template"] = default_template(spec.get("template") or {})
    return obj | {"spec": spec}


def _statefulset(obj: Object, old: Object | None) -> Object:
    spec = _missing(
        obj.get("spec") or {},
        replicas=1,
        podManagementPolicy="OrderedReady",
        revisionHistoryLimit=10,
        persistentVolumeClaimRetentionPolicy={"whenDeleted": "Retain", "whenScaled": "Retain"},
    )
    strategy = _missing(spec.get("updateStrategy") or {}, type="RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        strategy["rollingUpdate"] = _missing(strategy.get("rollingUpdate") or {}, partition=0)
    spec["updateStrategy"] = strategy
    spec["template"] = default_template(spec.get("template") or {})
    if spec.get("volumeClaimTemplates"):
        spec["volumeClaimTemplates"] = [
            {"kind": "PersistentVolumeClaim", "apiVersion": "v1"}
            | template
            | {"spec": _missing(template.get("spec") or {}, volumeMode="Filesystem"), "status": {"phase": "Pending"}}
            for template in spec["volumeClaimTemplates"]
        ]
    return obj | {"spec": spec}


def _daemonset(obj: Object, old: Object | None) -> Object:
    spec = _missing(obj.get("spec") or {}, revisionHistoryLimit=10)
    strategy = _missing(spec.get("updateStrategy") or {}, type="RollingUpdate")
    if strategy["type"] == "RollingUpdate":
        rolling = _missing(strategy.get("rollingUpdate") or {}, maxUnavailable=1, maxSurge=0)
        strategy["rollingUpdate"] = rolling
    spec["updateStrategy"] = strategy
    spec["template"] = default_template(spec.get("template") or {})
    metadata = obj["metadata"]
    annotations = {**(metadata.get("annotations") or {}), _TEMPLATE_GENERATION: _template_generation(spec, old)}
    return obj | {"spec": spec, "metadata": {**metadata, "annotations": annotations}}


_TEMPLATE_GENERATION = "deprecated.daemonset.template.generation"


def _template_generation(spec: Object, old: Object | None) -> str:
    if old is None:
        return "1"
    known = int((old["metadata"].get("annotations") or {}).get(_TEMPLATE_GENERATION, "1"))
    return str(known if old["spec"].get("template") == spec["template"] else known + 1)


def _job(obj: Object, old: Object | None) -> Object:
    return obj | {"spec": _job_spec(obj.get("spec") or {})}


def _complete_job(obj: Object) -> Object:
    spec = dict(obj["spec"])
    if not spec.get("manualSelector"):
        uid, name = obj["metadata"]["uid"], obj["metadata"]["name"]
        labels = {
            "batch.kubernetes.io/controller-uid": uid,
            "batch.kubernetes.io/job-name": name,
            "controller-uid": uid,
            "job-name": name,
        }
        selector = spec.get("selector") or {}
        generated = {"batch.kubernetes.io/controller-uid": uid}
        spec["selector"] = selector | {"matchLabels": (selector.get("matchLabels") or {}) | generated}
        template = spec["template"]
        metadata = template.get("metadata") or {}
        spec["template"] = template | {"metadata": metadata | {"labels": {**(metadata.get("labels") or {}), **labels}}}
    if not obj["metadata"].get("labels"):
        obj["metadata"]["labels"] = dict((spec["template"].get("metadata") or {}).get("labels") or {})
    return obj | {"spec": spec, "status": obj.get("status") or {}}


def _job_spec(spec: Object) -> Object:
    completions = spec.get("completions")
    if completions is None and spec.get("parallelism") is None:
        spec = spec | {"completions": 1}
    spec = _missing(
        spec,
        parallelism=1,
        completionMode="NonIndexed",
        suspend=False,
        manualSelector=False,
        podReplacementPolicy="Failed" if spec.get("podFailurePolicy") else "TerminatingOrFailed",
    )
    if spec.get("backoffLimit") is None:
        spec["backoffLimit"] = 2147483647 if spec.get("backoffLimitPerIndex") is not None else 6
    spec["template"] = default_template(spec.get("template") or {})
    return spec


def _cronjob(obj: Object, old: Object | None) -> Object:
    spec = _missing(
        obj.get("spec") or {},
        concurrencyPolicy="Allow",
        suspend=False,
        successfulJobsHistoryLimit=3,
        failedJobsHistoryLimit=1,
    )
    template = dict(spec.get("jobTemplate") or {})
    job = dict(template.get("spec") or {})
    job["template"] = default_template(job.get("template") or {})
    template["spec"] = job
    template["metadata"] = template.get("metadata") or {}
    spec["jobTemplate"] = template
    return obj | {"spec": spec}


_DOUBLE = {"type": "Percent", "value": 100, "periodSeconds": 15}
_SCALING: tuple[tuple[str, list[Object], Object], ...] = (
    ("scaleUp", [{"type": "Pods", "value": 4, "periodSeconds": 15}, _DOUBLE], {"stabilizationWindowSeconds": 0}),
    ("scaleDown", [_DOUBLE], {}),
)


def _node(obj: Object, old: Object | None) -> Object:
    status = obj.get("status") or {}
    if status.get("capacity") and not status.get("allocatable"):
        return obj | {"status": status | {"allocatable": dict(status["capacity"])}}
    return obj


def _hpa(obj: Object, old: Object | None) -> Object:
    spec = _missing(obj.get("spec") or {}, minReplicas=1)
    if obj["apiVersion"] == "autoscaling/v2" and not spec.get("metrics"):
        target = {"type": "Utilization", "averageUtilization": 80}
        spec["metrics"] = [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]
    if behavior := spec.get("behavior"):
        spec["behavior"] = behavior | {
            key: _missing(behavior[key], selectPolicy="Max", policies=policies, **window)
            for key, policies, window in _SCALING
            if behavior.get(key) is not None
        }
    return obj | {"spec": spec}


def _storage_class(obj: Object, old: Object | None) -> Object:
    return _missing(obj, reclaimPolicy="Delete", volumeBindingMode="Immediate")


def _role_binding(obj: Object, old: Object | None) -> Object:
    group = "rbac.authorization.k8s.io"
    obj = dict(obj)
    if obj.get("roleRef"):
        obj["roleRef"] = _missing(obj["roleRef"], apiGroup=group)
    if obj.get("subjects"):
        obj["subjects"] = [
            _missing(subject, apiGroup=group) if subject.get("kind") in ("User", "Group") else subject
            for subject in obj["subjects"]
        ]
    return obj


def _network_policy(obj: Object, old: Object | None) -> Object:
    spec = dict(obj.get("spec") or {})
    if not spec.get("policyTypes"):
        spec["policyTypes"] = ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    spec["podSelector"] = spec.get("podSelector") or {}
    return obj | {"spec": spec}


def _priority_class(obj: Object, old: Object | None) -> Object:
    return _missing(obj, preemptionPolicy="PreemptLowerPriority")


def _endpoints(obj: Object, old: Object | None) -> Object:
    obj = dict(obj)
    for subset_list in ("subsets",):
        obj[subset_list] = [
            subset
            | ({"ports": [_missing(port, protocol="TCP") for port in subset["ports"]]} if subset.get("ports") else {})
            for subset in obj.get(subset_list) or ()
        ]
    if not obj["subsets"]:
        del obj["subsets"]
    return obj


def _endpoint_slice(obj: Object, old: Object | None) -> Object:
    ports = [_missing(port, name="", protocol="TCP") for port in obj.get("ports") or ()]
    endpoints = [{"conditions": {}} | endpoint for endpoint in obj["endpoints"]] if obj.get("endpoints") else None
    return obj | {"ports": ports or None, "endpoints": endpoints}


def _with_status(**status: object) -> Callable[[Object], Object]:
    return lambda obj: obj | {"status": obj.get("status") or status}


def _crd(obj: Object, old: Object | None) -> Object:
    spec = dict(obj.get("spec") or {})
    names = dict(spec.get("names") or {})
    if names.get("kind"):
        names = _missing(names, singular=names["kind"].lower(), listKind=f"{names['kind']}List")
    spec["names"] = names
    spec["conversion"] = _conversion(spec.get("conversion") or {"strategy": "None"})
    stored = [version["name"] for version in spec.get("versions") or () if version.get("storage")]
    if old is None:
        return obj | {"spec": spec}
    status = obj.get("status")
    if status and stored and stored[0] not in (status.get("storedVersions") or ()):
        status = status | {"storedVersions": [*(status.get("storedVersions") or ()), stored[0]]}
    return obj | {"spec": spec, "status": status}


def _conversion(conversion: Object) -> Object:
    webhook = conversion.get("webhook") or {}
    client = webhook.get("clientConfig") or {}
    if not client.get("service"):
        return conversion
    client = client | {"service": {"port": 443} | client["service"]}
    return conversion | {"webhook": webhook | {"clientConfig": client}}


def _complete_crd(obj: Object) -> Object:
    stored = [version["name"] for version in obj["spec"].get("versions") or () if version.get("storage")]
    names = {"plural": "", "kind": ""}
    return obj | {"status": {"conditions": None, "acceptedNames": names, "storedVersions": stored[:1]}}


_COMPLETE: dict[str, Callable[[Object], Object]] = {
    "cronjobs.batch": _with_status(),
    "customresourcedefinitions.apiextensions.k8s.io": _complete_crd,
    "daemonsets.apps": _with_status(
        currentNumberScheduled=0, numberMisscheduled=0, desiredNumberScheduled=0, numberReady=0
    ),
    "deployments.apps": _with_status(),
    "horizontalpodautoscalers.autoscaling": _with_status(desiredReplicas=0, currentMetrics=None),
    "ingresses.networking.k8s.io": _with_status(loadBalancer={}),
    "jobs.batch": _complete_job,
    "namespaces": _complete_namespace,
    "nodes": _with_status(),
    "persistentvolumeclaims": _protected("kubernetes.io/pvc-protection"),
    "persistentvolumes": _complete_volume,
    "poddisruptionbudgets.policy": _with_status(
        disruptionsAllowed=0, currentHealthy=0, desiredHealthy=0, expectedPods=0
    ),
    "pods": complete_pod,
    "replicasets.apps": _with_status(replicas=0),
    "replicationcontrollers": _with_status(replicas=0),
    "resourcequotas": _with_status(),
    "services": _with_status(loadBalancer={}),
    "statefulsets.apps": _with_status(replicas=0, availableReplicas=0),
}

_DEFAULTS: dict[str, Default] = {
    "cronjobs.batch": _cronjob,
    "customresourcedefinitions.apiextensions.k8s.io": _crd,
    "daemonsets.apps": _daemonset,
    "deployments.apps": _deployment,
    "endpoints": _endpoints,
    "endpointslices.discovery.k8s.io": _endpoint_slice,
    "events": default_event,
    "horizontalpodautoscalers.autoscaling": _hpa,
    "jobs.batch": _job,
    "limitranges": _limit_range,
    "mutatingadmissionpolicies.admissionregistration.k8s.io": default_policy,
    "mutatingadmissionpolicybindings.admissionregistration.k8s.io": default_policy_binding,
    "mutatingwebhookconfigurations.admissionregistration.k8s.io": default_webhooks,
    "validatingadmissionpolicies.admissionregistration.k8s.io": default_policy,
    "validatingadmissionpolicybindings.admissionregistration.k8s.io": default_policy_binding,
    "validatingwebhookconfigurations.admissionregistration.k8s.io": default_webhooks,
    "namespaces": _namespace,
    "networkpolicies.networking.k8s.io": _network_policy,
    "nodes": _node,
    "persistentvolumeclaims": _claim,
    "persistentvolumes": _volume,
    "pods": default_pod,
    "priorityclasses.scheduling.k8s.io": _priority_class,
    "replicasets.apps": _replicaset,
    "replicationcontrollers": _replicaset,
    "resourcequotas": _resource_quota,
    "rolebindings.rbac.authorization.k8s.io": _role_binding,
    "clusterrolebindings.rbac.authorization.k8s.io": _role_binding,
    "secrets": _secret,
    "services": _service,
    "statefulsets.apps": _statefulset,
    "storageclasses.storage.k8s.io": _storage_class,
}
