"""Models served by the whole platform: predicted through the gateway while Pods come and go."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

MODELS = Path(__file__).parents[1] / "unit" / "serving" / "models"
DEADLINE_S = 90.0
PATH = "/serving/default/{}/v1/models/{}:predict"


def until(check: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:.0f} s: {what}; last: {result!r}"
        time.sleep(0.1)
    return result


def inference_service(name: str, uri: str, replicas: int = 1) -> str:
    model = {"modelFormat": {"name": "sklearn"}, "storageUri": uri}
    return json.dumps(
        {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {
                "name": name,
                "namespace": "default",
                "annotations": {"serving.kserve.io/deploymentMode": "Standard"},
            },
            "spec": {"predictor": {"minReplicas": replicas, "model": model}},
        }
    )


def ask(platform: Any, name: str, features: int = 4) -> int:
    connection = HTTPConnection(urlsplit(platform.gateway).netloc, timeout=30)
    try:
        connection.request("POST", PATH.format(name, name), json.dumps({"instances": [[1.0] * features]}))
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


@contextmanager
def traffic(platform: Any, name: str, features: int) -> Iterator[list[str]]:
    """Send requests one after the other; the list gets what went wrong."""
    failures: list[str] = []
    counts = [0]
    stop = threading.Event()

    def send() -> None:
        while not stop.is_set():
            try:
                status = ask(platform, name, features)
                if status != 200:
                    failures.append(str(status))
            except OSError as error:
                failures.append(repr(error))
            counts[0] += 1

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield failures
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    print(f"{name}: {counts[0]} requests, {len(failures)} failures {failures[:5]}")
    assert counts[0] > 20


@pytest.fixture
def iris(platform: Any, tmp_path: Path, kubectl: str) -> Iterator[tuple[str, int]]:
    """Serve a scikit-learn model with two replicas."""
    shutil.copy(MODELS / "plain.joblib", tmp_path / "model.joblib")
    platform.kubectl("apply", "-f", "-", stdin=inference_service("rolling", str(tmp_path), 2))
    features = until(lambda: next((n for n in (4, 2, 3, 1) if ask(platform, "rolling", n) == 200), 0), "a prediction")
    platform.kubectl("rollout", "status", "deployment/rolling-predictor", "--timeout=60s")
    yield "rolling", features
    platform.kubectl("delete", "isvc", "rolling")
    until(lambda: not platform.kubectl("get", "pods,deploy,svc,httproute", "-o", "name").count("rolling"), "cleaned up")


def test_no_request_fails_while_pods_are_deleted_scaled_and_replaced(
    platform: Any, iris: tuple[str, int], tmp_path: Path
) -> None:
    name, features = iris
    deployment = f"deployment/{name}-predictor"
    second = tmp_path / "second"
    second.mkdir()
    shutil.copy(MODELS / "plain.joblib", second / "model.joblib")
    with traffic(platform, name, features) as failures:
        pods = platform.kubectl("get", "pods", "-l", f"app=isvc.{name}-predictor", "-o", "name").split()
        platform.kubectl("delete", pods[0])
        platform.kubectl("rollout", "status", deployment, "--timeout=60s")
        deleted = len(failures)
        patch = {"spec": {"predictor": {"model": {"storageUri": str(second)}}}}
        platform.kubectl("patch", "isvc", name, "--type=merge", "-p", json.dumps(patch))
        time.sleep(1)
        platform.kubectl("rollout", "status", deployment, "--timeout=60s")
        rolled = len(failures)
        platform.kubectl("scale", deployment, "--replicas=1")
        time.sleep(1)
    print(f"failures: deletion {deleted}, rollout {rolled - deleted}, scaling {len(failures) - rolled}")
    assert failures == []


def test_a_service_whose_name_is_taken_says_so(platform: Any) -> None:
    namespace = "taken-names"
    platform.kubectl("create", "namespace", namespace)
    owner = platform.kubectl("create", "configmap", "owner", "-n", namespace, "-o", "json")
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "controller": True}
    metadata = {"name": "iris-predictor", "namespace": namespace}
    metadata |= {"ownerReferences": [reference | {"uid": json.loads(owner)["metadata"]["uid"]}]}
    taken = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"port": 80}]}}
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(taken))
    service = json.loads(inference_service("iris", str(MODELS)))
    service["metadata"]["namespace"] = namespace
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(service))

    def said() -> str:
        path = "jsonpath={.items[*].message}"
        return str(
            platform.kubectl("get", "events", "-n", namespace, "--field-selector=reason=ReconcileError", "-o", path)
        )

    until(lambda: "ConfigMap/owner" in said(), "it says whose the Service is")
    platform.kubectl("delete", "namespace", namespace, "--wait=false")
