"""Training: TrainJob and its runtimes, and the classic jobs of each framework."""

from __future__ import annotations

from shallop.controller.kind import Part
from shallop.training import progress
from shallop.training.classic import CLASSIC_KINDS
from shallop.training.trainingruntime import CLUSTER_TRAINING_RUNTIME, TRAINING_RUNTIME, load_runtimes
from shallop.training.trainjob import TRAIN_JOB

__all__ = ["PART"]

_NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kubeflow-system"}}
# The version of Kubeflow Trainer whose interface this is; its SDK looks for it.
_PUBLIC = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "kubeflow-trainer-public", "namespace": "kubeflow-system"},
    "data": {"kubeflow_trainer_version": "v2.3.0"},
}

PART = Part(
    name="training",
    kinds=(TRAIN_JOB, TRAINING_RUNTIME, CLUSTER_TRAINING_RUNTIME, *CLASSIC_KINDS),
    objects=(_NAMESPACE, _PUBLIC, *load_runtimes()),
    routes=progress.routes,
)
