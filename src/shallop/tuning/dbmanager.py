"""
Katib's database manager over gRPC: what trials push, and what clients read.

Serves ``api.v1.beta1.DBManager`` and ``grpc.health.v1.Health`` on the platform's own socket. The gRPC library is
imported when the first client connects: a platform on which nobody tunes does not pay for it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from shallop.controller import Services
from shallop.store.database import Database
from shallop.tuning import tables
from shallop.tuning.metrics import to_microseconds
from shallop.tuning.tables import Report
from shallop_pod.protobuf import ProtobufError, bytes_field, fields_of, number_field, text_field

__all__ = ["db_manager", "parse_report", "render_log"]

_ZERO = "0001-01-01T00:00:00Z"
_SERVING = 1
Method = Callable[[bytes], Awaitable[bytes]]


def db_manager(services: Services) -> Callable[[], Awaitable[None]]:
    """Return the task that serves; it ends only when it is cancelled."""

    async def run() -> None:
        sock = services.sockets.get("katib")
        if sock is None:
            return
        await _first_client(sock)
        server = await _server(_methods(services.database))
        await server.start(sock=sock)
        try:
            await asyncio.Event().wait()
        finally:
            server.close()
            await server.wait_closed()

    return run


async def _first_client(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    came = asyncio.Event()
    loop.add_reader(sock.fileno(), came.set)
    try:
        await came.wait()
    finally:
        loop.remove_reader(sock.fileno())


def _methods(database: Database) -> dict[str, Method]:
    async def report(request: bytes) -> bytes:
        trial, reports = parse_report(request)
        if not trial:
            raise ProtobufError("trial_name: must be set")
        await database.write(lambda connection: tables.append_reports(connection, trial, "push", reports))
        return b""

    async def get(request: bytes) -> bytes:
        texts = _texts(request)
        start, end = _bound(texts.get(3, "")), _bound(texts.get(4, ""))
        found = await database.read(
            lambda connection: tables.reports_of(connection, texts.get(1, ""), texts.get(2, ""), start, end)
        )
        return bytes_field(1, render_log(found))

    async def delete(request: bytes) -> bytes:
        trial = _texts(request).get(1, "")
        await database.write(lambda connection: tables.delete_reports(connection, trial))
        return b""

    async def check(request: bytes) -> bytes:
        return number_field(1, _SERVING)

    return {
        "/api.v1.beta1.DBManager/ReportObservationLog": report,
        "/api.v1.beta1.DBManager/GetObservationLog": get,
        "/api.v1.beta1.DBManager/DeleteObservationLog": delete,
        "/grpc.health.v1.Health/Check": check,
    }


async def _server(methods: dict[str, Method]) -> Any:
    """Return a gRPC server whose messages are bytes."""

    def load() -> tuple[Any, ...]:
        from grpclib.const import Cardinality, Handler, Status
        from grpclib.encoding.base import CodecBase
        from grpclib.exceptions import GRPCError
        from grpclib.server import Server

        return Cardinality, Handler, Status, CodecBase, GRPCError, Server

    cardinality, handler_type, status, codec_base, grpc_error, server_type = await asyncio.to_thread(load)

    class Bytes(codec_base):  # type: ignore[misc, valid-type]
        __content_subtype__ = "proto"

        def encode(self, message: bytes, message_type: Any) -> bytes:
            return message

        def decode(self, data: bytes, message_type: Any) -> bytes:
            return data

    def handler(method: Method) -> Any:
        async def call(stream: Any) -> None:
            request = await stream.recv_message()
            try:
                reply = await method(request or b"")
            except (ProtobufError, UnicodeDecodeError, ValueError) as error:
                raise grpc_error(status.INVALID_ARGUMENT, str(error)) from error
            await stream.send_message(reply)

        return handler_type(call, cardinality.UNARY_UNARY, bytes, bytes)

    class Handlers:
        def __mapping__(self) -> dict[str, Any]:
            return {path: handler(method) for path, method in methods.items()}

    return server_type([Handlers()], codec=Bytes())


def _texts(message: bytes) -> dict[int, str]:
    return {number: value.decode() for number, value in fields_of(message) if isinstance(value, bytes)}


def parse_report(message: bytes) -> tuple[str, list[Report]]:
    """
    Read a ReportObservationLogRequest: trial_name 1, observation_log 2 {metric_logs 1 {time_stamp 1, metric 2}}.

    Raises:
        ValueError: bytes that are no such message, or a time that is none.
    """
    trial, reports = "", []
    for number, value in fields_of(message):
        if number == 1 and isinstance(value, bytes):
            trial = value.decode()
        elif number == 2 and isinstance(value, bytes):
            reports += [_parse_metric(log) for field, log in fields_of(value) if field == 1 and isinstance(log, bytes)]
    return trial, reports


def _parse_metric(message: bytes) -> Report:
    time_us, texts = 0, {}
    for number, value in fields_of(message):
        if number == 1 and isinstance(value, bytes):
            time_us = _bound(value.decode()) or 0
        elif number == 2 and isinstance(value, bytes):
            texts = _texts(value)
    return Report(texts.get(1, ""), texts.get(2, ""), time_us)


def _bound(text: str) -> int | None:
    if not text or text.startswith("0001-"):
        return None
    try:
        return to_microseconds(datetime.fromisoformat(text))
    except ValueError:
        raise ValueError(f"{text!r} is no RFC 3339 time") from None


def render_log(reports: list[Report]) -> bytes:
    """Return an ObservationLog."""
    logs = []
    for report in reports:
        metric = text_field(1, report.metric) + text_field(2, report.value)
        logs.append(bytes_field(1, text_field(1, _time(report.time_us)) + bytes_field(2, metric)))
    return b"".join(logs)


def _time(time_us: int) -> str:
    if not time_us:
        return _ZERO
    time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")
