"""
Real trainings, each as a TrainJob and as its classic job at the same time, with the same ports.

The programs are those of ``examples/training/jobs.py``; each prints a line ``result: JSON``.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(900)
DEADLINE_S = 800.0
NAMESPACE = "frameworks"
EXAMPLE = Path(__file__).parents[2] / "examples" / "training" / "jobs.py"
IMAGES = {
    "torch": "pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime",
    "xgboost": "ghcr.io/kubeflow/trainer/xgboost-runtime",
    "jax": "nvcr.io/nvidia/jax:25.10-py3",
    "mpi": "shallop/openmpi:4",
    "tensorflow": "tensorflow/tensorflow:2.21.0",
}
# Kind, field of its replicas, container, replicas.
CLASSIC = {
    "torch": ("PyTorchJob", "pytorchReplicaSpecs", "pytorch", {"Master": 1, "Worker": 1}),
    "xgboost": ("XGBoostJob", "xgbReplicaSpecs", "xgboost", {"Master": 1, "Worker": 1}),
    "jax": ("JAXJob", "jaxReplicaSpecs", "jax", {"Worker": 2}),
    "mpi": ("MPIJob", "mpiReplicaSpecs", "mpi", {"Launcher": 1, "Worker": 3}),
    "tensorflow": ("TFJob", "tfReplicaSpecs", "tensorflow", {"Worker": 2}),
}
CHECKS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "torch": lambda found: found["gradient_difference"] < 1e-9 and found["accuracy"] > 0.95,
    "xgboost": lambda found: found["difference"] < 1e-5,
    "jax": lambda found: found["sum"] == 3,
    "mpi": lambda found: found["ring"] == [0, 1, 2] and found["sum"] == 3,
    "tensorflow": lambda found: found["accuracy"] >= 0.95,
}


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("training_jobs", EXAMPLE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["training_jobs"] = module
    spec.loader.exec_module(module)
    return module


def program(function: Callable[[], None]) -> str:
    return f"{inspect.getsource(function)}\n{function.__name__}()\n"


def command_of(name: str, source: str, *, classic: bool) -> list[str]:
    if name == "mpi":
        return ["mpirun", "-n", "3", "python3", "-c", source]
    if name == "torch" and not classic:
        return ["bash", "-c", f"cat > train.py <<'END'\n{source}END\ntorchrun train.py"]
    return ["python3", "-c", source]


def train_job(name: str, example: ModuleType) -> dict[str, Any]:
    function, runtime, nodes = example.JOBS[name]
    trainer = {"numNodes": nodes, "command": command_of(name, program(function), classic=False)}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"runtimeRef": {"name": runtime}, "trainer": trainer},
    }


def classic_job(name: str, example: ModuleType) -> dict[str, Any]:
    kind, field, container, replicas = CLASSIC[name]
    command = command_of(name, program(example.JOBS[name][0]), classic=True)
    specs = {}
    for type_, count in replicas.items():
        main: dict[str, Any] = {"name": container, "image": IMAGES[name], "command": command}
        if name == "mpi" and type_ == "Worker":
            del main["command"]
        specs[type_] = {"replicas": count, "restartPolicy": "Never", "template": {"spec": {"containers": [main]}}}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": kind,
        "metadata": {"name": f"{name}-classic", "namespace": NAMESPACE},
        "spec": {
            field: specs,
            "runPolicy": {"schedulingPolicy": {"scheduleTimeoutSeconds": 60}, "cleanPodPolicy": "None"},
        },
    }


def ended(platform: Any, job: dict[str, Any]) -> None:
    """Wait until a job has succeeded; say why it has not."""
    kind, name = job["kind"].lower(), job["metadata"]["name"]
    deadline = time.monotonic() + DEADLINE_S
    while True:
        found = json.loads(platform.kubectl("-n", NAMESPACE, "get", kind, name, "-o", "json"))
        conditions = (found.get("status") or {}).get("conditions") or ()
        true = {item["type"]: item.get("message") for item in conditions if item["status"] == "True"}
        if true.keys() & {"Complete", "Succeeded"}:
            return
        if "Failed" in true or time.monotonic() > deadline:
            raise AssertionError(f"{kind}/{name}: {true}\n{platform.kubectl('-n', NAMESPACE, 'get', 'pods,events')}")
        time.sleep(0.5)


def result(platform: Any, selector: str) -> dict[str, Any]:
    text = platform.kubectl("-n", NAMESPACE, "logs", "--tail=-1", "-l", selector)
    lines = [line.partition("result: ")[2] for line in text.splitlines() if "result: " in line]
    assert len(lines) == 1, text
    found: dict[str, Any] = json.loads(lines[0])
    return found


@pytest.mark.parametrize("name", list(CLASSIC))
def test_two_trainings_at_once(platform: Any, kubectl: str, example: ModuleType, name: str) -> None:
    platform.kubectl("create", "namespace", NAMESPACE, check=False)
    jobs = [train_job(name, example), classic_job(name, example)]
    for job in jobs:
        platform.kubectl("create", "-f", "-", stdin=json.dumps(job))
    for job in jobs:
        ended(platform, job)
    nodes = example.JOBS[name][2]
    for selector in (f"jobset.sigs.k8s.io/jobset-name={name}", f"training.kubeflow.org/job-name={name}-classic"):
        found = result(platform, selector)
        assert found["world"] == nodes and CHECKS[name](found), found
    for job in jobs:
        platform.kubectl("-n", NAMESPACE, "delete", job["kind"].lower(), job["metadata"]["name"], "--wait=false")
