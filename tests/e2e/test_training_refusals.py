"""
What Kubeflow's schemas and webhooks refuse of trainings is refused here, with the same field, by ``kubectl``.

All objects of the table go to the server in one dry run; each row then looks at what was said of its object.

Source: CRDs of Kubeflow Trainer 2.3 and its webhooks; webhooks of training-operator 1.9.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

NAMESPACE = "refusals"
TRAINER = "trainer.kubeflow.org/v1alpha1"
# Kind, field of its replicas, container, types that a valid job has.
CLASSIC = {
    "PyTorchJob": ("pytorchReplicaSpecs", "pytorch", ("Master", "Worker")),
    "TFJob": ("tfReplicaSpecs", "tensorflow", ("Worker",)),
    "XGBoostJob": ("xgbReplicaSpecs", "xgboost", ("Master", "Worker")),
    "JAXJob": ("jaxReplicaSpecs", "jax", ("Worker",)),
    "PaddleJob": ("paddleReplicaSpecs", "paddle", ("Master", "Worker")),
    "MPIJob": ("mpiReplicaSpecs", "mpi", ("Launcher", "Worker")),
}
CONTAINERS = "template.spec.containers"


@dataclass(frozen=True)
class Row:
    """An object and the field that is wrong in it; None for nothing."""

    obj: dict[str, Any]
    field: str | None
    detail: str = ""

    @property
    def id(self) -> str:
        return f"{self.obj['kind']}-{self.obj['metadata']['name']}"[:70]


def train_job(name: str, runtime: str = "plain", **spec: Any) -> dict[str, Any]:
    metadata = {"name": name}
    return {
        "apiVersion": TRAINER,
        "kind": "TrainJob",
        "metadata": metadata,
        "spec": {"runtimeRef": {"name": runtime}, **spec},
    }


def env(*names: str) -> dict[str, Any]:
    return {"env": [{"name": name, "value": "1"} for name in names]}


def patched(*jobs: dict[str, Any], manager: str = "a.b/c") -> dict[str, Any]:
    return {"manager": manager, "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": list(jobs)}}}}


def patch_of(job: str, **container: Any) -> dict[str, Any]:
    pod = {"containers": [container]} if container else {}
    return {"name": job, "template": {"spec": {"template": {"spec": pod}}}}


def train_jobs() -> Iterator[Row]:
    yield Row(train_job("fine", trainer={"numNodes": 2, "numProcPerNode": 1}), None)
    yield Row(train_job("9lives"), "metadata", "metadata.name must match RFC 1035 DNS label format")
    yield Row(train_job("n" * 64), "metadata", "metadata.name must be no more than 63 characters")
    yield Row(train_job("no-ref", runtimeRef=None), "spec.runtimeRef", "Required value")
    yield Row(train_job("no-ref-name", runtimeRef={}), "spec.runtimeRef.name", "Required value")
    yield Row(train_job("empty-ref-name", ""), "spec.runtimeRef.name", "should be at least 1 chars long")
    yield Row(train_job("no-runtime", "absent"), "spec.runtimeRef", "ClusterTrainingRuntime not found")
    for step in ("dataset", "model"):
        source = {"storageUri": "hf://a/b"}
        name, where = f"no-{step}-step", "spec.runtimeRef"
        yield Row(train_job(name, initializer={step: source}), where, f"must have {step}-initializer job")
        path = f"spec.initializer.{step}"
        bad = {step: {"storageUri": "nowhere"}}
        yield Row(train_job(f"{step}-no-uri", "stepped", initializer=bad), f"{path}.storageUri", "valid URI")
        bad = {step: {"storageUri": "s3://" + "a" * 2048}}
        yield Row(train_job(f"{step}-long-uri", "stepped", initializer=bad), f"{path}.storageUri", "Too long")
        bad = {step: env(*[f"V{number}" for number in range(129)])}
        yield Row(train_job(f"{step}-many-envs", "stepped", initializer=bad), f"{path}.env", "Too many")
        yield Row(train_job(f"{step}-same-env", "stepped", initializer={step: env("A", "A")}), f"{path}.env[1]")
    words = ["w"] * 129
    for name, trainer, field in (
        ("long-image", {"image": "i" * 501}, "image"),
        ("many-words", {"command": words}, "command"),
        ("many-args", {"args": words}, "args"),
        ("many-envs", env(*[f"V{number}" for number in range(129)]), "env"),
        ("same-env", env("A", "A"), "env[1]"),
        ("minus-nodes", {"numNodes": -1}, "numNodes"),
        ("no-procs", {"numProcPerNode": 0}, "numProcPerNode"),
        ("auto-procs", {"numProcPerNode": "auto"}, "numProcPerNode"),
        ("odd-amount", {"resourcesPerNode": {"limits": {"cpu": "much"}}}, "resourcesPerNode.limits.cpu"),
    ):
        yield Row(train_job(name, trainer=trainer), f"spec.trainer.{field}")
    torch, xgboost, mpi = ("torch-distributed", "xgboost-distributed", "mpi-distributed")
    for name in ("PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"):
        job = train_job(name.lower().replace("_", "-"), torch, trainer=env("MINE", name))
        yield Row(job, "spec.trainer.env", "must not have reserved envs")
    for name in ("DMLC_TRACKER_URI", "DMLC_TRACKER_PORT", "DMLC_TASK_ID", "DMLC_NUM_WORKER"):
        job = train_job(name.lower().replace("_", "-"), xgboost, trainer=env("MINE", name))
        yield Row(job, "spec.trainer.env[1]", "Forbidden")
    job = train_job("ompi", mpi, trainer=env("OMPI_MCA_orte_default_hostfile"))
    yield Row(job, "spec.trainer.env", "must not have reserved envs")
    job = train_job("tune", torch, trainer={"command": ["tune", "run"]})
    yield Row(job, "spec.runtimeRef.name")
    yield Row(train_job("no-time", activeDeadlineSeconds=0), "spec.activeDeadlineSeconds")
    yield Row(train_job("managed-by-me", managedBy="me"), "spec.managedBy", "ManagedBy must be")
    many = [patched(manager=f"a.b/c{number}") for number in range(17)]
    yield Row(train_job("many-patches", runtimePatches=many), "spec.runtimePatches", "Too many")
    yield Row(train_job("same-manager", runtimePatches=[patched(), patched()]), "spec.runtimePatches[1]", "Duplicate")
    yield Row(train_job("no-manager", runtimePatches=[patched(manager="")]), "spec.runtimePatches[0].manager")
    for name, patch, detail in (
        ("odd-job", patch_of("absent"), "absent"),
        ("odd-container", patch_of("node", name="absent"), "absent"),
        ("env-of-node", patch_of("node", name="node", **env("A")), "must not have envs"),
    ):
        yield Row(train_job(name, runtimePatches=[patched(patch)]), "spec.runtimePatches[0]", detail)
    mount = patch_of("node", name="node", volumeMounts=[{"name": "v"}])
    where = "spec.runtimePatches[0].trainingRuntimeSpec.template.spec.replicatedJobs[0].template.spec.template.spec"
    row = Row(
        train_job("odd-mount", runtimePatches=[patched(mount)]), f"{where}.containers[0].volumeMounts[0].mountPath"
    )
    yield row


def runtime(name: str, policy: dict[str, Any] | None = None, kind: str = "ClusterTrainingRuntime") -> dict[str, Any]:
    jobs = [step("node", "trainer"), step("dataset-initializer"), step("model-initializer")]
    spec = {"mlPolicy": policy or {}, "template": {"spec": {"replicatedJobs": jobs}}}
    return {"apiVersion": TRAINER, "kind": kind, "metadata": {"name": name}, "spec": spec}


def step(name: str, ancestor: str = "") -> dict[str, Any]:
    labels = {"trainer.kubeflow.org/trainjob-ancestor-step": ancestor or name}
    pod = {"containers": [{"name": name, "image": "python"}]}
    return {"name": name, "template": {"metadata": {"labels": labels}, "spec": {"template": {"spec": pod}}}}


def changed(obj: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Return a copy with the field at a dotted path set; None removes it."""
    found = obj = copy.deepcopy(obj)
    *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
    for part in parents:
        found = found.setdefault(part, {}) if isinstance(found, dict) else found[part]
    if value is None:
        del found[last]
    else:
        found[last] = value
    return obj


def runtimes() -> Iterator[Row]:
    yield Row(runtime("fine", {"torch": {}, "numNodes": 2}), None)
    jobs = "spec.template.spec.replicatedJobs"
    for kind in ("ClusterTrainingRuntime", "TrainingRuntime"):
        for index, name in enumerate(("node", "dataset-initializer", "model-initializer")):
            job = changed(runtime(f"two-{name}", kind=kind), f"{jobs}.{index}.replicas", 2)
            yield Row(job, f"{jobs}[{index}].replicas", "always must be 1")
            pod = f"{jobs}.{index}.template.spec.template.spec.containers.0.name"
            job = changed(runtime(f"no-{name}", kind=kind), pod, "other")
            yield Row(job, f"{jobs}[{index}].template.spec.template.spec.containers", "must have")
    yield Row(runtime("two-policies", {"torch": {}, "mpi": {}}), "spec.mlPolicy", "Only one of the policy")
    yield Row(runtime("no-nodes", {"numNodes": 0}), "spec.mlPolicy.numNodes")
    for policy in ("mpi", "flux"):
        bad = {policy: {"numProcPerNode": 0}}
        yield Row(runtime(f"no-procs-{policy}", bad), f"spec.mlPolicy.{policy}.numProcPerNode")
    yield Row(runtime("intel", {"mpi": {"mpiImplementation": "Intel"}}), "spec.mlPolicy.mpi.mpiImplementation")
    targets = "spec.mlPolicy.torch.envInjection.targets"
    for name, injected, field in (
        ("node", [{"jobName": "j", "containerNames": ["node"]}], "[0].containerNames"),
        ("nothing", [{"jobName": "j", "containerNames": []}], "[0].containerNames"),
        ("twice", [{"jobName": "j", "containerNames": ["c"]}] * 2, "[1]"),
        ("nowhere", [{"containerNames": ["c"]}], "[0].jobName"),
    ):
        bad = {"torch": {"envInjection": {"targets": injected}}}
        yield Row(runtime(f"inject-{name}", bad), f"{targets}{field}")
    ordered = changed(runtime("ordered"), "spec.template.spec.startupPolicy", {"startupPolicyOrder": "InOrder"})
    after = [{"name": "dataset-initializer", "status": "Complete"}]
    ordered = changed(ordered, f"{jobs}.0.dependsOn", after)
    yield Row(ordered, "spec.template.spec", "mutually exclusive")


def classic_job(kind: str, name: str) -> dict[str, Any]:
    field, container, types = CLASSIC[kind]
    main = {"name": container, "image": "python", "command": ["true"]}
    replica = {"replicas": 1, "template": {"spec": {"containers": [main]}}}
    spec = {field: {type_: copy.deepcopy(replica) for type_ in types}}
    return {"apiVersion": "kubeflow.org/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def classic_jobs() -> Iterator[Row]:
    for kind, (field, _, types) in CLASSIC.items():
        path = f"spec.{field}"
        type_ = types[-1]
        replica = f"{path}[{type_}]"
        yield Row(classic_job(kind, "fine"), None)
        yield Row(classic_job(kind, "9lives"), "metadata.name")
        yield Row(changed(classic_job(kind, "no-specs"), f"spec.{field}", {}), path)
        other = changed(classic_job(kind, "odd-type"), f"spec.{field}.Foo", {"replicas": 1})
        yield Row(other, f"{path}[Foo]", "Unsupported value")
        spec = f"spec.{field}.{type_}"
        yield Row(changed(classic_job(kind, "no-pod"), f"{spec}.{CONTAINERS}", []), f"{replica}.{CONTAINERS}")
        job = changed(classic_job(kind, "no-image"), f"{spec}.{CONTAINERS}.0.image", "")
        yield Row(job, f"{replica}.{CONTAINERS}[0].image")
        if kind != "MPIJob":  # its main container is the one that it names, or the first
            job = changed(classic_job(kind, "odd-container"), f"{spec}.{CONTAINERS}.0.name", "main")
            yield Row(job, f"{replica}.{CONTAINERS}", "must have at least one container with name")
        job = changed(classic_job(kind, "managed-by-me"), "spec.runPolicy", {"managedBy": "me"})
        yield Row(job, "spec.runPolicy.managedBy")
        job = changed(classic_job(kind, "odd-clean"), "spec.runPolicy", {"cleanPodPolicy": "Some"})
        yield Row(job, "spec.runPolicy.cleanPodPolicy")
        job = changed(classic_job(kind, "odd-restart"), f"{spec}.restartPolicy", "Sometimes")
        yield Row(job, f"{replica}.restartPolicy")
        bad = {"schedulingPolicy": {"minResources": {"cpu": "much"}}}
        job = changed(classic_job(kind, "odd-amount"), "spec.runPolicy", bad)
        yield Row(job, "spec.runPolicy.schedulingPolicy.minResources.cpu")
    for kind, single in (("PyTorchJob", "Master"), ("XGBoostJob", "Master"), ("MPIJob", "Launcher")):
        field = CLASSIC[kind][0]
        for count in (0, 2):
            job = changed(classic_job(kind, f"single-{count}"), f"spec.{field}.{single}.replicas", count)
            yield Row(job, f"spec.{field}[{single}].replicas", "must be 1")
    for kind, needed in (("XGBoostJob", "Master"), ("JAXJob", "Worker"), ("MPIJob", "Launcher")):
        field = CLASSIC[kind][0]
        job = changed(classic_job(kind, "lacking"), f"spec.{field}.Foo", {"replicas": 1})
        yield Row(changed(job, f"spec.{field}.{needed}", None), f"spec.{field}[{needed}]", "must be present")
    job = classic_job("TFJob", "two-chiefs")
    worker = job["spec"]["tfReplicaSpecs"]["Worker"]
    job["spec"]["tfReplicaSpecs"] |= {"Chief": worker, "Master": worker}
    yield Row(job, "spec.tfReplicaSpecs", "Forbidden")
    for name, elastic, field in (
        ("procs-twice", {"nProcPerNode": 1}, "nProcPerNode"),
        ("range", {"minReplicas": 3, "maxReplicas": 2}, "minReplicas"),
        ("odd-metric", {"metrics": [{"resource": {}}]}, "metrics[0].type"),
    ):
        job = changed(classic_job("PyTorchJob", name), "spec.elasticPolicy", elastic)
        yield Row(changed(job, "spec.nprocPerNode", "1"), f"spec.elasticPolicy.{field}")


ROWS = [*train_jobs(), *runtimes(), *classic_jobs()]


@pytest.fixture(scope="module")
def said(platform: Any, kubectl: str) -> Iterator[dict[tuple[str, str], str]]:
    """What the server says of each object, by kind and name."""
    platform.kubectl("create", "namespace", NAMESPACE)
    stepped = runtime("stepped")
    platform.kubectl("create", "-f", "-", stdin=json.dumps(stepped))
    items = {"apiVersion": "v1", "kind": "List", "items": [row.obj for row in ROWS]}
    text = platform.kubectl(
        "-n", NAMESPACE, "create", "--dry-run=server", "-f", "-", stdin=json.dumps(items), check=False
    )
    answers = {(found[1], found[2]): "" for found in re.finditer(r"(?m)^(\w+)\.\S+/(\S+) created", text)}
    for part in text.split("Error from server "):
        if found := re.search(r'(\w+)\.\S+ "(\S+)" is invalid:\s*(.*)', part, re.DOTALL):
            answers[found[1], found[2]] = found[3]
    yield answers
    platform.kubectl("delete", "clustertrainingruntime", "stepped")
    platform.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_it_is_refused_with_the_field(said: dict[tuple[str, str], str], row: Row) -> None:
    kind, name = row.obj["kind"], row.obj["metadata"]["name"]
    if row.field is None:
        assert said[kind.lower(), name] == ""
        return
    answer = said[kind, name]
    where = "" if row.field == "metadata" else f"{row.field}: "
    assert where in answer and row.detail in answer, answer


UPDATES = [
    ("trainjob/held", {"runtimeRef": {"name": "sklearn"}}, "spec.runtimeRef", "field is immutable"),
    ("trainjob/held", {"trainer": {"numNodes": 3}}, "spec.trainer", "field is immutable"),
    ("trainjob/held", {"activeDeadlineSeconds": 9}, "spec.activeDeadlineSeconds", "field is immutable"),
    ("trainjob/held", {"managedBy": "kueue.x-k8s.io/multikueue"}, "spec.managedBy", "field is immutable"),
    ("trainjob/runs", {"runtimePatches": [patched()]}, "spec.runtimePatches", "when the TrainJob is suspended"),
    (
        "pytorchjob/held",
        {"runPolicy": {"managedBy": "kueue.x-k8s.io/multikueue"}},
        "spec.runPolicy.managedBy",
        "field is immutable",
    ),
    (
        "pytorchjob/held",
        {"runPolicy": {"schedulingPolicy": {"queue": "b"}}},
        "spec.runPolicy.schedulingPolicy.queue",
        "immutable",
    ),
]


def test_what_cannot_change_is_refused_with_the_field(platform: Any, said: Any) -> None:
    held = classic_job("PyTorchJob", "held")
    held["spec"]["runPolicy"] = {"suspend": True, "schedulingPolicy": {"queue": "a"}}
    # Nobody runs these: they belong to another controller.
    runs = train_job("runs", managedBy="kueue.x-k8s.io/multikueue")
    items = [train_job("held", suspend=True, trainer={"numNodes": 2}, activeDeadlineSeconds=5), runs, held]
    body = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
    platform.kubectl("-n", NAMESPACE, "create", "-f", "-", stdin=body)
    for target, change, field, detail in UPDATES:
        patch = json.dumps({"spec": change})
        command = ("patch", target, "--type=merge", "--dry-run=server", "-p", patch)
        answer = platform.kubectl("-n", NAMESPACE, *command, check=False)
        assert f"{field}: " in answer and detail in answer, f"{target} {change}: {answer}"
