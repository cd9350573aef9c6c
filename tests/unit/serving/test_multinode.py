"""Predictors of several nodes: how many there are, and what head and workers are told."""

from __future__ import annotations

from typing import Any

import pytest

from shallop.kube.objects import Object
from shallop.serving.admission import validate
from shallop.serving.multinode import Layout, plan_layout, render_head, render_head_service, render_workers
from shallop.serving.podtemplate import Storage, render_pod_template
from shallop.serving.selection import SelectionError

NONE = "serving.kserve.io/autoscalerClass"
NOTES = {"serving.kserve.io/deploymentMode": "Standard", NONE: "none"}


def service(workers: Any, notes: dict[str, str] | None = None, **model: Any) -> Object:
    declared = {"modelFormat": {"name": "huggingface"}, "storageUri": "pvc://llm/big", **model}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": "llm",
            "namespace": "team",
            "generation": 3,
            "annotations": NOTES if notes is None else notes,
        },
        "spec": {"predictor": {"model": declared, "workerSpec": workers}},
    }


def runtime(**worker: Any) -> Object:
    env = [{"name": "PORT", "value": "6379"}, {"name": "HEAD_SVC", "value": "mine"}]
    given = {"name": "worker-container", "image": "w:1", "args": ["--of={{.Name}}"], "env": env}
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": "spread", "namespace": "team"},
        "spec": {
            "containers": [{"name": "kserve-container", "image": "h:1"}],
            "workerSpec": {"containers": [given], "volumes": [{"name": "shm", "emptyDir": {}}], **worker},
        },
    }


def gpus(count: int) -> dict[str, Any]:
    return {"resources": {"limits": {"nvidia.com/gpu": str(count)}}}


@pytest.mark.parametrize(
    ("pipeline", "tensor", "head", "worker", "layout"),
    [
        (2, 1, 0, 0, Layout(2, 1, 2, 1, 1)),
        (2, 4, 0, 4, Layout(2, 4, 2, 4, 4)),
        (3, 1, 0, 2, Layout(3, 1, 2, 1, 2)),
        (1, 2, 2, 1, Layout(1, 2, 1, 2, 0)),
        (2, 2, 2, 0, Layout(2, 2, 3, 2, 1)),
        (1, 1, 0, 1, Layout(1, 1, 1, 1, 0)),
    ],
)
def test_as_many_nodes_are_there_as_the_gpus_need(
    pipeline: int, tensor: int, head: int, worker: int, layout: Layout
) -> None:
    workers: dict[str, Any] = {"pipelineParallelSize": pipeline, "tensorParallelSize": tensor}
    workers |= {"containers": [gpus(worker)]} if worker else {}
    assert plan_layout(service(workers, **(gpus(head) if head else {})), runtime()) == layout


def test_sizes_are_the_runtimes_unless_the_service_has_its_own() -> None:
    offered = runtime(pipelineParallelSize=4, tensorParallelSize=2)
    assert plan_layout(service({}), offered)[:3] == (4, 2, 8)
    assert plan_layout(service({"pipelineParallelSize": 3}), offered)[:3] == (3, 2, 6)


def test_what_cannot_be_spread_says_why() -> None:
    plain = runtime()
    del plain["spec"]["workerSpec"]
    with pytest.raises(SelectionError) as unset:
        plan_layout(service({}), plain)
    assert unset.value.reason == "InvalidWorkerSpecNotSet"
    few = service({"pipelineParallelSize": 8, "containers": [gpus(4)]}, **gpus(1))
    with pytest.raises(SelectionError) as short:
        plan_layout(few, runtime())
    assert (short.value.reason, "8 GPUs are needed" in short.value.message) == ("InvalidGPUAllocation", True)


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {item["name"]: item["value"] for item in container["env"]}


def test_head_and_workers_know_their_sizes_and_each_other() -> None:
    spread, offered = service({"pipelineParallelSize": 3, "containers": [{"args": ["--mine"]}]}), runtime()
    layout = plan_layout(spread, offered)
    head = render_head(render_pod_template(spread, offered, Storage("pvc://llm/big")), spread, layout, has_model=True)
    sizes = {
        "PIPELINE_PARALLEL_SIZE": "3",
        "TENSOR_PARALLEL_SIZE": "1",
        "RAY_NODE_COUNT": "3",
        "REQUEST_GPU_COUNT": "1",
    }
    told = variables(head["spec"]["containers"][0])
    assert told == sizes | {"INFERENCE_SERVICE_NAME": "llm", "MODEL_NAME": "llm", "MODEL_DIR": "/mnt/models"}
    workers = render_workers(spread, offered, Storage("pvc://llm/big"), layout)
    assert (workers["metadata"]["name"], workers["spec"]["replicas"]) == ("llm-predictor-worker", 2)
    (container,) = workers["spec"]["template"]["spec"]["containers"]
    assert (container["name"], container["args"]) == ("worker-container", ["--of=llm", "--mine"])
    assert "readinessProbe" not in container
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/mnt/models"]
    own = {"ISVC_NAME": "llm", "HEAD_SVC": "llm-head-3", "PORT": "6379", "INFERENCE_SERVICE_NAME": "llm"}
    assert variables(container) == sizes | own
    labels = workers["spec"]["template"]["metadata"]["labels"]
    assert workers["spec"]["selector"]["matchLabels"].items() <= labels.items()
    front = render_head_service(spread)
    assert front["metadata"]["name"] == "llm-head-3"
    assert front["spec"]["selector"].items() <= head["metadata"]["labels"].items()
    assert not front["spec"]["selector"].items() <= labels.items()


@pytest.mark.parametrize(
    ("refused", "field"),
    [
        (service({}, notes={NONE: "none"}), "spec.predictor.workerSpec"),
        (service({}, notes=NOTES | {NONE: "hpa"}), f"metadata.annotations[{NONE}]"),
        (service({}, storageUri=""), "spec.predictor.model.storageUri"),
        (service({"tensorParallelSize": 0}), "spec.predictor.workerSpec.tensorParallelSize"),
        (service({"pipelineParallelSize": -1}), "spec.predictor.workerSpec.pipelineParallelSize"),
        (service({"containers": [{"name": "a"}, {"name": "b"}]}), "spec.predictor.workerSpec.containers"),
        (service({}, env=[{"name": "TENSOR_PARALLEL_SIZE", "value": "2"}]), "spec.predictor.model.env[0]"),
        (
            service({"containers": [{"env": [{"name": "A"}, {"name": "PIPELINE_PARALLEL_SIZE", "value": "2"}]}]}),
            "spec.predictor.workerSpec.containers[0].env[1]",
        ),
    ],
)
def test_a_wrong_worker_specification_is_refused_at_the_door(refused: Object, field: str) -> None:
    assert [error.field for error in validate(refused, None)] == [field]


def test_a_right_one_is_accepted() -> None:
    assert validate(service({"pipelineParallelSize": 2}), None) == []
