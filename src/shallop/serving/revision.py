"""
Revision: one unchanging version of a Knative Service. It becomes a Deployment, a Service and a PodAutoscaler.

The number of Pods is the autoscaler's: it is never applied here. ``serving.knative.dev/routingState`` says whether a
route names the revision; one in reserve goes to zero Pods and stays for a rollback.

Source: Knative Serving v1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from shallop.controller.kind import Column, Kind, Resource, Result, Watch
from shallop.controller.manager import Context
from shallop.kube.objects import Gvk, Key, Object, annotations_of, find_condition, is_deleting, labels_of, set_condition
from shallop.serving.podtemplate import AGENT, render_service_port
from shallop.serving.schemas import REVISION as SCHEMA
from shallop.serving.status import find_failure, merge_status

__all__ = ["CONFIGURATION_LABEL", "REVISION", "REVISION_LABEL", "ROUTING_STATE", "SCALING", "pod_port"]

REVISION_LABEL = "serving.knative.dev/revision"
CONFIGURATION_LABEL = "serving.knative.dev/configuration"
ROUTING_STATE = "serving.knative.dev/routingState"
SCALING = "autoscaling.knative.dev/"
DEPLOYMENT, SERVICE, POD = Gvk("apps/v1", "Deployment"), Gvk("v1", "Service"), Gvk("v1", "Pod")
POD_AUTOSCALER = Gvk("autoscaling.internal.knative.dev/v1alpha1", "PodAutoscaler")
HORIZONTAL = Gvk("autoscaling/v2", "HorizontalPodAutoscaler")
_NOT_POD_FIELDS = ("containerConcurrency", "timeoutSeconds", "responseStartTimeoutSeconds", "idleTimeoutSeconds")
_DEFAULT_PORT = 8080


async def reconcile(ctx: Context, revision: Resource[Any]) -> Result:
    """Keep the objects of one revision, and say whether it can take requests."""
    if is_deleting(revision.raw) or not ctx.settings.gateway_url:
        return Result()  # on a cluster these are Knative's own
    deployment = await ctx.client.apply(render_deployment(revision.raw), owner=revision.raw)
    await ctx.client.apply(render_service(revision.raw), owner=revision.raw)
    await ctx.client.apply(render_autoscaler(revision.raw), owner=revision.raw)
    pods = [
        pod for pod in ctx.cache(POD).list(revision.namespace) if labels_of(pod).get(REVISION_LABEL) == revision.name
    ]
    status = render_status(revision.raw, deployment, pods, ctx.now())
    await ctx.client.patch_status(revision.raw, merge_status(revision.status, status))
    return Result()


def _metadata(revision: Object, name: str) -> dict[str, Any]:
    labels = {key: value for key, value in labels_of(revision).items() if key != ROUTING_STATE}
    return {
        "name": name,
        "namespace": revision["metadata"]["namespace"],
        "labels": labels | {REVISION_LABEL: revision["metadata"]["name"]},
    }


def render_deployment(revision: Object) -> Object:
    name, spec = revision["metadata"]["name"], revision["spec"]
    metadata = _metadata(revision, f"{name}-deployment")
    pod_annotations = {k: v for k, v in annotations_of(revision).items() if not k.startswith(SCALING)}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "selector": {"matchLabels": {REVISION_LABEL: name}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 0}},
            "progressDeadlineSeconds": 600,
            "template": {
                "metadata": {"labels": metadata["labels"], "annotations": pod_annotations},
                "spec": _pod_spec(spec),
            },
        },
    }


def _pod_spec(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Pod's part, with a probe of the port that serves where there is none."""
    pod = {key: value for key, value in spec.items() if key not in _NOT_POD_FIELDS}
    number, _ = pod_port(spec)
    first, *others = spec["containers"]
    probe = {"tcpSocket": {"port": number}, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 3}
    if not any(container.get("readinessProbe") for container in spec["containers"]):
        pod["containers"] = [{**first, "readinessProbe": probe}, *others]
    return pod


def pod_port(spec: Mapping[str, Any]) -> tuple[int, str]:
    """Return number and name of the port that serves: the agent's, or the first of a container that declares one."""
    containers = sorted(spec.get("containers") or (), key=lambda container: container.get("name") != AGENT)
    for container in containers:
        for port in container.get("ports") or ():
            return int(port["containerPort"]), str(port.get("name") or "http")
    return _DEFAULT_PORT, "http"


def render_service(revision: Object) -> Object:
    number, name = pod_port(revision["spec"])
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(revision, revision["metadata"]["name"]),
        "spec": {
            "selector": {REVISION_LABEL: revision["metadata"]["name"]},
            "ports": [render_service_port(name, 80, number)],
        },
    }


def render_autoscaler(revision: Object) -> Object:
    """Render what scales the revision: by its requests, or by CPU or memory where the class asks for it."""
    name, notes = revision["metadata"]["name"], annotations_of(revision)
    metadata = _metadata(revision, name)
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"{name}-deployment"}
    if notes.get(f"{SCALING}class", "").startswith("hpa"):
        return _render_hpa(metadata, target, notes)
    reserve = labels_of(revision).get(ROUTING_STATE) == "reserve"
    metadata["annotations"] = {key: value for key, value in notes.items() if key.startswith(SCALING)}
    return {
        "apiVersion": POD_AUTOSCALER.api_version,
        "kind": POD_AUTOSCALER.kind,
        "metadata": metadata,
        "spec": {
            "scaleTargetRef": target,
            "containerConcurrency": int(revision["spec"].get("containerConcurrency") or 0),
            "protocolType": "http1",
            "reachability": "Unreachable" if reserve else "Reachable",
        },
    }


def _render_hpa(metadata: dict[str, Any], target: Mapping[str, Any], notes: Mapping[str, str]) -> Object:
    low = max(1, int(notes.get(f"{SCALING}min-scale") or 1))
    resource = {"cpu": "cpu", "memory": "memory"}.get(notes.get(f"{SCALING}metric", ""), "cpu")
    value = {"type": "Utilization", "averageUtilization": int(notes.get(f"{SCALING}target") or 80)}
    return {
        "apiVersion": HORIZONTAL.api_version,
        "kind": HORIZONTAL.kind,
        "metadata": metadata,
        "spec": {
            "scaleTargetRef": dict(target),
            "minReplicas": low,
            "maxReplicas": max(low, int(notes.get(f"{SCALING}max-scale") or low)),
            "metrics": [{"type": "Resource", "resource": {"name": resource, "target": value}}],
        },
    }


def render_status(revision: Object, deployment: Object, pods: Iterable[Object], now: datetime) -> dict[str, Any]:
    """
    Return the status of a revision.

    Once ready it stays so while it has no Pods for want of traffic; Pods that fail make it not ready again.
    """
    pods = list(pods)
    wanted, status = deployment["spec"].get("replicas", 1), deployment.get("status") or {}
    ready_pods = int(status.get("readyReplicas") or 0)
    was_ready = (find_condition(revision, "Ready") or {}).get("status") == "True"
    failure = find_failure(pods)
    if ready_pods or (was_ready and (not wanted or not failure)):
        ready = ("True", "", "")
    elif failure:
        ready = ("False", failure.reason, failure.message)
    else:
        ready = ("Unknown", "Deploying", "")
    active = ("True", "", "") if ready_pods else ("Unknown", "Deploying", "")
    if not wanted:
        active = ("False", "NoTraffic", "The target is not receiving traffic.")
    conditions = list((revision.get("status") or {}).get("conditions") or [])
    parts = {"Active": active, "ContainerHealthy": ready, "Ready": ready, "ResourcesAvailable": ready}
    for type_, (value, reason, message) in parts.items():
        conditions = set_condition(conditions, type_, value, reason, message, now)
    return {
        "observedGeneration": revision["metadata"].get("generation", 0),
        "actualReplicas": ready_pods,
        "desiredReplicas": wanted,
        "conditions": sorted(conditions, key=lambda condition: str(condition["type"])),
    }


def _of_pod(pod: Object) -> Iterable[Key]:
    name = labels_of(pod).get(REVISION_LABEL)
    return [Key(pod["metadata"]["namespace"], name)] if name else []


REVISION = Kind(
    api_version="serving.knative.dev/v1",
    kind="Revision",
    plural="revisions",
    short_names=("rev",),
    categories=("knative", "serving"),
    schema=SCHEMA,
    columns=(
        Column("Ready", "string", ".status.conditions[?(@.type=='Ready')].status"),
        Column("Reason", "string", ".status.conditions[?(@.type=='Ready')].reason"),
        Column("Actual Replicas", "integer", ".status.actualReplicas"),
        Column("Desired Replicas", "integer", ".status.desiredReplicas"),
    ),
    reconcile=reconcile,
    owns=(DEPLOYMENT, SERVICE, POD_AUTOSCALER),
    watches=(Watch(POD, _of_pod),),
)
