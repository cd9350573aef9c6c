"""A request that came by HTTP/1.1 goes on by HTTP/2, to a server that speaks nothing else. For REST, not for gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from shallop.gateway.http1 import Head, MessageError, is_header, parse_request
from shallop.gateway.routes import Endpoint
from shallop.gateway.translation import Chunks
from shallop_pod.http2 import CANCEL, Header

if TYPE_CHECKING:
    from shallop.gateway.http2proxy import Http2Pool, Upstream

__all__ = ["Tunnel", "render_answer", "request_headers"]

# What the backend has no room for; the client is held back beyond it.
_MAX_UNSENT = 256 * 1024
# HTTP/2 has none of these.
_OF_CONNECTIONS = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})


def request_headers(head: Head) -> list[Header]:
    """Write the head of a request of HTTP/1.1 as one of HTTP/2."""
    method, target, _ = head.start
    host, headers = b"", list[Header]()
    for line in head.lines:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if name == b"host":
            host = value
        elif name not in _OF_CONNECTIONS:
            headers.append((name, value))
    pseudo = [(b":method", method), (b":scheme", b"http"), (b":path", target)]
    return [*pseudo, *([(b":authority", host)] if host else []), *headers]


def render_answer(headers: Iterable[Header], framing: bytes) -> bytes:
    """
    Write the head of an answer of HTTP/2 as one of HTTP/1.1.

    Args:
        framing: header lines that say where the answer ends, each with its line end.

    Raises:
        MessageError: it is none, or one that HTTP/1.1 could read in another way.
    """
    status, lines = b"", list[bytes]()
    for name, value in headers:
        if name == b":status":
            status = value
        elif not is_header(name, value):
            raise MessageError("the backend answered with a malformed header", 502)
        elif name not in _OF_CONNECTIONS:
            lines.append(b"%b: %b\r\n" % (name, value))
    if len(status) != 3 or not status.isdigit():
        raise MessageError("the backend answered without a status", 502)
    return b"HTTP/1.1 %b \r\n%b%b\r\n" % (status, b"".join(lines), framing)


class Tunnel(asyncio.Transport):
    """
    A connection of HTTP/1.1 for one request, made of a stream of HTTP/2.

    Args:
        pool: has the connections of HTTP/2.
        connected: called with the tunnel once there is one to send the request over.
        failed: called with a message, and the endpoint when it refuses connections, where there will be none.
        protocol: reads the answer; set before the request is written.
    """

    is_grpc = False

    def __init__(
        self,
        pool: Http2Pool,
        endpoint: Endpoint,
        connected: Callable[[Tunnel], None],
        failed: Callable[[str, Endpoint | None], None],
    ) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.protocol: asyncio.Protocol = None  # type: ignore[assignment]
        # Whether the backend may have done something with the request.
        self.begun = True
        self._pool, self._connected, self._failed = pool, connected, failed
        self._backend: Upstream | None = None
        self._stream = 0
        self._head: Head | None = None
        self._chunks: Chunks | None = None
        self._left = self._unsent = self._unread = 0
        self._reading = True
        self._full = self._sent_all = self._answered = self._chunked = self._closed = False

    def open(self) -> None:
        """Ask for a connection."""
        self._pool.ask(self, self.endpoint)

    def cancel(self) -> None:
        """Nobody waits for a connection any more."""
        self._pool.cancel(self, self.endpoint)

    # -- what the pool and its connections tell

    def attach(self, backend: Upstream) -> None:
        self._backend = backend
        self._connected(self)

    def retry(self, why: str, refused: Endpoint | None = None) -> None:
        self._failed(why, refused)

    def request_sent(self, size: int) -> None:
        self._unsent = max(0, self._unsent - size)
        if self._full and self._unsent <= _MAX_UNSENT // 2:
            self._full = False
            self.protocol.resume_writing()

    def answer_headers(self, headers: list[Header], *, end: bool) -> None:
        if self._answered:
            # Trailers; they would have had to be announced.
            self.answer(b"", 0, end=end)
            return
        assert self._head is not None
        status = next((value for name, value in headers if name == b":status"), b"")
        sized = any(name == b"content-length" for name, _ in headers)
        bodiless = status in (b"204", b"304") or self._head.start[0] == b"HEAD"
        framing = b"connection: close\r\n"
        if status.startswith(b"1"):
            framing = b""
        else:
            self._answered = True
            if end and not sized and not bodiless:
                framing += b"content-length: 0\r\n"
            elif not sized and not bodiless and self._head.start[2] == b"HTTP/1.1":
                self._chunked = True
                framing += b"transfer-encoding: chunked\r\n"
        try:
            data = render_answer(headers, framing)
        except MessageError:
            # No more can be read from it than from what is no HTTP at all.
            data = b"malformed\r\n\r\n"
        self.protocol.data_received(data)
        if end:
            self._lost(None)

    def answer(self, data: bytes | memoryview, size: int, *, end: bool) -> None:
        if self._backend is None:
            return
        self._unread += size
        if self._reading:
            self._acknowledge(self._backend)
        if self._closed and data:
            # More than the answer's length.
            self.abort()
        elif data:
            whole = bytes(data)
            self.protocol.data_received(b"%x\r\n%b\r\n" % (len(whole), whole) if self._chunked else whole)
        if end and self._chunked and not self._closed:
            self.protocol.data_received(b"0\r\n\r\n")
        if end:
            self._lost(None)

    def _acknowledge(self, backend: Upstream) -> None:
        size, self._unread = self._unread, 0
        backend.frames.acknowledge(self._stream, size)
        backend.flush_soon()

    def not_begun(self, backend: Upstream) -> None:
        self.begun = False
        self._lost(ConnectionResetError())

    def backend_lost(self, backend: Upstream, said: str) -> None:
        self.begun = self.endpoint not in self._pool.http1_only
        self._lost(ConnectionResetError())

    def backend_reset(self, code: int) -> None:
        self._lost(ConnectionResetError())

    def _lost(self, error: Exception | None) -> None:
        """The stream is over; a protocol that has had all of its answer has closed the tunnel already."""
        backend, self._backend = self._backend, None
        if backend is not None:
            backend.exchanges.pop(self._stream, None)
            # Of a stream that both sides have ended nothing is left to reset.
            backend.frames.reset(self._stream, CANCEL)
            self._acknowledge(backend)
        if not self._closed:
            self._closed = True
            self.protocol.connection_lost(error)

    # -- what a protocol does with its transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closed or self._backend is None:
            return
        frames, data = self._backend.frames, bytes(data)
        if self._head is None:
            raw, _, data = data.partition(b"\r\n\r\n")
            self._head = parse_request(raw)
            self._chunks = Chunks() if self._head.length == -1 else None
            self._left = self._head.length
            self._sent_all = self._head.length == 0
            self._stream = frames.open(request_headers(self._head), end=self._sent_all)
            self._backend.exchanges[self._stream] = self
        if not self._sent_all and data:
            if self._chunks is not None:
                data = self._chunks.feed(data)
                self._sent_all = self._chunks.done
            else:
                self._left -= len(data)
                self._sent_all = not self._left
            self._unsent += len(data)
            frames.send_data(self._stream, data, end=self._sent_all)
        self._backend.flush_soon()
        if self._unsent > _MAX_UNSENT and not self._full:
            self._full = True
            self.protocol.pause_writing()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        if self._unread and self._backend is not None:
            self._acknowledge(self._backend)

    def get_write_buffer_size(self) -> int:
        return self._unsent

    def is_closing(self) -> bool:
        return self._closed

    def close(self) -> None:
        if self._sent_all and self._answered:
            # Its length says that the answer is over; the stream may have to hear so yet.
            self._closed = self._reading = True
        else:
            self.abort()

    def abort(self) -> None:
        self._closed = True
        self._lost(None)
