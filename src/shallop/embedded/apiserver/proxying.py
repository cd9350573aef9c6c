"""``services/[scheme:]NAME[:port]/proxy`` and the same of ``pods``: HTTP passed on to an endpoint."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

import aiohttp
from starlette.types import Receive, Scope, Send

from shallop.errors import BadRequestError, UnavailableError
from shallop.kube.objects import Object

__all__ = ["forward", "parse_target", "pod_target", "tunnel"]

_CHUNK = 64 * 1024
_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=10)
# Meant for one connection, or for this server only: the endpoint must not see the token.
_NOT_FORWARDED = {
    b"authorization", b"connection", b"content-length", b"host", b"keep-alive", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
}  # fmt: skip


def parse_target(text: str) -> tuple[str, str, str]:
    """Return scheme, Service and port (empty = its only one)."""
    parts = text.split(":")
    if len(parts) == 3 and parts[0] in ("http", "https", ""):
        return parts[0] or "http", parts[1], parts[2]
    if len(parts) <= 2:
        return "http", parts[0], parts[1] if len(parts) == 2 else ""
    raise BadRequestError(f'invalid service request "{text}"')


def pod_target(pod: Object, port: str) -> tuple[str, int]:
    """Return address and port of a Pod; the port of its first container that declares one when none is named."""
    address = (pod.get("status") or {}).get("podIP")
    if not address:
        raise UnavailableError(f"address not allowed: pod {pod['metadata']['name']} has no address yet")
    declared = [item for container in pod["spec"]["containers"] for item in container.get("ports") or ()]
    chosen = next((item["containerPort"] for item in declared if port in ("", item.get("name"))), port or "80")
    if not str(chosen).isdigit():
        raise BadRequestError(f"pod {pod['metadata']['name']} has no port named {port!r}")
    return str(address), int(chosen)


async def tunnel(scope: Scope, scheme: str, target: tuple[str, int], path: str) -> None:
    """
    Pass on a request that leaves HTTP (a WebSocket) and everything after it, both ways, until one side ends.

    Raises:
        UnavailableError: nobody listens there; nothing was taken over yet.
    """
    host, port = target
    query = b"?" + scope["query_string"] if scope["query_string"] else b""
    head = [f"{scope['method']} /{path}".encode() + query + b" HTTP/1.1", f"Host: {host}:{port}".encode()]
    head += [name + b": " + value for name, value in scope["headers"] if name not in (b"authorization", b"host")]
    try:
        async with asyncio.timeout(_TIMEOUT.sock_connect):
            connection = await asyncio.open_connection(host, port, ssl=_unverified() if scheme == "https" else None)
    except (OSError, TimeoutError) as error:
        raise UnavailableError(f"error trying to reach service: {error}") from error
    theirs, to_them = connection
    ours, to_us = scope["extensions"]["shallop.upgrade"]()
    to_them.write(b"\r\n".join([*head, b"", b""]))
    ways = [asyncio.create_task(_copy(theirs, to_us)), asyncio.create_task(_copy(ours, to_them))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.gather(*ways, return_exceptions=True)
        to_us.close()
        to_them.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(_CHUNK):
            writer.write(data)
            await writer.drain()


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


async def forward(scope: Scope, receive: Receive, send: Send, scheme: str, target: tuple[str, int], path: str) -> None:
    """Pass a request on and its answer back, both as streams."""
    host, port = target
    url = f"{scheme}://{host}:{port}/{path}"
    if scope["query_string"]:
        url += "?" + scope["query_string"].decode("latin-1")
    headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in scope["headers"] if k not in _NOT_FORWARDED]
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT, auto_decompress=False) as session,
            session.request(
                scope["method"],
                url,
                headers=headers,
                data=_body(receive) if scope["method"] not in ("GET", "HEAD", "OPTIONS") else None,
                allow_redirects=False,
                ssl=_unverified() if scheme == "https" else True,
            ) as answer,
        ):
            out = [(k.lower(), v) for k, v in answer.raw_headers if k.lower() not in _NOT_FORWARDED]
            await send({"type": "http.response.start", "status": answer.status, "headers": out})
            async for chunk in answer.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
    except (aiohttp.ClientConnectionError, TimeoutError) as error:
        raise UnavailableError(f"error trying to reach service: {error}") from error


async def _body(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body"):
            return
