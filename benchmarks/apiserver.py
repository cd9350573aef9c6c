"""
Speed of the API server over TLS with one client on the same machine.

Creates 1.5 KB ConfigMaps one after the other on one connection and then on sixteen, and measures how long a watch
takes to hear of a write, reads and lists. Run: ``python benchmarks/apiserver.py [SECONDS] [--kubeconfig FILE]``; with
a kubeconfig the same load goes to that cluster, into a namespace that is deleted afterwards. ``--full``
measures ours with ``synchronous=full``. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import platform
import ssl
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import uvloop
from load import content_length

from shallop.embedded.apiserver import ApiServer, ensure_tls
from shallop.kube.kubeconfig import load_kubeconfig
from shallop.webserver import Server, bind

Connect = Callable[[], Awaitable["_Client"]]
_TOKEN = "benchmark"
_DATA = {"payload": "x" * 1300}


def _serve(home: Path, synchronous: str, pipe: Connection) -> None:
    async def run() -> None:
        tls = ensure_tls(home / "tls")
        server = ApiServer(home / "objects.db", admin_token=_TOKEN, synchronous=synchronous)
        await server.start()
        sock = bind("127.0.0.1", 0, "api_port")
        http = Server(server.asgi, sock, tls=(str(tls.certificate), str(tls.key)))
        await http.start()
        gc.freeze()  # as the platform does when it has started
        pipe.send({"url": f"https://127.0.0.1:{sock.getsockname()[1]}", "ca": str(tls.ca)})
        await asyncio.to_thread(pipe.recv)
        await server.stop()
        await http.stop()

    uvloop.run(run())


def _percentiles(samples: list[float]) -> dict[str, float]:
    ordered = sorted(samples)
    return {
        "p50_ms": round(statistics.median(ordered) * 1000, 2),
        "p99_ms": round(ordered[int(len(ordered) * 0.99) - 1] * 1000, 2),
    }


class _Client(asyncio.Protocol):
    """One connection that asks one request after the other: aiohttp takes half as long as the server does."""

    def __init__(self, url: str, authorization: str) -> None:
        parts = urlsplit(url)
        self._head = f"Host: {parts.netloc}\r\nAuthorization: {authorization}\r\nContent-Type: application/json\r\n"
        self._buffer = b""
        self._answer: asyncio.Future[bytes] | None = None

    @classmethod
    async def connect(cls, url: str, authorization: str, context: ssl.SSLContext | None) -> _Client:
        parts = urlsplit(url)
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(
            lambda: cls(url, authorization), parts.hostname, parts.port, ssl=context or parts.scheme == "https"
        )
        return client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport

    async def ask(self, method: str, path: str, body: str = "") -> float:
        """Return how long it took, in seconds."""
        begun = time.perf_counter()
        self._answer = asyncio.get_running_loop().create_future()
        request = f"{method} {path} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n{body}"
        self._transport.write(request.encode())
        head = await self._answer
        assert head.split(b" ", 2)[1] in (b"200", b"201"), head
        return time.perf_counter() - begun

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if self._answer and separator and len(body) >= content_length(head):
            self._buffer = b""
            self._answer.set_result(head)

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer and not self._answer.done():
            self._answer.set_exception(error or ConnectionError("the server closed the connection"))

    def close(self) -> None:
        self._transport.close()


def _body(name: str) -> str:
    return json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": _DATA})


async def _creates(connect: Connect, path: str, connections: int, seconds: float, run: str) -> dict[str, float]:
    clients = [await connect() for _ in range(connections)]
    samples: list[float] = []
    begun = time.perf_counter()
    end = begun + seconds

    async def create(number: int, client: _Client) -> None:
        count = 0
        while time.perf_counter() < end:
            samples.append(await client.ask("POST", f"{path}/configmaps", _body(f"{run}-{number}-{count}")))
            count += 1

    await asyncio.gather(*(create(number, client) for number, client in enumerate(clients)))
    result = {"per_s": round(len(samples) / (time.perf_counter() - begun)), **_percentiles(samples)}
    for client in clients:
        client.close()
    return result


async def _watch_lag(connect: Connect, session: aiohttp.ClientSession, url: str, writes: int) -> dict[str, float]:
    """Time from the start of a write to its event."""
    sent: dict[str, float] = {}
    lags: list[float] = []
    watch_url = f"{url}/configmaps?watch=1&labelSelector=!none&fieldSelector=metadata.name!=x"
    async with session.get(f"{url}/configmaps?limit=1") as answer:
        revision = (await answer.json())["metadata"]["resourceVersion"]

    client = await connect()
    async with session.get(f"{watch_url}&resourceVersion={revision}") as stream:

        async def read() -> None:
            async for line in stream.content:
                name = json.loads(line)["object"]["metadata"]["name"]
                if name in sent:
                    lags.append(time.perf_counter() - sent.pop(name))
                if len(lags) == writes:
                    return

        reader = asyncio.create_task(read())
        for number in range(writes):
            sent[f"w{number}"] = time.perf_counter()
            await client.ask("POST", f"{urlsplit(url).path}/configmaps", _body(f"w{number}"))
        await reader
    client.close()
    return _percentiles(lags)


async def _reads(connect: Connect, path: str, count: int) -> dict[str, float]:
    client = await connect()
    begun = time.perf_counter()
    samples = [await client.ask("GET", path) for _ in range(count)]
    client.close()
    return {"per_s": round(count / (time.perf_counter() - begun)), **_percentiles(samples)}


async def _measure(
    server: str, context: ssl.SSLContext | None, authorization: str, seconds: float
) -> dict[str, object]:
    headers = {"Authorization": authorization, "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(ssl=context or True, limit=64)
    async with aiohttp.ClientSession(headers=headers, connector=connector, read_bufsize=2**20) as session:
        namespace = f"benchmark-{os.getpid()}"
        path = f"/api/v1/namespaces/{namespace}"
        async with session.post(f"{server}/api/v1/namespaces", json={"metadata": {"name": namespace}}) as answer:
            assert answer.status == 201, await answer.text()

        async def connect() -> _Client:
            return await _Client.connect(server, authorization, context)

        try:
            await _creates(connect, path, 1, 0.5, "warm")
            await _creates(connect, path, 16, 0.5, "more")
            return {
                "list_of_500": await _reads(connect, f"{path}/configmaps?limit=500", 20),
                "get": await _reads(connect, f"{path}/configmaps/warm-0-0", 1000),
                "create_1_connection": await _creates(connect, path, 1, seconds, "one"),
                "create_16_connections": await _creates(connect, path, 16, seconds, "many"),
                "write_to_watch_event": await _watch_lag(connect, session, server + path, 1000),
            }
        finally:
            async with session.delete(server + path) as answer:
                await answer.read()


async def _measure_cluster(kubeconfig: str, seconds: float) -> dict[str, object]:
    access = load_kubeconfig(kubeconfig)
    login = await access.credentials.login()
    return await _measure(access.server, login.ssl, login.authorization, seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", nargs="?", type=float, default=5.0)
    parser.add_argument("--kubeconfig", default="")
    parser.add_argument("--full", action="store_true")
    options = parser.parse_args()
    if options.kubeconfig:
        results = uvloop.run(_measure_cluster(options.kubeconfig, options.seconds))
        print(json.dumps(results, indent=2))
        return
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    synchronous = "full" if options.full else "normal"
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_serve, args=(Path(folder), synchronous, theirs))
        process.start()
        try:
            address = ours.recv()
            verified = ssl.create_default_context(cafile=address["ca"])
            results = uvloop.run(_measure(address["url"], verified, f"Bearer {_TOKEN}", options.seconds))
        finally:
            ours.send("stop")
            process.join()
    machine = {"machine": platform.platform(), "python": platform.python_version(), "synchronous": synchronous}
    print(json.dumps({**machine, **results}, indent=2))


if __name__ == "__main__":
    main()
