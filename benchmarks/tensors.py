"""
Tensors of 1 MiB there and back: the model server and the gateway before it, beside what copying alone costs.

Run: ``python benchmarks/tensors.py [SECONDS]`` in an environment with numpy, uvloop, orjson, grpcio and what shallop
needs.
A model answers with the tensor that it was sent, V2 with binary data. The floor of the model server is a server that
reads as many bytes into place and writes as many; that of the gateway is a relay before it that reads and writes and
looks at nothing. By gRPC the floor is a bare server of ``grpc.aio`` that sends the message back as it came, unread,
with the same relay before it. One client asks, one request after the other; all of ours run on uvloop, each in a
process of its own.
"cpu" is the processor time of the servers.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import uvloop
from instance import write
from model_formats import Client, serve, started, v2

from shallop.gateway.proxy import Gateway
from shallop.gateway.routes import Backend, Route, RouteTable
from shallop_pod.heap import keep_freed
from shallop_pod.protobuf import bytes_field, text_field

ROUNDS = 5
INFER = "/inference.GRPCInferenceService/ModelInfer"
NO_LIMIT = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def run(factory: Callable[[], asyncio.BaseProtocol], port: int) -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_server(factory, "127.0.0.1", port)
        await asyncio.sleep(3600)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


class Floor(asyncio.BufferedProtocol):
    """Reads what a request has, into place, and writes as much."""

    def connection_made(self, transport: Any) -> None:
        self.transport, self.buffer, self.filled, self.wanted = transport, bytearray(2**21), 0, 0

    def get_buffer(self, sizehint: int) -> Any:
        return memoryview(self.buffer)[self.filled :]

    def buffer_updated(self, count: int) -> None:
        self.filled += count
        if not self.wanted:
            self.start = self.buffer.index(b"\r\n\r\n") + 4
            head = bytes(self.buffer[: self.start]).lower()
            self.wanted = self.start + int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        if self.filled >= self.wanted:
            body = bytes(memoryview(self.buffer)[self.start : self.wanted])
            self.transport.writelines((b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body), body))
            self.filled = self.wanted = 0


class Relay(asyncio.Protocol):
    """Passes bytes on as they come."""

    def __init__(self, target: int, other: Relay | None = None) -> None:
        self.target, self.other, self.early = target, other, b""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        if self.other is None:
            self.opening = asyncio.get_running_loop().create_task(self.open())

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        _, other = await loop.create_connection(lambda: Relay(0, self), "127.0.0.1", self.target)
        self.other = other
        other.transport.write(self.early)

    def data_received(self, data: bytes) -> None:
        if self.other is None:
            self.early += data
        else:
            self.other.transport.write(data)


def serve_floor(port: int) -> None:
    run(Floor, port)


def serve_bare(port: int) -> None:
    async def main() -> None:
        async def echo(request: bytes, context: Any) -> bytes:
            return request

        server = grpc.aio.server(options=NO_LIMIT)
        service, _, name = INFER[1:].partition("/")
        server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(service, {name: grpc.unary_unary_rpc_method_handler(echo)})]
        )
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()

    asyncio.run(main())


class GrpcClient:
    """Sends a message as it is, and takes the answer as it is."""

    def __init__(self, port: int) -> None:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=NO_LIMIT)
        grpc.channel_ready_future(channel).result(timeout=60)
        self.ask: Callable[[bytes], bytes] = channel.unary_unary(INFER)


def infer_message(tensor: np.ndarray) -> bytes:
    """Return a ModelInferRequest."""
    shape = b"".join(_varint(size) for size in tensor.shape)
    about = text_field(1, "x") + text_field(2, "FP32") + bytes_field(3, shape)
    return text_field(1, "m") + bytes_field(5, about) + bytes_field(7, tensor.tobytes())


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + _varint(value >> 7)


def serve_relay(port: int, target: int) -> None:
    run(lambda: Relay(target), port)


def serve_echo(port: int) -> None:
    serve(port, lambda: lambda rows: rows)


def serve_gateway(port: int, target: int) -> None:
    backend = Backend("default", "m", 80)
    table = RouteTable(
        [Route(b"", b"/", False, None, (backend,), owner="default/m", timeout_s=60.0, repeat=True)],
        {backend.key: [("127.0.0.1", {"": target})]},
    )
    gateway = Gateway(table)
    keep_freed()  # as the platform does
    run(gateway.connect, port)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(ask: Callable[[], Any], seconds: float, pids: Sequence[int]) -> tuple[float, float]:
    """Return the median of a request and the processor time that each cost the servers, in milliseconds."""
    for _ in range(5):
        ask()
    times, spent, end = [], sum(map(cpu_s, pids)), time.perf_counter() + seconds
    while time.perf_counter() < end:
        begun = time.perf_counter()
        ask()
        times.append(time.perf_counter() - begun)
    return statistics.median(times) * 1000, (sum(map(cpu_s, pids)) - spent) / len(times) * 1000


def main(seconds: float) -> None:
    tensor = np.random.default_rng(1).normal(size=(1024, 256)).astype(np.float32)
    request = v2(tensor)
    echo, echo_port = started(serve_echo)
    floor, floor_port = started(serve_floor)
    gateway, gateway_port = started(serve_gateway, echo_port)
    relay, relay_port = started(serve_relay, floor_port)
    bare, bare_port = started(serve_bare)
    bare_relay, bare_relay_port = started(serve_relay, bare_port)
    message = infer_message(tensor)
    clients: dict[str, Any] = {
        "model server": Client(echo_port),
        "floor of the model server": Client(floor_port),
        "gateway and model server": Client(gateway_port),
        "relay and floor": Client(relay_port),
        "gRPC, model server": GrpcClient(echo_port),
        "gRPC, bare grpc.aio": GrpcClient(bare_port),
        "gRPC, gateway and model server": GrpcClient(gateway_port),
        "gRPC, relay and bare grpc.aio": GrpcClient(bare_relay_port),
    }
    assert tensor.tobytes() in clients["gRPC, model server"].ask(message)
    for name in list(clients)[:1]:
        size = clients[name].ask(request)
        assert bytes(clients[name].buffer[size - tensor.nbytes : size]) == tensor.tobytes()
    pids = {
        "model server": [echo.pid],
        "floor of the model server": [floor.pid],
        "gateway and model server": [gateway.pid, echo.pid],
        "relay and floor": [relay.pid, floor.pid],
        "gRPC, model server": [echo.pid],
        "gRPC, bare grpc.aio": [bare.pid],
        "gRPC, gateway and model server": [gateway.pid, echo.pid],
        "gRPC, relay and bare grpc.aio": [bare_relay.pid, bare.pid],
    }
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in clients}
    for _ in range(ROUNDS):
        # In turn, so that what else the machine does falls upon all.
        for name, client in clients.items():
            sent = message if name.startswith("gRPC") else request
            seen[name].append(measure(lambda: client.ask(sent), seconds / ROUNDS, pids[name]))  # noqa: B023
    for process in (echo, floor, gateway, relay, bare, bare_relay):
        process.terminate()
    best = {name: tuple(map(min, zip(*values, strict=True))) for name, values in seen.items()}
    floors = {
        "model server": "floor of the model server",
        "gateway and model server": "relay and floor",
        "gRPC, model server": "gRPC, bare grpc.aio",
        "gRPC, gateway and model server": "gRPC, relay and bare grpc.aio",
    }
    rows = []
    for name, (p50_ms, cpu_ms) in best.items():
        row = {"1 MiB there and back": name, "p50_ms": round(p50_ms, 3), "cpu_ms": round(cpu_ms, 3)}
        if name in floors:
            row["of the floor's speed"] = round(best[floors[name]][0] / p50_ms, 2)
            row["of the floor's cpu"] = round(best[floors[name]][1] / cpu_ms, 2)
        rows.append(row)
    write("tensors", rows)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 5.0)
