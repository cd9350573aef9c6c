"""HTTP/1.1 for one client connection: parsing without a framework, answers at once or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Protocol, cast

from shallop_pod.modelserver.protocol import ProtocolError, dumps

__all__ = ["Application", "Connection"]

_MAX_HEAD = 64 * 1024
_MAX_BODY = 512 * 2**20
_LARGE_BODY = 64 * 1024


class Application(Protocol):
    """What answers the requests of connections."""

    connections: set[Any]

    def dispatch(self, connection: Any, method: str, path: str, headers: dict[bytes, bytes], body: bytes) -> None:
        """Answer a request now or later, exactly once, by ``connection.answer`` or a stream."""


class Connection(asyncio.Protocol):
    """One client connection: HTTP/1.1 with keep-alive; requests of one connection are answered in order."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._buffer = bytearray()
        self._head: tuple[str, str, dict[bytes, bytes]] | None = None
        self._length = 0
        # Pieces of a large body that is not complete, and how many bytes it lacks.
        self._parts: list[bytes] | None = None
        self._missing = 0
        self._chunks: bytearray | None = None
        self._busy = False
        self._close = False
        self._paused = False
        self._without_body = False
        self._chunked = True
        self._on_lost: Callable[[], None] | None = None
        self._transport: asyncio.Transport = None  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._application.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._application.connections.discard(self)
        if self._on_lost is not None:
            self._on_lost()

    def data_received(self, data: bytes) -> None:
        if self._parts is not None:
            self._parts.append(data)
            self._missing -= len(data)
            if self._missing > 0:
                return
            # Joined once, instead of growing a buffer by each piece.
            self._buffer, self._parts = bytearray().join(self._parts), None
        else:
            self._buffer += data
        if not self._busy:
            self._advance()
        elif len(self._buffer) > _MAX_HEAD and not self._paused:
            # Requests sent ahead wait in the kernel until this one is answered.
            self._paused = True
            self._transport.pause_reading()

    def finish_and_close(self) -> None:
        """Close now when idle, else after the answer under way."""
        self._close = True
        if not self._busy and not self._buffer and self._head is None:
            self._transport.close()

    def _advance(self) -> None:
        """Take the next complete request out of the buffer and hand it over."""
        try:
            if self._head is None and not self._read_head():
                return
            body = self._read_chunked() if self._chunks is not None else self._read_sized()
            if body is None:
                return
        except ProtocolError as error:
            self._close = True
            self.answer(error.status, dumps({"error": str(error)}))
            return
        assert self._head is not None
        (method, path, headers), self._head, self._chunks = self._head, None, None
        if headers.get(b"connection", b"").lower() == b"close":
            self._close = True
        self._busy = True
        self._without_body = method == "HEAD"
        self._application.dispatch(self, method, path, headers, body)

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD:
                raise ProtocolError("request head is longer than 64 KiB", 431)
            return False
        lines = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + 4]
        try:
            method, path, version = lines[0].decode("ascii").split(" ")
        except ValueError as error:
            raise ProtocolError("this is no HTTP request") from error
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        if version == "HTTP/2.0" and method == "PRI":
            self._speak_http2()
            return False
        if version == "HTTP/1.0":
            self._close, self._chunked = True, False
        if headers.get(b"expect", b"").lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if b"chunked" in headers.get(b"transfer-encoding", b"").lower():
            self._chunks = bytearray()
        else:
            length = headers.get(b"content-length", b"0")
            if not length.isdigit() or len(length) > 18:
                raise ProtocolError("Content-Length is no number")
            self._length = int(length)
            if self._length > _MAX_BODY:
                raise ProtocolError(f"body is larger than {_MAX_BODY >> 20} MiB", 413)
        self._head = (method, path, headers)
        return True

    def _speak_http2(self) -> None:
        """Hand the connection over, with what was read of it: its client knows that we speak HTTP/2, as gRPC's do."""
        try:
            from shallop_pod.modelserver.http2server import Http2Connection
        except ModuleNotFoundError as error:
            raise ProtocolError("HTTP/2 needs the package 'hpack' in this environment", 505) from error
        self._application.connections.discard(self)
        Http2Connection(self._application).start(self._transport, b"PRI * HTTP/2.0\r\n\r\n" + bytes(self._buffer))

    def _read_sized(self) -> bytes | None:
        if len(self._buffer) < self._length:
            if self._length > _LARGE_BODY:
                self._parts, self._missing = [bytes(self._buffer)], self._length - len(self._buffer)
            return None
        if len(self._buffer) == self._length > _LARGE_BODY:
            # Handed over, not copied; whoever reads bytes reads it as well.
            whole, self._buffer = self._buffer, bytearray()
            return cast(bytes, whole)
        body = bytes(memoryview(self._buffer)[: self._length])
        del self._buffer[: self._length]
        return body

    def _read_chunked(self) -> bytes | None:
        assert self._chunks is not None
        while (end := self._buffer.find(b"\r\n")) >= 0:
            try:
                size = int(bytes(self._buffer[:end]).split(b";")[0], 16)
                if size < 0:
                    raise ValueError
            except ValueError as error:
                raise ProtocolError("bad chunk size") from error
            if len(self._chunks) + size > _MAX_BODY:
                raise ProtocolError(f"body is larger than {_MAX_BODY >> 20} MiB", 413)
            if len(self._buffer) < end + 2 + size + 2:
                return None
            self._chunks += self._buffer[end + 2 : end + 2 + size]
            del self._buffer[: end + 2 + size + 2]
            if size == 0:
                return bytes(self._chunks)
        return None

    def answer(
        self, status: int, body: bytes, *, content_type: str = "application/json", json_length: int | None = None
    ) -> None:
        """Send the answer to the request under way and go on with the next one."""
        extra = "" if json_length is None else f"inference-header-content-length: {json_length}\r\n"
        closing = "connection: close\r\n" if self._close else ""
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {content_type}\r\n"
            f"content-length: {len(body)}\r\n{extra}{closing}\r\n"
        )
        if self._without_body:
            self._transport.write(head.encode("latin-1"))
        elif len(body) > _LARGE_BODY:
            self._transport.writelines((head.encode("latin-1"), body))
        else:
            self._transport.write(head.encode("latin-1") + body)
        self._finish()

    def start_stream(self, content_type: str, on_lost: Callable[[], None]) -> None:
        """
        Begin an answer of unknown length.

        Args:
            on_lost: called when the client goes away before the end.
        """
        self._on_lost = on_lost
        how = "transfer-encoding: chunked" if self._chunked else "connection: close"
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {content_type}\r\ncache-control: no-cache\r\n{how}\r\n\r\n"
        self._transport.write(head.encode("latin-1"))

    def send(self, data: bytes) -> None:
        """Send a part of the stream; nothing happens when the client is gone."""
        if not self._transport.is_closing():
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def end_stream(self) -> None:
        """End the stream and go on with the next request."""
        self._on_lost = None
        if self._chunked and not self._transport.is_closing():
            self._transport.write(b"0\r\n\r\n")
        self._finish()

    def _finish(self) -> None:
        self._busy = False
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        if self._close:
            self._transport.close()
        elif self._buffer:
            # In a turn of its own: thousands of requests may wait in one buffer.
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        if not self._busy and not self._transport.is_closing():
            self._advance()
