"""Runtimes of users: a namespace's own is chosen, told whose it is, and refused where it could not be chosen."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest

NAMESPACE = "own-runtimes"
# A server that answers with its arguments.
TELL = """
import http.server, json, sys
class Tell(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(sys.argv[1:]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("", 8080), Tell).serve_forever()
"""

pytestmark = pytest.mark.timeout(240)


def runtime(name: str, **spec: Any) -> dict[str, Any]:
    told = ["{{.Name}}", "{{.Namespace}}", "{{.Labels.tier}}", "{{.Annotations.note}}", "{{.Labels.none}}"]
    container = {"name": "kserve-container", "image": "python:3.11", "command": ["python3", "-c", TELL], "args": told}
    formats = [{"name": "sklearn", "version": "1", "autoSelect": True, "priority": 1}]
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"supportedModelFormats": formats, "containers": [container], **spec},
    }


def service(name: str, folder: Path, **model: Any) -> dict[str, Any]:
    given = {"modelFormat": {"name": "sklearn"}, "storageUri": str(folder), "args": ["mine"], **model}
    metadata = {"name": name, "namespace": NAMESPACE, "labels": {"tier": "gold"}, "annotations": {"note": "now"}}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": {"predictor": {"model": given}},
    }


def test_a_runtime_of_the_namespace_serves_and_rivals_are_refused(platform: Any, kubectl: str, tmp_path: Path) -> None:
    (tmp_path / "model.txt").write_text("a model")
    platform.kubectl("create", "namespace", NAMESPACE)
    for item in (runtime("own"), runtime("off", disabled=True), service("told", tmp_path)):
        platform.kubectl("apply", "-f", "-", stdin=json.dumps(item))
    said = platform.kubectl("apply", "-f", "-", stdin=json.dumps(runtime("rival")), check=False)
    assert "spec.supportedModelFormats[0].priority" in said
    assert "ServingRuntime own has it for sklearn too" in said
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(service("refused", tmp_path, runtime="off")))
    where = ("-n", NAMESPACE)
    platform.kubectl(
        *where, "wait", "isvc/refused", "--for=jsonpath={.status.modelStatus.transitionStatus}=InvalidSpec"
    )
    failed = platform.kubectl(*where, "get", "isvc", "refused", "-o", "jsonpath={.status.modelStatus.lastFailureInfo}")
    assert json.loads(failed)["reason"] == "RuntimeDisabled"
    platform.kubectl(*where, "wait", "isvc/told", "--for=condition=Ready", "--timeout=90s")
    status = json.loads(platform.kubectl(*where, "get", "isvc", "told", "-o", "json"))["status"]
    assert status["servingRuntimeName"] == "own"
    with urllib.request.urlopen(f"{status['url']}/args", timeout=30) as answer:
        assert json.load(answer) == ["told", NAMESPACE, "gold", "now", "<no value>", "mine"]
    platform.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
