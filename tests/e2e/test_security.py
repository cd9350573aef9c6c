"""What others on this machine, pages in the browser, uploads and Pods can not do to a running platform."""

from __future__ import annotations

import gzip
import http.client
import io
import json
import os
import socket
import ssl
import stat
import subprocess
import tarfile
import textwrap
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

SECRET = "only-for-the-platform-7f3a"
SECRETS = {"AWS_SECRET_ACCESS_KEY": SECRET, "KUBECONFIG": f"/{SECRET}", "MY_PASSWORD": SECRET}
ORIGINS = ("api", "web", "content", "gateway")
READS = {"api": "/api/v1/secrets", "web": "/apis/v2beta1/runs", "content": "/healthz", "gateway": "/v1/models/x"}
FOREIGN = ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1.nip.io"]
TRAVERSALS = ["../" * 8 + "etc/passwd", "..%2f" * 8 + "etc%2fpasswd", "%2e%2e/" * 8 + "etc/passwd", "/etc/passwd"]


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, platform: Any) -> Iterator[Any]:
    """A platform that was started by someone with secrets in the environment."""
    instance = type(platform)(tmp_path_factory.mktemp("guarded") / "home")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        instance.up()
    yield instance
    instance.down()


def call(url: str, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
    """Send a request exactly as written: the path is not tidied, ``Host=""`` sends none."""
    parts = urlsplit(url)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        context = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(parts.hostname or "", parts.port, timeout=60, context=context)
    else:
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    try:
        connection.putrequest(method, path, skip_host=True)
        if host := headers.pop("Host", parts.netloc):
            connection.putheader("Host", host)
        for name, value in headers.items():
            connection.putheader(name.replace("_", "-"), value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders()
        if body is not None:
            # A server that refuses may answer and close before it has read everything.
            try:
                connection.send(body)
            except (BrokenPipeError, ConnectionResetError):
                pass
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def authorized(platform: Any, origin: str) -> dict[str, str]:
    token = (platform.home / "token").read_text().strip()
    return {"Authorization": f"Bearer {token}"} if origin == "api" else {}


def experiments(platform: Any) -> int:
    listed = json.loads(call(platform.web, "GET", "/apis/v2beta1/experiments").body)
    return len(listed.get("experiments") or ())


def pipelines(platform: Any) -> int:
    return len(json.loads(call(platform.web, "GET", "/apis/v2beta1/pipelines").body).get("pipelines") or ())


# ---- who may connect


def test_nothing_listens_beyond_this_machine(guarded: Any) -> None:
    inodes = set()
    for link in Path(f"/proc/{guarded.pid}/fd").iterdir():
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{guarded.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                listening.append((table, fields[1].partition(":")[0]))
    assert len(listening) >= len(ORIGINS)
    for table, address in listening:
        assert table == "tcp", address
        # Service addresses are on a bridge of this machine that no network card belongs to.
        assert socket.inet_ntoa(bytes.fromhex(address)[::-1]).startswith(("127.", "10.96.")), address


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1"])
def test_a_public_address_is_refused_at_start(tmp_path: Path, platform: Any, host: str) -> None:
    instance = type(platform)(tmp_path / "home")
    done = instance.command("up", "--detach", "--port", "auto", "--host", host, check=False)
    assert done.returncode == 1
    assert "host" in done.stderr


@pytest.mark.parametrize(
    "given", [None, "Bearer wrong", "Bearer ", "Basic YWRtaW46YWRtaW4=", "TOKEN", "Bearer TOKENx", "Bearer OKEN"]
)
@pytest.mark.parametrize("path", ["/api/v1/secrets", "/api/v1/namespaces/default/pods/x/log", "/openapi/v2", "/apis"])
def test_the_api_wants_the_token(guarded: Any, given: str | None, path: str) -> None:
    token = (guarded.home / "token").read_text().strip()
    header = given.replace("TOKEN", token).replace("OKEN", token[1:]) if given else None
    answer = call(guarded.api, "GET", path, **({"Authorization": header} if header else {}))
    # Like Kubernetes: without credentials one is system:anonymous, who may do nothing (403).
    assert answer.status == (401 if given else 403), answer.body
    assert token.encode() not in answer.body


def test_a_write_without_token_creates_nothing(guarded: Any) -> None:
    body = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "planted"}}).encode()
    path = "/api/v1/namespaces/default/configmaps"
    assert call(guarded.api, "POST", path, body, Content_Type="application/json").status in (401, 403)
    assert call(guarded.api, "GET", f"{path}/planted", **authorized(guarded, "api")).status == 404


# ---- what a web page may do


@pytest.mark.parametrize("host", [*FOREIGN, ""])
@pytest.mark.parametrize("origin", ["api", "web", "content"])
def test_a_foreign_name_for_this_server_is_refused(guarded: Any, origin: str, host: str) -> None:
    """DNS rebinding: a page's own name is made to resolve to loopback."""
    answer = call(getattr(guarded, origin), "GET", READS[origin], Host=host, **authorized(guarded, origin))
    # HTTP/1.1 without Host may also be refused as malformed.
    assert answer.status in ((403,) if host else (400, 403)), answer.body


@pytest.mark.parametrize("host", FOREIGN)
def test_the_gateway_has_nothing_but_predictions_for_a_foreign_name(guarded: Any, host: str) -> None:
    """It routes by Host, and by path for any Host, so that a reverse proxy may stand before it; no API is behind."""
    for path in ("/", "/api/v1/secrets", "/apis/v2beta1/runs", "/ui/v1/overview"):
        assert call(guarded.gateway, "GET", path, Host=host).status == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "CONTENT"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "same-site", "Origin": "CONTENT"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded"])
def test_pages_of_other_sites_change_nothing(guarded: Any, headers: dict[str, str], content_type: str) -> None:
    sent = {name: value.replace("CONTENT", guarded.content) for name, value in headers.items()}
    before = experiments(guarded)
    bodies = {
        "/apis/v2beta1/experiments": b'{"display_name": "planted"}',
        "/api/model_registry/v1alpha3/registered_models": b'{"name": "planted"}',
        "/ui/v1/endpoints/default/x:predict": b"{}",
    }
    for path, body in bodies.items():
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            answer = call(guarded.web, method, path, body, **sent, Content_Type=content_type)
            assert answer.status == 403, (method, path, answer.body)
    answer = call(guarded.content, "POST", "/artifacts/1/html", b"", **sent)
    assert answer.status in (403, 405)  # its own pages may ask; there is nothing to write
    assert experiments(guarded) == before


def test_our_own_page_and_programs_may_write(guarded: Any) -> None:
    for headers in ({}, {"Origin": guarded.web}, {"Origin": guarded.web, "Sec-Fetch-Site": "same-origin"}):
        body = json.dumps({"display_name": f"own {len(headers)}"}).encode()
        answer = call(guarded.web, "POST", "/apis/v2beta1/experiments", body, **headers)
        assert answer.status == 200, answer.body


@pytest.mark.parametrize("origin", ORIGINS)
def test_other_sites_may_not_read_what_is_answered(guarded: Any, origin: str) -> None:
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    for method in ("GET", "OPTIONS"):
        answer = call(getattr(guarded, origin), method, READS[origin], **asked, **authorized(guarded, origin))
        assert not [name for name in answer.headers if name.startswith("access-control-")], answer.headers
        assert method == "GET" or answer.status >= 400


# ---- paths that lead elsewhere


@pytest.mark.parametrize("leading", TRAVERSALS)
@pytest.mark.parametrize(
    ("origin", "prefix", "suffix"),
    [
        ("web", "/assets/", ""),
        ("web", "/", ""),
        ("web", "/apis/v2beta1/artifacts/", ":download"),
        ("web", "/apis/v2beta1/runs/", ""),
        ("web", "/apis/v2beta1/runs/x/tasks/", "/log"),
        ("web", "/apis/v1alpha1/runs/", "/nodes/x/log"),
        ("web", "/apis/v2beta1/pipelines/", "/versions/x"),
        ("web", "/api/model_registry/v1alpha3/registered_models/", ""),
        ("web", "/ui/v1/endpoints/default/", "/example"),
        ("content", "/artifacts/", "/html"),
        ("content", "/", ""),
        ("api", "/api/v1/namespaces/default/pods/", "/log"),
        ("api", "/api/v1/namespaces/", "/pods/x/log"),
        ("api", "/", ""),
        ("gateway", "/", ""),
    ],
)
def test_no_path_leads_to_files(guarded: Any, origin: str, prefix: str, suffix: str, leading: str) -> None:
    path = prefix + leading + suffix
    answer = call(getattr(guarded, origin), "GET", path, **authorized(guarded, origin))
    assert 400 <= answer.status < 500, (path, answer.status, answer.body[:300])
    assert b"root:" not in answer.body


@pytest.mark.parametrize("name", ["../../escape", "/etc/passwd", "a/b", "..", "a\u0000b"])
def test_names_that_are_paths_are_refused(guarded: Any, name: str) -> None:
    pod = pod_of("true")
    pod["metadata"]["name"] = name
    for kind in ("pods", "persistentvolumeclaims", "configmaps"):
        body = pod if kind == "pods" else {"apiVersion": "v1", "metadata": {"name": name}}
        body = body | {"kind": {"pods": "Pod", "configmaps": "ConfigMap"}.get(kind, "PersistentVolumeClaim")}
        path = f"/api/v1/namespaces/default/{kind}"
        answer = call(guarded.api, "POST", path, json.dumps(body).encode(), **authorized(guarded, "api"))
        assert answer.status == 422, answer.body
        assert b"metadata.name" in answer.body


@pytest.mark.parametrize(
    ("metadata", "field"),
    [
        ({"name": "x" * 254}, "metadata.name"),
        ({"name": "a", "labels": {"k": "x" * 64}}, "metadata.labels"),
        ({"name": "a", "labels": {"x" * 64: "v"}}, "metadata.labels"),
        ({"name": "a", "annotations": {"k": "x" * (256 * 1024)}}, "metadata.annotations"),
        ({"generateName": "x" * 300}, "metadata.generateName"),
    ],
)
def test_names_labels_and_annotations_have_a_longest_form(guarded: Any, metadata: dict[str, Any], field: str) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
    path = "/api/v1/namespaces/default/configmaps"
    answer = call(guarded.api, "POST", path, json.dumps(body).encode(), **authorized(guarded, "api"))
    assert answer.status == 422, answer.body[:300]
    assert field in {cause["field"] for cause in json.loads(answer.body)["details"]["causes"]}, answer.body[:600]


# ---- uploads


def zip_of(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def tar_of(*members: tuple[str, bytes, bytes, str]) -> bytes:
    """Pack ``(name, content, type, link target)``."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, content, type_, target in members:
            info = tarfile.TarInfo(name)
            info.size, info.type, info.linkname = len(content), type_, target
            archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def doubling(lines: int) -> bytes:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    for i in range(lines):
        text += f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]\n"
    return text.encode()


def merging(lines: int) -> bytes:
    text = "a0: &a0 {k: v}\n"
    for i in range(lines):
        text += f"a{i + 1}: &a{i + 1}\n  <<: [{', '.join([f'*a{i}'] * 9)}]\n"
    return text.encode()


BOMBS = {
    "aliases.yaml": doubling(12),
    "merge-keys.yaml": merging(12),
    "deep-flow.yaml": b"a: " + b"[" * 100_000 + b"]" * 100_000,
    "deep-block.yaml": b"- " * 100_000,
    "cycle.yaml": b"a: &a [*a]",
}
UPLOADS = {
    **BOMBS,
    "escape.zip": zip_of({"../../escape.yaml": b"a: 1"}),
    "absolute.zip": zip_of({"/tmp/escape.yaml": b"a: 1"}),
    "bomb.zip": zip_of({"pipeline.yaml": b"\n" * (200 << 20)}),
    "bomb-inside.zip": zip_of({"pipeline.yaml": doubling(12)}),
    "escape.tar.gz": tar_of(("../../escape.yaml", b"a: 1", tarfile.REGTYPE, "")),
    "absolute.tar.gz": tar_of(("/tmp/escape.yaml", b"a: 1", tarfile.REGTYPE, "")),
    "link.tar.gz": tar_of(("pipeline.yaml", b"", tarfile.SYMTYPE, "/etc/passwd")),
    "hard-link.tar.gz": tar_of(("pipeline.yaml", b"", tarfile.LNKTYPE, "/etc/passwd")),
    "file-then-link.tar.gz": tar_of(
        ("pipeline.yaml", b"a: 1", tarfile.REGTYPE, ""), ("pipeline.yaml", b"", tarfile.SYMTYPE, "/etc/passwd")
    ),
    "device.tar.gz": tar_of(("pipeline.yaml", b"", tarfile.CHRTYPE, "")),
    "bomb.gz": gzip.compress(b"\n" * (200 << 20)),
    "cut.zip": zip_of({"pipeline.yaml": b"a: 1"})[:40],
    "cut.tar.gz": tar_of(("pipeline.yaml", os.urandom(20000), tarfile.REGTYPE, ""))[:9000],
}


def upload(platform: Any, name: str, content: bytes) -> Answer:
    head = f'--b\r\nContent-Disposition: form-data; name="uploadfile"; filename="{name}"\r\n\r\n'.encode()
    body = head + content + b"\r\n--b--\r\n"
    path = "/apis/v2beta1/pipelines/upload?name=planted"
    return call(platform.web, "POST", path, body, Content_Type="multipart/form-data; boundary=b")


@pytest.mark.parametrize("name", UPLOADS)
def test_a_hostile_upload_is_refused_and_leaves_nothing(guarded: Any, name: str) -> None:
    before, files = pipelines(guarded), sorted(os.listdir("/tmp"))
    started = time.monotonic()
    answer = upload(guarded, f"../../{name}", UPLOADS[name])
    assert answer.status in (400, 413), answer.body[:500]
    assert time.monotonic() - started < 10
    assert b"root:" not in answer.body
    if (name in BOMBS or "bomb" in name) and name != "merge-keys.yaml":
        assert name.encode() in answer.body, answer.body[:500]  # says which file
    assert b"internal error" not in answer.body.lower()
    assert pipelines(guarded) == before
    assert not {"escape.yaml", "etc"} & (set(os.listdir("/tmp")) - set(files))


@pytest.mark.parametrize("name", BOMBS)
def test_yaml_that_expands_is_refused_everywhere(guarded: Any, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(BOMBS[name])
    started = time.monotonic()
    done = guarded.command("apply", "-f", str(file), check=False)
    assert done.returncode == 1
    assert str(file) in done.stderr and "Traceback" not in done.stderr, done.stderr[-2000:]
    path, headers = "/api/v1/namespaces/default/configmaps", authorized(guarded, "api")
    answer = call(guarded.api, "POST", path, BOMBS[name], **headers, Content_Type="application/yaml")
    assert answer.status == 400, answer.body[:300]
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("origin", "method", "path", "size"),
    [
        ("web", "POST", "/apis/v2beta1/runs", 60 << 20),
        ("web", "POST", "/apis/v2beta1/pipelines/upload", 60 << 20),
        ("web", "POST", "/api/model_registry/v1alpha3/registered_models", 60 << 20),
        ("web", "PATCH", "/api/model_registry/v1/registered_models/1", 60 << 20),
        ("api", "POST", "/api/v1/namespaces/default/configmaps", 4 << 20),
        ("api", "PATCH", "/api/v1/namespaces/default/configmaps/x", 4 << 20),
    ],
)
def test_huge_bodies_are_refused(guarded: Any, origin: str, method: str, path: str, size: int) -> None:
    types = {"POST": "application/json", "PATCH": "application/merge-patch+json"}
    headers = {"Content_Type": types[method], **authorized(guarded, origin)}
    if path.endswith("upload"):
        headers["Content_Type"] = "multipart/form-data; boundary=b"
    body = b'{"name": "' + b"x" * size + b'"}'
    assert call(getattr(guarded, origin), method, path, body, **headers).status == 413


@pytest.mark.parametrize(
    ("origin", "path"),
    [
        ("web", "/apis/v2beta1/runs"),
        ("web", "/api/model_registry/v1/registered_models"),
        ("api", "/api/v1/namespaces/default/configmaps"),
    ],
)
def test_a_body_that_is_announced_too_large_is_refused_before_it_comes(guarded: Any, origin: str, path: str) -> None:
    headers = {"Content_Length": str(100 << 20), "Content_Type": "application/json", **authorized(guarded, origin)}
    # Nothing of the body is sent: whoever waits for it does not answer.
    assert call(getattr(guarded, origin), "POST", path, **headers).status == 413


@pytest.mark.parametrize("origin", ["api", "web", "content"])
def test_a_head_without_end_is_refused(guarded: Any, origin: str) -> None:
    many = {f"X_Header_{number}": "x" for number in range(300)}
    assert call(getattr(guarded, origin), "GET", READS[origin], **many).status == 431


@pytest.mark.parametrize(
    ("origin", "path"),
    [
        ("web", "/apis/v2beta1/experiments"),
        ("web", "/apis/v2beta1/runs"),
        ("web", "/api/model_registry/v1/registered_models"),
        ("api", "/api/v1/namespaces/default/configmaps"),
    ],
)
def test_deep_json_is_a_bad_request(guarded: Any, origin: str, path: str) -> None:
    body = b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    answer = call(getattr(guarded, origin), "POST", path, body, **authorized(guarded, origin))
    assert answer.status == 400, answer.body[:300]


# ---- what Pods see


def pod_of(code: str, **spec: Any) -> dict[str, Any]:
    container = {"name": "main", "image": "python:3.11", "command": ["python", "-c", textwrap.dedent(code)]}
    container |= spec.pop("container", {})
    body = {"restartPolicy": "Never", "containers": [container], **spec}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "peek"}, "spec": body}


def ended(platform: Any, pod: dict[str, Any], name: str) -> str:
    """Run a Pod to its end; returns what it printed."""
    pod["metadata"]["name"] = name
    platform.kubectl("create", "-f", "-", stdin=json.dumps(pod))
    deadline = time.monotonic() + 60
    while (phase := platform.kubectl("get", "pod", name, "-o", "jsonpath={.status.phase}")) not in (
        "Succeeded",
        "Failed",
    ):
        assert time.monotonic() < deadline, platform.kubectl("describe", "pod", name)
        time.sleep(0.1)
    text: str = platform.kubectl("logs", name)
    assert phase == "Succeeded", text
    return text


def test_pods_see_neither_environment_nor_data_of_the_platform(guarded: Any, kubectl: str) -> None:
    code = f"""
        import glob, json, os
        home = {str(guarded.home)!r}
        names = ["token", "objects.db", "rows.db", "kubeconfig", "tls", "shallop.log", "status.json", "volumes", "logs"]
        environs = [open(path, "rb").read() for path in glob.glob("/proc/[0-9]*/environ")]
        print(json.dumps({{
            "environ": dict(os.environ),
            "others": [text.decode() for text in environs],
            "seen": [name for name in names if os.path.exists(os.path.join(home, name))],
            "pods": os.listdir(os.path.join(home, "pods")) if os.path.isdir(os.path.join(home, "pods")) else [],
            "fds": len(os.listdir("/proc/self/fd")),
        }}))
    """
    seen = json.loads(ended(guarded, pod_of(code), "peek"))
    assert SECRET not in json.dumps(seen)
    assert not set(SECRETS) & set(seen["environ"])
    assert not [name for name in seen["environ"] if name.startswith(("SHALLOP_", "PYTEST_", "AWS_"))]
    assert seen["fds"] <= 4  # three and the folder that is being listed
    node = json.loads(guarded.kubectl("get", "node", "-o", "json"))["items"][0]
    if os.geteuid() == 0:
        assert seen["seen"] == [], node["metadata"]
        assert len(seen["pods"]) <= 1


def test_without_namespaces_pods_get_no_environment_either(tmp_path: Path, platform: Any, kubectl: str) -> None:
    instance = type(platform)(tmp_path / "home")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SECRETS.items():
            patch.setenv(name, value)
        instance.up("--isolation", "none")
    try:
        code = "import os, json; print(json.dumps(dict(os.environ)))"
        assert SECRET not in ended(instance, pod_of(code), "peek")
    finally:
        instance.down()


def test_processes_of_the_node_carry_no_secret(guarded: Any, kubectl: str) -> None:
    code = "import time; time.sleep(60)"
    guarded.kubectl("create", "-f", "-", stdin=json.dumps(pod_of(code) | {"metadata": {"name": "sleeper"}}))
    guarded.kubectl("wait", "pod/sleeper", "--for=condition=Ready", "--timeout=60s")
    mark = str(guarded.home).encode()
    carried = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == guarded.pid:
            continue
        try:
            command, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
        except OSError:
            continue
        if mark in command or mark in environment:
            carried.append(command)
            assert SECRET.encode() not in environment, command
    assert carried
    guarded.kubectl("delete", "pod", "sleeper", "--now")


@pytest.mark.parametrize(
    ("name", "sub"), [("dots", "../../../token"), ("absolute", "/etc"), ("link", "out"), ("chain", "out/tls")]
)
def test_a_sub_path_stays_in_its_claim(guarded: Any, kubectl: str, name: str, sub: str) -> None:
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}},
    }
    guarded.kubectl("create", "-f", "-", stdin=json.dumps(claim))
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": name}}]
    whole = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    code = f"import os; os.symlink({str(guarded.home)!r}, '/data/out')"
    ended(guarded, pod_of(code, container=whole, volumes=volumes), f"linker-{name}")
    part = {"volumeMounts": [{"name": "data", "mountPath": "/data", "subPath": sub}]}
    pod = pod_of("import os; print(os.listdir('/data'))", container=part, volumes=volumes)
    pod["metadata"]["name"] = f"reader-{name}"
    answer = guarded.kubectl("create", "-f", "-", stdin=json.dumps(pod), check=False)
    if "created" not in answer:
        assert "subPath" in answer
        return
    deadline = time.monotonic() + 30
    while "subPath" not in (text := guarded.kubectl("describe", "pod", f"reader-{name}")):
        assert time.monotonic() < deadline, text
        time.sleep(0.1)
    assert "Succeeded" not in text


def test_files_of_a_config_map_stay_in_their_volume(guarded: Any, kubectl: str) -> None:
    guarded.kubectl("create", "configmap", "texts", "--from-literal=a=b")
    items = [{"key": "a", "path": "../../../../escape"}]
    pod = pod_of("pass", volumes=[{"name": "v", "configMap": {"name": "texts", "items": items}}])
    pod["metadata"]["name"] = "escaping"
    guarded.kubectl("create", "-f", "-", stdin=json.dumps(pod))
    deadline = time.monotonic() + 30
    while "leaves the volume" not in (text := guarded.kubectl("describe", "pod", "escaping")):
        assert time.monotonic() < deadline, text
        time.sleep(0.1)
    assert "Succeeded" not in text


# ---- files


def test_files_of_the_platform_are_private(guarded: Any) -> None:
    # What Pods write or see has the modes that they need; nobody else can enter the folders above it.
    of_pods = {"pods", "volumes", "artifacts", "logs", "run"}
    assert stat.S_IMODE(guarded.home.stat().st_mode) == 0o700
    readable = []
    for folder, folders, files in os.walk(guarded.home):
        if Path(folder) == guarded.home:
            folders[:] = [name for name in folders if name not in of_pods]
        for name in (*folders, *files):
            path = Path(folder, name)
            mode = path.lstat().st_mode
            if not stat.S_ISLNK(mode) and mode & 0o077:
                readable.append((oct(stat.S_IMODE(mode)), str(path.relative_to(guarded.home))))
    assert readable == []
    for name in of_pods:
        assert stat.S_IMODE((guarded.home / name).stat().st_mode) == 0o700


# ---- artifacts whose place user code chose

LEAVING = """
import os, sys
import kfp
from kfp import dsl

@dsl.component(base_image="python:3.11")
def link(out: dsl.Output[dsl.Artifact]):
    import os
    os.symlink("/etc/passwd", out.path)

@dsl.component(base_image="python:3.11")
def elsewhere(out: dsl.Output[dsl.Artifact]):
    out.uri = "/etc/passwd"

@dsl.component(base_image="python:3.11")
def folder(out: dsl.Output[dsl.Artifact]):
    import os
    os.makedirs(out.path)
    os.symlink("/etc/passwd", out.path + "/inner")

@dsl.pipeline
def leaving():
    link()
    elsewhere()
    folder()
    dsl.importer(artifact_uri="file:///etc/passwd", artifact_class=dsl.Artifact)

client = kfp.Client(host=sys.argv[1])
run = client.create_run_from_pipeline_func(leaving, enable_caching=False)
print(client.wait_for_run_completion(run.run_id, timeout=90, sleep_duration=1).state)
"""


@pytest.mark.timeout(200)
def test_artifacts_outside_of_the_store_cannot_be_downloaded(
    guarded: Any, client_env: Callable[[str], Path], tmp_path: Path
) -> None:
    script = tmp_path / "leaving.py"
    script.write_text(LEAVING)
    command = [str(client_env("demo")), "-W", "ignore", str(script), guarded.web]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    listed = json.loads(call(guarded.web, "GET", "/apis/v2beta1/artifacts").body)["artifacts"]
    assert len(listed) >= 3, done.stdout
    for artifact in listed:
        for suffix in (":download", ":download?peek=100"):
            answer = call(guarded.web, "GET", f"/apis/v2beta1/artifacts/{artifact['artifact_id']}{suffix}")
            content = answer.body
            if answer.status == 200 and content[:2] == b"\x1f\x8b":
                content = gzip.decompress(content)
            assert b"root:" not in content, artifact
        assert call(guarded.content, "GET", f"/artifacts/{artifact['artifact_id']}/html").status in (403, 404, 415)
