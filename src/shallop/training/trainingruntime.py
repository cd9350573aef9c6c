"""TrainingRuntime and ClusterTrainingRuntime: how jobs of a framework run. Data; a TrainJob keeps a copy of its own."""

from __future__ import annotations

from importlib import resources
from typing import Any

import yaml

from shallop.controller.kind import Kind
from shallop.errors import FieldError
from shallop.kube.objects import Object
from shallop.training.podsets import ANCESTOR, DATASET, MODEL, NODE, TRAINER
from shallop.training.schemas import TRAINING_RUNTIME as SCHEMA

__all__ = ["CLUSTER_TRAINING_RUNTIME", "TRAINING_RUNTIME", "load_runtimes"]

# Which container a step must have.
_CONTAINERS = {TRAINER: NODE, DATASET: DATASET, MODEL: MODEL}


def load_runtimes() -> tuple[Object, ...]:
    """Return the ClusterTrainingRuntimes that come with the package."""
    folder = resources.files("shallop.training") / "runtimes"
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda file: file.name)
    return tuple(runtime for file in files for runtime in yaml.safe_load_all(file.read_text()))


def validate(runtime: Object, old: Object | None) -> list[FieldError]:
    """Check that each step has one Job and the container of its name."""
    errors: list[FieldError] = []
    jobs = ((runtime["spec"].get("template") or {}).get("spec") or {}).get("replicatedJobs") or []
    for index, job in enumerate(jobs):
        path = f"spec.template.spec.replicatedJobs[{index}]"
        template = job.get("template") or {}
        step = ((template.get("metadata") or {}).get("labels") or {}).get(ANCESTOR)
        if step not in _CONTAINERS:
            continue
        if job.get("replicas", 1) != 1:
            errors.append(FieldError.invalid(f"{path}.replicas", job["replicas"], "always must be 1"))
        pod: dict[str, Any] = ((template.get("spec") or {}).get("template") or {}).get("spec") or {}
        if not any(container.get("name") == _CONTAINERS[step] for container in pod.get("containers") or ()):
            where = f"{path}.template.spec.template.spec.containers"
            detail = f"must have a container named {_CONTAINERS[step]!r} in the step {step!r}"
            errors.append(FieldError.invalid(where, job.get("name", ""), detail))
    return errors


TRAINING_RUNTIME = Kind(
    api_version="trainer.kubeflow.org/v1alpha1",
    kind="TrainingRuntime",
    plural="trainingruntimes",
    schema=SCHEMA,
    status=False,
    validate=validate,
)
CLUSTER_TRAINING_RUNTIME = Kind(
    api_version="trainer.kubeflow.org/v1alpha1",
    kind="ClusterTrainingRuntime",
    plural="clustertrainingruntimes",
    namespaced=False,
    schema=SCHEMA,
    status=False,
    validate=validate,
)
