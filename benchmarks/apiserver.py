"""
Speed of the API server over TLS with one client on the same machine.

Creates 1.5 KB ConfigMaps one after the other on one connection and then on sixteen, and measures how long a watch
takes to hear of a write. Run: ``python benchmarks/apiserver.py [SECONDS]``. Prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import platform
import ssl
import statistics
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import aiohttp
import uvloop

from shallop.embedded.apiserver import ApiServer, ensure_tls
from shallop.webserver import Server, bind

_TOKEN = "benchmark"
_DATA = {"payload": "x" * 1300}


def _serve(home: Path, pipe: Connection) -> None:
    async def run() -> None:
        tls = ensure_tls(home / "tls")
        server = ApiServer(home / "objects.db", admin_token=_TOKEN)
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
    async with session.post(f"{url}/api/v1/namespaces/default/configmaps", data=body) as answer:
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
    watch_url = f"{url}/api/v1/namespaces/default/configmaps?watch=1&labelSelector=!none&fieldSelector=metadata.name!=x"
    async with session.get(f"{url}/api/v1/configmaps?limit=1") as answer:
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


async def _measure(address: dict[str, str], seconds: float) -> dict[str, object]:
    context = ssl.create_default_context(cafile=address["ca"])
    headers = {"Authorization": f"Bearer {_TOKEN}", "Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(ssl=context, limit=64)
    async with aiohttp.ClientSession(headers=headers, connector=connector, read_bufsize=2**20) as session:
        url = address["url"]
        await _creates(session, url, 1, 0.5, "warm")
        return {
            "create_1_connection": await _creates(session, url, 1, seconds, "one"),
            "create_16_connections": await _creates(session, url, 16, seconds, "many"),
            "write_to_watch_event": await _watch_lag(session, url, 1000),
        }


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 5.0
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory() as folder:
        process = context.Process(target=_serve, args=(Path(folder), theirs))
        process.start()
        try:
            results = uvloop.run(_measure(ours.recv(), seconds))
        finally:
            ours.send("stop")
            process.join()
    print(json.dumps({"machine": platform.platform(), "python": platform.python_version(), **results}, indent=2))


if __name__ == "__main__":
    main()
