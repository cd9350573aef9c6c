"""From a TrainJob and its runtime to the JobSet that runs it, and to the objects beside it. Pure."""

from __future__ import annotations

from typing import Any

import yaml

from shallop.kube.objects import Object, annotations_of, labels_of
from shallop.training.podsets import NODE, TRAINER, Training, container_named, prepare, set_env, show_end_of_logs
from shallop.training.policies import FRAMEWORK, apply_policy

__all__ = ["CHECKPOINT_CLAIM", "CHECKPOINT_PATH", "JOBSET", "render_jobset", "render_snapshot", "train"]

JOBSET = "jobset.x-k8s.io/v1alpha2"
# The folder that survives the job, and the name of its claim.
CHECKPOINT_PATH = "/checkpoints"
CHECKPOINT_CLAIM = "training.shallop.dev/checkpoint-claim"
_TOKEN_FOLDER = "/var/run/secrets/trainer.kubeflow.org"
_TOKEN_S = 3600


def train(job: Object, runtime: Object) -> Training:
    """Lay job over runtime and apply the runtime's policy."""
    training = prepare(job, runtime)
    apply_policy(training, labels_of(runtime).get(FRAMEWORK, ""))
    return training


def render_jobset(training: Training, status_url: str = "") -> Object:
    """
    Return the JobSet of a TrainJob.

    Args:
        status_url: where Pods may report progress; empty for nowhere.
    """
    job, template = training.job, training.template
    metadata: dict[str, Any] = {"name": training.name, "namespace": job["metadata"]["namespace"]}
    for field in ("labels", "annotations"):
        if values := (template.get("metadata") or {}).get(field):
            metadata[field] = values
    _offer_status(training, status_url)
    _offer_checkpoints(training)
    spec = {**template.get("spec", {}), "replicatedJobs": [], "suspend": bool(job["spec"].get("suspend"))}
    for pods in training.pod_sets:
        batch = pods.job["template"]["spec"]
        if pods.ancestor or pods.name == NODE:
            batch["parallelism"] = batch["completions"] = pods.count
        pods.job.setdefault("replicas", 1)
        show_end_of_logs(pods.pod_spec)
        spec["replicatedJobs"].append(pods.job)
    return {"apiVersion": JOBSET, "kind": "JobSet", "metadata": metadata, "spec": spec}


def _offer_status(training: Training, url: str) -> None:
    """Let the container that trains report progress: an address and a token that is good for this alone."""
    pods = training.step(TRAINER)
    container = container_named(pods, NODE) if pods else None
    if not url or pods is None or container is None:
        return
    namespace = training.job["metadata"]["namespace"]
    audience = f"trainer.kubeflow.org/v1alpha1/namespaces/{namespace}/trainjobs/{training.name}/status"
    token = {"audience": audience, "expirationSeconds": _TOKEN_S, "path": "token"}
    volume = {"name": "kubeflow-trainer-token", "projected": {"sources": [{"serviceAccountToken": token}]}}
    spec = pods.pod_spec
    spec["volumes"] = [*(spec.get("volumes") or ()), volume]
    mount = {"name": volume["name"], "mountPath": _TOKEN_FOLDER, "readOnly": True}
    container["volumeMounts"] = [*(container.get("volumeMounts") or ()), mount]
    set_env(
        container,
        [
            {"name": "KUBEFLOW_TRAINER_SERVER_URL", "value": url},
            {"name": "KUBEFLOW_TRAINER_SERVER_TOKEN", "value": f"{_TOKEN_FOLDER}/token"},
        ],
    )


def _offer_checkpoints(training: Training) -> None:
    """Mount the claim that the TrainJob names by annotation, one folder for each job, and say where it is."""
    claim = annotations_of(training.job).get(CHECKPOINT_CLAIM)
    if not claim:
        return
    for pods in training.pod_sets:
        container = container_named(pods, NODE)
        if container is None:
            continue
        volume = {"name": "checkpoints", "persistentVolumeClaim": {"claimName": claim}}
        spec = pods.pod_spec
        spec["volumes"] = [*(spec.get("volumes") or ()), volume]
        mount = {"name": "checkpoints", "mountPath": CHECKPOINT_PATH, "subPath": training.name}
        container["volumeMounts"] = [*(container.get("volumeMounts") or ()), mount]
        set_env(container, [{"name": "CHECKPOINT_DIR", "value": CHECKPOINT_PATH}])


def render_snapshot(job: Object, runtime: Object) -> Object:
    """Return the ConfigMap that keeps the runtime as it was when the TrainJob was first seen."""
    kept = {
        "apiVersion": runtime["apiVersion"],
        "kind": runtime["kind"],
        "metadata": {
            name: runtime["metadata"][name]
            for name in ("name", "namespace", "uid", "labels", "annotations")
            if runtime["metadata"].get(name)
        },
        "spec": runtime["spec"],
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": f"{job['metadata']['name']}-runtime-snapshot",
            "namespace": job["metadata"]["namespace"],
        },
        "data": {"runtime": yaml.safe_dump(kept, sort_keys=False)},
    }
