"""
Predictors of several nodes: a head, which answers, and workers, by ``spec.predictor.workerSpec``; pure.

Each generation has a head Service of its own, so that workers never meet the head of another one. Sizes, numbers of
nodes and variables are KServe's; unlike there, GPUs are asked for only where a container asks for them.

Source: KServe v1beta1 (2026-08), multi-node predictors of Standard mode.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from shallop.kube.objects import Object, annotations_of
from shallop.serving.podtemplate import CONTAINER, MODEL_PATH, Storage, render_pod_template, workload_name
from shallop.serving.render import render_deployment
from shallop.serving.selection import SelectionError

__all__ = [
    "GENERATION",
    "WORKER_CONTAINER",
    "Layout",
    "head_service_name",
    "is_multi_node",
    "plan_layout",
    "render_head",
    "render_head_service",
    "render_strategy",
    "render_workers",
    "worker_name",
]

WORKER_CONTAINER = "worker-container"
GENERATION = "isvc.generation"
GPU_TYPES = "serving.kserve.io/gpu-resource-types"
_GPUS = ("nvidia.com/gpu", "amd.com/gpu", "intel.com/gpu", "habana.ai/gaudi")
# Fields of a workerSpec that are not the Pod's.
_SIZES = ("pipelineParallelSize", "tensorParallelSize")
_OF_MODEL = ("modelFormat", "storageUri", "storage")


class Layout(NamedTuple):
    """How a model is spread; ``nodes`` counts the head, ``gpus`` are those of a node."""

    pipeline: int
    tensor: int
    nodes: int
    head_gpus: int
    worker_gpus: int


def is_multi_node(service: Object) -> bool:
    return service["spec"]["predictor"].get("workerSpec") is not None


def worker_name(service: Object) -> str:
    return f"{workload_name(service)}-worker"


def head_service_name(service: Object, generation: str) -> str:
    return f"{service['metadata']['name']}-head-{generation}"


def plan_layout(service: Object, runtime: Object | None) -> Layout:
    """
    Decide how many nodes there are and what GPUs each is for.

    Raises:
        SelectionError: the runtime has no workers, or the GPUs that containers ask for are too few.
    """
    where, declared = "spec.predictor.workerSpec", service["spec"]["predictor"]["workerSpec"]
    offered = ((runtime or {}).get("spec") or {}).get("workerSpec")
    if offered is None or runtime is None:
        said = f"{where}: the runtime has no workerSpec; name one that has in spec.predictor.model.runtime"
        raise SelectionError("InvalidWorkerSpecNotSet", said)
    if not offered.get("containers"):
        name = runtime["metadata"]["name"]
        raise SelectionError("InvalidPredictorSpec", f'{where}: runtime "{name}" has no containers in its workerSpec')
    pipeline, tensor = (int(declared.get(name) or offered.get(name) or 1) for name in _SIZES)
    types = (*_GPUS, *_own_types(service))
    head = _gpus([service["spec"]["predictor"].get("model") or {}, _first(runtime["spec"], CONTAINER)], types)
    worker = _gpus([_first(declared), _first(offered, WORKER_CONTAINER)], types)
    total, nodes = pipeline * tensor, pipeline * tensor
    if worker:
        nodes = 1 if head >= total else math.ceil(total / worker)
        head = total if nodes == 1 else head or total - worker * (nodes - 1)
        worker = 0 if nodes == 1 else worker
    elif head:
        nodes, worker = 1 + max(0, total - head), 1
    else:
        head = worker = 1
    if total > head + worker * (nodes - 1):
        said = f"{where}: {total} GPUs are needed (pipelineParallelSize x tensorParallelSize), the head has {head} and"
        raise SelectionError("InvalidGPUAllocation", f"{said} {nodes - 1} workers have {worker} each")
    return Layout(pipeline, tensor, nodes, head, worker)


def _own_types(service: Object) -> list[str]:
    try:
        found = json.loads(annotations_of(service).get(GPU_TYPES) or "[]")
    except ValueError:
        return []
    return [str(item) for item in found] if isinstance(found, list) else []


def _first(spec: Mapping[str, Any], name: str = "") -> Mapping[str, Any]:
    containers = spec.get("containers") or [{}]
    return next((item for item in containers if name and item.get("name") == name), containers[0])


def _gpus(containers: list[Mapping[str, Any]], types: tuple[str, ...]) -> int:
    """Return how many GPUs the first of some containers asks for that asks for any."""
    for container in containers:
        resources = container.get("resources") or {}
        for kind in ("requests", "limits"):
            for name in types:
                if count := (resources.get(kind) or {}).get(name):
                    return int(count)
    return 0


def render_head(template: Object, service: Object, layout: Layout, *, has_model: bool) -> Object:
    """Return the template of the head's Pods, from that of a predictor of one node."""
    variables = _variables(layout, layout.head_gpus) | {"MODEL_NAME": service["metadata"]["name"]}
    variables |= {"MODEL_DIR": MODEL_PATH} if has_model else {}
    return _with(template, service, CONTAINER, variables)


def render_workers(service: Object, runtime: Object, storage: Storage, layout: Layout) -> Object:
    """Render the Deployment of the workers."""
    predictor, declared = service["spec"]["predictor"], service["spec"]["predictor"]["workerSpec"]
    offered, own = runtime["spec"]["workerSpec"], dict(_first(declared))
    pod = {key: value for key, value in declared.items() if key not in (*_SIZES, "containers")}
    about = {key: predictor["model"][key] for key in _OF_MODEL if key in predictor["model"]}
    pod |= {key: predictor[key] for key in ("labels", "annotations") if key in predictor}
    # A worker is rendered as what serves a model is, with the containers that workers have.
    base = {**_first(offered, WORKER_CONTAINER), "name": CONTAINER}
    alike = {**runtime, "spec": {**offered, "containers": [base]}}
    as_predictor = {**service, "spec": {"predictor": {**pod, "model": {**own, **about}}}}
    template = render_pod_template(as_predictor, alike, storage)
    for container in template["spec"]["containers"]:
        if container["name"] == CONTAINER:
            container["name"] = WORKER_CONTAINER
            if not (base.get("readinessProbe") or own.get("readinessProbe")):
                del container["readinessProbe"]
    generation = str(service["metadata"].get("generation", 0))
    variables = _variables(layout, layout.worker_gpus) | {
        "ISVC_NAME": service["metadata"]["name"],
        "HEAD_SVC": head_service_name(service, generation),
    }
    template = _with(template, service, WORKER_CONTAINER, variables)
    name = worker_name(service)
    template["metadata"]["labels"]["app"] = f"isvc.{name}"
    deployment = render_deployment(service, template, {})
    deployment["metadata"]["name"] = name
    deployment["spec"] |= {
        "strategy": render_strategy(service),
        "replicas": layout.nodes - 1,
        "selector": {"matchLabels": {"app": f"isvc.{name}"}},
    }
    return deployment


def render_strategy(service: Object) -> dict[str, Any]:
    """Return how Deployments change: all of the new nodes first, as a part of them is of no use."""
    given = service["spec"]["predictor"].get("deploymentStrategy")
    return given or {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "100%", "maxUnavailable": "0%"}}


def _variables(layout: Layout, gpus: int) -> dict[str, str]:
    return {
        "PIPELINE_PARALLEL_SIZE": str(layout.pipeline),
        "TENSOR_PARALLEL_SIZE": str(layout.tensor),
        "RAY_NODE_COUNT": str(layout.nodes),
        "REQUEST_GPU_COUNT": str(gpus),
    }


def _with(template: Object, service: Object, name: str, variables: Mapping[str, str]) -> Object:
    """Add variables to a container, over its own, and the generation to the labels."""
    metadata = template["metadata"]
    labels = metadata["labels"] | {GENERATION: str(service["metadata"].get("generation", 0))}
    added = [{"name": key, "value": value} for key, value in variables.items()]
    containers = [
        {**item, "env": [*(entry for entry in item["env"] if entry["name"] not in variables), *added]}
        if item["name"] == name
        else item
        for item in template["spec"]["containers"]
    ]
    return {"metadata": {**metadata, "labels": labels}, "spec": {**template["spec"], "containers": containers}}


def render_head_service(service: Object) -> Object:
    """Render the Service by which the workers of this generation find their head, before it is ready."""
    generation, name = str(service["metadata"].get("generation", 0)), workload_name(service)
    labels = {"serving.kserve.io/inferenceservice": service["metadata"]["name"], "component": "predictor"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": head_service_name(service, generation),
            "namespace": service["metadata"]["namespace"],
            "labels": labels | {GENERATION: generation},
        },
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"app": f"isvc.{name}", GENERATION: generation},
        },
    }
