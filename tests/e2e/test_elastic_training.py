"""An elastic PyTorchJob: torchrun's own rendezvous between Pods, a worker that is killed, and the way back to work."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(900)
DEADLINE_S = 400.0
NAMESPACE = "elastic"
# Learns digits with the mean of all workers' gradients. In the first life of the job rank 1 stops at step 20, so that
# it can be killed there; whoever comes later finds the state of that step.
PROGRAM = """
import json, os, time
import torch
import torch.distributed as dist
from sklearn.datasets import load_digits

FOLDER = "/checkpoints/"
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
state = {"step": 0, "weights": torch.zeros(64, 10)}
if os.path.exists(FOLDER + "state.pt"):
    state = torch.load(FOLDER + "state.pt")
begun = state["step"]
print("begin:", json.dumps({"rank": rank, "world": world, "step": begun}), flush=True)
while state["step"] < 60:
    if begun == 0 and state["step"] == 20 and rank == 1:
        with open(FOLDER + "pid.part", "w") as file:
            file.write(os.environ["HOSTNAME"] + " " + str(os.getpid()))
        os.rename(FOLDER + "pid.part", FOLDER + "pid")
        time.sleep(1000)
    weights = state["weights"].requires_grad_()
    torch.nn.functional.cross_entropy(x[rank::world] @ weights, y[rank::world]).backward()
    gradient = weights.grad
    dist.all_reduce(gradient)
    state = {"step": state["step"] + 1, "weights": (weights - 2 * gradient / world).detach()}
    if rank == 0:
        torch.save(state, FOLDER + "state.part")
        os.rename(FOLDER + "state.part", FOLDER + "state.pt")
accuracy = ((x @ state["weights"]).argmax(1) == y).float().mean().item()
print("end:", json.dumps({"rank": rank, "world": world, "begun": begun, "accuracy": accuracy}), flush=True)
dist.barrier()
dist.destroy_process_group()
"""
METRICS = [
    {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}
]


def until(check: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:.0f} s: {what}"
        time.sleep(0.4)
    return result


def elastic_job(name: str) -> dict[str, Any]:
    script = f"cat > train.py <<'END'\n{PROGRAM}END\nexec torchrun train.py"
    container = {
        "name": "pytorch",
        "image": "pytorch/pytorch:2.13.0-cuda13.0-cudnn9-runtime",
        "command": ["bash", "-c", script],
        "volumeMounts": [{"name": "kept", "mountPath": "/checkpoints"}],
    }
    volumes = [{"name": "kept", "persistentVolumeClaim": {"claimName": "kept"}}]
    replica = {"replicas": 2, "restartPolicy": "OnFailure"}
    template = {"spec": {"containers": [container], "volumes": volumes}}
    policy = {
        "rdzvBackend": "c10d",
        "minReplicas": 1,
        "maxReplicas": 2,
        "maxRestarts": 5,
        # Nobody begins alone because the other one is slow to start.
        "rdzvConf": [{"key": "last_call_timeout", "value": "300"}],
        "metrics": METRICS,
    }
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "nprocPerNode": "1",
            "elasticPolicy": policy,
            "pytorchReplicaSpecs": {"Worker": {**replica, "template": template}},
        },
    }


@pytest.fixture
def apply(platform: Any, kubectl: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    platform.kubectl("create", "namespace", NAMESPACE)
    yield lambda obj: platform.kubectl("-n", NAMESPACE, "apply", "-f", "-", stdin=json.dumps(obj))
    platform.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def printed(platform: Any, word: str) -> list[dict[str, Any]]:
    selector = "training.kubeflow.org/job-name=digits"
    lines = platform.kubectl("-n", NAMESPACE, "logs", "--tail=-1", "-l", selector).splitlines()
    return [json.loads(line.partition(f"{word}: ")[2]) for line in lines if f"{word}: " in line]


def test_a_killed_worker_of_an_elastic_job_goes_on_from_its_checkpoint(
    platform: Any, apply: Callable[[dict[str, Any]], None]
) -> None:
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "kept"}, "spec": spec})
    apply(elastic_job("digits"))

    def get(kind: str, name: str = "digits") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(platform.kubectl("-n", NAMESPACE, "get", kind, name, "-o", "json"))
        return found

    def conditions() -> dict[str, str]:
        items = (get("pytorchjob").get("status") or {}).get("conditions") or ()
        return {item["type"]: item["message"] for item in items if item["status"] == "True"}

    pid_file = platform.home / "volumes" / NAMESPACE / "kept" / "pid"
    until(lambda: pid_file.exists() or "Failed" in conditions(), "the training is in its middle")
    pod, pid = pid_file.read_text().split()
    scaler = get("hpa")
    assert scaler["spec"]["scaleTargetRef"] == {"apiVersion": "kubeflow.org/v1", "kind": "PyTorchJob", "name": "digits"}
    assert (scaler["spec"]["minReplicas"], scaler["spec"]["maxReplicas"]) == (1, 2)
    assert scaler["spec"]["metrics"] == METRICS
    platform.kubectl("-n", NAMESPACE, "exec", pod, "--", "sh", "-c", f"kill -9 {pid}")
    until(lambda: conditions().keys() & {"Succeeded", "Failed"}, "the job ends")
    assert "Succeeded" in conditions(), f"{conditions()}\n{platform.kubectl('-n', NAMESPACE, 'get', 'events')}"
    # Nothing was learnt twice or lost: whoever began again did so from where the killed ones had stopped.
    assert sorted(begin["step"] for begin in printed(platform, "begin")) == [0, 0, 20, 20]
    assert all(end["begun"] == 20 and end["accuracy"] > 0.9 for end in printed(platform, "end"))
