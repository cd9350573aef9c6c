"""
Memory of one model that several processes serve, and how soon one more of them does.

Run: ``.venv/bin/python benchmarks/replicas.py``. The model is a forest of about 100 MB, served by workers of one
replica, by replicas, and by replicas that each load it. Memory is the proportional set size of all processes of the
instance, less that before the service was there. Seconds are from asking for two replicas instead of one until the new
one has answered a prediction. Linux only.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from instance import processes_of, running, wait_until, write
from predictions import PEERS, python_of
from serving import Instance

from shallop.kube.objects import Gvk
from shallop.kube.remote import RemoteClient, load_kubeconfig

COUNTS = (1, 2, 4, 8)
ROUNDS = 7
BODY = json.dumps({"instances": [[0, 0, 0, 0]]}).encode()
DEPLOYMENT = Gvk("apps/v1", "Deployment")
TRAIN = """
import sys, joblib, numpy as np
from sklearn.ensemble import ExtraTreesClassifier
rng = np.random.default_rng(0)
x, y = rng.normal(size=(20_000, 4)).astype("f4"), rng.integers(0, 2, 20_000)
joblib.dump(ExtraTreesClassifier(60, max_features=1, random_state=0).fit(x, y), sys.argv[1])
"""


def deploy(instance: Instance, *, replicas: int, workers: int, apart: bool = False) -> None:
    model = {"modelFormat": {"name": "sklearn"}, "storageUri": instance.folder, "args": [f"--workers={workers}"]}
    instance.apply(
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {
                "name": "forest",
                "namespace": "default",
                "annotations": {
                    "serving.kserve.io/deploymentMode": "Standard",
                    "start.shallop.dev/warm": "false" if apart else "true",
                },
            },
            "spec": {"predictor": {"minReplicas": replicas, "maxReplicas": 8, "model": model}},
        }
    )


def servers(instance: Instance) -> int:
    """Return how many processes serve models."""
    return sum("modelserver" in command for command in processes_of(instance.home, instance.pid).values())


def main() -> None:
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, running() as status:
        file = Path(folder) / "model.joblib"
        subprocess.run([python_of(PEERS["floor"]), "-c", TRAIN, str(file)], check=True)
        rows.append({"what": "the model's file (MiB)", "memory": round(file.stat().st_size / 2**20)})
        instance = Instance(status, folder)
        before = instance.memory_mib()
        for what, counts in (("workers", COUNTS), ("replicas", COUNTS), ("replicas apart", COUNTS)):
            apart = what.endswith("apart")
            for count in counts:
                sizes = {"replicas": 1, "workers": 1, what.split()[0]: count}
                deploy(instance, **sizes, apart=apart)
                time.sleep(1)
                wait_until(lambda: ready(instance, sizes["replicas"]), f"{count} {what}", 200)  # noqa: B023
                time.sleep(1)
                memory = round(instance.memory_mib() - before)
                rows.append({"what": f"{count} {what}", "memory": memory, "processes": servers(instance)})
                print(rows[-1], flush=True)
            if what != "workers":
                rows.append(
                    {"what": f"1 to 2 {what}, median of {ROUNDS} (s)", "seconds": scale_out(instance, apart=apart)}
                )
                print(rows[-1], flush=True)
    write("replicas", rows)


def scale_out(instance: Instance, *, apart: bool) -> float:
    """Return the median of some rounds from one replica to two."""
    deploy(instance, replicas=1, workers=1, apart=apart)
    taken = []
    for _ in range(ROUNDS):
        asyncio.run(scale(instance, 1))
        taken.append(asyncio.run(scale(instance, 2)))
    # The bounds would leave it at two.
    asyncio.run(scale(instance, 1))
    return round(statistics.median(taken), 3)


async def scale(instance: Instance, replicas: int) -> float:
    """Return the seconds until there are just so many replicas, and each has answered."""
    async with RemoteClient(load_kubeconfig(str(instance.home / "kubeconfig"))) as client:
        begun = time.perf_counter()
        await client.patch(DEPLOYMENT, "forest-predictor", "default", {"spec": {"replicas": replicas}})
        while time.perf_counter() < begun + 100:
            pods = (await client.list(Gvk("v1", "Pod"), "default")).items
            addresses = [(pod.get("status") or {}).get("podIP") for pod in pods]
            if len(pods) == replicas and all([item and await asyncio.to_thread(answers, item) for item in addresses]):
                return time.perf_counter() - begun
            await asyncio.sleep(0.01)
    raise TimeoutError(f"{replicas} replicas")


def answers(address: str) -> bool:
    url = f"http://{address}:8080/v1/models/forest:predict"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, BODY), timeout=30) as answer:
            return bool(json.load(answer)["predictions"])
    except OSError:
        return False


def ready(instance: Instance, replicas: int) -> bool:
    """Say whether just so many Pods are there, and answer."""

    async def pods() -> list[Any]:
        async with RemoteClient(load_kubeconfig(str(instance.home / "kubeconfig"))) as client:
            return (await client.list(Gvk("v1", "Pod"), "default")).items

    found = asyncio.run(pods())
    conditions = [{c["type"]: c["status"] for c in (pod["status"].get("conditions") or ())} for pod in found]
    if len(found) != replicas or any(item.get("Ready") != "True" for item in conditions):
        return False
    try:
        url = f"{instance.gateway}/serving/default/forest/v1/models/forest:predict"
        with urllib.request.urlopen(urllib.request.Request(url, BODY), timeout=30) as answer:
            return bool(json.load(answer)["predictions"])
    except OSError:
        return False


if __name__ == "__main__":
    main()
