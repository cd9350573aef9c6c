"""Pods, Services and files of the classic jobs. Pure."""

from __future__ import annotations

import copy
from typing import Any

from shallop.kube.objects import Object
from shallop.training.classic_env import MPI_FOLDER
from shallop.training.classic_table import ClassicKind
from shallop.training.classic_view import JobView
from shallop.training.podsets import show_end_of_logs

__all__ = [
    "JOB_NAME",
    "LABEL",
    "REPLICA_INDEX",
    "REPLICA_TYPE",
    "labels_for",
    "render_autoscaler",
    "render_config",
    "render_pod",
    "render_service",
]

LABEL = "training.kubeflow.org/"
JOB_NAME, REPLICA_TYPE, REPLICA_INDEX = f"{LABEL}job-name", f"{LABEL}replica-type", f"{LABEL}replica-index"
_RSH = ["python3", "-m", "shallop_pod.rsh", "serve"]


def labels_for(kind: ClassicKind, job: JobView) -> dict[str, str]:
    """Labels that all Pods of a job carry."""
    return {f"{LABEL}operator-name": f"{kind.kind.lower()}-controller", JOB_NAME: job.name}


def _name(job: JobView, type_: str, index: int) -> str:
    # The launcher of an MPIJob is the only one without a number.
    return f"{job.name}-launcher" if type_ == "Launcher" else job.host(type_, index)


def _has_master_role(kind: ClassicKind, job: JobView, type_: str, index: int) -> bool:
    chiefs = [chief for chief in kind.chiefs if job.count(chief)]
    if chiefs:
        return type_ == chiefs[0]
    return kind.kind in ("PyTorchJob", "TFJob", "JAXJob") and type_ == "Worker" and index == 0


def render_pod(kind: ClassicKind, job: JobView, type_: str, index: int) -> Object:
    """Return the Pod of one replica."""
    replica = job.specs[type_]
    template = copy.deepcopy(dict(replica.get("template") or {}))
    metadata = template.get("metadata") or {}
    labels = {**(metadata.get("labels") or {}), **labels_for(kind, job), REPLICA_TYPE: type_.lower()}
    labels[REPLICA_INDEX] = str(index)
    if _has_master_role(kind, job, type_, index):
        labels[f"{LABEL}job-role"] = "master"
    rendered: dict[str, Any] = {"name": _name(job, type_, index), "namespace": job.namespace, "labels": labels}
    if metadata.get("annotations"):
        rendered["annotations"] = metadata["annotations"]
    spec = template.get("spec") or {}
    policy = replica.get("restartPolicy") or kind.restart
    spec["restartPolicy"] = "Never" if policy == "ExitCode" else policy
    important = ((job.spec.get("runPolicy") or {}).get("schedulingPolicy") or {}).get("priorityClass")
    if important:
        spec.setdefault("priorityClassName", important)
    show_end_of_logs(spec)
    variables = kind.variables(job, type_, index)
    for container in spec["containers"]:
        if not kind.main_only or container["name"] == job.main_container(type_):
            container["env"] = [*(container.get("env") or ()), *variables]
        if kind.kind == "MPIJob":
            _mount_config(job, type_, container)
    if kind.kind == "MPIJob":
        spec["volumes"] = [*(spec.get("volumes") or ()), *_config_volumes(job)]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": rendered, "spec": spec}


def _mount_config(job: JobView, type_: str, container: Object) -> None:
    mount = {"name": "mpi-job-config", "mountPath": MPI_FOLDER}
    container["volumeMounts"] = [*(container.get("volumeMounts") or ()), mount]
    if type_ == "Worker" and container["name"] == job.main_container(type_):
        # A worker waits for the launcher; what the image or the user wants to run there goes on beside that.
        own = [*(container.get("command") or ()), *(container.get("args") or ())]
        container["command"] = [*_RSH, *(["--", *own] if own else [])]
        container.pop("args", None)


def _config_volumes(job: JobView) -> list[dict[str, Any]]:
    sources: list[dict[str, Any]] = [
        {"configMap": {"name": f"{job.name}-config"}},
        {"secret": {"name": f"{job.name}-mpi-key", "items": [{"key": "key", "path": "key", "mode": 0o400}]}},
    ]
    return [{"name": "mpi-job-config", "projected": {"defaultMode": 0o555, "sources": sources}}]


def render_service(kind: ClassicKind, job: JobView, type_: str, index: int) -> Object:
    """Return the headless Service by which the others find a replica."""
    selector = {**labels_for(kind, job), REPLICA_TYPE: type_.lower(), REPLICA_INDEX: str(index)}
    spec: dict[str, Any] = {"clusterIP": "None", "selector": selector, "publishNotReadyAddresses": True}
    if kind.port[1]:
        spec["ports"] = [{"name": kind.port[0], "port": job.port_of(type_)}]
    name = _name(job, type_, index)
    metadata = {"name": name, "namespace": job.namespace, "labels": selector}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def render_autoscaler(kind: ClassicKind, job: JobView) -> Object | None:
    """Return the HorizontalPodAutoscaler of an elastic job with metrics; None when it asks for none."""
    metrics = (job.spec.get("elasticPolicy") or {}).get("metrics")
    if not metrics:
        return None
    least, most = job.elastic_range()
    target = {"apiVersion": "kubeflow.org/v1", "kind": kind.kind, "name": job.name}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": job.name, "namespace": job.namespace},
        "spec": {"scaleTargetRef": target, "minReplicas": least, "maxReplicas": most, "metrics": metrics},
    }


def render_config(job: JobView) -> Object:
    """Return the ConfigMap of an MPIJob: which hosts there are."""
    slots = int(job.spec.get("slotsPerWorker") or 1)
    hosts = [job.host("Worker", index) for index in range(job.count("Worker"))]
    if not hosts:
        hosts = [f"{job.name}-launcher"]
    discover = "#!/bin/sh\n" + "".join(f"echo {host}:{slots}\n" for host in hosts)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{job.name}-config", "namespace": job.namespace, "labels": {"app": job.name}},
        "data": {
            "hostfile": "".join(f"{host} slots={slots}\n" for host in hosts),
            "discover_hosts.sh": discover,
            "kubexec.sh": '#!/bin/sh\nexec python3 -m shallop_pod.rsh "$@"\n',
        },
    }
