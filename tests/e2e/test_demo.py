"""The main job, as ``make demo`` runs it: trained, registered, served and asked by public clients only."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(400)
def test_flights_are_predicted_and_the_second_run_is_cached(
    platform: Any, client_env: Callable[[str], Path], kubectl: str
) -> None:
    arguments = ["--web", platform.web, "--gateway", platform.gateway, "--kubeconfig", platform.kubeconfig]
    command = [str(client_env("demo")), str(ROOT / "examples" / "flights" / "run.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=380, check=False)
    said = done.stdout
    assert done.returncode == 0, f"{said}\n{done.stderr}"
    assert "Ready after" in said
    assert "(8 from the cache)" in said
    aucs = [float(value) for value in re.findall(r"AUC (0\.\d+)", said)]
    assert len(aucs) == 2
    assert min(aucs) > 0.6
    assert re.search(r"late-flights-predictor-\S+\s+1/1\s+Running", said)


def test_the_kubernetes_client_reads_what_kubectl_wrote(
    platform: Any, client_env: Callable[[str], Path], kubectl: str
) -> None:
    platform.kubectl("create", "configmap", "shared", "--from-literal=a=1")
    program = """
import sys
from kubernetes import client, config, watch
config.load_kube_config(sys.argv[1])
core = client.CoreV1Api()
found = core.read_namespaced_config_map("shared", "default")
assert found.data == {"a": "1"}, found.data
core.patch_namespaced_config_map("shared", "default", {"data": {"b": "2"}})
version = found.metadata.resource_version
changes = watch.Watch().stream(
    core.list_namespaced_config_map, "default", resource_version=version, timeout_seconds=20
)
for event in changes:
    if event["object"].metadata.name == "shared":
        assert event["type"] == "MODIFIED" and event["object"].data == {"a": "1", "b": "2"}
        break
try:
    core.read_namespaced_secret("nobody", "default")
except client.ApiException as error:
    assert error.status == 404 and error.reason == "Not Found", (error.status, error.reason)
custom = client.CustomObjectsApi()
services = custom.list_namespaced_custom_object("serving.kserve.io", "v1beta1", "default", "inferenceservices")
assert isinstance(services["items"], list)
core.delete_namespaced_config_map("shared", "default")
print("well")
"""
    command = [str(client_env("demo")), "-W", "ignore", "-c", program, platform.kubeconfig]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "well", done.stderr
