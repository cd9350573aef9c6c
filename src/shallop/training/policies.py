"""
What each machine-learning policy adds to the Pods of a TrainJob: variables, ports, files. Pure.

One function per policy; ``apply_policy`` picks it from the runtime's ``mlPolicy``, or from the label
``trainer.kubeflow.org/framework: tensorflow``, which Kubeflow's schema has no policy for.

Source: Kubeflow Trainer 2.3, plug-ins torch, jax, xgboost, mpi and plainml; names and values are its contract.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from shallop.errors import FieldError
from shallop.kube.objects import Object, parse_quantity
from shallop.training.podsets import NODE, TRAINER, PodSet, Training, container_named, merge_resources, set_env
from shallop.training.torchtune import TUNE, extend_command, validate_tune

__all__ = ["FRAMEWORK", "PORT", "apply_policy", "render_mpi_objects", "validate_policy"]

FRAMEWORK = "trainer.kubeflow.org/framework"
PORT = 29500
_INDEX = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
_TORCH_NAMES = ("PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT")
_XGBOOST_NAMES = ("DMLC_TRACKER_URI", "DMLC_TRACKER_PORT", "DMLC_TASK_ID", "DMLC_NUM_WORKER")
_MPI_NAMES = (
    "OMPI_MCA_orte_default_hostfile",
    "OMPI_MCA_plm_rsh_args",
    "OMPI_MCA_orte_keep_fqdn_hostnames",
    "OMPI_MCA_orte_set_default_slots",
)
_HOSTFILE_FOLDER = "/etc/mpi"


def apply_policy(training: Training, framework: str) -> None:
    """
    Change the Pods of a TrainJob as its runtime's policy says.

    Args:
        framework: label of the runtime.
    """
    policy = training.policy
    if "torch" in policy:
        _apply_torch(training)
    elif "mpi" in policy:
        _apply_mpi(training)
    elif not training.job["spec"].get("trainer"):
        # As upstream: without spec.trainer the other policies add nothing.
        return
    elif "jax" in policy:
        _apply_jax(training)
    elif "xgboost" in policy:
        _apply_xgboost(training)
    elif framework == "tensorflow":
        _apply_tensorflow(training)


def validate_policy(job: Object, runtime: Object) -> list[FieldError]:
    """Check a TrainJob against the policy of its runtime."""
    policy = runtime["spec"].get("mlPolicy") or {}
    trainer = job["spec"].get("trainer") or {}
    env = trainer.get("env") or []
    names = [entry["name"] for entry in env]
    path = "spec.trainer.env"
    if "torch" in policy:
        reserved = [name for name in names if name in _TORCH_NAMES]
        errors = [FieldError.invalid(path, _show(env), f"must not have reserved envs: {', '.join(reserved)}")]
        errors = errors if reserved else []
        if list(trainer.get("command") or ())[:2] == list(TUNE):
            errors += validate_tune(job, runtime)
        return errors
    if "xgboost" in policy:
        return [
            FieldError.forbidden(f"{path}[{index}]", f"{name} is reserved for the XGBoost runtime")
            for index, name in enumerate(names)
            if name in _XGBOOST_NAMES
        ]
    if "mpi" in policy:
        implementation = policy["mpi"].get("mpiImplementation", "OpenMPI")
        errors = [
            FieldError.invalid(path, _show(env), f"must not have reserved envs: {name}")
            for name in names
            if name in _MPI_NAMES
        ]
        if implementation != "OpenMPI":
            detail = "only OpenMPI is supported"
            errors.append(FieldError.invalid("spec.mlPolicy.mpi.mpiImplementation", implementation, detail))
        return errors
    return []


def _show(env: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps([entry["name"] for entry in env])


# ---- what containers ask for


def gpus_of(resources: Mapping[str, Any]) -> int:
    """Return the number of GPUs that limits or requests name; any resource with ``gpu`` in its name counts."""
    for kind in ("limits", "requests"):
        for name, amount in (resources.get(kind) or {}).items():
            if "gpu" in name.lower():
                return math.ceil(parse_quantity(amount))
    return 0


def _cpus_of(resources: Mapping[str, Any]) -> int:
    for kind in ("requests", "limits"):
        if "cpu" in (resources.get(kind) or {}):
            return max(1, math.ceil(parse_quantity(resources[kind]["cpu"])))
    return 1


def _resources(training: Training, container: Object) -> Mapping[str, Any]:
    wanted: Mapping[str, Any] = training.trainer.get("resourcesPerNode") or container.get("resources") or {}
    return wanted


def _node(training: Training) -> tuple[PodSet, Object] | None:
    pods = training.step(TRAINER)
    container = container_named(pods, NODE) if pods else None
    return (pods, container) if pods and container is not None else None


def _head(training: Training) -> str:
    # The replicated job of training nodes is always called node here, whatever the runtime calls it: as upstream.
    return f"{training.name}-{NODE}-0-0.{training.name}"


def _add_port(container: Object) -> None:
    ports = list(container.get("ports") or ())
    if not any(port.get("containerPort") == PORT for port in ports):
        container["ports"] = [*ports, {"containerPort": PORT}]


def _plain(**values: object) -> list[dict[str, Any]]:
    return [{"name": name, "value": str(value)} for name, value in values.items()]


# ---- policies


def _apply_torch(training: Training) -> None:
    found = _node(training)
    if found is None:
        return
    pods, container = found
    processes = _torch_processes(training, container)
    entries = [
        *_plain(PET_NNODES=pods.count, PET_NPROC_PER_NODE=processes),
        {"name": "PET_NODE_RANK", "valueFrom": _INDEX},
    ]
    master = _plain(PET_MASTER_ADDR=_head(training), PET_MASTER_PORT=PORT)
    if training.job["spec"].get("trainer"):
        if list(training.trainer.get("command") or ())[:2] == list(TUNE):
            set_env(container, entries)
            extend_command(training, container, pods.count, processes, _head(training), PORT)
        else:
            set_env(container, [*entries, *master])
        _add_port(container)
    injection = (training.policy["torch"] or {}).get("envInjection") or {}
    for target in injection.get("targets") or ():
        other = training.named(target["jobName"])
        for name in target["containerNames"]:
            injected = container_named(other, name) if other else None
            if injected is not None:
                set_env(injected, [*entries, *master])


def _torch_processes(training: Training, container: Object) -> str:
    wanted = training.trainer.get("numProcPerNode")
    if wanted is not None and str(wanted) != "auto":
        return str(wanted)
    resources = _resources(training, container)
    # "auto" would start one process for each CPU of the machine; what was asked for is meant.
    return "auto" if gpus_of(resources) else str(_cpus_of(resources))


def _apply_jax(training: Training) -> None:
    found = _node(training)
    if found is None:
        return
    pods, container = found
    set_env(
        container,
        [
            *_plain(JAX_NUM_PROCESSES=pods.count),
            {"name": "JAX_PROCESS_ID", "valueFrom": _INDEX},
            *_plain(JAX_COORDINATOR_ADDRESS=f"{_head(training)}:{PORT}"),
        ],
    )
    _add_port(container)


def _apply_xgboost(training: Training) -> None:
    found = _node(training)
    if found is None:
        return
    pods, container = found
    workers = pods.count * max(1, gpus_of(_resources(training, container)))
    set_env(
        container,
        [
            *_plain(DMLC_TRACKER_URI=_head(training), DMLC_TRACKER_PORT=PORT),
            {"name": "DMLC_TASK_ID", "valueFrom": _INDEX},
            *_plain(DMLC_NUM_WORKER=workers),
        ],
    )
    _add_port(container)


def _apply_tensorflow(training: Training) -> None:
    """
    Describe the cluster in TF_CONFIG, as TFJob does; the index comes from the Pod.

    Node 0 is the chief: Keras lets the worker of index 0 do a chief's work when there is none.
    """
    found = _node(training)
    if found is None:
        return
    pods, container = found
    if pods.count < 2:
        return
    workers = [f"{endpoint}:{PORT}" for endpoint in pods.endpoints(training.name)]
    index = "$(JOB_COMPLETION_INDEX)"
    cluster = json.dumps({"worker": workers})
    config = f'{{"cluster": {cluster}, "task": {{"type": "worker", "index": {index}}}}}'
    # Kubernetes sets this variable itself, but behind ours, and references only look backwards.
    set_env(container, [{"name": "JOB_COMPLETION_INDEX", "valueFrom": _INDEX}, {"name": "TF_CONFIG", "value": config}])
    _add_port(container)


# ---- MPI


def _apply_mpi(training: Training) -> None:
    policy = training.policy["mpi"] or {}
    launcher, workers = training.step(TRAINER), training.named(NODE)
    if launcher is None:
        return
    as_node = bool(policy.get("runLauncherAsNode")) and workers is not launcher
    nodes = launcher.count
    if workers is not None and workers is not launcher:
        workers.count = max(nodes - 1, 1) if as_node else nodes
        launcher.count = 1
        if as_node:
            _copy_trainer(training, workers)
    container = container_named(launcher, NODE)
    if container is None:
        return
    slots = _mpi_slots(training, container)
    set_env(
        container,
        [
            {"name": "OMPI_MCA_orte_default_hostfile", "value": f"{_HOSTFILE_FOLDER}/hostfile"},
            # One launch may find a node that only just starts.
            {"name": "OMPI_MCA_plm_rsh_args", "value": "-o ConnectionAttempts=10"},
            {"name": "OMPI_MCA_orte_keep_fqdn_hostnames", "value": "true"},
            {"name": "OMPI_MCA_orte_set_default_slots", "value": str(slots)},
        ],
    )
    for pods in [launcher] if workers is None or workers is launcher else [launcher, workers]:
        _mount_mpi(training, pods, hostfile=pods is launcher)


def _copy_trainer(training: Training, workers: PodSet) -> None:
    container = container_named(workers, NODE)
    if container is None:
        return
    if training.trainer.get("image"):
        container["image"] = training.trainer["image"]
    merge_resources(container, training.trainer.get("resourcesPerNode") or {})
    set_env(container, training.trainer.get("env") or ())


def _mpi_slots(training: Training, container: Object) -> int:
    wanted = training.trainer.get("numProcPerNode")
    if wanted is not None:
        return int(wanted)
    by_policy = int((training.policy["mpi"] or {}).get("numProcPerNode") or 1)
    gpus = gpus_of(_resources(training, container))
    return gpus if by_policy == 1 and gpus > 1 else by_policy


def _mount_mpi(training: Training, pods: PodSet, *, hostfile: bool) -> None:
    path = (training.policy["mpi"] or {}).get("sshAuthMountPath") or "/root/.ssh"
    keys = [("ssh-privatekey", "id_rsa", 0o600), ("ssh-publickey", "id_rsa.pub", 0o644)]
    items = [{"key": key, "path": name, "mode": mode} for key, name, mode in keys]
    items.append({"key": "ssh-publickey", "path": "authorized_keys", "mode": 0o644})
    volumes = [{"name": "mpi-ssh-auth", "secret": {"secretName": f"{training.name}-mpi-ssh-auth", "items": items}}]
    mounts = [{"name": "mpi-ssh-auth", "mountPath": path}]
    if hostfile:
        files = [{"key": "hostfile", "path": "hostfile", "mode": 0o444}]
        volumes.append({"name": "mpi-hostfile", "configMap": {"name": f"{training.name}-mpi-hostfile", "items": files}})
        mounts.append({"name": "mpi-hostfile", "mountPath": _HOSTFILE_FOLDER})
    spec = pods.pod_spec
    spec["volumes"] = [*(spec.get("volumes") or ()), *volumes]
    container = container_named(pods, NODE)
    if container is not None:
        container["volumeMounts"] = [*(container.get("volumeMounts") or ()), *mounts]


def render_mpi_objects(training: Training, keys: tuple[str, str] | None) -> list[Object]:
    """
    Return the hostfile and, when ``keys`` are given, the Secret that lets nodes trust the launcher.

    Args:
        keys: private key (PEM) and public key (OpenSSH); None when the Secret exists already.
    """
    if "mpi" not in training.policy:
        return []
    launcher, workers = training.step(TRAINER), training.named(NODE)
    container = container_named(launcher, NODE) if launcher else None
    if launcher is None or container is None:
        return []
    slots = _mpi_slots(training, container)
    hosts = []
    if (training.policy["mpi"] or {}).get("runLauncherAsNode") or workers is None or workers is launcher:
        hosts += launcher.endpoints(training.name)
    if workers is not None and workers is not launcher:
        hosts += workers.endpoints(training.name)
    namespace = training.job["metadata"]["namespace"]
    text = "".join(f"{host} slots={slots}\n" for host in hosts)
    objects: list[Object] = [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": f"{training.name}-mpi-hostfile", "namespace": namespace},
            "data": {"hostfile": text},
        }
    ]
    if keys is not None:
        objects.append(
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": f"{training.name}-mpi-ssh-auth", "namespace": namespace},
                "type": "kubernetes.io/ssh-auth",
                "immutable": True,
                "stringData": {"ssh-privatekey": keys[0], "ssh-publickey": keys[1]},
            }
        )
    return objects
