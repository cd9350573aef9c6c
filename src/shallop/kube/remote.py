"""The Client over HTTP: any kube-apiserver that a kubeconfig or a Pod's service account names."""

from __future__ import annotations

import asyncio
import base64
import builtins
import json
import os
import ssl
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import yaml

from shallop.errors import ApiError, ExpiredError, NotFoundError, SettingsError, UnavailableError, api_error
from shallop.kube.client import ObjectList, WatchEvent
from shallop.kube.objects import Gvk, Object, ResourceType, gvk_of, owner_reference

__all__ = ["Access", "RemoteClient", "load_kubeconfig"]

_PATCH_TYPES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PAGE = 500
_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=10)
# A watch may be silent for long; the server ends it after timeoutSeconds at the latest.
_WATCH_S = 300
_LOG_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10)
_POD = Gvk("v1", "Pod")
_WATCH_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_WATCH_S + 30)


@dataclass(frozen=True)
class Access:
    """How to reach one API server; ``token_file`` is read again for each connection, as tokens rotate."""

    server: str
    ssl: ssl.SSLContext | None
    token: str = ""
    token_file: Path | None = None
    namespace: str = "default"

    def headers(self) -> dict[str, str]:
        token = self.token_file.read_text().strip() if self.token_file else self.token
        return {"Authorization": f"Bearer {token}"} if token else {}


def load_kubeconfig(path: str | Path | None = None, *, context: str = "") -> Access:
    """
    Read how to reach a cluster.

    Args:
        path: a kubeconfig; None takes ``KUBECONFIG``, then the Pod's service account, then ``~/.kube/config``.
        context: a context of the file; empty = its current one.

    Raises:
        SettingsError: the file is missing, has no such context, or uses a login that is not supported.
    """
    if path is None and not os.environ.get("KUBECONFIG") and (_SERVICE_ACCOUNT / "token").exists():
        return _in_cluster()
    file = Path(path or os.environ.get("KUBECONFIG") or Path.home() / ".kube" / "config")
    try:
        config = yaml.safe_load(file.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"kubeconfig {file}: {error}. Name another one with --kubeconfig or KUBECONFIG.") from error
    chosen = context or config.get("current-context", "")
    ctx = _named(config, "contexts", chosen, "context", file)
    cluster = _named(config, "clusters", ctx["cluster"], "cluster", file)
    user = _named(config, "users", ctx["user"], "user", file) if ctx.get("user") else {}
    return Access(
        server=cluster["server"].rstrip("/"),
        ssl=_tls(cluster, user, file.parent),
        token=user.get("token", "") or _exec_token(user),
        token_file=file.parent / user["tokenFile"] if user.get("tokenFile") else None,
        namespace=ctx.get("namespace", "default"),
    )


def _named(config: dict[str, Any], section: str, name: str, key: str, file: Path) -> dict[str, Any]:
    for entry in config.get(section) or ():
        if entry["name"] == name:
            return dict(entry[key])
    raise SettingsError(f"kubeconfig {file}: {section} has no entry named {name!r}.")


def _tls(cluster: dict[str, Any], user: dict[str, Any], folder: Path) -> ssl.SSLContext | None:
    if not cluster["server"].startswith("https://"):
        return None
    context = ssl.create_default_context()
    if data := cluster.get("certificate-authority-data"):
        context = ssl.create_default_context(cadata=base64.b64decode(data).decode())
    elif file := cluster.get("certificate-authority"):
        context = ssl.create_default_context(cafile=str(folder / file))
    if cluster.get("insecure-skip-tls-verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if user.get("client-certificate"):
        context.load_cert_chain(folder / user["client-certificate"], folder / user["client-key"])
    elif user.get("client-certificate-data"):
        _load_inline_pair(context, user)
    return context


def _load_inline_pair(context: ssl.SSLContext, user: dict[str, Any]) -> None:
    # The ssl module loads key pairs from files only; an anonymous file never has a name on disk.
    data = base64.b64decode(user["client-certificate-data"]) + b"\n" + base64.b64decode(user["client-key-data"])
    descriptor = os.memfd_create("client-pair")
    try:
        os.write(descriptor, data)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _exec_token(user: dict[str, Any]) -> str:
    plugin = user.get("exec")
    if not plugin:
        return ""
    extra = {entry["name"]: entry["value"] for entry in plugin.get("env") or ()}
    command = [plugin["command"], *(plugin.get("args") or ())]
    try:
        done = subprocess.run(command, env=os.environ | extra, capture_output=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise SettingsError(f"kubeconfig login command {command[0]!r} failed: {error}") from error
    return str(json.loads(done.stdout)["status"]["token"])


def _in_cluster() -> Access:
    host, port = os.environ["KUBERNETES_SERVICE_HOST"], os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    host = f"[{host}]" if ":" in host else host
    return Access(
        server=f"https://{host}:{port}",
        ssl=ssl.create_default_context(cafile=str(_SERVICE_ACCOUNT / "ca.crt")),
        token_file=_SERVICE_ACCOUNT / "token",
        namespace=(_SERVICE_ACCOUNT / "namespace").read_text().strip(),
    )


class RemoteClient:
    """``shallop.kube.client.Client`` over HTTP; close it with ``await client.close()``."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._session: aiohttp.ClientSession | None = None
        self._types: dict[Gvk, ResourceType] = {}

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def __aenter__(self) -> RemoteClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def get(self, gvk: Gvk, name: str, namespace: str = "") -> Object:
        return await self._send("GET", await self._path(gvk, namespace, name))

    async def list(
        self, gvk: Gvk, namespace: str = "", *, label_selector: str = "", field_selector: str = ""
    ) -> ObjectList:
        query = {"limit": str(_PAGE)} | _selectors(label_selector, field_selector)
        path = await self._path(gvk, namespace)
        items: builtins.list[Object] = []
        while True:
            page = await self._send("GET", path, query=query)
            for item in page.get("items") or ():
                items.append({"apiVersion": gvk.api_version, "kind": gvk.kind} | item)
            if not page["metadata"].get("continue"):
                return ObjectList(items, page["metadata"]["resourceVersion"])
            query["continue"] = page["metadata"]["continue"]

    async def watch(
        self,
        gvk: Gvk,
        namespace: str = "",
        *,
        resource_version: str,
        label_selector: str = "",
        field_selector: str = "",
    ) -> AsyncIterator[WatchEvent]:
        query = {"watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": str(_WATCH_S)}
        query |= {"resourceVersion": resource_version} | _selectors(label_selector, field_selector)
        path = await self._path(gvk, namespace)
        try:
            async with self._open().get(
                self._access.server + path, params=query, headers=self._access.headers(), timeout=_WATCH_TIMEOUT
            ) as response:
                await _raise_for(response)
                async for line in _lines(response.content):
                    event = msgspec.json.decode(line)
                    if event["type"] == "ERROR":
                        raise api_error(event["object"].get("code", 500), event["object"])
                    yield WatchEvent(event["type"], event["object"])
        except aiohttp.ClientError as error:
            raise UnavailableError(f"watch of {gvk.kind} at {self._access.server}: {error}") from error

    async def create(self, obj: Object) -> Object:
        gvk = gvk_of(obj)
        path = await self._path(gvk, obj["metadata"].get("namespace", ""))
        return await self._send("POST", path, body=obj)

    async def update(self, obj: Object, *, subresource: str = "") -> Object:
        metadata = obj["metadata"]
        path = await self._path(gvk_of(obj), metadata.get("namespace", ""), metadata["name"], subresource)
        return await self._send("PUT", path, body=obj)

    async def patch(
        self, gvk: Gvk, name: str, namespace: str, patch: Any, *, patch_type: str = "merge", subresource: str = ""
    ) -> Object:
        path = await self._path(gvk, namespace, name, subresource)
        return await self._send("PATCH", path, body=patch, content_type=_PATCH_TYPES[patch_type])

    async def patch_status(self, obj: Object, status: dict[str, Any]) -> Object:
        metadata = obj["metadata"]
        namespace = metadata.get("namespace", "")
        return await self.patch(gvk_of(obj), metadata["name"], namespace, {"status": status}, subresource="status")

    async def apply(
        self, obj: Object, *, owner: Object | None = None, field_manager: str = "shallop", force: bool = True
    ) -> Object:
        if owner is not None:
            obj = {**obj, "metadata": {**obj["metadata"], "ownerReferences": [owner_reference(owner)]}}
        metadata = obj["metadata"]
        path = await self._path(gvk_of(obj), metadata.get("namespace", ""), metadata["name"])
        query = {"fieldManager": field_manager, "force": "true" if force else "false"}
        return await self._send("PATCH", path, body=obj, query=query, content_type="application/apply-patch+yaml")

    async def delete(
        self,
        gvk: Gvk,
        name: str,
        namespace: str = "",
        *,
        propagation: str = "Background",
        uid: str = "",
        grace_period_s: int | None = None,
    ) -> None:
        options: dict[str, Any] = {"propagationPolicy": propagation}
        if uid:
            options["preconditions"] = {"uid": uid}
        if grace_period_s is not None:
            options["gracePeriodSeconds"] = grace_period_s
        await self._send("DELETE", await self._path(gvk, namespace, name), body=options)

    async def create_subresource(self, gvk: Gvk, name: str, namespace: str, subresource: str, body: Object) -> Object:
        return await self._send("POST", await self._path(gvk, namespace, name, subresource), body=body)

    async def logs(
        self,
        pod: str,
        namespace: str,
        *,
        container: str = "",
        follow: bool = False,
        previous: bool = False,
        tail_lines: int | None = None,
    ) -> AsyncIterator[bytes]:
        """Yield what a container printed, as it comes."""
        query = {"container": container, "follow": "true" if follow else "", "previous": "true" if previous else ""}
        query |= {"tailLines": "" if tail_lines is None else str(tail_lines)}
        path = await self._path(_POD, namespace, pod, "log")
        async with self._open().get(
            self._access.server + path,
            params={name: value for name, value in query.items() if value},
            headers=self._access.headers(),
            timeout=_LOG_TIMEOUT,
        ) as response:
            await _raise_for(response)
            async for chunk in response.content.iter_any():
                yield chunk

    async def resource_types(self) -> builtins.list[ResourceType]:
        groups = await self._send("GET", "/apis")
        versions = ["v1", *(v["groupVersion"] for group in groups["groups"] for v in group["versions"])]
        found: builtins.list[ResourceType] = []
        for listing in await asyncio.gather(*(self._discover(version) for version in versions)):
            found.extend(listing)
        return found

    async def _path(self, gvk: Gvk, namespace: str, name: str = "", subresource: str = "") -> str:
        type_ = self._types.get(gvk)
        if type_ is None:
            for found in await self._discover(gvk.api_version):
                self._types[found.gvk] = found
            if gvk not in self._types:
                raise NotFoundError(f"{gvk.api_version} has no kind {gvk.kind} on {self._access.server}")
            type_ = self._types[gvk]
        parts = ["/apis" if gvk.group else "/api", gvk.api_version]
        if type_.namespaced and namespace:
            parts += ["namespaces", namespace]
        return "/".join([*parts, type_.plural, *filter(None, (name, subresource))])

    async def _discover(self, api_version: str) -> builtins.list[ResourceType]:
        prefix = "/apis/" if "/" in api_version else "/api/"
        try:
            listing = await self._send("GET", prefix + api_version)
        except NotFoundError:
            return []
        return [
            ResourceType(Gvk(api_version, r["kind"]), r["name"], r["namespaced"], tuple(r["verbs"]))
            for r in listing["resources"]
            if "/" not in r["name"]
        ]

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self._access.ssl or False, limit=0)
            self._session = aiohttp.ClientSession(connector=connector)
        return self._session

    async def _send(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        headers = self._access.headers() | {"Accept": "application/json", "User-Agent": "shallop"}
        data = None
        if body is not None:
            headers["Content-Type"] = content_type
            data = msgspec.json.encode(body)
        try:
            async with self._open().request(
                method, self._access.server + path, params=query, data=data, headers=headers, timeout=_TIMEOUT
            ) as response:
                await _raise_for(response)
                decoded: Object = msgspec.json.decode(await response.read())
                return decoded
        except aiohttp.ClientError as error:
            raise UnavailableError(f"{method} {self._access.server}{path}: {error}") from error


def _selectors(label_selector: str, field_selector: str) -> dict[str, str]:
    query = {"labelSelector": label_selector, "fieldSelector": field_selector}
    return {name: value for name, value in query.items() if value}


async def _raise_for(response: aiohttp.ClientResponse) -> None:
    if response.status < 400:
        return
    body = await response.read()
    try:
        status = msgspec.json.decode(body)
    except msgspec.DecodeError:
        status = {"message": body.decode(errors="replace").strip() or f"HTTP {response.status}"}
    if response.status == 410:
        raise ExpiredError(str(status.get("message")))
    error: ApiError = api_error(response.status, status)
    raise error


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    # readline() of aiohttp refuses long lines; objects may have 3 MiB.
    rest = b""
    async for chunk in stream.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line:
                yield line
