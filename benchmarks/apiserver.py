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
import json
import multiprocessing
import os
import platform
import ssl
import statistics
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp
import uvloop

from shallop.embedded.apiserver import ApiServer, ensure_tls
from shallop.kube.kubeconfig import load_kubeconfig
from shallop.webserver import Server, bind

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


async def _create(session: aiohttp.ClientSession, url: str, name: str) -> float:
    body = json.dumps({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": _DATA})
    begun = time.perf_counter()
    async with session.post(f"{url}/configmaps", data=body) as answer:
        await answer.read()
        assert answer.status == 201, answer.status
    return time.perf_counter() - begun


async def _creates(
    session: aiohttp.ClientSession, url: str, connections: int, seconds: float, run: str
) -> dict[str, float]:
    samples: list[float] = []
    end = time.perf_counter() + seconds

    async def client(number: int) -> None:
        count = 0
        while time.perf_counter() < end:
            samples.append(await _create(session, url, f"{run}-{number}-{count}"))
            count += 1

    begun = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(connections)))
    return {"per_s": round(len(samples) / (time.perf_counter() - begun)), **_percentiles(samples)}


async def _watch_lag(session: aiohttp.ClientSession, url: str, writes: int) -> dict[str, float]:
    """Time from the start of a write to its event."""
    sent: dict[str, float] = {}
    lags: list[float] = []
    watch_url = f"{url}/configmaps?watch=1&labelSelector=!none&fieldSelector=metadata.name!=x"
    async with session.get(f"{url}/configmaps?limit=1") as answer:
        revision = (await answer.json())["metadata"]["resourceVersion"]

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
            await _create(session, url, f"w{number}")
        await reader
    return _percentiles(lags)


async def _reads(session: aiohttp.ClientSession, url: str, path: str, count: int) -> dict[str, float]:
    samples = []
    begun = time.perf_counter()
    for _ in range(count):
        started = time.perf_counter()
        async with session.get(url + path) as answer:
            await answer.read()
            assert answer.status == 200, answer.status
        samples.append(time.perf_counter() - started)
    return {"per_s": round(count / (time.perf_counter() - begun)), **_percentiles(samples)}


async def _measure(
    server: str, context: ssl.SSLContext | None, authorization: str, seconds: float
) -> dict[str, object]:
    headers = {"Authorization": authorization, "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(ssl=context or True, limit=64)
    async with aiohttp.ClientSession(headers=headers, connector=connector, read_bufsize=2**20) as session:
        namespace = f"benchmark-{os.getpid()}"
        url = f"{server}/api/v1/namespaces/{namespace}"
        async with session.post(f"{server}/api/v1/namespaces", json={"metadata": {"name": namespace}}) as answer:
            assert answer.status == 201, await answer.text()
        try:
            await _creates(session, url, 1, 0.5, "warm")
            await _creates(session, url, 16, 0.5, "more")
            return {
                "list_of_500": await _reads(session, url, "/configmaps?limit=500", 20),
                "get": await _reads(session, url, "/configmaps/warm-0-0", 1000),
                "create_1_connection": await _creates(session, url, 1, seconds, "one"),
                "create_16_connections": await _creates(session, url, 16, seconds, "many"),
                "write_to_watch_event": await _watch_lag(session, url, 1000),
            }
        finally:
            async with session.delete(url) as answer:
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
