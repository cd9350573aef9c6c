"""
Time from creating a TrainJob until all of its Pods run, with one and with three nodes, and until it is complete.

``python benchmarks/trainjobs.py [JOBS]`` (default 10 of each). Seen by a client that watches over TLS, as users' are.
"""

import asyncio
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from instance import running, write

from shallop.kube.kubeconfig import load_kubeconfig
from shallop.kube.objects import Gvk, Object, is_condition_true, labels_of
from shallop.kube.remote import RemoteClient

JOB, POD = Gvk("trainer.kubeflow.org/v1alpha1", "TrainJob"), Gvk("v1", "Pod")
# Goes on until it is told to end, so that all Pods run at one moment.
WAIT = ["python3", "-c", "import signal; signal.signal(signal.SIGTERM, lambda *_: exit(0)); signal.pause()"]


def train_job(name: str, nodes: int, command: list[str]) -> Object:
    spec = {"runtimeRef": {"name": "plain"}, "trainer": {"numNodes": nodes, "command": command}}
    metadata = {"name": name, "namespace": "default"}
    return {"apiVersion": JOB.api_version, "kind": JOB.kind, "metadata": metadata, "spec": spec}


async def time_running(client: RemoteClient, name: str, nodes: int) -> float:
    """Create, wait until all Pods run, delete; returns seconds."""
    version = (await client.list(POD, "default")).resource_version
    events = client.watch(POD, "default", resource_version=version)
    begun = time.perf_counter()
    await client.create(train_job(name, nodes, WAIT))
    up: set[str] = set()
    async for event in events:
        pod = event.object
        mine = labels_of(pod).get("jobset.sigs.k8s.io/jobset-name") == name
        if mine and (pod.get("status") or {}).get("phase") == "Running":
            up.add(pod["metadata"]["name"])
        if len(up) == nodes:
            break
    seconds = time.perf_counter() - begun
    await client.delete(JOB, name, "default")
    # The next job starts on a quiet machine.
    async for event in events:
        if event.type == "DELETED":
            up.discard(event.object["metadata"]["name"])
        if not up:
            break
    return seconds


async def time_complete(client: RemoteClient, name: str) -> float:
    """Create a job that does nothing and wait for its end; returns seconds."""
    version = (await client.list(JOB, "default")).resource_version
    events = client.watch(JOB, "default", resource_version=version)
    begun = time.perf_counter()
    await client.create(train_job(name, 1, ["true"]))
    async for event in events:
        if event.object["metadata"]["name"] == name and is_condition_true(event.object, "Complete"):
            break
    return time.perf_counter() - begun


async def measure(kubeconfig: Path, jobs: int) -> list[dict[str, Any]]:
    async with RemoteClient(load_kubeconfig(kubeconfig)) as client:
        await time_complete(client, "warm-up")
        rows = []
        for nodes in (1, 3):
            samples = [await time_running(client, f"run-{nodes}-{number}", nodes) for number in range(jobs)]
            rows.append({"what": f"create to all Pods running, nodes: {nodes}", **summary(samples)})
        samples = [await time_complete(client, f"done-{number}") for number in range(jobs)]
        rows.append({"what": "create to complete, command true, nodes: 1", **summary(samples)})
        return rows


def summary(samples: list[float]) -> dict[str, Any]:
    ordered = sorted(samples)
    return {
        "jobs": len(ordered),
        "p50_ms": round(statistics.median(ordered) * 1000, 1),
        "p95_ms": round(ordered[int(len(ordered) * 0.95) - 1] * 1000, 1),
        "fastest_ms": round(ordered[0] * 1000, 1),
    }


def main(jobs: int) -> None:
    with running() as status:
        rows = asyncio.run(measure(Path(status["kubeconfig"]), jobs))
    write("trainjobs", rows)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
