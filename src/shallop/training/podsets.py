"""
From a TrainJob and its runtime to the groups of Pods that will run. Pure; nothing here writes to its arguments.

A ``PodSet`` is one replicated job of the JobSet to be: policies change its containers, ``render_jobset`` reads it back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from shallop.kube.objects import Object
from shallop.kube.patch import FieldMerge, strategic_merge_patch

__all__ = [
    "ANCESTOR",
    "DATASET",
    "MODEL",
    "NODE",
    "TRAINER",
    "PodSet",
    "Training",
    "container_named",
    "merge_resources",
    "prepare",
    "set_env",
    "show_end_of_logs",
]

ANCESTOR = "trainer.kubeflow.org/trainjob-ancestor-step"
TRAINER, DATASET, MODEL = "trainer", "dataset-initializer", "model-initializer"
# The container that trains, and the replicated job of workers where a launcher does.
NODE = "node"
# How lists of a Pod template merge when a runtime patch is laid over it.
_BY_KEY = {
    "replicatedJobs": "name",
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "imagePullSecrets": "name",
    "schedulingGates": "name",
}


@dataclass
class PodSet:
    """
    One replicated job.

    Args:
        name: of the replicated job.
        ancestor: the step it stands for, empty for none.
        count: Pods of its Job.
        job: the replicated job itself, ours to change.
    """

    name: str
    ancestor: str
    count: int
    job: Object

    @property
    def pod_spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.job["template"]["spec"]["template"]["spec"]
        return spec

    @property
    def containers(self) -> list[Object]:
        containers: list[Object] = self.pod_spec.setdefault("containers", [])
        return containers

    def endpoints(self, job_name: str) -> list[str]:
        """Host names of its Pods, in the order of their indexes."""
        return [f"{job_name}-{self.name}-0-{index}.{job_name}" for index in range(self.count)]


@dataclass
class Training:
    """
    Everything that policies look at.

    Args:
        job: the TrainJob.
        policy: ``mlPolicy`` of the runtime.
        template: ``metadata`` and ``spec`` of the JobSet to be, without replicated jobs.
        pod_sets: in the order of the runtime.
        runtime_command: command of the container that trains before the TrainJob's replaced it.
    """

    job: Object
    policy: dict[str, Any]
    template: dict[str, Any]
    pod_sets: list[PodSet]
    runtime_command: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return str(self.job["metadata"]["name"])

    @property
    def trainer(self) -> dict[str, Any]:
        """``spec.trainer`` of the TrainJob, empty when absent."""
        return self.job["spec"].get("trainer") or {}

    def step(self, ancestor: str) -> PodSet | None:
        return next((pods for pods in self.pod_sets if pods.ancestor == ancestor), None)

    def named(self, name: str) -> PodSet | None:
        return next((pods for pods in self.pod_sets if pods.name == name), None)


def container_named(pods: PodSet, name: str) -> Object | None:
    """Return a container or init container of the Pods, ours to change."""
    for kind in ("containers", "initContainers"):
        for container in pods.pod_spec.get(kind) or ():
            if container["name"] == name:
                found: Object = container
                return found
    return None


def show_end_of_logs(pod_spec: dict[str, Any]) -> None:
    """Have containers that fail say so with the end of their logs, where nothing else was asked for."""
    for kind in ("initContainers", "containers"):
        for container in pod_spec.get(kind) or ():
            container.setdefault("terminationMessagePolicy", "FallbackToLogsOnError")


def set_env(container: Object, entries: Iterable[Mapping[str, Any]]) -> None:
    """Set variables; one that is there is replaced where it stands."""
    env = list(container.get("env") or ())
    for entry in entries:
        place = next((index for index, old in enumerate(env) if old["name"] == entry["name"]), None)
        if place is None:
            env.append(dict(entry))
        else:
            env[place] = dict(entry)
    if env:
        container["env"] = env


def prepare(job: Object, runtime: Object) -> Training:
    """
    Lay the TrainJob over its runtime: patches, numbers of Pods, image, command, arguments, resources, variables.

    Source: Kubeflow Trainer 2.3, order of its plug-in pipeline.
    """
    spec = runtime["spec"]
    template = _patched(copy.deepcopy(spec.get("template") or {}), job["spec"].get("runtimePatches") or ())
    jobs = template.setdefault("spec", {}).pop("replicatedJobs", None) or []
    training = Training(job, copy.deepcopy(spec.get("mlPolicy") or {}), template, [_pod_set(item) for item in jobs])
    trainer = training.step(TRAINER)
    if trainer is not None:
        trainer.count = max(1, training.trainer.get("numNodes") or training.policy.get("numNodes") or 1)
        _apply_trainer(training, trainer)
    _apply_initializers(training)
    return training


def _patched(template: dict[str, Any], patches: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    order = [item["name"] for item in (template.get("spec") or {}).get("replicatedJobs") or ()]
    for patch in patches:
        change = (patch.get("trainingRuntimeSpec") or {}).get("template")
        if change:
            template = strategic_merge_patch(template, copy.deepcopy(change), "template", _merge_rule)
    jobs = (template.get("spec") or {}).get("replicatedJobs")
    if jobs:
        # A strategic merge may move what it touches; the order of steps is the runtime's.
        jobs.sort(key=lambda item: order.index(item["name"]) if item["name"] in order else len(order))
    return template


def _merge_rule(_type_name: str, field: str) -> FieldMerge:
    if field in _BY_KEY:
        return FieldMerge(field, True, _BY_KEY[field])
    return FieldMerge(field)


def _pod_set(job: Object) -> PodSet:
    template = job.setdefault("template", {})
    ancestor = ((template.get("metadata") or {}).get("labels") or {}).get(ANCESTOR, "")
    spec = template.setdefault("spec", {})
    spec.setdefault("template", {}).setdefault("spec", {})
    return PodSet(str(job["name"]), str(ancestor), int(spec.get("parallelism") or 1), job)


def _apply_trainer(training: Training, pods: PodSet) -> None:
    wanted = training.trainer
    container = container_named(pods, NODE)
    if container is None:
        return
    training.runtime_command = tuple(container.get("command") or ())
    for name in ("image", "command", "args"):
        if wanted.get(name):
            container[name] = copy.copy(wanted[name])
    merge_resources(container, wanted.get("resourcesPerNode") or {})
    set_env(container, wanted.get("env") or ())


def merge_resources(container: Object, wanted: Mapping[str, Any]) -> None:
    """Lay limits and requests over those of a container, resource by resource."""
    for kind in ("limits", "requests"):
        if wanted.get(kind):
            resources = container.setdefault("resources", {})
            resources[kind] = {**(resources.get(kind) or {}), **wanted[kind]}
    if wanted.get("claims"):
        container.setdefault("resources", {})["claims"] = wanted["claims"]


def _apply_initializers(training: Training) -> None:
    initializer = training.job["spec"].get("initializer") or {}
    for field, step in (("dataset", DATASET), ("model", MODEL)):
        wanted, pods = initializer.get(field), training.step(step)
        container = container_named(pods, step) if pods else None
        if not wanted or container is None:
            continue
        if wanted.get("storageUri"):
            set_env(container, [{"name": "STORAGE_URI", "value": wanted["storageUri"]}])
        set_env(container, wanted.get("env") or ())
        if wanted.get("secretRef"):
            container["envFrom"] = [*(container.get("envFrom") or ()), {"secretRef": wanted["secretRef"]}]
