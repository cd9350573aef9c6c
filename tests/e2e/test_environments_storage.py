"""The storage initializer over HTTP, and its registry look-ups, against a server of the test."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
REGISTRY = "/api/model_registry/v1alpha3"


def packed(kind: str) -> bytes:
    data = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(data, "w") as archive:
            archive.writestr("folder/model.joblib", "weights")
    else:
        with tarfile.open(fileobj=data, mode="w:gz") as tar:
            info = tarfile.TarInfo("folder/model.joblib")
            info.size = 7
            tar.addfile(info, io.BytesIO(b"weights"))
    return data.getvalue()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = self.answer(self.path)
        self.send_response(200 if body is not None else 404)
        self.end_headers()
        self.wfile.write(body or b"")

    def answer(self, path: str) -> bytes | None:
        host, port = self.server.server_address[:2]
        found: dict[str, object] = {
            f"{REGISTRY}/registered_model?name=iris": {"id": "1"},
            f"{REGISTRY}/registered_models/1/versions?": {"items": [{"id": "2", "name": "v1"}]},
            f"{REGISTRY}/model_versions/2/artifacts?": {"items": [{"uri": f"http://{host}:{port}/model.joblib"}]},
        }
        for prefix, content in found.items():
            if path.startswith(prefix):
                return json.dumps(content).encode()
        if path == "/private.joblib" and self.headers.get("Authorization") != "Bearer t":
            return None
        files = {"/model.joblib": b"weights", "/private.joblib": b"weights", "/broken.zip": b"no zip"}
        return files.get(path) or {"/m.zip": packed("zip"), "/m.tar.gz": packed("tar")}.get(path)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def fetch(source: str, target: Path, **env: str) -> tuple[int, str]:
    clean = {"PYTHONPATH": str(SOURCE), "PATH": os.environ["PATH"], **env}
    command = [sys.executable, "-m", "shallop_pod.storage", source, str(target)]
    found = subprocess.run(command, env=clean, capture_output=True, text=True, check=False, timeout=60)
    return found.returncode, found.stderr


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/model.joblib", "model.joblib"),
        ("/m.zip", "folder/model.joblib"),
        ("/m.tar.gz", "folder/model.joblib"),
    ],
)
def test_files_and_archives_are_downloaded(url: str, tmp_path: Path, path: str, name: str) -> None:
    assert fetch(url + path, tmp_path / "t") == (0, "")
    assert (tmp_path / "t" / name).read_text() == "weights"


def test_headers_of_a_host_are_sent(url: str, tmp_path: Path) -> None:
    assert fetch(f"{url}/private.joblib", tmp_path / "t")[0] == 1
    headers = {"127.0.0.1-headers": json.dumps({"Authorization": "Bearer t"})}
    assert fetch(f"{url}/private.joblib", tmp_path / "t", **headers) == (0, "")


@pytest.mark.parametrize("source", ["model-registry://iris", "model-registry://model-registry-service:8080/iris"])
def test_a_model_of_the_registry_is_found_and_brought(url: str, tmp_path: Path, source: str) -> None:
    for base in (url, url.removeprefix("http://")):
        assert fetch(source, tmp_path / "t", MODEL_REGISTRY_BASE_URL=base) == (0, "")
    assert (tmp_path / "t" / "model.joblib").read_text() == "weights"


def test_errors_are_one_line(url: str, tmp_path: Path) -> None:
    expected = {
        f"{url}/absent.joblib": f"{url}/absent.joblib: the server answered 404 Not Found.\n",
        f"{url}/broken.zip": f"{url}/broken.zip: the archive is broken: File is not a zip file\n",
        "model-registry://rose": "model-registry://rose: the registry has no model 'rose'.\n",
    }
    for source, message in expected.items():
        assert fetch(source, tmp_path / "t", MODEL_REGISTRY_BASE_URL=url) == (1, message)
    code, message = fetch("model-registry://iris", tmp_path / "t", MODEL_REGISTRY_BASE_URL="http://127.0.0.1:9")
    assert code == 1 and "no connection" in message and "Traceback" not in message
    log = tmp_path / "termination-log"
    log.write_text("x" * 1000)
    _, message = fetch("model-registry://rose", tmp_path / "t", MODEL_REGISTRY_BASE_URL=url, TERMINATION_LOG=str(log))
    assert log.read_text() == message.strip()
    assert list((tmp_path / "t").iterdir()) == []
