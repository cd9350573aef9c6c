"""
The objects of one InferenceService: per component a Knative Service, or a Deployment, Service and autoscaler; routes.

Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shallop.kube.objects import Object, annotations_of
from shallop.serving.podtemplate import (
    AGENT,
    AGENT_PORT,
    CONTAINER,
    PORT,
    TRANSFORMER,
    render_service_port,
    workload_name,
)
from shallop.serving.traffic import render_targets

__all__ = [
    "DOMAINS",
    "FIXED_REPLICAS",
    "Share",
    "autoscaler_class",
    "cluster_hosts",
    "host_names",
    "path_prefix",
    "render_autoscaler",
    "render_canary_routes",
    "render_deployment",
    "render_front",
    "render_knative_service",
    "render_route",
    "render_routes",
    "render_service",
    "replica_bounds",
]

# "localhost" needs no name server for curl and browsers; "example.com" is what KServe's own documents use.
DOMAINS = ("localhost", "example.com")
_GATEWAY = {
    "group": "gateway.networking.k8s.io",
    "kind": "Gateway",
    "name": "kserve-ingress-gateway",
    "namespace": "kserve",
}
_DEFAULT_TIMEOUT_S = {"Standard": 60, "Knative": 300}
# On an InferenceService and its routes: "true" hands its predictions to whoever watches models.
CAPTURE = "gateway.shallop.dev/capture"
# Marks a part of a service whose number of replicas is given; does not reach its Pods.
FIXED_REPLICAS = "internal.serving.kserve.io/fixed-replicas"
_SCALING = "autoscaling.knative.dev/"
Share = tuple[str, int, int]
"""A Service, its port and its weight."""


def path_prefix(namespace: str, name: str) -> str:
    return f"/serving/{namespace}/{name}"


def host_names(namespace: str, name: str) -> list[str]:
    """Return the names of a host in Standard mode, which KServe writes with a dash, and in Knative mode."""
    return [f"{name}{mark}{namespace}.{domain}" for domain in DOMAINS for mark in "-."]


def cluster_hosts(namespace: str, name: str) -> list[str]:
    """Return the names by which Pods know a Service."""
    return [f"{name}.{namespace}{end}" for end in (".svc.cluster.local", ".svc", "")]


def render_front(metadata: Mapping[str, Any], host: str, port: int) -> list[Object]:
    """
    Render a Service whose endpoint is the gateway: it starts Pods and splits traffic for requests from Pods too.

    Args:
        metadata: name, namespace and labels.
        host, port: where the gateway listens.
    """
    name, namespace = metadata["name"], metadata["namespace"]
    labels = {"kubernetes.io/service-name": name, "endpointslice.kubernetes.io/managed-by": "shallop"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": dict(metadata),
        "spec": {"ports": [{"name": "http", "port": 80, "targetPort": 80, "protocol": "TCP"}]},
    }
    endpoints = {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": f"{name}-gateway", "namespace": namespace, "labels": labels},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [host], "conditions": {"ready": True}}],
        "ports": [{"name": "http", "port": port, "protocol": "TCP"}],
    }
    return [service, endpoints]


def autoscaler_class(service: Object) -> str:
    """Return who scales a service of Standard mode: ``hpa``, ``keda``, ``external`` or ``none``."""
    notes = annotations_of(service)
    return "none" if FIXED_REPLICAS in notes else notes.get("serving.kserve.io/autoscalerClass", "hpa")


def replica_bounds(component: Mapping[str, Any], mode: str) -> tuple[int, int]:
    """Return the least and the greatest number of replicas; a greatest of 0 is no bound."""
    low = component.get("minReplicas")
    low = 1 if low is None else int(low)
    high = int(component.get("maxReplicas") or 0)
    # A HorizontalPodAutoscaler knows neither zero nor infinity.
    return (max(1, low), max(1, low, high)) if mode == "Standard" else (low, high)


def render_deployment(
    service: Object, template: Object, annotations: Mapping[str, str], component: str = "predictor"
) -> Object:
    """
    Render the Deployment of a component. Its number of replicas is for an autoscaler and ``replica_bounds``.

    Args:
        annotations: of the Deployment itself; they do not reach the Pods.
    """
    name = workload_name(service, component)
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(service, name, component) | {"annotations": dict(annotations)},
        "spec": {
            "selector": {"matchLabels": {"app": f"isvc.{name}"}},
            "strategy": service["spec"][component].get("deploymentStrategy") or strategy,
            "revisionHistoryLimit": 10,
            "progressDeadlineSeconds": 600,
            "template": template,
        },
    }


def render_service(service: Object, template: Object, component: str = "predictor") -> Object:
    """Render the Service of a component: port 80 to the first port of its container, further ports by number."""
    named = {item.get("name"): item for item in reversed(template["spec"]["containers"])}
    # A transformer in the Pod of its predictor stands before it.
    container = named.get(TRANSFORMER) or named.get(CONTAINER) or template["spec"]["containers"][0]
    declared = container.get("ports") or [{"containerPort": PORT}]
    first = declared[0]
    if any(item.get("name") == AGENT for item in template["spec"]["containers"]):
        first = {"containerPort": AGENT_PORT}
    ports = [_port(first, 80, "http"), *(_port(item, item["containerPort"], "") for item in declared[1:])]
    name = workload_name(service, component)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(service, name, component),
        "spec": {"selector": {"app": f"isvc.{name}"}, "ports": ports},
    }


def _port(declared: Mapping[str, Any], port: int, default_name: str) -> dict[str, Any]:
    name = declared.get("name") or default_name or f"port-{port}"
    return render_service_port(name, port, declared["containerPort"])


def render_autoscaler(service: Object, component: str = "predictor") -> Object | None:
    """Render the HorizontalPodAutoscaler of a component in Standard mode; None where it is not to be scaled so."""
    spec, name = service["spec"][component], workload_name(service, component)
    if autoscaler_class(service) != "hpa":
        return None
    low, high = replica_bounds(spec, "Standard")
    scaling = spec.get("autoScaling") or {}
    metrics = [item for item in scaling.get("metrics") or [] if item.get("type") == "Resource"]
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _metadata(service, name, component),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": low,
            "maxReplicas": high,
            "metrics": [_metric(item["resource"]) for item in metrics] or [_default_metric(service, spec)],
        }
        | ({"behavior": scaling["behavior"]} if scaling.get("behavior") else {}),
    }


def _metric(resource: Mapping[str, Any]) -> dict[str, Any]:
    target = dict(resource.get("target") or {})
    return {"type": "Resource", "resource": {"name": resource.get("name", "cpu"), "target": target}}


def _default_metric(service: Object, spec: Mapping[str, Any]) -> dict[str, Any]:
    notes = annotations_of(service)
    metric = spec.get("scaleMetric") or notes.get("serving.kserve.io/metrics") or "cpu"
    value = spec.get("scaleTarget") or notes.get("serving.kserve.io/targetUtilizationPercentage") or 80
    if spec.get("scaleMetricType") == "AverageValue":
        target: dict[str, Any] = {"type": "AverageValue", "averageValue": str(value)}
    else:
        target = {"type": "Utilization", "averageUtilization": int(value)}
    return {
        "type": "Resource",
        "resource": {"name": metric if metric in ("cpu", "memory") else "cpu", "target": target},
    }


def render_knative_service(
    service: Object,
    template: Object,
    annotations: Mapping[str, str],
    component: str = "predictor",
    rolled_out: str = "",
) -> Object:
    """
    Render the Knative Service of a component.

    Args:
        template: of its Pods.
        annotations: of the Knative Service itself.
        rolled_out: the revision that last had all traffic.
    """
    spec = service["spec"][component]
    low, high = replica_bounds(spec, "Knative")
    pod_annotations = dict(template["metadata"]["annotations"])
    scaling = {key: value for key, value in annotations_of(service).items() if key.startswith(_SCALING)}
    scaling |= {key: value for key, value in (spec.get("annotations") or {}).items() if key.startswith(_SCALING)}
    scaling.setdefault(f"{_SCALING}min-scale", str(low))
    if high:
        scaling.setdefault(f"{_SCALING}max-scale", str(high))
    metric = spec.get("scaleMetric")
    scaler = annotations_of(service).get("serving.kserve.io/autoscalerClass", "")
    scaling.setdefault(
        f"{_SCALING}class",
        f"{'hpa' if metric in ('cpu', 'memory') or scaler == 'hpa' else 'kpa'}.autoscaling.knative.dev",
    )
    if metric:
        scaling[f"{_SCALING}metric"] = metric
    if spec.get("scaleTarget"):
        scaling[f"{_SCALING}target"] = str(spec["scaleTarget"])
    pod_spec = dict(template["spec"])
    pod_spec["containerConcurrency"] = int(spec.get("containerConcurrency") or 0)
    pod_spec["timeoutSeconds"] = int(spec.get("timeout") or _DEFAULT_TIMEOUT_S["Knative"])
    tag_latest = annotations_of(service).get("serving.kserve.io/enable-tag-routing") == "true"
    metadata = _metadata(service, workload_name(service, component), component)
    return {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": metadata | {"annotations": dict(annotations)},
        "spec": {
            "template": {
                "metadata": {"labels": template["metadata"]["labels"], "annotations": pod_annotations | scaling},
                "spec": pod_spec,
            },
            "traffic": render_targets(spec.get("canaryTrafficPercent"), rolled_out, tag_latest=tag_latest),
        },
    }


def render_routes(service: Object, mode: str, shares: Mapping[str, Sequence[Share]]) -> list[Object]:
    """
    Render the routes to a service: by host name, by path for any host, and by path to each component.

    Route by host and by path are two objects because the host names of an HTTPRoute hold for all of its rules. Names of
    all but the first have a dot, which no InferenceService can have, so that the names of two services never meet.

    Args:
        shares: component -> its Services with their weights; components without any have no route.
    """
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    timeout_s = int(service["spec"]["predictor"].get("timeout") or _DEFAULT_TIMEOUT_S[mode])
    routes = []
    front = "transformer" if "transformer" in service["spec"] else "predictor"
    if shares.get(front):
        hosts = [*host_names(namespace, name), *cluster_hosts(namespace, name)]
        by_host = render_route(_metadata(service, name), hosts, shares[front], timeout_s)
        prefix = path_prefix(namespace, name)
        by_path = render_route(_metadata(service, f"{name}.path"), [], shares[front], timeout_s, prefix=prefix)
        for route, start in ((by_host, ""), (by_path, prefix)):
            _add_headers(route, service)
            if shares.get("explainer"):
                rule = _explain_rule(route["spec"]["rules"][0], start, name, shares["explainer"])
                route["spec"]["rules"].insert(0, rule)
        routes += [by_host, by_path]
    for component, backends in shares.items():
        workload = workload_name(service, component)
        prefix, metadata = path_prefix(namespace, workload), _metadata(service, f"{name}.{component}", component)
        if backends and mode == "Standard":
            hosts = host_names(namespace, workload)
            routes.append(render_route(metadata | {"name": f"{name}.{component}-host"}, hosts, backends, timeout_s))
        if backends:
            routes.append(render_route(metadata, [], backends, timeout_s, prefix=prefix))
    if capture := annotations_of(service).get(CAPTURE):
        for route in routes:
            route["metadata"] |= {"annotations": {CAPTURE: capture}}
    return routes


def render_canary_routes(service: Object, shares: Sequence[Share]) -> list[Object]:
    """
    Render the routes to each canary of Standard mode itself, by path and by host: a dark launch has no other traffic.

    Args:
        shares: the Service of each canary.
    """
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    timeout_s = int(service["spec"]["predictor"].get("timeout") or _DEFAULT_TIMEOUT_S["Standard"])
    routes = []
    for workload, port, _ in shares:
        metadata, backends = _metadata(service, f"{name}.{workload}"), [(workload, port, 1)]
        prefix = path_prefix(namespace, workload)
        routes.append(render_route(metadata, [], backends, timeout_s, prefix=prefix))
        hosts = host_names(namespace, workload)
        routes.append(render_route(metadata | {"name": f"{name}.{workload}-host"}, hosts, backends, timeout_s))
    return routes


def _explain_rule(rule: Mapping[str, Any], start: str, name: str, backends: Sequence[Share]) -> dict[str, Any]:
    path = f"/v1/models/{name}:explain"
    rewrite = {"type": "URLRewrite", "urlRewrite": {"path": {"type": "ReplaceFullPath", "replaceFullPath": path}}}
    others = [item for item in rule["filters"] if item["type"] != "URLRewrite"]
    match = {"path": {"type": "Exact", "value": f"{start}{path}"}}
    return {
        **rule,
        "matches": [match],
        "filters": [*others, rewrite],
        "backendRefs": [_backend(share) for share in backends],
    }


def _add_headers(route: Object, service: Object) -> None:
    headers = {
        "type": "RequestHeaderModifier",
        "requestHeaderModifier": {
            "set": [
                {"name": "KServe-Isvc-Name", "value": service["metadata"]["name"]},
                {"name": "KServe-Isvc-Namespace", "value": service["metadata"]["namespace"]},
            ]
        },
    }
    for rule in route["spec"]["rules"]:
        rule["filters"] = [headers, *rule.get("filters", [])]


def render_route(
    metadata: Mapping[str, Any], hosts: Sequence[str], shares: Sequence[Share], timeout_s: int, *, prefix: str = ""
) -> Object:
    """
    Render one HTTPRoute.

    Args:
        hosts: names it holds for; empty for all.
        prefix: of the path, taken away before the backend; empty for all paths.
    """
    rule: dict[str, Any] = {
        "matches": [{"path": {"type": "PathPrefix", "value": prefix or "/"}}],
        "backendRefs": [_backend(share) for share in shares],
        "timeouts": {"request": f"{timeout_s}s"},
        # Of predictions, which change nothing: asked once more when a Pod dies over them.
        "retry": {"attempts": 1},
    }
    if prefix:
        path = {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}
        rule["filters"] = [{"type": "URLRewrite", "urlRewrite": {"path": path}}]
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": dict(metadata),
        "spec": {"parentRefs": [dict(_GATEWAY)], "rules": [rule]} | ({"hostnames": list(hosts)} if hosts else {}),
    }


def _backend(share: Share) -> dict[str, Any]:
    name, port, weight = share
    return {"group": "", "kind": "Service", "name": name, "port": port, "weight": weight}


def _metadata(service: Object, name: str, component: str = "predictor") -> dict[str, Any]:
    labels = {"serving.kserve.io/inferenceservice": service["metadata"]["name"], "component": component}
    return {"name": name, "namespace": service["metadata"]["namespace"], "labels": labels}
