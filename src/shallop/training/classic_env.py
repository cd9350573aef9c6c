"""Variables by which a replica of a classic job finds the others. Pure; one function per kind."""

from __future__ import annotations

import json
from typing import Any

from shallop.training.classic_view import JobView

__all__ = ["jax", "mpi", "paddle", "pytorch", "tensorflow", "xgboost"]

Entries = list[dict[str, Any]]
MPI_FOLDER = "/etc/mpi"


def _entries(**values: object) -> Entries:
    return [{"name": name, "value": str(value)} for name, value in values.items()]


def pytorch(job: JobView, type_: str, index: int) -> Entries:
    """Both the names of ``torch.distributed`` and those of ``torchrun`` (PET_*)."""
    elastic = job.spec.get("elasticPolicy")
    nodes = str(job.total)
    processes = str(job.spec.get("nprocPerNode") or (elastic or {}).get("nProcPerNode") or "auto")
    entries = _entries(PYTHONUNBUFFERED=1)
    if job.count("Master"):
        rank = index if type_ == "Master" else index + 1
        world = job.total * (int(processes) if processes.isdigit() else 1)
        host, port = job.host("Master", 0), job.port_of("Master")
        entries += _entries(MASTER_PORT=port, PET_MASTER_PORT=port, MASTER_ADDR=host, PET_MASTER_ADDR=host)
        entries += _entries(WORLD_SIZE=world, RANK=rank, PET_NODE_RANK=rank)
    entries += _entries(PET_NPROC_PER_NODE=processes)
    if elastic is None:
        return entries + _entries(PET_NNODES=nodes)
    least, most = job.elastic_range()
    host = elastic.get("rdzvHost") or job.host("Worker", 0)
    port = elastic.get("rdzvPort") or job.port_of("Worker")
    entries += _entries(PET_NNODES=f"{least}:{most}", PET_RDZV_ENDPOINT=f"{host}:{port}")
    entries += _entries(
        PET_RDZV_BACKEND=elastic.get("rdzvBackend") or "c10d", PET_RDZV_ID=elastic.get("rdzvId") or job.name
    )
    if elastic.get("maxRestarts") is not None:
        entries += _entries(PET_MAX_RESTARTS=elastic["maxRestarts"])
    if elastic.get("rdzvConf"):
        pairs = ",".join(f"{item['key']}={item['value']}" for item in elastic["rdzvConf"])
        entries += _entries(PET_RDZV_CONF=pairs)
    if elastic.get("standalone"):
        entries += _entries(PET_STANDALONE="")
    return entries


def tensorflow(job: JobView, type_: str, index: int) -> Entries:
    """TF_CONFIG; a lone worker gets none and trains by itself."""
    if job.total <= 1:
        return []
    cluster = {
        name.lower(): [
            f"{job.host(name, number)}.{job.namespace}.svc:{job.port_of(name)}" for number in range(job.count(name))
        ]
        for name in job.specs
        if name != "Evaluator"
    }
    task = {"type": type_.lower(), "index": index}
    if job.spec.get("enableDynamicWorker"):
        # Each worker knows itself and the parameter servers only, so that others may come and go.
        sparse: dict[str, Any] = {"ps": cluster.get("ps", [])}
        if type_ == "Worker":
            sparse["worker"] = {str(index): cluster["worker"][index]}
        config: dict[str, Any] = {"sparseCluster": sparse, "task": task}
    else:
        config = {"cluster": cluster, "task": task, "environment": "cloud"}
    return _entries(TF_CONFIG=json.dumps(config))


def xgboost(job: JobView, type_: str, index: int) -> Entries:
    masters = job.count("Master")
    rank = index if type_ == "Master" else index + masters
    entries = _entries(
        MASTER_PORT=job.port_of("Master"), MASTER_ADDR=job.host("Master", 0), WORLD_SIZE=job.total, RANK=rank
    )
    entries += _entries(PYTHONUNBUFFERED=1)
    if job.total > 1:
        addresses = ",".join(job.host("Worker", number) for number in range(job.count("Worker")))
        entries += _entries(WORKER_PORT=job.port_of("Worker"), WORKER_ADDRS=addresses)
    return entries


def jax(job: JobView, type_: str, index: int) -> Entries:
    return _entries(
        PYTHONUNBUFFERED=1,
        COORDINATOR_PORT=job.port_of("Worker"),
        COORDINATOR_ADDRESS=job.host("Worker", 0),
        NUM_PROCESSES=job.total,
        PROCESS_ID=index,
    )


def paddle(job: JobView, type_: str, index: int) -> Entries:
    """The first replica must listen at its own address, which it learns from Kubernetes."""
    head = "Master" if job.count("Master") else "Worker"
    own = {"name": "POD_IP_DUMMY", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    port = job.port_of(head)
    entries = _entries(PYTHONUNBUFFERED=1, PADDLE_JOB_ID=job.name, PADDLE_NNODES=job.total)
    if type_ == head and index == 0:
        entries += [own, *_entries(PADDLE_MASTER=f"$(POD_IP_DUMMY):{port}")]
    else:
        entries += _entries(PADDLE_MASTER=f"{job.host(head, 0)}:{port}")
    if job.count("Master"):
        entries += _entries(**{"PADDLE_SERVER_NUM" if type_ == "Master" else "PADDLE_TRAINER_NUM": 1})
    return entries


def mpi(job: JobView, type_: str, index: int) -> Entries:
    """Of the launcher: OpenMPI, Intel MPI and MPICH read the same list of hosts. Workers only wait to be called."""
    key = _entries(SHALLOP_RSH_KEY=f"{MPI_FOLDER}/key")
    if type_ != "Launcher":
        return key
    agent, hosts = "python3 -m shallop_pod.rsh", f"{MPI_FOLDER}/hostfile"
    return key + _entries(
        OMPI_MCA_plm_rsh_agent=agent,
        OMPI_MCA_orte_default_hostfile=hosts,
        OMPI_MCA_orte_keep_fqdn_hostnames="true",
        OMPI_ALLOW_RUN_AS_ROOT=1,
        OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1,
        I_MPI_HYDRA_HOST_FILE=hosts,
        I_MPI_HYDRA_BOOTSTRAP="rsh",
        I_MPI_HYDRA_BOOTSTRAP_EXEC=agent,
        NVIDIA_VISIBLE_DEVICES="",
        NVIDIA_DRIVER_CAPABILITIES="",
    )
