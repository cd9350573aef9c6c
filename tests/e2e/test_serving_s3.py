"""The storage initializer against an S3 server on loopback that refuses what is not signed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from shallop_pod.objectstores import sign

KEYS = ("me", "secret")
OBJECTS = {"models/iris/model.joblib": b"a" * 3_000_000, "models/iris/deep/more.bin": b"b", "models/other": b"c"}


class S3(BaseHTTPRequestHandler):
    """ListObjectsV2, one object a page, and GetObject of the bucket ``bucket``."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        names = self.headers.get("authorization", "").partition("SignedHeaders=")[2].partition(",")[0].split(";")
        own = ("x-amz-date", "x-amz-content-sha256")
        headers = {name: self.headers.get(name, "") for name in names if name and name not in own}
        at = datetime.strptime(self.headers.get("x-amz-date", "20000101T000000Z"), "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        url = f"http://{self.headers['host']}{self.path}"
        if sign(url, headers, KEYS, "us-east-1", at)["authorization"] != self.headers.get("authorization"):
            self.reply(403, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
        elif parts.query:
            self.list(parse_qs(parts.query))
        else:
            body = OBJECTS.get(unquote(parts.path).removeprefix("/bucket/"))
            self.reply(404, b"<Error><Code>NoSuchKey</Code></Error>") if body is None else self.reply(200, body)

    def list(self, query: dict[str, list[str]]) -> None:
        keys = sorted(key for key in OBJECTS if key.startswith(query.get("prefix", [""])[0]))
        start = int(query.get("continuation-token", ["0"])[0])
        item = "".join(f"<Contents><Key>{k}</Key><Size>1</Size></Contents>" for k in keys[start : start + 1])
        more = f"<NextContinuationToken>{start + 1}</NextContinuationToken>" if start + 1 < len(keys) else ""
        self.reply(200, f"<ListBucketResult>{item}{more}</ListBucketResult>".encode())

    def reply(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


@pytest.fixture
def store() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), S3) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def bring(uri: str, target: Path, store: str, secret: str = "secret") -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "AWS_ENDPOINT_URL": store, "AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": secret}
    env["TERMINATION_LOG"] = os.devnull
    command = [sys.executable, "-m", "shallop_pod.storage", uri, str(target)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_a_folder_of_a_bucket_is_brought_whole(store: str, tmp_path: Path) -> None:
    done = bring("s3://bucket/models/iris", tmp_path, store)
    assert done.returncode == 0, done.stderr
    files = {str(path.relative_to(tmp_path)): path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"model.joblib": 3_000_000, "deep/more.bin": 1}


def test_a_wrong_key_or_an_empty_prefix_is_told_in_one_line(store: str, tmp_path: Path) -> None:
    done = bring("s3://bucket/models/iris", tmp_path, store, secret="wrong")
    assert (done.returncode, "403 Forbidden (SignatureDoesNotMatch)" in done.stderr) == (1, True), done.stderr
    done = bring("s3://bucket/nothing", tmp_path, store)
    assert (done.returncode, "there is nothing at or below it" in done.stderr) == (1, True), done.stderr
    assert list(tmp_path.iterdir()) == []
