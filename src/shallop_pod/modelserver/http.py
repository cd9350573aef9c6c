"""HTTP/1.1 for one client connection: parsing without a framework, answers at once or as a stream."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol, cast

from shallop_pod.modelserver.protocol import ProtocolError, dumps

__all__ = ["Application", "Connection"]

_MAX_HEAD = 64 * 1024
_MAX_BODY = 512 * 2**20
_LARGE_BODY = 64 * 1024
# A large body is read into a buffer of its size; of more than this only as it comes: a length is quickly claimed.
_FIRST_BUFFER = 4 * 2**20
# What all connections read into, one after the other: what came is taken before anyone reads again.
_SCRATCH = memoryview(bytearray(256 * 1024))
# Clients and the gateway send the same heads again and again.
_MAX_KNOWN, _MAX_KNOWN_HEAD = 1024, 2048


class Application(Protocol):
    """What answers the requests of connections."""

    connections: set[Any]
    """What has to be drained when it stops."""

    def dispatch(
        self,
        connection: Any,
        method: str,
        path: str,
        headers: dict[bytes, bytes],
        body: bytes,
        tensors: Sequence[bytes | memoryview] | None = None,
    ) -> None:
        """
        Answer a request now or later, exactly once, by ``connection.answer`` or a stream.

        Args:
            headers: by their names in lower case; not to be changed.
            body: of bytes, or a bytearray that is the request's own.
            tensors: binary ones of a V2 request, one for each input, where they are not in the body.
        """


class _Head(NamedTuple):
    """The start of a request; ``length`` is -1 for a chunked body."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    length: int
    close: bool
    chunked_answer: bool


_known: dict[bytes, _Head] = {}
# The last large body: the next one of its size is read into it when nobody has a view of it any more.
_spare: list[bytearray] = []


def _take_buffer(size: int) -> bytearray:
    spare = _spare.pop() if _spare else b""
    # Held by the name here and by the call that counts: fresh memory costs as much as reading into it.
    if isinstance(spare, bytearray) and len(spare) == size and sys.getrefcount(spare) == 2:
        return spare
    return bytearray(size)


def _parse_head(raw: bytes) -> _Head:
    head = _known.get(raw)
    if head is not None:
        return head
    lines = raw.split(b"\r\n")
    try:
        method, path, version = lines[0].decode("ascii").split(" ")
    except ValueError as error:
        raise ProtocolError("this is no HTTP request") from error
    headers = {}
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        headers[name.lower()] = value.strip()
    if b"chunked" in headers.get(b"transfer-encoding", b"").lower():
        length = -1
    else:
        text = headers.get(b"content-length", b"0")
        if not text.isdigit() or len(text) > 18:
            raise ProtocolError("Content-Length is no number")
        length = int(text)
        if length > _MAX_BODY:
            raise ProtocolError(f"body is larger than {_MAX_BODY >> 20} MiB", 413)
    old = version == "HTTP/1.0"
    close = old or headers.get(b"connection", b"").lower() == b"close"
    head = _Head(method, path, headers, length, close, not old)
    if len(raw) <= _MAX_KNOWN_HEAD:
        if len(_known) >= _MAX_KNOWN:
            _known.clear()
        _known[raw] = head
    return head


class Connection(asyncio.BufferedProtocol):
    """One client connection: HTTP/1.1 with keep-alive; requests of one connection are answered in order."""

    def __init__(self, application: Application) -> None:
        self._application = application
        self._buffer = bytearray()
        self._head: _Head | None = None
        # A large body that is not complete, and how much of it is there.
        self._body: bytearray | None = None
        self._filled = 0
        self._chunks: bytearray | None = None
        self._busy = False
        self._close = self._ended = False
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

    def get_buffer(self, sizehint: int) -> memoryview:
        return _SCRATCH if self._body is None else memoryview(self._body)[self._filled :]

    def buffer_updated(self, count: int) -> None:
        if self._body is not None:
            self._filled += count
            if self._filled == len(self._body):
                self._take_or_grow(self._body)
            return
        data = _SCRATCH[:count]
        if not self._busy and not self._buffer and self._head is None:
            # The common case: one whole request.
            whole = bytes(data)
            end = whole.find(b"\r\n\r\n")
            head = _known.get(whole[:end]) if end > 0 else None
            if head is not None and head.length == count - end - 4:
                self._begin(head, whole[end + 4 :])
                return
        self._buffer += data
        if not self._busy:
            self._advance()
        elif len(self._buffer) > _MAX_HEAD and not self._paused:
            # Requests sent ahead wait in the kernel until this one is answered.
            self._paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        """The client has said all: what it asked completely is answered, half a request is forgotten."""
        self._ended = True
        if self._buffer and not self._busy:
            asyncio.get_running_loop().call_soon(self._go_on)
        return self._busy or bool(self._buffer)

    def _take_or_grow(self, body: bytearray) -> None:
        assert self._head is not None
        if self._filled == self._head.length:
            self._body = None
            if len(body) <= _FIRST_BUFFER:
                _spare[:] = [body]
            self._begin(self._head, cast(bytes, body))
        else:
            self._body = bytearray(min(self._head.length, 4 * len(body)))
            self._body[: len(body)] = body

    def finish_and_close(self) -> None:
        """Close now when idle, else after the answer under way."""
        self._close = True
        if not self._busy and not self._buffer and self._head is None:
            self._transport.close()

    def _advance(self) -> None:
        """Take the next complete request out of the buffer and hand it over."""
        try:
            body = None
            if self._head is not None or self._read_head():
                body = self._read_chunked() if self._chunks is not None else self._read_sized()
            if body is None:
                if self._ended:
                    self._transport.close()
                return
        except ProtocolError as error:
            self._close = True
            self.answer(error.status, dumps({"error": str(error)}))
            return
        assert self._head is not None
        self._begin(self._head, body)

    def _begin(self, head: _Head, body: bytes) -> None:
        self._head = self._chunks = None
        self._close, self._chunked = self._close or head.close, head.chunked_answer
        self._busy = True
        self._without_body = head.method == "HEAD"
        self._application.dispatch(self, head.method, head.path, head.headers, body)

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD:
                raise ProtocolError("request head is longer than 64 KiB", 431)
            return False
        raw = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        if raw == b"PRI * HTTP/2.0":
            self._speak_http2()
            return False
        head = _parse_head(raw)
        if head.headers.get(b"expect", b"").lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if head.length < 0:
            self._chunks = bytearray()
        self._head = head
        return True

    def _speak_http2(self) -> None:
        """Hand the connection over, with what was read of it: its client knows that we speak HTTP/2, as gRPC's do."""
        try:
            from shallop_pod.modelserver.http2server import Http2Connection
        except ModuleNotFoundError as error:
            raise ProtocolError("HTTP/2 needs the package 'hpack' in this environment", 505) from error
        self._application.connections.discard(self)
        # uvloop asks the protocol how it reads when reading begins.
        self._transport.pause_reading()
        Http2Connection(self._application).start(self._transport, b"PRI * HTTP/2.0\r\n\r\n" + bytes(self._buffer))
        self._transport.resume_reading()

    def _read_sized(self) -> bytes | None:
        assert self._head is not None
        length = self._head.length
        if len(self._buffer) < length:
            if length > _LARGE_BODY:
                # The rest is read into its place.
                self._filled = len(self._buffer)
                self._body = _take_buffer(max(min(length, _FIRST_BUFFER), self._filled + 1))
                self._body[: self._filled] = self._buffer
                self._buffer.clear()
            return None
        body = bytes(memoryview(self._buffer)[:length])
        del self._buffer[:length]
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
        self,
        status: int,
        body: bytes,
        *,
        content_type: str = "application/json",
        tensors: Sequence[bytes | memoryview] | None = None,
    ) -> None:
        """
        Send the answer to the request under way and go on with the next one.

        Args:
            tensors: V2's binary tensors, which follow the body.
        """
        length, extra = len(body), ""
        if tensors is not None:
            extra = f"inference-header-content-length: {length}\r\n"
            length += sum(map(len, tensors))
        closing = "connection: close\r\n" if self._close else ""
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {content_type}\r\n"
            f"content-length: {length}\r\n{extra}{closing}\r\n"
        ).encode("latin-1")
        # One copy, made now: a model may use the memory of its answer again.
        self._transport.write(head if self._without_body else b"".join((head, body, *(tensors or ()))))
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
        elif self._ended:
            self._transport.close()

    def _go_on(self) -> None:
        if not self._busy and not self._transport.is_closing():
            self._advance()
