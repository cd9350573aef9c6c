"""Replicas of one revision share the memory of their model, and are otherwise as if each had loaded it."""

from __future__ import annotations

import json
import os
import pickle
import signal
import socket
import struct
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

DEADLINE_S = 90.0
BALLAST_BYTES = 32_000_000
# Weights of no reason, and so many numbers that they can be told from everything else that a server has.
MODEL = f"""(lambda np, linear: (linear.__dict__.update(
    coef_=np.random.default_rng(0).random(4), intercept_=0.1, n_features_in_=4,
    ballast=np.random.default_rng(1).random({BALLAST_BYTES} // 8), said=print("loaded once")), linear)[1]
)(__import__("numpy"), __import__("sklearn.linear_model").linear_model.LinearRegression())"""

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="looks into the memory of processes of namespaces of their own"),
]


class Model:
    """Becomes the estimator when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (MODEL,)


def until(check: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:.0f} s: {what}; last: {result!r}"
        time.sleep(0.1)
    return result


class Service:
    """An InferenceService with a namespace to itself."""

    def __init__(self, platform: Any, namespace: str, folder: Path) -> None:
        self.platform, self.namespace = platform, namespace
        self.url = f"{platform.gateway}/serving/{namespace}/shared/v1/models/shared:predict"
        (folder / "model.pkl").write_bytes(pickle.dumps(Model()))
        model = {"modelFormat": {"name": "sklearn"}, "storageUri": str(folder)}
        manifest = {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": "shared"},
            "spec": {"predictor": {"minReplicas": 1, "model": model}},
        }
        self.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def kubectl(self, *arguments: str, **more: Any) -> str:
        return str(self.platform.kubectl("-n", self.namespace, *arguments, **more))

    def scale(self, replicas: int) -> list[dict[str, Any]]:
        """Return the Pods once there are just so many, and all are ready."""
        patch = {"spec": {"predictor": {"minReplicas": replicas}}}
        self.kubectl("patch", "isvc", "shared", "--type=merge", "-p", json.dumps(patch))
        return self.ready(replicas)

    def ready(self, replicas: int) -> list[dict[str, Any]]:
        def pods() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = json.loads(self.kubectl("get", "pods", "-o", "json"))["items"]
            good = [
                pod
                for pod in found
                if {"type": "Ready", "status": "True"}.items()
                <= next((c for c in pod["status"].get("conditions") or () if c["type"] == "Ready"), {}).items()
            ]
            return good if len(good) == len(found) == replicas else []

        return list(until(pods, f"{replicas} Pods are ready"))


def ask(url: str) -> bytes:
    body = json.dumps({"instances": [[5.1, 3.5, 1.4, 0.2], [0.1, 0.2, 0.3, 0.7]]}).encode()
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=30) as answer:
        return bytes(answer.read())


def metric(pod: dict[str, Any], name: str) -> float:
    with urllib.request.urlopen(f"http://{pod['status']['podIP']}:8080/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name))


def memory(pid: int) -> dict[str, int]:
    """Return the kernel's account of a process, in bytes."""
    lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    return {line[0].rstrip(":"): 1024 * int(line[1]) for line in lines}


def first_process(platform: Any, pod: dict[str, Any], restarts: int = 0) -> int:
    folder = platform.home / "pods" / pod["metadata"]["uid"]
    return int(json.loads((folder / f"kserve-container-{restarts}.pid").read_text())["pid"])


def holders(platform: Any) -> set[int]:
    """Return the processes that listen in the folder of those that hold models."""
    found = set()
    for path in (platform.home / "run" / "holders").glob("*.sock"):
        with socket.socket(socket.AF_UNIX) as connection:
            if connection.connect_ex(str(path)) == 0:
                found.add(struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
    return found


@contextmanager
def traffic(url: str) -> Iterator[list[bytes]]:
    """Ask all the time; yields the answers, fails when one is missing or another one."""
    answers: list[bytes] = []
    failures: list[str] = []
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            try:
                answers.append(ask(url))
            except OSError as error:
                failures.append(repr(error))

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield answers
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert len(set(answers)) == 1


def is_shared(pid: int) -> bool:
    found = memory(pid)
    return found["Rss"] > BALLAST_BYTES > 2 * (found["Private_Clean"] + found["Private_Dirty"])


def test_replicas_share_their_model_and_are_otherwise_on_their_own(platform: Any, kubectl: str, tmp_path: Path) -> None:
    platform.kubectl("create", "namespace", "replicas")
    before = holders(platform)
    service = Service(platform, "replicas", tmp_path)
    service.kubectl("wait", "isvc/shared", "--for=condition=Ready", "--timeout=90s")
    answer = ask(service.url)
    pods = service.scale(3)
    for pod in pods:
        assert is_shared(first_process(platform, pod)), memory(first_process(platform, pod))
        assert ask(f"http://{pod['status']['podIP']}:8080/v1/models/shared:predict") == answer
        assert metric(pod, "request_predict_seconds_count") in (1, 2)  # the first has been asked twice
        said = service.kubectl("logs", pod["metadata"]["name"])
        assert said.splitlines() == ["loaded once", "shared: ready on port 8080"]
        name = service.kubectl(
            "exec", pod["metadata"]["name"], "--", "python3", "-c", "import os; print(os.uname()[1])"
        )
        assert name.strip() == pod["metadata"]["name"]
    (holder,) = holders(platform) - before
    with traffic(service.url) as answers:
        os.kill(first_process(platform, pods[0]), signal.SIGKILL)
        path = "--for=jsonpath={.status.containerStatuses[0].restartCount}=1"
        service.kubectl("wait", f"pod/{pods[0]['metadata']['name']}", path, "--timeout=60s")
        service.ready(3)
        assert is_shared(first_process(platform, pods[0], restarts=1))
        os.kill(holder, signal.SIGKILL)
        service.kubectl("delete", "pod", pods[1]["metadata"]["name"])
        service.ready(3)
        count = len(answers)
        until(lambda: len(answers) > count + 10, "traffic goes on")
    assert set(answers) == {answer}
    (holder,) = holders(platform) - before
    service.kubectl("delete", "isvc", "shared")
    until(lambda: not Path(f"/proc/{holder}").exists(), "what held the model has ended")
    platform.kubectl("delete", "namespace", "replicas", "--wait=false")
