"""Calls of an unmodified gRPC client go on while Pods come from zero, are rolled out and are killed."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SESSION = Path(__file__).with_name("grpc_traffic_session.py")
# Asks a graph once.
GRAPH_SESSION = """
import sys
import numpy as np
import tritonclient.grpc as triton
rows = triton.InferInput("input-0", [1, 4], "FP64")
rows.set_data_from_numpy(np.array([[5.1, 3.5, 1.4, 0.2]]))
options = [("grpc.default_authority", sys.argv[2])]
with triton.InferenceServerClient(sys.argv[1], channel_args=options) as client:
    assert client.is_server_ready()
    answer = client.infer("any", [rows])
    for output in answer.get_response().outputs:
        print(output.name, answer.as_numpy(output.name))
"""
MODELS = Path(__file__).parents[1] / "unit" / "serving" / "models"
NAMESPACE = "grpc-traffic"
DEADLINE_S = 60.0


class Traffic:
    """A client that asks without a pause."""

    def __init__(self, command: list[str]) -> None:
        self.seen: dict[str, int] = {}
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.seen = json.loads(line)

    @property
    def count(self) -> int:
        return sum(self.seen.values())

    def stop(self) -> None:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._reader.join(timeout=60)
        self._process.stdout.close()


@contextmanager
def traffic(command: list[str]) -> Iterator[Traffic]:
    made = Traffic(command)
    try:
        yield made
    finally:
        made.stop()


def until(check: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:.0f} s: {what}; last: {result!r}"
        time.sleep(0.1)
    return result


@pytest.mark.timeout(240)
def test_no_call_fails_while_pods_change(platform: Any, client_env: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "model.joblib").write_bytes((MODELS / "plain.joblib").read_bytes())

    def kubectl(*arguments: str, **more: Any) -> str:
        return str(platform.kubectl("-n", NAMESPACE, *arguments, **more))

    def pods() -> set[str]:
        names = kubectl("get", "pods", "-l", "component=predictor", "-o", "jsonpath={.items[*].metadata.name}")
        return set(names.split())

    def apply(version: str) -> None:
        port = {"name": "h2c", "containerPort": 8081, "protocol": "TCP"}
        env = [{"name": "VERSION", "value": version}]
        model = {"modelFormat": {"name": "sklearn"}, "storageUri": f"file://{tmp_path}", "ports": [port], "env": env}
        service = {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {"name": "calls"},
            "spec": {"predictor": {"minReplicas": 2, "model": model}},
        }
        kubectl("apply", "-f", "-", stdin=json.dumps(service))

    def ready_revision() -> str:
        return kubectl("get", "isvc", "calls", "-o", "jsonpath={.status.components.predictor.latestRolledoutRevision}")

    platform.kubectl("create", "namespace", NAMESPACE)
    apply("one")
    kubectl("wait", "isvc/calls", "--for=condition=Ready", "--timeout=90s")
    address = platform.gateway.removeprefix("http://")
    host = f"calls.{NAMESPACE}.example.com"
    url = f"http://calls.{NAMESPACE}.svc.cluster.local/v2/models/calls/infer"
    steps = [{"serviceUrl": url, "name": "first"}, {"serviceUrl": url, "name": "second"}]
    spec = {"nodes": {"root": {"routerType": "Ensemble", "steps": steps}}}
    graph = {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "InferenceGraph", "metadata": {"name": "both"}}
    kubectl("apply", "-f", "-", stdin=json.dumps(graph | {"spec": spec}))
    kubectl("wait", "ig/both", "--for=condition=Ready", "--timeout=90s")
    command = [str(client_env("tritonclient")), "-c", GRAPH_SESSION, address, f"both.{NAMESPACE}.example.com"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert said.stdout.split() == ["first/output-0", "[0]", "second/output-0", "[0]"], said.stderr
    with traffic([str(client_env("tritonclient")), str(SESSION), address, host, "calls"]) as seen:
        until(lambda: seen.count > 50, "calls are answered")
        killed = next(iter(pods()))
        kubectl("delete", "pod", killed, "--grace-period=0", "--force")
        until(lambda: killed not in pods() and len(pods()) == 2, "a Pod was killed and replaced")
        before = seen.count
        until(lambda: seen.count > before + 50, "calls go on")
        old = pods()
        apply("two")
        until(lambda: ready_revision() == "calls-predictor-00002", "the new revision has all traffic")
        platform.kubectl("-n", NAMESPACE, "delete", "revision", "calls-predictor-00001", "--ignore-not-found")
        until(lambda: not pods() & old, "the old Pods are gone")
        before = seen.count
        until(lambda: seen.count > before + 50, "calls go on")
    platform.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
    assert len(seen.seen) == 1, seen.seen
    assert not next(iter(seen.seen)).startswith("failed"), seen.seen
