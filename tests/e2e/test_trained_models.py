"""Several models in one running server: loaded, told of, and taken away while it serves."""

from __future__ import annotations

import asyncio
import base64
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shallop.embedded.kubelet.environments import Environments
from shallop.settings import Settings

NAMESPACE = "many-models"
FIT = """
import joblib, sys
from sklearn.dummy import DummyRegressor
for number in (1, 2):
    model = DummyRegressor(strategy="constant", constant=number).fit([[0.0]], [1])
    joblib.dump(model, f"{sys.argv[1]}/{number}.joblib")
"""

pytestmark = pytest.mark.timeout(240)


def until(check: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 60
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within 60 s: {what}; last: {result!r}"
        time.sleep(0.1)
    return result


def ask(url: str) -> Any:
    """Return the prediction, or the status of a refusal."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, b'{"instances": [[0.0]]}'), timeout=20) as answer:
            return json.load(answer)["predictions"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def trained(name: str, uri: str, memory: str = "10Mi") -> dict[str, Any]:
    model = {"framework": "sklearn", "memory": memory, "storageUri": uri}
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "TrainedModel",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"inferenceService": "many", "model": model},
    }


def files(folder: Path) -> list[dict[str, Any]]:
    """Return a Pod that serves files by HTTP, and its Service."""
    data = {path.name: base64.b64encode(path.read_bytes()).decode() for path in folder.glob("*.joblib")}
    metadata = {"name": "files", "namespace": NAMESPACE}
    container = {
        "name": "web",
        "image": "python:3.11",
        "command": ["python", "-m", "http.server", "8000", "--directory", "/files"],
        "volumeMounts": [{"name": "files", "mountPath": "/files"}],
    }
    spec = {"containers": [container], "volumes": [{"name": "files", "configMap": {"name": "files"}}]}
    labels = metadata | {"labels": {"app": "files"}}
    service = {"selector": {"app": "files"}, "ports": [{"port": 80, "targetPort": 8000}]}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "binaryData": data},
        {"apiVersion": "v1", "kind": "Pod", "metadata": labels, "spec": spec},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": service},
    ]


def test_models_come_and_go_in_a_running_server(platform: Any, tmp_path: Path) -> None:
    environments = Environments.of(Settings(home=tmp_path / "builder"))
    python = asyncio.run(environments.ensure(environments.resolve("kserve/sklearnserver:v0.21.0", [], []))).python
    subprocess.run([str(python), "-c", FIT, str(tmp_path)], check=True)
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "many", "namespace": NAMESPACE},
        "spec": {"predictor": {"sklearn": {"resources": {"limits": {"memory": "1Gi"}}}}},
    }
    models = [trained("one", "http://files/1.joblib"), trained("two", "http://files/2.joblib", "900Mi")]
    platform.kubectl("create", "namespace", NAMESPACE)
    apply(platform, *files(tmp_path), service, *models)
    kubectl = ("-n", NAMESPACE)
    platform.kubectl(*kubectl, "wait", "tm/one", "tm/two", "--for=condition=Ready", "--timeout=90s")
    urls = {
        name: platform.kubectl(*kubectl, "get", "tm", name, "-o", "jsonpath={.status.url}") for name in ("one", "two")
    }
    until(lambda: ask(urls["one"]) == [1.0], "the first model answers")
    until(lambda: ask(urls["two"]) == [2.0], "the second model answers")
    apply(platform, trained("big", "http://files/1.joblib", "500Mi"))
    platform.kubectl(*kubectl, "wait", "tm/big", "--for=condition=MemoryResourceAvailable=False", "--timeout=60s")
    platform.kubectl(*kubectl, "delete", "tm", "two")
    until(lambda: ask(urls["two"]) == 404, "the second model is gone")
    assert ask(urls["one"]) == [1.0]
    # There is room now.
    platform.kubectl(*kubectl, "wait", "tm/big", "--for=condition=Ready", "--timeout=60s")
    until(lambda: ask(urls["one"].replace("one", "big")) == [1.0], "the model that waited answers")
    platform.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def apply(platform: Any, *objects: dict[str, Any]) -> None:
    listed = {"apiVersion": "v1", "kind": "List", "items": objects}
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(listed))
