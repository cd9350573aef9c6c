"""Logging in to a cluster by a command, a rotating token, a client certificate, through a proxy; over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import stat
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from shallop.errors import UnauthorizedError, UnavailableError
from shallop.kube.credentials import Credentials, ExecPlugin
from shallop.kube.kubeconfig import load_kubeconfig
from shallop.kube.objects import Gvk
from shallop.kube.remote import RemoteClient


def plugin(tmp_path: Path, output: Any, **fields: Any) -> ExecPlugin:
    script = tmp_path / "login"
    script.write_text(
        f"#!/bin/sh\necho \"$KUBERNETES_EXEC_INFO\" >'{tmp_path}/info'\ncat <<'E'\n{json.dumps(output)}\nE\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    section = {"apiVersion": "client.authentication.k8s.io/v1", "command": "./login", "interactiveMode": "Never"}
    return ExecPlugin.parse(section | fields, tmp_path, {"server": "https://127.0.0.1:1"})


def credential(**status: str) -> dict[str, Any]:
    return {"kind": "ExecCredential", "apiVersion": "client.authentication.k8s.io/v1", "status": status}


def test_a_login_command_is_told_of_the_cluster_and_asked_again_when_its_answer_expires(tmp_path: Path) -> None:
    asked = plugin(
        tmp_path, credential(token="abc", expirationTimestamp="2020-01-01T00:00:00Z"), provideClusterInfo=True
    )
    grant = asked()
    assert (grant.token, grant.until) == ("abc", 1577836800.0)
    info = json.loads((tmp_path / "info").read_text())
    assert info["spec"] == {"interactive": False, "cluster": {"server": "https://127.0.0.1:1"}}
    (tmp_path / "info").unlink()
    credentials = Credentials(asked, None)
    asyncio.run(credentials.login())
    (tmp_path / "info").unlink()
    asyncio.run(credentials.login())
    assert (tmp_path / "info").exists()


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ({"kind": "Pod", "apiVersion": "v1"}, "kind and apiVersion must be"),
        (credential(), "neither a token nor a client certificate"),
        (credential(clientCertificateData="x"), "neither a token nor a client certificate"),
    ],
)
def test_a_login_command_that_prints_something_else_is_said(tmp_path: Path, output: Any, problem: str) -> None:
    with pytest.raises(UnauthorizedError, match=problem):
        plugin(tmp_path, output)()


def test_a_login_command_that_is_not_there_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UnauthorizedError, match=r"failed: .*Get it from the shop"):
        plugin(tmp_path, {}, command="./other", installHint="Get it from the shop")()
    with pytest.raises(UnauthorizedError, match="needs a terminal"):
        plugin(tmp_path, {}, interactiveMode="Always")()


def kubeconfig(file: Path, server: str, user: dict[str, Any], **cluster: Any) -> Path:
    config = {
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server, **cluster}}],
        "users": [{"name": "u", "user": user}],
    }
    file.write_text(yaml.safe_dump(config))
    return file


class Authority:
    """A certificate authority that signs what a server and its users show."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test-ca")])
        self.write("ca", "test-ca", ca=True)

    def write(self, file: str, common_name: str, *, ca: bool = False) -> None:
        key = self.key if ca else ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        names = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(names, critical=False)
        )
        pem = serialization.Encoding.PEM
        certificate = builder.sign(self.key, hashes.SHA256()).public_bytes(pem)
        (self.folder / f"{file}.crt").write_bytes(certificate)
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        (self.folder / f"{file}.key").write_bytes(private)


@contextlib.asynccontextmanager
async def mutual_tls(folder: Path, welcome: set[str]) -> AsyncIterator[str]:
    """An API server that knows its users by their certificates; yields its URL."""

    def who(request: web.Request) -> str:
        subject = request.transport.get_extra_info("peercert")["subject"] if request.transport else ()
        return dict(pair for pairs in subject for pair in pairs)["commonName"]

    async def answer(request: web.Request) -> web.Response:
        if who(request) not in welcome:
            return web.json_response({"kind": "Status", "code": 401, "reason": "Unauthorized"}, status=401)
        if request.path == "/api/v1":
            types = [{"name": "configmaps", "kind": "ConfigMap", "namespaced": True, "verbs": ["get"]}]
            return web.json_response({"resources": types})
        return web.json_response({"kind": "ConfigMap", "metadata": {"name": "who"}, "data": {"user": who(request)}})

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    context.load_verify_locations(folder / "ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    try:
        yield f"https://localhost:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def test_a_client_certificate_is_shown_and_read_again_when_it_was_replaced(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.write("server", "server")
    authority.write("me", "first")
    welcome = {"first"}
    user = {"client-certificate": "me.crt", "client-key": "me.key"}

    async def use() -> list[str]:
        async with mutual_tls(tmp_path, welcome) as server:
            access = load_kubeconfig(
                kubeconfig(tmp_path / "config", server, user, **{"certificate-authority": "ca.crt"})
            )
            async with RemoteClient(access) as client:
                found = [(await client.get(Gvk("v1", "ConfigMap"), "who", "default"))["data"]["user"]]
                # Its successor is there, and the server does not know the old one any more.
                authority.write("me", "second")
                welcome.clear()
                welcome.add("second")
                return [*found, (await client.get(Gvk("v1", "ConfigMap"), "who", "default"))["data"]["user"]]

    assert asyncio.run(use()) == ["first", "second"]


def test_a_certificate_whose_key_is_not_there_yet_does_not_end_the_login(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    authority.write("me", "first")
    user = {"client-certificate": "me.crt", "client-key": "me.key"}
    file = kubeconfig(tmp_path / "config", "https://localhost:1", user, **{"certificate-authority": "ca.crt"})
    credentials = load_kubeconfig(file).credentials

    async def use() -> list[bool]:
        first = await credentials.login()
        key = (tmp_path / "me.key").read_bytes()
        authority.write("me", "second")
        new_key = (tmp_path / "me.key").read_bytes()
        (tmp_path / "me.key").write_bytes(key)
        credentials.reject(first)
        misfit = await credentials.login()
        (tmp_path / "me.key").write_bytes(new_key)
        credentials.reject(misfit)
        return [misfit.ssl is first.ssl, (await credentials.login()).ssl is first.ssl]

    assert asyncio.run(use()) == [True, False]
    (tmp_path / "me.crt").unlink()
    with pytest.raises(UnauthorizedError, match=r"client certificate .*me\.crt"):
        credentials._until = 0
        asyncio.run(credentials.login())


class Proxy:
    """A proxy that knows CONNECT, and leads every name to this machine."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.port = 0

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        tunnels: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            tunnels.add(task)
            try:
                await self._tunnel(reader, writer)
            finally:
                tunnels.discard(task)
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in list(tunnels):
                task.cancel()
            await asyncio.gather(*tunnels, return_exceptions=True)

    async def _tunnel(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        method, target, _ = head.split("\r\n")[0].split()
        self.asked.append(f"{method} {target}")
        outward, out = await asyncio.open_connection("127.0.0.1", int(target.rpartition(":")[2]))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()

        try:
            async with asyncio.TaskGroup() as group:
                ways = [group.create_task(pump(reader, out)), group.create_task(pump(outward, writer))]
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in ways:
                    way.cancel()
        finally:
            out.close()


@pytest.mark.parametrize("how", ["kubeconfig", "environment", "bypassed"])
def test_a_proxy_is_asked_for_a_tunnel(
    platform: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    for name in (
        "HTTPS_PROXY",
        "https_proxy",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
        "NO_PROXY",
        "no_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    port = platform.api.rpartition(":")[2]
    # A name that only the proxy can resolve, and that the server's certificate has.
    server = f"https://kubernetes.default.svc:{port}"
    user = {"token": (platform.home / "token").read_text().strip()}
    authority = {"certificate-authority": str(platform.home / "tls" / "ca.crt")}
    proxy = Proxy()

    async def use() -> str:
        async with proxy.listening() as url:
            if how == "kubeconfig":
                authority["proxy-url"] = url
            else:
                monkeypatch.setenv("HTTPS_PROXY", url)
            if how == "bypassed":
                monkeypatch.setenv("NO_PROXY", "example.org,.svc")
            access = load_kubeconfig(kubeconfig(tmp_path / "config", server, user, **authority))
            async with RemoteClient(access) as client:
                return str((await client.get(Gvk("v1", "Namespace"), "default"))["metadata"]["name"])

    if how == "bypassed":
        with pytest.raises(UnavailableError, match=r"kubernetes\.default\.svc"):
            asyncio.run(use())
        assert proxy.asked == []
    else:
        assert asyncio.run(use()) == "default"
        assert proxy.asked and set(proxy.asked) == {f"CONNECT kubernetes.default.svc:{port}"}
