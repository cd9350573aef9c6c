"""The storage initializer against servers on loopback: images of a registry, checksums, downloads that break off."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

USER = base64.b64encode(b"me:secret").decode()
INDEX = "application/vnd.oci.image.index.v1+json"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer(files: Mapping[str, bytes], *, zipped: bool = True, link: str = "") -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return gzip.compress(packed.getvalue(), mtime=0) if zipped else packed.getvalue()


class Images:
    """What a registry has, by path."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}

    def add(self, repository: str, *layers: bytes) -> str:
        """Store an image for this machine's platform among others; returns the digest of its index."""
        for data in layers:
            self.content[f"/v2/{repository}/blobs/{digest(data)}"] = data
        manifest = json.dumps({"layers": [{"digest": digest(data)} for data in layers]}).encode()
        other = {"digest": digest(b""), "platform": {"os": "linux", "architecture": "s390x"}}
        machine = {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine]
        own = {"digest": digest(manifest), "platform": {"os": "linux", "architecture": machine}}
        index = json.dumps({"mediaType": INDEX, "manifests": [other, own]}).encode()
        for name, data in ((digest(manifest), manifest), (digest(index), index), ("1", index)):
            self.content[f"/v2/{repository}/manifests/{name}"] = data
        return digest(index)


def registry(images: Images) -> type[BaseHTTPRequestHandler]:
    """Return a registry as the public ones are: a token for each repository, blobs elsewhere."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            authorization = self.headers.get("Authorization", "")
            if self.path.startswith("/token"):
                private = "scope=repository%3Aprivate" in self.path
                if private and authorization != f"Basic {USER}":
                    self.reply(401)
                else:
                    self.reply(200, b'{"token": "ticket"}')
            elif self.path.startswith("/elsewhere"):
                # Storage that signs its addresses refuses what comes with further credentials.
                self.reply(400) if authorization else self.reply(200, images.content[self.path[len("/elsewhere") :]])
            elif authorization != "Bearer ticket":
                host, repository = self.headers["Host"], self.path.split("/")[2]
                challenge = f'Bearer realm="http://{host}/token",service="tests",scope="repository:{repository}:pull"'
                self.reply(401, **{"WWW-Authenticate": challenge})
            elif "/blobs/" in self.path:
                self.reply(307, Location=f"/elsewhere{self.path}")
            else:
                body = images.content.get(self.path)
                self.reply(404) if body is None else self.reply(200, body)

        def reply(self, code: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Be quiet."""

    return Handler


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve on loopback; gives host and port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def bring(uri: str, target: Path, **environ: str) -> tuple[dict[str, bytes], str]:
    """Return what there is afterwards, and what was said if it failed."""
    command = [sys.executable, "-m", "shallop_pod.storage", uri, str(target)]
    env = {**os.environ, "TERMINATION_LOG": os.devnull, **environ}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    files = {str(path.relative_to(target)): path.read_bytes() for path in target.rglob("*") if path.is_file()}
    assert (done.returncode == 0) == bool(files), done.stderr
    return files, done.stderr if done.returncode else ""


def test_a_model_image_is_pulled_from_a_registry(tmp_path: Path) -> None:
    images = Images()
    base = layer({"etc/os-release": b"os", "models/old.bin": b"old", "models/deep/a": b"a" * 3_000_000})
    top = layer({"./models/.wh.old.bin": b"", "models/deep/a": b"new", "/models/model.joblib": b"m"}, zipped=False)
    index = images.add("iris", base, top)
    images.add("private/iris", base)
    images.add("links", layer({"models/x": b"x"}, link="models/evil"))
    images.add("outside", layer({"models/../../evil": b"x", "models/../models/../../evil": b"x"}))
    images.add("empty", layer({"etc/os-release": b"os"}))
    images.add("broken", base)
    images.content[f"/v2/broken/blobs/{digest(base)}"] = base[:-9] + b"different"
    expected = {"deep/a": b"new", "model.joblib": b"m"}
    with serving(registry(images)) as host:
        for number, uri in enumerate((f"oci://{host}/iris:1", f"oci+native://{host}/iris@{index}")):
            assert bring(uri, tmp_path / str(number)) == (expected, "")
        config = {"auths": {"other.test": {"auth": "x"}, f"http://{host}": {"username": "me", "password": "secret"}}}
        files, _ = bring(f"oci://{host}/private/iris:1", tmp_path / "p", OCI_DOCKER_CONFIG_0=json.dumps(config))
        assert set(files) == {"old.bin", "deep/a"}
        for uri, problem in (
            ("private/iris:1", "401"),
            ("none:1", "404"),
            ("links:1", "models/evil is no file"),
            ("empty:1", "no model files in /models"),
            ("outside:1", "no model files in /models"),
            ("broken:1", "a layer has the digest"),
            (f"iris@{digest(b'')}", "404"),
            ("IRIS", "write oci://REGISTRY/REPOSITORY"),
        ):
            said = bring(f"oci://{host}/{uri}", tmp_path / "failed")[1]
            assert problem in said and said.count("\n") == 1, (uri, said)
    assert not list(tmp_path.rglob("evil"))


def test_a_file_that_is_not_what_was_declared_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.joblib"
    file.write_bytes(b"model")
    right, wrong = hashlib.sha256(b"model").hexdigest(), hashlib.sha256(b"other").hexdigest()
    images = Images()
    images.content["/model.joblib"] = b"model"

    class Files(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"model")

        def log_message(self, format: str, *args: object) -> None:
            """Be quiet."""

    with serving(Files) as host:
        for number, uri in enumerate((f"http://{host}/model.joblib", f"file://{file}")):
            assert bring(f"{uri}#sha256={right}", tmp_path / f"a{number}") == ({"model.joblib": b"model"}, "")
            assert bring(uri, tmp_path / f"b{number}", STORAGE_SHA256=right.upper())[1] == ""
            said = bring(f"{uri}#sha256={wrong}", tmp_path / "none")[1]
            assert f"checksum mismatch: sha256 is {right}, {wrong} was declared" in said
            assert "checksum mismatch" in bring(uri, tmp_path / "none", STORAGE_SHA256=wrong)[1]
    assert "it is for one file" in bring(f"file://{tmp_path}#sha256={right}", tmp_path / "none")[1]


def test_a_download_that_breaks_off_goes_on_where_it_was(tmp_path: Path) -> None:
    content, ranges = os.urandom(3_000_000), list[Any]()

    class Weak(BaseHTTPRequestHandler):
        """Gives a third at a time; the version changes once, and then what came before must not be used."""

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            ranges.append(asked)
            version = '"1"' if len(ranges) == 1 else '"2"'
            whole = b"x" * len(content) if len(ranges) == 1 else content
            start = int(asked[6:-1]) if asked and self.headers.get("If-Range") == version else 0
            self.send_response(206 if start else 200)
            self.send_header("ETag", version)
            self.send_header("Content-Length", str(len(whole) - start))
            self.end_headers()
            self.wfile.write(whole[start : start + 1_000_000])

        def log_message(self, format: str, *args: object) -> None:
            """Be quiet."""

    class Dead(Weak):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "10")
            self.end_headers()
            self.wfile.write(b"12345")

    with serving(Weak) as host:
        files, _ = bring(f"http://{host}/model.bin", tmp_path / "weak")
    assert files == {"model.bin": content}
    assert ranges == [None, "bytes=1000000-", "bytes=1000000-", "bytes=2000000-"]
    with serving(Dead) as host:
        assert "it ended after 5 of 10 bytes, 5 times" in bring(f"http://{host}/model.bin", tmp_path / "dead")[1]
