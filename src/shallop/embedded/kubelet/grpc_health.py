"""
One question to a gRPC server, whether a service is healthy, without a gRPC library.

Source: grpc.health.v1.Health/Check of "GRPC Health Checking Protocol"; RFC 9113 (HTTP/2); RFC 7541: what we send is
written literally, and nothing of what comes back in headers is needed.
"""

from __future__ import annotations

import asyncio
import struct

from shallop_pod.protobuf import text_field

__all__ = ["check_health"]

_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY = 0, 1, 3, 4, 6, 7
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_SERVING = 1
_STATUSES = {0: "UNKNOWN", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_MAX_FRAME = 1 << 20


async def check_health(host: str, port: int, service: str) -> str:
    """
    Ask once; returns what is wrong, empty when the service is healthy.

    Raises:
        OSError: nobody listens.
    """
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _frame(_SETTINGS, 0, 0, b""))
        writer.write(_frame(_HEADERS, _END_HEADERS, 1, _request_headers(f"{host}:{port}")))
        message = text_field(1, service)
        writer.write(_frame(_DATA, _END_STREAM, 1, struct.pack("!BI", 0, len(message)) + message))
        answer = await _read_answer(reader, writer)
    except (asyncio.IncompleteReadError, ConnectionError):
        return "gRPC health check: the server closed the connection; does it speak gRPC without TLS?"
    finally:
        writer.close()
    if answer is None:
        what = f"does not know service {service!r}" if service else "does not serve grpc.health.v1.Health"
        return f"gRPC health check: the server {what}"
    status = _status_of(answer)
    return "" if status == _SERVING else f'service unhealthy (responded with "{_STATUSES.get(status, status)}")'


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack("!I", len(body))[1:] + struct.pack("!BBI", kind, flags, stream) + body


def _request_headers(authority: str) -> bytes:
    # 0x83 and 0x86 are ":method: POST" and ":scheme: http" of the static table.
    block = b"\x83\x86"
    for name, value in (
        (":path", "/grpc.health.v1.Health/Check"),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", "kube-probe/1.36"),
    ):
        block += b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
    return block


async def _read_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bytes | None:
    """Return the message of the answer; None when it is an error without one."""
    received = b""
    while True:
        head = await reader.readexactly(9)
        size = int.from_bytes(head[:3])
        kind, flags, stream = struct.unpack("!BBI", head[3:])
        if size > _MAX_FRAME:
            raise ConnectionError("the frame is too long")
        body = await reader.readexactly(size)
        if kind == _SETTINGS and not flags & _ACK:
            writer.write(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _PING and not flags & _ACK:
            writer.write(_frame(_PING, _ACK, 0, body))
        elif kind == _DATA and stream == 1:
            received += body
        if kind in (_RST, _GOAWAY) or (stream == 1 and kind in (_DATA, _HEADERS) and flags & _END_STREAM):
            return received[5:] if len(received) >= 5 else None


def _status_of(message: bytes) -> int:
    # HealthCheckResponse has one field: 1, a varint below 128; absent it is 0.
    return message[1] if len(message) > 1 and message[0] == 0x08 else 0
