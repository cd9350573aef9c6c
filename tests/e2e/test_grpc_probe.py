"""gRPC probes against a server of the ``grpcio`` library."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from shallop.embedded.kubelet.grpc_health import check_health

SERVER = """
import sys
from concurrent import futures
import grpc

def check(request, context):
    service = request[2:].decode()
    if service == "unknown":
        context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
    return {"": b"\\x08\\x01", "down": b"\\x08\\x02"}[service]

handler = grpc.unary_unary_rpc_method_handler(check)
server = grpc.server(futures.ThreadPoolExecutor(2))
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler})])
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def port(client_env: Callable[[str], Path]) -> Iterator[int]:
    command = [str(client_env("kserve")), "-c", SERVER]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield int(process.stdout.readline())
    process.communicate(timeout=60)


@pytest.mark.parametrize(
    ("service", "problem"),
    [
        ("", ""),
        ("down", 'service unhealthy (responded with "NOT_SERVING")'),
        ("unknown", "gRPC health check: the server does not know service 'unknown'"),
    ],
)
def test_the_answer_of_a_server_is_understood(port: int, service: str, problem: str) -> None:
    async def ask() -> str:
        async with asyncio.timeout(30):
            return await check_health("127.0.0.1", port, service)

    assert asyncio.run(ask()) == problem


def test_a_server_that_speaks_something_else_is_not_healthy() -> None:
    async def main() -> str:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(10)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server, asyncio.timeout(30):
            return await check_health("127.0.0.1", server.sockets[0].getsockname()[1], "")

    assert "does it speak gRPC" in asyncio.run(main())


def test_nobody_there_is_an_error() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            asyncio.run(check_health("127.0.0.1", free.getsockname()[1], ""))
