"""Requests and answers of models as files: in a bucket of another project's server, and in a claim."""

from __future__ import annotations

import asyncio
import base64
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shallop.embedded.kubelet.environments import Environments
from shallop.settings import Settings
from shallop_pod.storage import fetch

HERE = Path(__file__).parent
NAMESPACE = "stored-logs"
KEYS = {"AWS_ACCESS_KEY_ID": "key-of-tests", "AWS_SECRET_ACCESS_KEY": "secret-of-tests"}
DEADLINE_S = 60.0
# A predictor that answers with what it was asked.
ECHO = """
import http.server
class Echo(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(b"{}")
    def do_POST(self):
        self.answer(self.rfile.read(int(self.headers["Content-Length"])))
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer(("", 8080), Echo).serve_forever()
"""
READ = """
import json, sys, pyarrow.parquet
rows = [row for path in sys.argv[1:] for row in pyarrow.parquet.read_table(path).to_pylist()]
print(json.dumps([row | {"bytes": row["bytes"].decode()} for row in rows]))
"""

pytestmark = pytest.mark.timeout(240)


def until(check: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:.0f} s: {what}; last: {result!r}"
        time.sleep(0.1)
    return result


@pytest.fixture
def s3(client_env: Callable[[str], Path], tmp_path: Path) -> Iterator[str]:
    """The URL of an S3 server with the bucket ``logs``."""
    url = tmp_path / "url"
    with (tmp_path / "moto.log").open("wb") as log:
        command = [str(client_env("moto")), str(HERE / "moto_server.py"), str(url)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(url.exists, "the S3 server runs")
        request = urllib.request.Request(f"{url.read_text()}/logs", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        yield url.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def component() -> Iterator[int]:
    """A component that answers with what it is asked; its port."""

    class Echo(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(400 if body == b"bad" else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Be quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def agent(component: int, *arguments: str, **environ: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start an agent; returns its process and its URL."""
    port = free_port()
    common = ["--port", str(port), "--component-port", str(component), "--inference-service", "iris"]
    common += ["--namespace", "team", "--metadata-headers", "x-user", "--log-annotations", '{"tier": "gold"}']
    command = [sys.executable, "-m", "shallop_pod.agent", *common, *arguments]
    process = subprocess.Popen(command, env={**os.environ, **environ})

    def listens() -> bool:
        assert process.poll() is None
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    until(listens, "the agent listens")
    return process, f"http://127.0.0.1:{port}"


def ask(url: str, id_: str, body: bytes) -> int:
    headers = {"Ce-Id": id_, "X-User": "me", "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
            assert answer.read() == body
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def finish(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    assert process.wait(DEADLINE_S) == 0


def stored(s3: str, target: Path) -> dict[str, Any]:
    environ = {"AWS_ENDPOINT_URL": s3, **KEYS}
    fetch("s3://logs/audit", str(target), environ)
    return {str(path.relative_to(target)): json.loads(path.read_text()) for path in target.rglob("*.json")}


def test_logs_arrive_in_a_bucket_each_as_a_file(s3: str, component: int, tmp_path: Path) -> None:
    config = {"type": "s3", "endpoint_url": s3, "access_key_id": "key-of-tests", "secret_access_key": "secret-of-tests"}
    arguments = ("--log-url", "s3://logs/audit", "--log-store-path", "v1")
    process, url = agent(component, *arguments, STORAGE_CONFIG=json.dumps(config))
    try:
        assert ask(f"{url}/v1/models/iris:predict", "a/1", b'{"instances": [1]}') == 200
        assert ask(f"{url}/v1/models/iris:predict", "b", b"bad") == 400
        finish(process)
    finally:
        process.kill()
    found = stored(s3, tmp_path / "found")
    folder = "team/iris/predictor/v1"
    # An answer that is none is not logged, as upstream.
    assert set(found) == {f"{folder}/a%2F1-request.json", f"{folder}/a%2F1-response.json", f"{folder}/b-request.json"}
    record = found[f"{folder}/a%2F1-request.json"]
    assert base64.b64decode(record["bytes"]) == b'{"instances": [1]}'
    expected = {
        "id": "a/1",
        "reqType": "org.kubeflow.serving.inference.request",
        "inferenceService": "iris",
        "namespace": "team",
        "component": "predictor",
        "contentType": "application/json",
        "metadata": {"x-user": ["me"]},
        "annotations": {"tier": "gold"},
    }
    assert expected.items() <= record.items()


def test_logs_are_gathered_and_nothing_is_lost_at_the_end(s3: str, component: int, tmp_path: Path) -> None:
    arguments = ("--log-url", "s3://logs/audit", "--log-mode", "request", "--log-batch-size", "4")
    environ = {"AWS_ENDPOINT_URL": s3, **KEYS}
    process, url = agent(component, *arguments, "--log-batch-interval", "600", **environ)
    try:
        for number in range(10):
            assert ask(f"{url}/v1/models/iris:predict", str(number), b'{"instances": [1]}') == 200
        finish(process)
    finally:
        process.kill()
    found = stored(s3, tmp_path / "found")
    sizes = {name.rpartition("/")[2]: [record["id"] for record in records] for name, records in found.items()}
    assert sizes == {
        "0-batch.json": ["0", "1", "2", "3"],
        "4-batch.json": ["4", "5", "6", "7"],
        "8-batch.json": ["8", "9"],
    }


def test_a_bucket_that_is_gone_holds_nobody_up(component: int) -> None:
    environ = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}", **KEYS}
    process, url = agent(component, "--log-url", "s3://logs/audit", "--log-mode", "response", **environ)
    try:
        assert ask(f"{url}/v1/models/iris:predict", "a", b"{}") == 200

        def counted() -> bool:
            try:
                with urllib.request.urlopen(f"{url}/metrics", timeout=30) as answer:
                    return b"shallop_agent_events_dropped_total 1" in answer.read()
            except urllib.error.HTTPError as error:
                error.close()
                return False

        until(counted, "the record was dropped and counted")
    finally:
        process.kill()
        process.wait()


def test_a_service_logs_into_a_claim_in_parquet(platform: Any, tmp_path: Path) -> None:
    environments = Environments.of(Settings(home=tmp_path / "builder"))
    image = "kserve/agent:v0.21.0-parquet"
    python = asyncio.run(environments.ensure(environments.resolve(image, [], []))).python
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "logs", "namespace": NAMESPACE},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    container = {"image": "python:3.11", "command": ["python", "-c", ECHO]}
    storage = {"key": "unused", "path": "v1", "parameters": {"format": "parquet"}}
    logger = {"url": "pvc://logs/audit", "storage": storage, "metadataHeaders": ["X-User"], "batchInterval": "50ms"}
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "echo", "namespace": NAMESPACE},
        "spec": {"predictor": {"containers": [container], "logger": logger | {"batchSize": 100}}},
    }
    platform.kubectl("create", "namespace", NAMESPACE)
    listed = {"apiVersion": "v1", "kind": "List", "items": [claim, service]}
    platform.kubectl("apply", "-f", "-", stdin=json.dumps(listed))
    platform.kubectl("-n", NAMESPACE, "wait", "isvc/echo", "--for=condition=Ready", "--timeout=90s")
    url = platform.kubectl("-n", NAMESPACE, "get", "isvc", "echo", "-o", "jsonpath={.status.url}")
    for number in range(3):
        assert ask(f"{url}/v1/models/echo:predict", str(number), b'{"instances": [%d]}' % number) == 200
    folder = platform.home / "volumes" / NAMESPACE / "logs" / "audit" / NAMESPACE / "echo" / "predictor" / "v1"

    def records() -> list[dict[str, Any]]:
        paths = sorted(str(path) for path in folder.glob("*.parquet"))
        if not paths:
            return []
        read = subprocess.run([str(python), "-c", READ, *paths], capture_output=True, text=True, check=True)
        found: list[dict[str, Any]] = json.loads(read.stdout)
        return found if len(found) == 6 else []

    found = until(records, "requests and answers are in the claim")
    assert {record["bytes"] for record in found} == {f'{{"instances": [{number}]}}' for number in range(3)}
    assert sorted((record["id"], record["reqType"].rpartition(".")[2]) for record in found) == [
        (str(number), kind) for number in range(3) for kind in ("request", "response")
    ]
    assert json.loads(found[0]["metadata"]) == {"x-user": ["me"]}
    platform.kubectl("delete", "namespace", NAMESPACE, "--wait=false")
