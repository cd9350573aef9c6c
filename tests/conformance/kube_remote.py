"""A cluster in the place of our server: takes the same ASGI requests and sends them where a kubeconfig says."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import kube_oracle as oracle
from yarl import URL

from shallop.kube.credentials import Login
from shallop.kube.kubeconfig import load_kubeconfig

KUBECONFIG = os.environ.get("SHALLOP_TEST_KUBECONFIG", "")
# Steps that show more than the API server: what nodes make of Pods, what the recorded distribution's controllers
# made, and a method that HTTP servers refuse before anybody asks what it is for.
ELSEWHERE: Mapping[str, frozenset[str]] = {
    "finalizers_gc": frozenset(("deploy-pod",)),
    "http_errors": frozenset(("method-unknown",)),
    "kubectl/cluster": frozenset(("get-nodes", "top-nodes")),
    "kubectl/configmap": frozenset(("get-name", "get-labels", "get-label-column")),
    "kubectl/deployment": frozenset(("describe", "get-pods", "rollout-status-timeout")),
    "patch_strategic": frozenset(
        f"pod-{name}" for name in ("conditions", "conditions-merge", "conditions-delete", "podips", "status-on-main")
    ),
}
# Made by a controller whose name is that of its distribution.
_OF_CONTROLLERS = frozenset(("root-ca",))


def differences_elsewhere(topic: str) -> frozenset[str]:
    """Steps of a file that may differ because another cluster answers; none with a server of ours."""
    return ELSEWHERE.get(topic, frozenset()) | _OF_CONTROLLERS if KUBECONFIG else frozenset()


_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_read=30)


class RemoteServer:
    """
    The cluster, as an administrator sees it.

    Alice, who exists in the recording, is impersonated: the kubeconfig's user must be allowed to do that.
    """

    def __init__(self, server: str, login: Login, session: aiohttp.ClientSession) -> None:
        self._server = server
        self._login = login
        self._session = session

    async def asgi(
        self,
        scope: dict[str, Any],
        receive: Callable[[], Awaitable[dict[str, Any]]],
        send: Callable[[dict[str, Any]], Awaitable[None]],
    ) -> None:
        headers = [(k.decode(), v.decode()) for k, v in scope["headers"] if k not in (b"host", b"authorization")]
        given = dict(scope["headers"]).get(b"authorization", b"").decode()
        if given == f"Bearer {oracle.ADMIN_TOKEN}":
            headers.append(("authorization", self._login.authorization))
        elif given == f"Bearer {oracle.ALICE_TOKEN}":
            headers += [("authorization", self._login.authorization), ("impersonate-user", "alice")]
            headers += [("impersonate-group", "dev"), ("impersonate-uid", "2")]
        elif given:
            headers.append(("authorization", given))
        body = (await receive())["body"]
        query = scope["query_string"].decode()
        url = f"{self._server}{scope['path']}" + (f"?{query}" if query else "")
        # A client certificate would let in whoever sends no token, too.
        certificate = self._login.ssl or True
        gone = asyncio.ensure_future(receive())
        try:
            async with self._session.request(
                scope["method"],
                URL(url, encoded=True),
                data=io.BytesIO(body) if body else None,
                headers=headers,
                ssl=certificate,
                timeout=_TIMEOUT,
                skip_auto_headers=("content-type", "accept", "user-agent", "accept-encoding"),
            ) as answer:
                found = [(k.lower().encode(), v.encode()) for k, v in answer.headers.items()]
                await send({"type": "http.response.start", "status": answer.status, "headers": found})
                while not gone.done():
                    chunk = asyncio.ensure_future(answer.content.readany())
                    await asyncio.wait({chunk, gone}, return_when=asyncio.FIRST_COMPLETED)
                    if not chunk.done():
                        chunk.cancel()
                        break
                    if not (data := chunk.result()):
                        break
                    await send({"type": "http.response.body", "body": data})
        finally:
            gone.cancel()


@asynccontextmanager
async def running(home: Path) -> AsyncIterator[Any]:
    """The cluster of ``SHALLOP_TEST_KUBECONFIG``, or a server of ours."""
    if not KUBECONFIG:
        async with oracle.running(home) as server:
            yield server
        return
    access = load_kubeconfig(KUBECONFIG)
    login = await access.credentials.login()
    async with aiohttp.ClientSession(auto_decompress=True) as session:
        yield RemoteServer(access.server, login, session)
