"""The objects of one InferenceService in Standard mode: Deployment, Service, HTTPRoutes; pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shallop.kube.objects import Object
from shallop.serving.podtemplate import CONTAINER, PORT, workload_name

__all__ = ["DOMAINS", "host_names", "path_prefix", "render_deployment", "render_routes", "render_service"]

# "localhost" needs no name server for curl and browsers; "example.com" is what KServe's own documents use.
DOMAINS = ("localhost", "example.com")
_GATEWAY = {
    "group": "gateway.networking.k8s.io",
    "kind": "Gateway",
    "name": "kserve-ingress-gateway",
    "namespace": "kserve",
}
_DEFAULT_TIMEOUT_S = 60


def path_prefix(service: Object) -> str:
    return f"/serving/{service['metadata']['namespace']}/{service['metadata']['name']}"


def host_names(service: Object) -> list[str]:
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    return [f"{name}-{namespace}.{domain}" for domain in DOMAINS]


def render_deployment(service: Object, template: Object, annotations: Mapping[str, str]) -> Object:
    """
    Render the predictor's Deployment.

    Args:
        annotations: of the Deployment itself; they do not reach the Pods.
    """
    predictor = service["spec"]["predictor"]
    strategy = {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(service, workload_name(service)) | {"annotations": dict(annotations)},
        "spec": {
            # Without the activator nothing could start a predictor of zero replicas again.
            "replicas": max(1, predictor.get("minReplicas") or 1),
            "selector": {"matchLabels": {"app": f"isvc.{workload_name(service)}"}},
            "strategy": predictor.get("deploymentStrategy") or strategy,
            "revisionHistoryLimit": 10,
            "progressDeadlineSeconds": 600,
            "template": template,
        },
    }


def render_service(service: Object, template: Object) -> Object:
    """Render the Service of the predictor: port 80 to the first port of its container, further ports by number."""
    container = next(
        (item for item in template["spec"]["containers"] if item.get("name") == CONTAINER),
        template["spec"]["containers"][0],
    )
    declared = container.get("ports") or [{"containerPort": PORT}]
    ports = [_port(declared[0], 80, "http"), *(_port(item, item["containerPort"], "") for item in declared[1:])]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(service, workload_name(service)),
        "spec": {"selector": {"app": f"isvc.{workload_name(service)}"}, "ports": ports},
    }


def _port(declared: Mapping[str, Any], port: int, default_name: str) -> dict[str, Any]:
    name = declared.get("name") or default_name or f"port-{port}"
    rendered = {"name": name, "port": port, "targetPort": declared["containerPort"], "protocol": "TCP"}
    return rendered | ({"appProtocol": "kubernetes.io/h2c"} if name.startswith(("h2c", "grpc")) else {})


def render_routes(service: Object) -> list[Object]:
    """
    Render the routes to the predictor: one by host name, one by path for any host.

    They are two objects because the host names of an HTTPRoute hold for all of its rules. The second's name has a dot,
    which no InferenceService can have, so that the names of two services never meet.
    """
    name = service["metadata"]["name"]
    by_host = _route(service, name, {"type": "PathPrefix", "value": "/"}, [])
    by_host["spec"]["hostnames"] = host_names(service)
    rewrite = {
        "type": "URLRewrite",
        "urlRewrite": {"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/"}},
    }
    return [by_host, _route(service, f"{name}.path", {"type": "PathPrefix", "value": path_prefix(service)}, [rewrite])]


def _route(service: Object, name: str, path: Mapping[str, str], filters: list[Any]) -> Object:
    headers = {
        "type": "RequestHeaderModifier",
        "requestHeaderModifier": {
            "set": [
                {"name": "KServe-Isvc-Name", "value": service["metadata"]["name"]},
                {"name": "KServe-Isvc-Namespace", "value": service["metadata"]["namespace"]},
            ]
        },
    }
    timeout_s = service["spec"]["predictor"].get("timeout") or _DEFAULT_TIMEOUT_S
    rule = {
        "matches": [{"path": dict(path)}],
        "filters": [headers, *filters],
        "backendRefs": [
            {"group": "", "kind": "Service", "name": workload_name(service), "port": 80, "weight": 1},
        ],
        "timeouts": {"request": f"{timeout_s}s"},
    }
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": _metadata(service, name),
        "spec": {"parentRefs": [dict(_GATEWAY)], "rules": [rule]},
    }


def _metadata(service: Object, name: str) -> dict[str, Any]:
    labels = {"serving.kserve.io/inferenceservice": service["metadata"]["name"], "component": "predictor"}
    return {"name": name, "namespace": service["metadata"]["namespace"], "labels": labels}
