"""A request that came by HTTP/2 goes on by HTTP/1.1, to a server that speaks nothing else. For REST, not for gRPC."""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from shallop.gateway.http1 import Head, MessageError, parse_response
from shallop.gateway.plan import hop_headers
from shallop.gateway.routes import Endpoint
from shallop_pod.http2 import Header

__all__ = ["Chunks", "Http1Stream", "render_request"]

_MAX_HEAD = 64 * 1024
_MAX_LINE = 8192
# What a client has not taken yet of an answer.
_MAX_UNREAD = 1 << 20
_DROPPED = frozenset({b"te", b"connection", b"host", b"cookie", b"expect"})


class _Exchange(Protocol):
    """The stream of the client, see ``http2proxy``."""

    def request_sent(self, size: int) -> None: ...
    def answer_headers(self, headers: list[Header], *, end: bool) -> None: ...
    def answer(self, data: bytes, size: int, *, end: bool) -> None: ...
    def backend_lost(self, backend: Http1Stream, said: str) -> None: ...


def render_request(headers: list[Header], *, chunked: bool) -> bytes:
    """Write the head of a request of HTTP/2 as one of HTTP/1.1."""
    pseudo = {name: value for name, value in headers if name.startswith(b":")}
    host = pseudo.get(b":authority") or next((value for name, value in headers if name == b"host"), b"")
    lines = [b"%b %b HTTP/1.1" % (pseudo[b":method"], pseudo[b":path"]), b"host: " + host, b"connection: close"]
    lines += [b"%b: %b" % item for item in headers if item[0] not in _DROPPED and not item[0].startswith(b":")]
    # HTTP/2 may send each cookie for itself, HTTP/1.1 may not.
    if cookies := [value for name, value in headers if name == b"cookie"]:
        lines.append(b"cookie: " + b"; ".join(cookies))
    if chunked:
        lines.append(b"transfer-encoding: chunked")
    return b"\r\n".join([*lines, b"", b""])


class Chunks:
    """Takes a chunked body apart."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._left = 0
        self._state = "size"
        self.done = False

    def feed(self, data: bytes) -> bytes:
        """
        Return the content of what came.

        Raises:
            MessageError: it is no chunked body.
        """
        self._buffer += data
        found = bytearray()
        while not self.done:
            if self._state == "data":
                found += self._buffer[: self._left]
                taken = min(self._left, len(self._buffer))
                self._left -= taken
                del self._buffer[:taken]
                if self._left:
                    break
                self._state = "end"
            end = self._buffer.find(b"\r\n")
            if end < 0:
                if len(self._buffer) > _MAX_LINE:
                    raise MessageError("chunk line is too long")
                break
            line = bytes(self._buffer[:end])
            del self._buffer[: end + 2]
            self._take_line(line)
        return bytes(found)

    def _take_line(self, line: bytes) -> None:
        if self._state == "size":
            try:
                self._left = int(line.partition(b";")[0], 16)
            except ValueError as error:
                raise MessageError("bad chunk size") from error
            if self._left < 0:
                raise MessageError("bad chunk size")
            self._state = "data" if self._left else "trailer"
        elif self._state == "end":
            if line:
                raise MessageError("a chunk is longer than its size")
            self._state = "size"
        elif not line:
            self.done = True


class Http1Stream(asyncio.Protocol):
    """
    A connection of HTTP/1.1 for one request; to its exchange it is like one of HTTP/2 with a single stream.

    Args:
        exchange: the stream of the client.
    """

    def __init__(self, endpoint: Endpoint, exchange: _Exchange) -> None:
        self.endpoint = endpoint
        self.exchanges: dict[int, _Exchange] = {}
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self._exchange: _Exchange | None = exchange
        self._method = b""
        self._chunked = self._paused = False
        self._unsent = self._unread = 0
        self._buffer = b""
        self._head: Head | None = None
        self._chunks: Chunks | None = None
        self._left = 0

    @property
    def frames(self) -> Http1Stream:
        return self

    # -- what an exchange asks of the frames of a connection

    def open(self, headers: list[Header], *, end: bool) -> int:
        self._method = next(value for name, value in headers if name == b":method")
        self._chunked = not end and not any(name == b"content-length" for name, _ in headers)
        self.transport.write(render_request(headers, chunked=self._chunked))
        return 1

    def send_data(self, number: int, data: bytes | memoryview, *, end: bool = False) -> None:
        if self.transport.is_closing():
            return
        if data:
            self.transport.write(b"".join((b"%x\r\n" % len(data), data, b"\r\n")) if self._chunked else data)
        if end and self._chunked:
            self.transport.write(b"0\r\n\r\n")
        self._unsent += len(data)
        if not self._paused:
            self._tell_sent()

    def reset(self, number: int, code: int) -> None:
        self._exchange = None
        self.transport.abort()

    def acknowledge(self, number: int, size: int) -> None:
        self._unread -= size
        if self._unread <= _MAX_UNREAD // 2:
            self.transport.resume_reading()

    def flush_soon(self) -> None:
        """All is written at once."""

    # -- the connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        if self._head is not None and self._head.length == -2 and exc is None:
            exchange.answer(b"", 0, end=True)
        else:
            exchange.backend_lost(self, "ended before its answer was complete")

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._tell_sent()

    def _tell_sent(self) -> None:
        size, self._unsent = self._unsent, 0
        if size and self._exchange is not None:
            self._exchange.request_sent(size)

    def data_received(self, data: bytes) -> None:
        try:
            self._take(data)
        except MessageError as error:
            exchange, self._exchange = self._exchange, None
            self.transport.abort()
            if exchange is not None:
                exchange.backend_lost(self, f"answered with what is no HTTP/1.1: {error}")

    def _take(self, data: bytes) -> None:
        while self._head is None:
            self._buffer += data
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self._buffer) > _MAX_HEAD:
                    raise MessageError("the response head is longer than 64 KiB")
                return
            head, data, self._buffer = parse_response(self._buffer[:end], self._method), self._buffer[end + 4 :], b""
            if not head.start[1].startswith(b"1"):
                self._begin(head)
        if self._exchange is None or not data:
            return
        if self._chunks is not None:
            content = self._chunks.feed(data)
            over = self._chunks.done
        elif self._head.length == -2:
            content, over = data, False
        else:
            content = data[: self._left]
            self._left -= len(content)
            over = not self._left
        self._unread += len(content)
        if self._unread > _MAX_UNREAD:
            self.transport.pause_reading()
        if content or over:
            exchange = self._exchange
            if over:
                self._end()
            exchange.answer(content, len(content), end=over)

    def _begin(self, head: Head) -> None:
        assert self._exchange is not None
        self._head, self._left = head, head.length
        self._chunks = Chunks() if head.length == -1 else None
        drop = hop_headers(head) | {b"transfer-encoding"}
        headers: list[Header] = [(b":status", head.start[1])]
        for line in head.lines:
            name, _, value = line.partition(b":")
            if (name := name.lower()) not in drop:
                headers.append((name, value.strip(b" \t")))
        exchange, over = self._exchange, head.length == 0
        if over:
            self._end()
        exchange.answer_headers(headers, end=over)

    def _end(self) -> None:
        self._exchange = None
        self.transport.close()
