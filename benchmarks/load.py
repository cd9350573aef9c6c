"""
A load generator for one HTTP/1.1 server: every connection sends its next request when the answer has come.

Run: ``python benchmarks/load.py URL CONNECTIONS SECONDS < BODY``. Prints one JSON object. It shares the machine's cores
with what it measures: compare figures of the same run only.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from urllib.parse import urlsplit

import uvloop


class Connection(asyncio.Protocol):
    """Asks until ``end``; latencies in seconds go to ``samples``."""

    def __init__(self, request: bytes, samples: list[float], end: float) -> None:
        self.request, self.samples, self.end = request, samples, end
        self.done = asyncio.get_running_loop().create_future()
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.send()

    def send(self) -> None:
        self.sent = time.perf_counter()
        self.transport.write(self.request)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        head, separator, body = self.buffer.partition(b"\r\n\r\n")
        if not separator or not is_whole(head, body):
            return
        now = time.perf_counter()
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(RuntimeError(self.buffer[:500].decode(errors="replace")))
            return
        self.buffer = b""
        self.samples.append(now - self.sent)
        if now < self.end:
            self.send()
        else:
            self.transport.close()
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("the server closed the connection"))


def is_whole(head: bytes, body: bytes) -> bool:
    if b"transfer-encoding: chunked" in head.lower():
        return body.endswith(b"0\r\n\r\n")
    return len(body) >= content_length(head)


def content_length(head: bytes) -> int:
    position = head.lower().find(b"\r\ncontent-length:")
    if position < 0:
        raise ValueError(f"an answer without Content-Length: {head[:300]!r}")
    return int(head[position + 17 :].split(b"\r\n", 1)[0])


async def measure(url: str, body: bytes, connections: int, seconds: float) -> dict[str, float]:
    parts = urlsplit(url)
    head = f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
    samples: list[float] = []
    loop, begun = asyncio.get_running_loop(), time.perf_counter()
    protocols = []
    for _ in range(connections):
        _, protocol = await loop.create_connection(
            lambda: Connection(request, samples, begun + seconds), parts.hostname, parts.port
        )
        protocols.append(protocol)
    await asyncio.gather(*(protocol.done for protocol in protocols))
    elapsed = time.perf_counter() - begun
    samples.sort()
    return {
        "per_s": round(len(samples) / elapsed),
        "p50_ms": round(samples[len(samples) // 2] * 1000, 3),
        "p99_ms": round(samples[int(len(samples) * 0.99)] * 1000, 3),
    }


if __name__ == "__main__":
    url, connections, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    print(json.dumps(uvloop.run(measure(url, sys.stdin.buffer.read(), connections, seconds))))
