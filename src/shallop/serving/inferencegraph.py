"""
InferenceGraph: requests that go through several services, one after the other or side by side.

Honoured: ``nodes`` of all router types with ``serviceName``, ``serviceUrl``, ``nodeName``, ``data``, ``weight``,
``condition``, ``dependency``, ``mapPredictionsToInstances``; ``timeout``, ``routerTimeouts``,
``minReplicas``, ``maxReplicas``, ``scaleTarget``, ``scaleMetric``, ``resources`` and Pod placement. A router Pod, as a
Knative Service of the graph's name, does the work.

Source: KServe v1alpha1.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from shallop.controller.kind import Column, Kind, Resource, Result
from shallop.controller.manager import Context
from shallop.errors import FieldError
from shallop.kube.objects import Gvk, Key, Object, annotations_of, find_condition, is_deleting, set_condition
from shallop.serving import render
from shallop.serving.schemas import INFERENCE_GRAPH as SCHEMA
from shallop.serving.status import merge_status
from shallop.serving.traffic import weights

__all__ = ["INFERENCE_GRAPH"]

ROUTER_IMAGE = "kserve/router:v0.21.0"
KNATIVE_SERVICE = Gvk("serving.knative.dev/v1", "Service")
HTTP_ROUTE = Gvk("gateway.networking.k8s.io/v1", "HTTPRoute")
INFERENCE_SERVICE = Gvk("serving.kserve.io/v1beta1", "InferenceService")
_ROUTERS = ("Sequence", "Splitter", "Ensemble", "Switch")
_TIMEOUT_S = 300
_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
# A graph names its services, services do not name their graphs: while one is missing we look now and then.
_LOOK_AGAIN_S = 2.0


class MissingServiceError(Exception):
    """A service that a step names is not there or has no address yet."""


def validate(graph: Object, old: Object | None) -> list[FieldError]:
    """Check what a schema cannot say."""
    nodes = (graph.get("spec") or {}).get("nodes") or {}
    name = str(graph["metadata"].get("name") or "")
    errors = [] if "root" in nodes else [FieldError.required("spec.nodes.root", "a request starts there")]
    if name and not _NAME.fullmatch(name):
        errors.append(FieldError.invalid("metadata.name", name, "must match [a-z]([-a-z0-9]*[a-z0-9])?"))
    low, high = graph["spec"].get("minReplicas") or 0, graph["spec"].get("maxReplicas") or 0
    if low < 0:
        errors.append(FieldError.invalid("spec.minReplicas", low, "must be greater than or equal to 0"))
    if high < 0 or 0 < high < low:
        errors.append(FieldError.invalid("spec.maxReplicas", high, f"must not be less than minReplicas ({low})"))
    for name, node in nodes.items():
        path = f"spec.nodes.{name}"
        if node.get("routerType") not in _ROUTERS:
            errors.append(FieldError.not_supported(f"{path}.routerType", node.get("routerType"), _ROUTERS))
        steps = node.get("steps") or []
        if not steps:
            errors.append(FieldError.required(f"{path}.steps", "give at least one"))
        for index, step in enumerate(steps):
            errors += _check_step(f"{path}.steps[{index}]", step, nodes)
        if node.get("routerType") == "Splitter" and sum(step.get("weight") or 0 for step in steps) != 100:
            errors.append(FieldError.invalid(f"{path}.steps", "weights", "the weights of a Splitter add up to 100"))
        names = [step["name"] for step in steps if step.get("name")]
        errors += [
            FieldError.invalid(f"{path}.steps", twice, "two steps have this name")
            for twice in sorted({item for item in names if names.count(item) > 1})
        ]
    return errors + (
        [FieldError.invalid("spec.nodes", "root", "a node leads back to itself")] if _circles(nodes) else []
    )


def _check_step(path: str, step: Mapping[str, Any], nodes: Mapping[str, Any]) -> list[FieldError]:
    targets = [name for name in ("nodeName", "serviceName", "serviceUrl") if step.get(name)]
    if len(targets) != 1:
        return [FieldError.invalid(path, targets, "exactly one of nodeName, serviceName and serviceUrl is its target")]
    if step.get("nodeName") and step["nodeName"] not in nodes:
        return [FieldError.invalid(f"{path}.nodeName", step["nodeName"], "is no node of this graph")]
    return []


def _circles(nodes: Mapping[str, Any]) -> bool:
    """Say whether following nodeName from the root ever comes back."""

    def visit(name: str, above: frozenset[str]) -> bool:
        if name in above:
            return True
        steps = (nodes.get(name) or {}).get("steps") or []
        return any(visit(step["nodeName"], above | {name}) for step in steps if step.get("nodeName") in nodes)

    return visit("root", frozenset())


async def reconcile(ctx: Context, graph: Resource[Any]) -> Result:
    """Keep a router for the graph once all services of its steps have an address."""
    if is_deleting(graph.raw):
        return Result()
    try:
        spec = resolve(graph.raw, lambda name: ctx.cache(INFERENCE_SERVICE).get(Key(graph.namespace, name)))
    except MissingServiceError as error:
        await _set_status(ctx, graph.raw, ("False", "ServiceNotReady", str(error)))
        return Result(requeue_after_s=_LOOK_AGAIN_S)
    if not ctx.settings.gateway_url:
        said = "an InferenceGraph needs shallop's gateway, which does not run on this cluster"
        await _set_status(ctx, graph.raw, ("False", "NoGateway", said))
        return Result()
    service = await ctx.client.apply(render_router(graph.raw, spec), owner=graph.raw)
    traffic = (service.get("status") or {}).get("traffic") or []
    if traffic:
        shares = [(revision, 80, share) for revision, share in weights(traffic).items()]
        metadata = {"name": f"{graph.name}.path", "namespace": graph.namespace}
        prefix = render.path_prefix(graph.namespace, graph.name)
        timeout_s = int(graph.spec.get("timeout") or _TIMEOUT_S)
        await ctx.client.apply(render.render_route(metadata, [], shares, timeout_s, prefix=prefix), owner=graph.raw)
    found = find_condition(service, "Ready") or {}
    verdict = (found.get("status") or "Unknown", found.get("reason") or "", found.get("message") or "")
    await _set_status(ctx, graph.raw, verdict if traffic else ("Unknown", "Deploying", verdict[2]))
    return Result()


async def _set_status(ctx: Context, graph: Object, ready: tuple[str, str, str]) -> None:
    namespace, name = graph["metadata"]["namespace"], graph["metadata"]["name"]
    conditions = set_condition(list((graph.get("status") or {}).get("conditions") or []), "Ready", *ready, ctx.now())
    status: dict[str, Any] = {
        "observedGeneration": graph["metadata"].get("generation", 0),
        "deploymentMode": "Knative",
        "conditions": conditions,
    }
    if ctx.settings.gateway_url:
        status["url"] = ctx.settings.gateway_url + render.path_prefix(namespace, name)
    await ctx.client.patch_status(graph, merge_status(graph.get("status") or {}, status))


def resolve(graph: Object, find: Any) -> dict[str, Any]:
    """
    Return the graph's specification with a ``serviceUrl`` for every service.

    Args:
        find: name -> InferenceService of the namespace, or None.

    Raises:
        MissingServiceError: a service is not there or has no address yet.
    """
    spec = json.loads(json.dumps(graph["spec"]))
    for name, node in spec["nodes"].items():
        for index, step in enumerate(node.get("steps") or []):
            wanted = step.get("serviceName")
            if not wanted:
                continue
            service = find(wanted)
            address = (((service or {}).get("status") or {}).get("address") or {}).get("url")
            if service is None or not address:
                what = "has no address yet" if service else "does not exist in this namespace"
                where = f"spec.nodes.{name}.steps[{index}].serviceName"
                raise MissingServiceError(f"{where}: InferenceService {wanted!r} {what}")
            step["serviceUrl"] = address + predict_path(service)
    return spec  # type: ignore[no-any-return]


def predict_path(service: Object) -> str:
    """Return the path of an InferenceService's predictions, by its protocol and the name that its model goes by."""
    predictor = service["spec"]["predictor"]
    model = predictor.get("model") or {}
    containers = [model, *(predictor.get("containers") or [])]
    args = [str(item) for container in containers for item in container.get("args") or []]
    name = str(service["metadata"]["name"])
    for index, item in enumerate(args):
        if item.startswith("--model_name="):
            name = item.partition("=")[2]
        elif item == "--model_name" and index + 1 < len(args):
            name = args[index + 1]
    is_v2 = model.get("protocolVersion") == "v2"
    return f"/v2/models/{name}/infer" if is_v2 else f"/v1/models/{name}:predict"


def render_router(graph: Object, spec: Mapping[str, Any]) -> Object:
    """Render the Knative Service of the router; ``spec`` with the addresses filled in."""
    declared, metadata = graph["spec"], graph["metadata"]
    routing = {key: spec[key] for key in ("nodes", "timeout", "routerTimeouts") if key in spec}
    container: dict[str, Any] = {
        "name": "user-container",
        "image": ROUTER_IMAGE,
        "args": ["--graph-json", json.dumps(routing, sort_keys=True)],
        "resources": declared.get("resources") or {"requests": {"cpu": "100m", "memory": "100Mi"}},
        "ports": [{"containerPort": 8080}],
    }
    scaling = {key: value for key, value in annotations_of(graph).items() if key.startswith("autoscaling.knative.dev/")}
    low, high = declared.get("minReplicas"), declared.get("maxReplicas")
    scaling.setdefault("autoscaling.knative.dev/min-scale", str(1 if low is None else low))
    given = {"max-scale": high, "target": declared.get("scaleTarget"), "metric": declared.get("scaleMetric")}
    for name, value in given.items():
        if value:
            scaling.setdefault(f"autoscaling.knative.dev/{name}", str(value))
    pod_fields = ("affinity", "tolerations", "nodeSelector", "nodeName", "serviceAccountName")
    pod = {key: declared[key] for key in pod_fields if declared.get(key)}
    labels = {"serving.kserve.io/inferencegraph": metadata["name"]}
    timeout_s = int(declared.get("timeout") or _TIMEOUT_S)
    return {
        "apiVersion": KNATIVE_SERVICE.api_version,
        "kind": KNATIVE_SERVICE.kind,
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "labels": labels},
        "spec": {
            "template": {
                "metadata": {"labels": labels, "annotations": scaling},
                "spec": {**pod, "containers": [container], "timeoutSeconds": timeout_s},
            }
        },
    }


INFERENCE_GRAPH = Kind(
    api_version="serving.kserve.io/v1alpha1",
    kind="InferenceGraph",
    plural="inferencegraphs",
    short_names=("ig",),
    schema=SCHEMA,
    columns=(
        Column("URL", "string", ".status.url"),
        Column("Ready", "string", ".status.conditions[?(@.type=='Ready')].status"),
        Column("Age", "date", ".metadata.creationTimestamp"),
    ),
    validate=validate,
    reconcile=reconcile,
    owns=(KNATIVE_SERVICE, HTTP_ROUTE),
)
