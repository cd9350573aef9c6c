"""The Client over HTTP: any kube-apiserver that a kubeconfig or a Pod's service account names."""

from __future__ import annotations

import asyncio
import builtins
import random
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from shallop import __version__
from shallop.errors import ApiError, ExpiredError, NotFoundError, UnavailableError, api_error
from shallop.kube.client import ObjectList, WatchEvent
from shallop.kube.kubeconfig import Access, load_kubeconfig
from shallop.kube.objects import Gvk, Object, ResourceType, gvk_of, owner_reference

__all__ = ["Access", "RemoteClient", "load_kubeconfig"]

_PATCH_TYPES = {
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
    "strategic": "application/strategic-merge-patch+json",
}
_APPLY = "application/apply-patch+yaml"
# Sending these twice is the same as sending them once, so that a lost answer is no reason to give up.
_IDEMPOTENT = frozenset((_APPLY, _PATCH_TYPES["merge"]))
_ATTEMPTS = 5
_MAX_WAIT_S = 30.0
_PAGE = 500
_TIMEOUT = aiohttp.ClientTimeout(total=60, sock_connect=10)
# A watch may be silent for long; the server ends it after timeoutSeconds at the latest.
_WATCH_S = 300
_LOG_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10)
_POD = Gvk("v1", "Pod")
_WATCH_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=2 * _WATCH_S + 30)


class RemoteClient:
    """
    ``shallop.kube.client.Client`` over HTTP; close it with ``await client.close()``.

    A request that the server puts off (429, or 5xx with Retry-After) is sent again, as is one that was never sent
    because nobody listened. After a connection that broke off only what may happen twice is: reads, apply and merge
    patches.

    Args:
        may_write: asked before anything but a read is sent; a leader that lost its lease says no.
    """

    def __init__(self, access: Access, *, may_write: Callable[[], bool] = lambda: True) -> None:
        self._access = access
        self._may_write = may_write
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
            try:
                page = await self._send("GET", path, query=query)
            except ExpiredError:
                if "continue" not in query:
                    raise
                # Too slow for the server's history: begin again and take everything in one answer.
                items.clear()
                query = _selectors(label_selector, field_selector)
                continue
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
        query = {"watch": "true", "allowWatchBookmarks": "true"}
        query |= {"timeoutSeconds": str(int(_WATCH_S * random.uniform(1, 2))), "resourceVersion": resource_version}
        query |= _selectors(label_selector, field_selector)
        path = await self._path(gvk, namespace)
        async with self._stream(path, query, _WATCH_TIMEOUT) as response:
            _keep_alive(response)
            async for line in _lines(response.content):
                event = msgspec.json.decode(line)
                if event["type"] == "ERROR":
                    raise api_error(event["object"].get("code", 500), event["object"])
                yield WatchEvent(event["type"], event["object"])

    async def follow(self, gvk: Gvk, *, resource_version: str, tell: Callable[[WatchEvent], None]) -> None:
        async for event in self.watch(gvk, resource_version=resource_version):
            tell(event)

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
        return await self._send("PATCH", path, body=obj, query=query, content_type=_APPLY)

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
        async with self._stream(
            path, {name: value for name, value in query.items() if value}, _LOG_TIMEOUT
        ) as response:
            async for chunk in response.content.iter_any():
                yield chunk

    @asynccontextmanager
    async def exec(
        self, pod: str, namespace: str, command: Sequence[str], *, stdin: bool = False, tty: bool = False
    ) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """
        Start a command in the first container of a Pod.

        Returns:
            A WebSocket of ``v5.channel.k8s.io``: the first byte of a message is its channel: 0 stdin, 1 stdout,
            2 stderr, 3 the Status at the end, 4 the size of a terminal.
        """
        path = await self._path(_POD, namespace, pod, "exec")
        streams = {"stdin": stdin, "stdout": True, "stderr": not tty, "tty": tty}
        query = [("command", word) for word in command] + [(name, str(on).lower()) for name, on in streams.items()]
        access = self._access
        login = await access.credentials.login()
        headers = [("User-Agent", f"shallop/{__version__}"), *access.headers]
        headers += [("Authorization", login.authorization)] if login.authorization else []
        try:
            async with self._open().ws_connect(
                access.server + path,
                params=query,
                protocols=("v5.channel.k8s.io",),
                headers=headers,
                ssl=login.ssl or True,
                proxy=access.proxy or None,
                server_hostname=access.server_name or None,
                max_msg_size=0,
            ) as socket:
                yield socket
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UnavailableError(f"exec in Pod {namespace}/{pod}: {_words(error)}") from error

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
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self._session

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        query: dict[str, str] | None,
        timeout: aiohttp.ClientTimeout,
        *,
        data: bytes | None = None,
        content_type: str = "",
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send once, and once more with a new login where the server does not know the old one."""
        access = self._access
        login = await access.credentials.login()
        while True:
            if method != "GET" and not self._may_write():
                raise UnavailableError(f"{method} {path}: not sent, because another replica may be the leader now")
            headers = [("Accept", "application/json"), ("User-Agent", f"shallop/{__version__}"), *access.headers]
            headers += [("Authorization", login.authorization)] if login.authorization else []
            headers += [("Content-Type", content_type)] if content_type else []
            async with self._open().request(
                method,
                access.server + path,
                params=query,
                data=data,
                headers=headers,
                timeout=timeout,
                ssl=login.ssl or True,
                proxy=access.proxy or None,
                server_hostname=access.server_name or None,
            ) as response:
                if response.status == 401:
                    access.credentials.reject(login)
                    renewed = await access.credentials.login()
                    if renewed != login:
                        login = renewed
                        continue
                yield response
                return

    @asynccontextmanager
    async def _stream(
        self, path: str, query: dict[str, str], timeout: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self._request("GET", path, query, timeout) as response:
                await _raise_for(response)
                yield response
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UnavailableError(f"GET {self._access.server}{path}: {_words(error)}") from error

    async def _send(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        data = None if body is None else msgspec.json.encode(body)
        type_ = content_type if body is not None else ""
        repeatable = method == "GET" or content_type in _IDEMPOTENT
        attempt = 0
        while True:
            attempt += 1
            try:
                async with self._request(method, path, query, _TIMEOUT, data=data, content_type=type_) as response:
                    wait_s = _wait_before_retry(response, attempt, repeatable=repeatable)
                    if wait_s is None:
                        await _raise_for(response)
                        decoded: Object = msgspec.json.decode(await response.read())
                        return decoded
            except (aiohttp.ClientError, TimeoutError) as error:
                never_sent = isinstance(error, aiohttp.ClientConnectorError)
                if attempt == _ATTEMPTS or not (never_sent or repeatable):
                    raise UnavailableError(f"{method} {self._access.server}{path}: {_words(error)}") from error
                wait_s = _back_off(attempt)
            except msgspec.DecodeError as error:
                raise UnavailableError(f"{method} {self._access.server}{path}: the answer is no JSON") from error
            await asyncio.sleep(wait_s)


def _wait_before_retry(response: aiohttp.ClientResponse, attempt: int, *, repeatable: bool) -> float | None:
    """Seconds until a request should be sent again; None when its answer is final."""
    if attempt == _ATTEMPTS:
        return None
    after = response.headers.get("Retry-After", "")
    if after.isdigit() and (response.status == 429 or response.status >= 500):
        return min(float(after), _MAX_WAIT_S) * random.uniform(1, 1.2)
    # What a proxy in between says while the server behind it starts.
    return _back_off(attempt) if response.status in (502, 503, 504) and repeatable else None


def _back_off(attempt: int) -> float:
    return float(0.1 * 2**attempt * random.uniform(0.8, 1.2))


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _keep_alive(response: aiohttp.ClientResponse) -> None:
    """Notice within a minute that the other side of a silent connection is gone without a word."""
    transport = response.connection.transport if response.connection is not None else None
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None:
        return
    options = {"SO_KEEPALIVE": (socket.SOL_SOCKET, 1)}
    options |= {name: (socket.IPPROTO_TCP, n) for name, n in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10))}
    options |= {"TCP_KEEPCNT": (socket.IPPROTO_TCP, 3)}
    for name, (level, value) in options.items():
        if hasattr(socket, name):
            sock.setsockopt(level, getattr(socket, name), value)


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
