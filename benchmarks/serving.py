"""
Services at rest and the gateway under many clients: cold starts, services scaled to zero, idle connections.

Run: ``.venv/bin/python benchmarks/serving.py [SERVICES] [CONNECTIONS]``, by default 100 and 10,000. Memory is the
proportional set size of the control plane, or of all processes of the instance. Linux only.
"""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

from footprint import pss_mib
from instance import ROOT, SHALLOP, processes_of, running, wait_until, write

from shallop.kube.objects import Gvk
from shallop.kube.remote import RemoteClient, load_kubeconfig

# So many services go to zero together and are asked one by one, so many times.
COLD_SERVICES, COLD_ROUNDS = 5, 4
WINDOW_S = 6
MODEL = ROOT / "tests" / "unit" / "serving" / "models" / "plain.joblib"
BODY = json.dumps({"instances": [[6.8, 2.8, 4.8, 1.4]]}).encode()


def service(name: str, folder: str, **predictor: Any) -> dict[str, Any]:
    model = {"modelFormat": {"name": "sklearn"}, "storageUri": folder}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": name,
            "namespace": "default",
            "annotations": {"autoscaling.knative.dev/window": f"{WINDOW_S}s"},
        },
        "spec": {"predictor": {"model": model, **predictor}},
    }


class Instance:
    """A running instance with a model."""

    def __init__(self, status: dict[str, Any], folder: str) -> None:
        self.home, self.pid, self.gateway = Path(status["home"]), int(status["pid"]), str(status["gateway"])
        self.folder = folder

    def apply(self, *manifests: dict[str, Any]) -> None:
        path = self.home / "manifests.json"
        path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": list(manifests)}))
        subprocess.run([SHALLOP, "apply", "-f", str(path), "--home", str(self.home)], check=True)

    def ask(self, name: str) -> float:
        """Return the seconds that one prediction took."""
        begun = time.perf_counter()
        url = f"{self.gateway}/serving/default/{name}/v1/models/{name}:predict"
        with urllib.request.urlopen(urllib.request.Request(url, BODY), timeout=120) as answer:
            json.load(answer)
        return time.perf_counter() - begun

    def pods(self) -> int:
        """Return how many Pods there are, those that end included."""

        async def count() -> int:
            async with RemoteClient(load_kubeconfig(str(self.home / "kubeconfig"))) as client:
                return len((await client.list(Gvk("v1", "Pod"), "default")).items)

        return asyncio.run(count())

    def memory_mib(self) -> float:
        return sum(pss_mib(pid) for pid in processes_of(self.home, self.pid))

    def at_zero(self) -> None:
        wait_until(lambda: self.pods() == 0, "all Pods are gone", 300)


def cold_starts(instance: Instance) -> list[dict[str, Any]]:
    names = ["cold", *(f"cold-{number}" for number in range(1, COLD_SERVICES))]
    instance.apply(*(service(name, instance.folder, minReplicas=0) for name in names))
    for name in names:
        wait_until(lambda: answers(instance, name), "the first prediction", 300)  # noqa: B023
    samples = []
    for _ in range(COLD_ROUNDS):
        instance.at_zero()
        samples += [instance.ask(name) for name in names]
    return [
        {"what": f"cold start, median of {len(samples)} (s)", "value": round(statistics.median(samples), 3)},
        {"what": f"cold start, worst of {len(samples)} (s)", "value": round(max(samples), 3)},
    ]


def answers(instance: Instance, name: str) -> bool:
    try:
        return instance.ask(name) > 0
    except OSError:
        return False


def services_at_zero(instance: Instance, count: int) -> list[dict[str, Any]]:
    instance.at_zero()
    before, memory = processes_of(instance.home, instance.pid), instance.memory_mib()
    names = [f"rest-{number}" for number in range(count)]
    for start in range(0, count, 10):
        instance.apply(*(service(name, instance.folder, minReplicas=0) for name in names[start : start + 10]))
        for name in names[start : start + 10]:
            wait_until(lambda: answers(instance, name), f"a prediction of {name}", 300)  # noqa: B023
    instance.at_zero()
    time.sleep(3)
    after = processes_of(instance.home, instance.pid)
    rows = [
        {"what": f"processes that {count} services at zero add", "value": len(after) - len(before)},
        {"what": f"memory that {count} services at zero add (MiB)", "value": round(instance.memory_mib() - memory, 1)},
    ]
    for number in after.keys() - before.keys():
        words = after[number].replace(str(instance.home), "HOME").split()
        name = " ".join(word.rpartition("/")[2] for word in words[:4])
        rows.append({"what": f"  {name}: PSS (MiB)", "value": round(pss_mib(number), 1)})
    return rows


def idle_connections(instance: Instance, count: int) -> list[dict[str, Any]]:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    host, _, port = instance.gateway.removeprefix("http://").partition(":")
    instance.ask("cold")
    before = pss_mib(instance.pid)
    clients = [socket.create_connection((host, int(port)), 30) for _ in range(min(count, hard - 100))]
    time.sleep(1)
    grown = pss_mib(instance.pid) - before
    samples = sorted(instance.ask("cold") for _ in range(200))
    for client in clients:
        client.close()
    return [
        {"what": f"memory that {len(clients)} idle connections add (MiB)", "value": round(grown, 1)},
        {"what": "prediction beside them, new connection, p50 (ms)", "value": round(samples[100] * 1000, 2)},
    ]


def main(services: int, connections: int) -> None:
    with tempfile.TemporaryDirectory() as folder, running() as status:
        (Path(folder) / "model.joblib").write_bytes(MODEL.read_bytes())
        instance = Instance(status, folder)
        rows = cold_starts(instance)
        rows += idle_connections(instance, connections)
        rows += services_at_zero(instance, services)
    write("serving", rows)


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    main(given[0] if given else 100, given[1] if len(given) > 1 else 10_000)
