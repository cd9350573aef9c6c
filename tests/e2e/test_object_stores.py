"""Artifacts of pipelines in object stores, S3, Google's and Azure's: real requests, credentials in Secrets."""

from __future__ import annotations

import base64
import hmac
import io
import json
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from shallop.errors import ObjectStoreError
from shallop.store.objects import Access, delete, download, exists, upload
from shallop_pod.initializer import initialize

HERE = Path(__file__).parent
BUCKET = "mlpipeline"
KEYS = {"access_key_id": "key-of-tests", "secret_access_key": "secret-of-tests"}
TEAMS = ("team-a", "team-b")
AZURE_KEYS = {f"account{team[-1]}": base64.b64encode(team.encode() * 8).decode() for team in TEAMS}
SCHEMES = ("s3", "gs", "az")


class Instance(Protocol):
    """The fixture ``platform``."""

    home: Path
    web: str

    def command(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]: ...


class Store(NamedTuple):
    """
    A bucket and how it is reached.

    Args:
        provider: its name in ConfigMap ``kfp-launcher``.
        keys: field of ``secretRef`` -> key of the Secret that it names.
        secret: what is in the Secret.
        source: what upstream's pages call the scheme.
    """

    uri: str
    access: Access
    provider: str
    keys: dict[str, str]
    secret: dict[str, str]
    source: str

    def objects(self, namespace: str) -> list[dict[str, Any]]:
        """Return the Secret, and the override for ``kfp-launcher``."""
        name = f"tests-{self.provider}"
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "stringData": self.secret,
        }
        bucket = self.uri.partition("://")[2]
        override = {"bucketName": bucket, "endpoint": self.access.endpoint}
        return [secret, override | {"credentials": {"secretRef": {"secretName": name, **self.keys}}}]


@contextmanager
def served(folder: Path, *command: str) -> Iterator[str]:
    """Run a server that writes its URL to a file; yield the URL."""
    url = folder / "url"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, str(url)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not url.exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield url.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def s3(client_env: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of an S3 server with one bucket."""
    with served(tmp_path_factory.mktemp("s3"), str(client_env("moto")), str(HERE / "moto_server.py")) as url:
        request = urllib.request.Request(f"{url}/{BUCKET}", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()
        yield url


def google_keys(email: str) -> tuple[str, str]:
    """Return the key of a service account as Google gives it, and its public half."""
    key = rsa.generate_private_key(65537, 2048)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    about = {"type": "service_account", "client_email": email, "private_key": private, "private_key_id": "1"}
    return json.dumps(about), public


def make_container(url: str, account: str, name: str) -> None:
    date = formatdate(usegmt=True)
    headers = {"x-ms-date": date, "x-ms-version": "2023-11-03"}
    place = f"/{account}/{account}/{name}\nrestype:container"
    text = "\n".join(["PUT", *[""] * 11, *(f"{key}:{value}" for key, value in headers.items()), place])
    signature = base64.b64encode(hmac.digest(base64.b64decode(AZURE_KEYS[account]), text.encode(), "sha256")).decode()
    headers["Authorization"] = f"SharedKey {account}:{signature}"
    request = urllib.request.Request(f"{url}/{account}/{name}?restype=container", method="PUT", headers=headers)
    urllib.request.urlopen(request, timeout=30).close()


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, Store]]]:
    """For each team a bucket of Google's and a container of Azure's, which the other may not use."""
    folder = tmp_path_factory.mktemp("clouds")
    google = {team: google_keys(f"{team}@tests") for team in TEAMS}
    known = {f"{team}@tests": {"key": public, "bucket": f"bucket-{team}"} for team, (_, public) in google.items()}
    (folder / "accounts").write_text(json.dumps({"gs": known, "az": AZURE_KEYS}))
    with served(folder, sys.executable, str(HERE / "cloud_server.py"), str(folder / "accounts")) as url:
        stores: dict[str, dict[str, Store]] = {}
        for team, (account, key) in zip(TEAMS, AZURE_KEYS.items(), strict=True):
            make_container(url, account, BUCKET)
            private, _ = google[team]
            of_google = Access(endpoint=url, credentials={"service_account_key": private})
            of_azure = Access(endpoint=f"{url}/{account}", credentials={"account_name": account, "account_key": key})
            names = {"accountNameKey": "name", "accountKeyKey": "key"}
            secret = {"name": account, "key": key}
            stores[team] = {
                "gs": Store(f"gs://bucket-{team}", of_google, "gs", {"tokenKey": "json"}, {"json": private}, "gcs"),
                "az": Store(f"az://{BUCKET}", of_azure, "azure", names, secret, "azure"),
            }
        yield stores


@pytest.fixture
def store(request: pytest.FixtureRequest) -> Store:
    """The store of the parameter: only what it needs is started."""
    if request.param != "s3":
        of_team: Store = request.getfixturevalue("clouds")["team-a"][request.param]
        return of_team
    access = Access(endpoint=request.getfixturevalue("s3"), credentials=KEYS)
    names = {"accessKeyKey": "user", "secretKeyKey": "password"}
    secret = {"user": KEYS["access_key_id"], "password": KEYS["secret_access_key"]}
    return Store(f"s3://{BUCKET}", access, "s3", names, secret, "s3")


each_store = pytest.mark.parametrize("store", SCHEMES, indirect=True)


@each_store
def test_files_and_folders_go_there_and_back(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "weights").write_bytes(bytes(range(256)) * 24_000)  # more than one part
    (folder / "sub" / "a + b é.json").write_text("{}")
    for number in range(12):
        (folder / "sub" / str(number)).write_text(str(number))
    uri = f"{store.uri}/a"
    upload(folder, f"{uri}/model", store.access)
    upload(folder / "weights", f"{uri}/file.bin", store.access)
    assert download(f"{uri}/model", tmp_path / "back", store.access)
    assert files(tmp_path / "back") == files(folder)
    assert download(f"{uri}/file.bin", tmp_path / "file.bin", store.access)
    assert not download(f"{uri}/mod", tmp_path / "none", store.access)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "file.bin", "model"]
    delete(f"{uri}/model", store.access)
    delete(f"{uri}/model", store.access)
    assert not exists(f"{uri}/model", store.access)
    assert exists(f"{uri}/file.bin", store.access)
    nowhere = f"{store.uri.partition('://')[0]}://no-such-bucket/x"
    with pytest.raises(ObjectStoreError, match=f"{nowhere}: cannot be stored"):
        upload(folder / "weights", nowhere, store.access)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_others_own_is_refused(clouds: dict[str, dict[str, Store]], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for scheme in ("gs", "az"):
        mine, theirs = (clouds[team][scheme] for team in TEAMS)
        mixed = Access(endpoint=theirs.access.endpoint, credentials=mine.access.credentials)
        with pytest.raises(ObjectStoreError, match="cannot be stored"):
            upload(tmp_path / "file", f"{theirs.uri}/x", mixed)


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
    token = (instance.home / "token").read_text().strip()  # a server of one user does not ask for it
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
    request = urllib.request.Request(f"{instance.web}/apis/v2beta1{path}", data, headers, method=method)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def content(instance: Instance, path: str) -> bytes:
    with urllib.request.urlopen(f"{instance.web}{path}", timeout=60) as answer:
        read: bytes = answer.read()
        return read


def ended(instance: Instance, body: dict[str, Any]) -> Any:
    run_id = call(instance, "POST", "/runs", body)["run_id"]
    deadline = time.monotonic() + 60
    while True:
        seen = call(instance, "GET", f"/runs/{run_id}/tasks")
        if seen["run"]["state"] in ("SUCCEEDED", "FAILED"):
            return seen
        assert time.monotonic() < deadline, seen
        time.sleep(0.05)


def configure(instance: Instance, folder: Path, namespace: str, *stores: Store) -> None:
    """Tell the runs of a namespace how the stores are reached."""
    providers: dict[str, Any] = {}
    objects = []
    for store in stores:
        secret, override = store.objects(namespace)
        objects.append(secret)
        providers[store.provider] = {"overrides": [override]}
    about = {"name": "kfp-launcher", "namespace": namespace}
    data = {"providers": json.dumps(providers)}
    objects.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": data})
    manifest = folder / f"{namespace}.yaml"
    manifest.write_text("\n---\n".join(map(json.dumps, objects)))
    instance.command("apply", "-f", str(manifest))


def document(name: str) -> dict[str, Any]:
    """``write`` makes a folder and a file, ``read`` reads the folder: neither knows of any object store."""
    kind = {"artifactType": {"schemaTitle": "system.Model", "schemaVersion": "0.0.1"}}
    path, note = "{{$.%s.artifacts['model'].path}}", "{{$.outputs.artifacts['note'].path}}"
    write = f"mkdir -p {path % 'outputs'} && echo 42 > {path % 'outputs'}/answer && echo noted > {note}"
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
            "comp-write": {
                "executorLabel": "exec-write",
                "outputDefinitions": {"artifacts": {"model": kind, "note": kind}},
            },
            "comp-read": {"executorLabel": "exec-read", "inputDefinitions": {"artifacts": {"model": kind}}},
        },
        "deploymentSpec": {
            "executors": {
                "exec-write": {"container": {"image": "alpine", "command": ["sh", "-c", write]}},
                "exec-read": {"container": {"image": "alpine", "command": ["sh", "-c", read]}},
            }
        },
    }


def artifact_of(instance: Instance, seen: Any, name: str) -> Any:
    (id_,) = next(task for task in seen["tasks"] if task["name"] == "write")["outputs"][name]["artifact_ids"]
    return call(instance, "GET", f"/artifacts/{id_}")


@each_store
def test_a_pipeline_keeps_its_artifacts_there(store: Store, platform: Instance, tmp_path: Path) -> None:
    configure(platform, tmp_path, "kubeflow", store)
    root, name = f"{store.uri}/runs", f"in-{store.provider}"
    body = {
        "display_name": name,
        "pipeline_spec": document(name),
        "runtime_config": {"pipeline_root": root, "parameters": {}},
    }
    first = ended(platform, body)
    assert first["run"]["state"] == "SUCCEEDED", [task.get("error") for task in first["tasks"]]
    model, note = (artifact_of(platform, first, one) for one in ("model", "note"))
    assert model["uri"].startswith(f"{root}/{name}/{first['run']['run_id']}/write/")
    assert (model["size_bytes"], note["size_bytes"]) == ("3", "6")
    assert exists(f"{model['uri']}/answer", store.access)
    packed = content(platform, f"/apis/v2beta1/artifacts/{model['artifact_id']}:download")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        member = archive.extractfile("model/answer")
        assert member is not None
        assert member.read() == b"42\n"
    assert content(platform, f"/apis/v2beta1/artifacts/{note['artifact_id']}:download") == b"noted\n"
    bucket, _, key = note["uri"].partition("://")[2].partition("/")
    assert content(platform, f"/artifacts/get?source={store.source}&bucket={bucket}&key={key}&peek=4") == b"note"
    key = model["uri"].partition("://")[2].partition("/")[2]
    assert content(platform, f"/pipeline/artifacts/{store.source}/{bucket}/{key}/answer") == b"42\n"

    second = ended(platform, body)  # the folder of the first run is gone: its artifact is brought from the store
    states = {task["name"]: task["own_state"] for task in second["tasks"]}
    assert states == {"root": "SUCCEEDED", "write": "CACHED", "read": "SUCCEEDED"}
    delete(model["uri"], store.access)
    third = ended(platform, body)
    states = {task["name"]: task["own_state"] for task in third["tasks"]}
    assert states == dict.fromkeys(("root", "write", "read"), "SUCCEEDED")


def test_a_bucket_that_is_not_there_fails_the_task(s3: str, platform: Instance) -> None:
    config = {"pipeline_root": "s3://no-such-bucket/x?endpoint=" + s3}
    failed = ended(platform, {"display_name": "x", "pipeline_spec": document("nowhere"), "runtime_config": config})
    (error,) = (task["error"]["message"] for task in failed["tasks"] if task["name"] == "write")
    assert "s3://no-such-bucket/x/nowhere/" in error
    assert "cannot be stored" in error


def test_each_namespace_has_credentials_of_its_own(
    clouds: dict[str, dict[str, Store]], own_platform: Any, tmp_path: Path
) -> None:
    own_platform.up("--multi-user")
    experiments = {}
    for team in TEAMS:
        manifest = tmp_path / f"{team}-namespace.yaml"
        manifest.write_text(json.dumps({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": team}}))
        own_platform.command("apply", "-f", str(manifest))
        configure(own_platform, tmp_path, team, *clouds[team].values())
        experiment = {"display_name": "work", "namespace": team}
        experiments[team] = call(own_platform, "POST", "/experiments", experiment)["experiment_id"]

    def run(team: str, name: str, root: str) -> Any:
        body = {"display_name": "x", "pipeline_spec": document(name), "experiment_id": experiments[team]}
        return ended(own_platform, body | {"runtime_config": {"pipeline_root": root}})

    for team in TEAMS:
        for store in clouds[team].values():
            seen = run(team, store.provider, f"{store.uri}/own")
            assert seen["run"]["state"] == "SUCCEEDED", [task.get("error") for task in seen["tasks"]]
            assert exists(f"{artifact_of(own_platform, seen, 'model')['uri']}/answer", store.access)
    stolen = clouds["team-a"]["gs"]
    seen = run("team-b", "stolen", f"{stolen.uri}/stolen?endpoint={stolen.access.endpoint}")
    assert seen["run"]["state"] == "FAILED"
    assert not exists(f"{stolen.uri}/stolen", stolen.access)
