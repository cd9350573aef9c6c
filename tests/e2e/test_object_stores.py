"""Artifacts of pipelines in an S3-compatible store: another project's server, credentials in a Secret."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from shallop.errors import ObjectStoreError
from shallop.store.objects import Access, delete, download, exists, upload
from shallop_pod.initializer import initialize

HERE = Path(__file__).parent
BUCKET = "mlpipeline"
KEYS = {"access_key_id": "key-of-tests", "secret_access_key": "secret-of-tests"}


class Instance(Protocol):
    """The fixture ``platform``."""

    web: str

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(scope="module")
def s3(client_env: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an S3 server with one bucket."""
    folder = tmp_path_factory.mktemp("s3")
    url = folder / "url"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(client_env("moto")), str(HERE / "moto_server.py"), str(url)], stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 60
        while not url.exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        request = urllib.request.Request(f"{url.read_text()}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        yield url.read_text()
    finally:
        process.kill()
        process.wait()


def test_files_and_folders_go_there_and_back(s3: str, tmp_path: Path) -> None:
    access = Access(endpoint=s3, credentials=KEYS)
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "weights").write_bytes(b"w" * 3_000_000)
    (folder / "sub" / "config.json").write_text("{}")
    upload(folder, f"s3://{BUCKET}/a/model", access)
    upload(folder / "weights", f"s3://{BUCKET}/a/file.bin", access)
    assert download(f"s3://{BUCKET}/a/model", tmp_path / "back", access)
    assert (tmp_path / "back" / "weights").read_bytes() == b"w" * 3_000_000
    assert (tmp_path / "back" / "sub" / "config.json").read_text() == "{}"
    assert download(f"s3://{BUCKET}/a/file.bin", tmp_path / "file.bin", access)
    assert not download(f"s3://{BUCKET}/a/mod", tmp_path / "none", access)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "file.bin", "model"]
    delete(f"s3://{BUCKET}/a/model", access)
    assert not exists(f"s3://{BUCKET}/a/model", access)
    assert exists(f"s3://{BUCKET}/a/file.bin", access)
    with pytest.raises(ObjectStoreError, match="s3://no-such-bucket/x: cannot be stored"):
        upload(folder / "weights", "s3://no-such-bucket/x", access)


def test_an_initializer_brings_a_data_set_from_there(s3: str, tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    for name in ("train.csv", "notes.md"):
        (tmp_path / "digits" / name).write_text(name)
    upload(tmp_path / "digits", f"s3://{BUCKET}/sets/digits", Access(endpoint=s3, credentials=KEYS))
    environ = {"STORAGE_URI": f"s3://{BUCKET}/sets/digits", "IGNORE_PATTERNS": "*.md", "ENDPOINT": s3, "REGION": "auto"}
    environ |= {"ACCESS_KEY_ID": KEYS["access_key_id"], "SECRET_ACCESS_KEY": KEYS["secret_access_key"]}
    folder = Path(initialize("dataset", environ, str(tmp_path / "dataset")))
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"train.csv": "train.csv"}


def call(instance: Instance, method: str, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{instance.web}/apis/v2beta1{path}", data, headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def ended(instance: Instance, body: dict[str, Any]) -> Any:
    run_id = call(instance, "POST", "/runs", body)["run_id"]
    deadline = time.monotonic() + 60
    while True:
        seen = call(instance, "GET", f"/runs/{run_id}/tasks")
        if seen["run"]["state"] in ("SUCCEEDED", "FAILED"):
            return seen
        assert time.monotonic() < deadline, seen
        time.sleep(0.05)


def document(name: str) -> dict[str, Any]:
    """``write`` makes a folder, ``read`` reads it: neither knows of any object store."""
    kind = {"artifactType": {"schemaTitle": "system.Model", "schemaVersion": "0.0.1"}}
    path = "{{$.%s.artifacts['model'].path}}"
    write = f"mkdir -p {path % 'outputs'} && echo 42 > {path % 'outputs'}/answer"
    read = f"cat {path % 'inputs'}/answer"
    source = {"taskOutputArtifact": {"producerTask": "write", "outputArtifactKey": "model"}}
    return {
        "pipelineInfo": {"name": name},
        "schemaVersion": "2.1.0",
        "root": {
            "dag": {
                "tasks": {
                    "write": {
                        "componentRef": {"name": "comp-write"},
                        "taskInfo": {"name": "write"},
                        "cachingOptions": {"enableCache": True},
                    },
                    "read": {
                        "componentRef": {"name": "comp-read"},
                        "taskInfo": {"name": "read"},
                        "dependentTasks": ["write"],
                        "inputs": {"artifacts": {"model": source}},
                    },
                }
            }
        },
        "components": {
            "comp-write": {"executorLabel": "exec-write", "outputDefinitions": {"artifacts": {"model": kind}}},
            "comp-read": {"executorLabel": "exec-read", "inputDefinitions": {"artifacts": {"model": kind}}},
        },
        "deploymentSpec": {
            "executors": {
                "exec-write": {"container": {"image": "alpine", "command": ["sh", "-c", write]}},
                "exec-read": {"container": {"image": "alpine", "command": ["sh", "-c", read]}},
            }
        },
    }


def test_a_pipeline_keeps_its_artifacts_in_s3(s3: str, platform: Instance, tmp_path: Path) -> None:
    reference = {"secretName": "tests-s3", "accessKeyKey": "user", "secretKeyKey": "password"}
    override = {"bucketName": BUCKET, "endpoint": s3, "credentials": {"secretRef": reference}}
    objects = [
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "tests-s3", "namespace": "kubeflow"},
            "stringData": {"user": KEYS["access_key_id"], "password": KEYS["secret_access_key"]},
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "kfp-launcher", "namespace": "kubeflow"},
            "data": {"providers": json.dumps({"s3": {"overrides": [override]}})},
        },
    ]
    manifest = tmp_path / "stores.yaml"
    manifest.write_text("\n---\n".join(map(json.dumps, objects)))
    platform.command("apply", "-f", str(manifest))

    root = f"s3://{BUCKET}/runs"
    body = {
        "display_name": "in-s3",
        "pipeline_spec": document("in-s3"),
        "runtime_config": {"pipeline_root": root, "parameters": {}},
    }
    first = ended(platform, body)
    assert first["run"]["state"] == "SUCCEEDED", [task.get("error") for task in first["tasks"]]
    (artifact_id,) = next(t for t in first["tasks"] if t["name"] == "write")["outputs"]["model"]["artifact_ids"]
    artifact = call(platform, "GET", f"/artifacts/{artifact_id}")
    assert artifact["uri"].startswith(f"{root}/in-s3/{first['run']['run_id']}/write/")
    assert artifact["size_bytes"] == "3"
    access = Access(endpoint=s3, credentials=KEYS)
    assert exists(f"{artifact['uri']}/answer", access)
    with urllib.request.urlopen(f"{platform.web}/apis/v2beta1/artifacts/{artifact_id}:download", timeout=60) as answer:
        content = answer.read()
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        member = archive.extractfile("model/answer")
        assert member is not None
        assert member.read() == b"42\n"

    second = ended(platform, body)  # the folder of the first run is gone: its artifact is brought from the store
    states = {task["name"]: task["own_state"] for task in second["tasks"]}
    assert states == {"root": "SUCCEEDED", "write": "CACHED", "read": "SUCCEEDED"}
    delete(artifact["uri"], access)
    third = ended(platform, body)
    states = {task["name"]: task["own_state"] for task in third["tasks"]}
    assert states == dict.fromkeys(("root", "write", "read"), "SUCCEEDED")
    nowhere = body | {"runtime_config": {"pipeline_root": "s3://no-such-bucket/x?endpoint=" + s3}}
    failed = ended(platform, nowhere | {"pipeline_spec": document("nowhere")})
    (error,) = (task["error"]["message"] for task in failed["tasks"] if task["name"] == "write")
    assert "s3://no-such-bucket/x/nowhere/" in error
    assert "cannot be stored" in error
