"""Models that a node keeps, brought once and mounted by all services that use them; containers that bring models."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shallop.embedded.kubelet.environments import Environments
from shallop.settings import Settings

NAMESPACE, OTHER = "local-models", "local-models-too"
FIT = """
import joblib, sys
from sklearn.dummy import DummyRegressor
for number in (1, 2):
    model = DummyRegressor(strategy="constant", constant=number).fit([[0.0]], [1])
    joblib.dump(model, f"{sys.argv[1]}/{number}.joblib")
"""
# Brings own://NUMBER; what it gets as arguments are pairs of URI and folder.
OWN = "import sys, urllib.request as u; u.urlretrieve('http://files/2.joblib', sys.argv[2] + '/model.joblib')"

pytestmark = pytest.mark.timeout(240)


def until(check: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 60
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within 60 s: {what}; last: {result!r}"
        time.sleep(0.1)
    return result


def predict(platform: Any, name: str, namespace: str) -> Any:
    platform.kubectl("-n", namespace, "wait", f"isvc/{name}", "--for=condition=Ready", "--timeout=90s")
    url = platform.kubectl("-n", namespace, "get", "isvc", name, "-o", "jsonpath={.status.url}")
    request = urllib.request.Request(f"{url}/v1/models/{name}:predict", b'{"instances": [[0.0]]}')
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["predictions"]


def service(name: str, namespace: str, uri: str) -> dict[str, Any]:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "sklearn"}, "storageUri": uri}}},
    }


def files(folder: Path) -> list[dict[str, Any]]:
    """Return a Pod that serves files by HTTP and logs who asks, and its Service."""
    data = {path.name: base64.b64encode(path.read_bytes()).decode() for path in folder.glob("*.joblib")}
    metadata = {"name": "files", "namespace": NAMESPACE}
    container = {
        "name": "web",
        "image": "python:3.11",
        "command": ["python", "-u", "-m", "http.server", "8000", "--directory", "/files"],
        "volumeMounts": [{"name": "files", "mountPath": "/files"}],
        "readinessProbe": {"tcpSocket": {"port": 8000}, "periodSeconds": 1},
    }
    image, paths = render_image((folder / "2.joblib").read_bytes())
    items = [{"key": key, "path": paths.get(key, key)} for key in data | image]
    spec = {"containers": [container], "volumes": [{"name": "files", "configMap": {"name": "files", "items": items}}]}
    labels = metadata | {"labels": {"app": "files"}}
    ports = {"selector": {"app": "files"}, "ports": [{"port": 80, "targetPort": 8000}]}
    return [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "binaryData": data | image},
        {"apiVersion": "v1", "kind": "Pod", "metadata": labels, "spec": spec},
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": ports},
    ]


def render_image(model: bytes) -> tuple[dict[str, str], dict[str, str]]:
    """Return the files of a registry with one image, in base64, by key, and the paths they are asked for by."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        info = tarfile.TarInfo("models/model.joblib")
        info.size = len(model)
        archive.addfile(info, io.BytesIO(model))
    layer = packed.getvalue()
    digest = f"sha256:{hashlib.sha256(layer).hexdigest()}"
    manifest = json.dumps({"layers": [{"digest": digest}]}).encode()
    found = {"manifest": manifest, "layer": layer}
    paths = {"manifest": "v2/models/two/manifests/1", "layer": f"v2/models/two/blobs/{digest}"}
    return {key: base64.b64encode(value).decode() for key, value in found.items()}, paths


def _alpha(kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "serving.kserve.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def apply(platform: Any, *objects: dict[str, Any]) -> None:
    platform.kubectl("apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))


def test_a_model_is_brought_once_and_kept_while_it_is_used(
    platform: Any, tmp_path: Path, client_env: Callable[[str], Path]
) -> None:
    environments = Environments.of(Settings(home=tmp_path / "builder"))
    python = asyncio.run(environments.ensure(environments.resolve("kserve/sklearnserver:v0.21.0", [], []))).python
    subprocess.run([str(python), "-c", FIT, str(tmp_path)], check=True)
    kept = tmp_path / "kept"
    uri, second = (f"http://files.{NAMESPACE}/{number}.joblib" for number in (1, 2))

    own = {
        "supportedUriFormats": [{"prefix": "own://"}],
        "container": {"name": "own", "image": "python:3.11", "command": ["python", "-c", OWN]},
    }
    # A registry without TLS is one that an administrator named.
    images = {
        "supportedUriFormats": [{"prefix": "oci://files:80/"}],
        "container": {
            "name": "storage-initializer",
            "image": "kserve/storage-initializer:v0.21.0",
            "env": [{"name": "OCI_INSECURE_REGISTRIES", "value": "files:80"}],
        },
    }
    for namespace in (NAMESPACE, OTHER):
        platform.kubectl("create", "namespace", namespace)
    apply(platform, *files(tmp_path))
    platform.kubectl("-n", NAMESPACE, "wait", "pod/files", "--for=condition=Ready", "--timeout=60s")
    refused = platform.kubectl("apply", "-f", "-", stdin=json.dumps(service("own", NAMESPACE, "own://2")), check=False)
    assert "scheme own:// is not known" in refused, refused
    apply(platform, _alpha("ClusterStorageContainer", "own", own), service("own", NAMESPACE, "own://2"))
    image = service("image", NAMESPACE, "oci://files:80/models/two:1")
    apply(platform, _alpha("ClusterStorageContainer", "images", images), image)
    script = Path(__file__).with_name("local_models_session.py")
    command = [str(client_env("kserve")), str(script), platform.kubeconfig, NAMESPACE, uri, second, str(kept)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    status = json.loads(done.stdout.splitlines()[-1])
    assert (status["nodeStatus"], status["copies"]["available"]) == ({"shallop": "NodeDownloaded"}, 1)
    apply(platform, service("there", OTHER, uri))
    node = json.loads(platform.kubectl("get", "localmodelnode", "shallop", "-o", "json"))
    assert node["status"]["modelStatus"] == {
        "one": "ModelDownloaded",
        f"{NAMESPACE}/two": "ModelDownloaded",
    }
    assert predict(platform, "own", NAMESPACE) == [2.0]
    assert predict(platform, "image", NAMESPACE) == [2.0]
    assert predict(platform, "here", NAMESPACE) == [1.0]
    assert predict(platform, "there", OTHER) == [1.0]
    assert predict(platform, "second", NAMESPACE) == [2.0]
    log = platform.kubectl("-n", NAMESPACE, "logs", "files")
    assert (log.count("GET /1.joblib"), log.count("GET /2.joblib")) == (1, 2)
    selector = ("-l", "serving.kserve.io/inferenceservice=here", "-o", "json")
    (pod,) = json.loads(platform.kubectl("-n", NAMESPACE, "get", "pods", *selector))["items"]
    assert "initContainers" not in pod["spec"]
    (mount,) = [m for m in pod["spec"]["containers"][0]["volumeMounts"] if m["mountPath"] == "/mnt/models"]
    assert mount["readOnly"] and mount["subPath"].startswith("models/")

    def users() -> list[str]:
        found = json.loads(platform.kubectl("get", "localmodelcache", "one", "-o", "json"))["status"]
        return [f"{user['namespace']}/{user['name']}" for user in found["inferenceServices"]]

    until(lambda: users() == [f"{NAMESPACE}/here", f"{OTHER}/there"], "the cache knows who uses it")
    refused = platform.kubectl("delete", "localmodelcache", "one", check=False)
    assert "it is being used by InferenceService" in refused, refused
    platform.kubectl("-n", NAMESPACE, "delete", "isvc", "here", "own", "image", "second")
    platform.kubectl("-n", OTHER, "delete", "isvc", "there")
    until(lambda: users() == [], "nobody uses the cache")
    assert list(kept.glob("models/*/1.joblib"))
    platform.kubectl("delete", "localmodelcache", "one", "--timeout=60s")
    platform.kubectl("-n", NAMESPACE, "delete", "localmodelnamespacecache", "two", "--timeout=60s")
    assert list(kept.glob("models/*")) == []
    volumes = ("get", "pv", "-l", "internal.serving.kserve.io/localmodel=one", "-o", "name")
    until(lambda: not platform.kubectl(*volumes), "its volumes are gone")
    platform.kubectl(
        "delete", "localmodelnodegroup/disk", "clusterstoragecontainer/own", "clusterstoragecontainer/images"
    )
    platform.kubectl("delete", "namespace", NAMESPACE, OTHER, "--wait=false")
