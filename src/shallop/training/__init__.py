"""Training: TrainJob and its runtimes, and the classic jobs of each framework."""

from __future__ import annotations

from collections.abc import Mapping

from shallop.controller.kind import Admission, Part, Services
from shallop.kube.objects import Gvk
from shallop.training import progress
from shallop.training.classic import CLASSIC_KINDS
from shallop.training.trainingruntime import CLUSTER_TRAINING_RUNTIME, TRAINING_RUNTIME, load_runtimes
from shallop.training.trainjob import TRAIN_JOB, check_runtime

__all__ = ["PART"]

_NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kubeflow-system"}}
# The version of Kubeflow Trainer whose interface this is; its SDK looks for it.
_PUBLIC = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "kubeflow-trainer-public", "namespace": "kubeflow-system"},
    "data": {"kubeflow_trainer_version": "v2.3.0"},
}


def _admission(services: Services) -> Mapping[Gvk, Admission]:
    return {TRAIN_JOB.gvk: lambda job: check_runtime(services.client, job)}


PART = Part(
    name="training",
    kinds=(TRAIN_JOB, TRAINING_RUNTIME, CLUSTER_TRAINING_RUNTIME, *CLASSIC_KINDS),
    objects=(_NAMESPACE, _PUBLIC, *load_runtimes()),
    admission=_admission,
    routes=progress.routes,
)
