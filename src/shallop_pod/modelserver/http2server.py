"""
HTTP/2 and gRPC in front of a model server: each call is handed over as the REST request that it stands for.

The part of a server behind it is ``http.Application``.

Source: "gRPC over HTTP2" of the gRPC project; messages in ``openinference``.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from shallop_pod.http2 import NO_ERROR, PROTOCOL_ERROR, Data, Event, Headers, Http2, Reset, is_well_formed
from shallop_pod.http2protocol import Http2Protocol
from shallop_pod.modelserver.openinference import METHODS, STREAM_INFER, RestAnswer, stream_answer
from shallop_pod.modelserver.protocol import ProtocolError

if TYPE_CHECKING:
    from shallop_pod.modelserver.http import Application

__all__ = ["Http2Connection"]

_MAX_MESSAGE = 512 * 2**20
# A message has a byte that says whether it is compressed and four of its size before it.
_PREFIX = 5
# Pieces that are put together as they come: a client may send a message byte by byte.
_SMALL_PART = 16 * 1024
_OK, _INVALID_ARGUMENT, _NOT_FOUND, _RESOURCE_EXHAUSTED, _UNIMPLEMENTED, _INTERNAL = 0, 3, 5, 8, 12, 13
_GRPC_CODES = {
    400: _INVALID_ARGUMENT,
    404: _NOT_FOUND,
    405: _UNIMPLEMENTED,
    413: _RESOURCE_EXHAUSTED,
    422: _INVALID_ARGUMENT,
    429: _RESOURCE_EXHAUSTED,
    501: _UNIMPLEMENTED,
    503: 14,
    504: 4,
}
_GRPC_HEADERS = [
    (b":status", b"200"),
    (b"content-type", b"application/grpc"),
    (b"grpc-accept-encoding", b"identity,deflate,gzip"),
]


class _Call:
    """A REST request that came over HTTP/2."""

    def __init__(self, connection: Http2Connection, stream: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.connection = connection
        self.stream = stream
        self.headers = dict(headers)
        self.body = bytearray()
        self.on_lost: Callable[[], None] | None = None

    def begin(self) -> None:
        """Refuse what is announced as too large."""
        length = self.headers.get(b"content-length", b"")
        if length.isdigit() and (len(length) > 18 or int(length) > _MAX_MESSAGE):
            self._refuse()

    def _refuse(self) -> None:
        self.body.clear()
        self.answer(413, json.dumps({"error": f"body is larger than {_MAX_MESSAGE >> 20} MiB"}).encode())

    def take(self, data: bytes | memoryview, *, end: bool) -> None:
        """More of the request has come."""
        self.body += data
        if len(self.body) > _MAX_MESSAGE:
            self._refuse()
        elif end:
            method, path = self.headers[b":method"].decode("latin-1"), self.headers[b":path"].decode("latin-1")
            self.connection.server.dispatch(self, method, path, self.headers, bytes(self.body))

    def answer(
        self,
        status: int,
        body: bytes,
        *,
        content_type: str = "application/json",
        tensors: Sequence[bytes | memoryview] | None = None,
    ) -> None:
        headers = [(b":status", b"%d" % status), (b"content-type", content_type.encode())]
        if tensors is not None:
            headers.append((b"inference-header-content-length", b"%d" % len(body)))
            body = b"".join((body, *tensors))
        headers.append((b"content-length", b"%d" % len(body)))
        without_body = self.headers[b":method"] == b"HEAD" or not body
        self.connection.frames.send_headers(self.stream, headers, end=without_body)
        if not without_body:
            self.connection.frames.send_data(self.stream, body, end=True)
        self.connection.end(self.stream)

    def start_stream(self, content_type: str, on_lost: Callable[[], None]) -> None:
        """Begin an answer of unknown length; ``on_lost`` is called when the client gives it up."""
        self.on_lost = on_lost
        headers = [(b":status", b"200"), (b"content-type", content_type.encode()), (b"cache-control", b"no-cache")]
        self.connection.frames.send_headers(self.stream, headers, end=False)
        self.connection.flush()

    def send(self, data: bytes) -> None:
        self.connection.frames.send_data(self.stream, data)
        self.connection.flush()

    def end_stream(self) -> None:
        self.on_lost = None
        self.connection.frames.send_data(self.stream, b"", end=True)
        self.connection.end(self.stream)


class _GrpcCall(_Call):
    """A call of one message, or of several that are answered one after the other."""

    def __init__(self, connection: Http2Connection, stream: int, headers: list[tuple[bytes, bytes]]) -> None:
        super().__init__(connection, stream, headers)
        self.path = self.headers[b":path"].decode("latin-1")
        self._method = METHODS.get(self.path)
        self._streaming = self.path == STREAM_INFER
        self._messages: deque[bytes | memoryview] = deque()
        # What has come of the next message, and how much of it there must be to go on.
        self._parts: list[bytes | bytearray | memoryview] = []
        self._size, self._wanted = 0, _PREFIX
        self._raw = True
        self._busy = self._all = self._begun = False

    def take(self, data: bytes | memoryview, *, end: bool) -> None:
        if self._method is None:
            self._fail(_UNIMPLEMENTED, f"{self.path} is not a method of this server")
            return
        if self._parts and len(data) < _SMALL_PART and isinstance(self._parts[-1], bytearray):
            self._parts[-1] += data
        else:
            self._parts.append(bytearray(data) if len(data) < _SMALL_PART else data)
        self._size += len(data)
        while self._size >= self._wanted:
            # Joined once, when all of a message is here.
            content = memoryview(self._parts[0] if len(self._parts) == 1 else b"".join(self._parts))
            self._parts = [content]
            if self._wanted == _PREFIX:
                size = int.from_bytes(content[1:_PREFIX], "big")
                if size > _MAX_MESSAGE:
                    self._fail(_RESOURCE_EXHAUSTED, f"the message is larger than {_MAX_MESSAGE >> 20} MiB")
                    return
                self._wanted = _PREFIX + size
                if size:
                    continue
            message = content[_PREFIX : self._wanted]
            self._size -= self._wanted
            self._parts = [content[self._wanted :]] if self._size else []
            self._wanted = _PREFIX
            try:
                self._messages.append(self._unpacked(message) if content[0] else message)
            except ProtocolError as error:
                self._fail(_UNIMPLEMENTED if error.status == 501 else _INTERNAL, str(error))
                return
        self._all = end
        if end and (self._size or not (self._streaming or len(self._messages) == 1)):
            self._fail(_INTERNAL, "a call of this method has exactly one message")
        elif self._streaming or end:
            self._next()

    def _unpacked(self, message: memoryview) -> bytes:
        encoding = self.headers.get(b"grpc-encoding", b"identity")
        if encoding not in (b"gzip", b"deflate"):
            raise ProtocolError(f"the encoding {encoding.decode('latin-1')!r} is not known here", 501)
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
        try:
            content = unpacker.decompress(message, _MAX_MESSAGE)
        except zlib.error as error:
            raise ProtocolError(f"a message cannot be decompressed: {error}") from error
        if unpacker.unconsumed_tail or not unpacker.eof:
            raise ProtocolError(f"a compressed message is cut short, or larger than {_MAX_MESSAGE >> 20} MiB")
        return content

    def _next(self) -> None:
        if self._busy:
            return
        if not self._messages:
            if self._all:
                self._finish(_OK)
            return
        assert self._method is not None
        self._busy = True
        try:
            request = self._method.ask(self._messages.popleft())
        except ProtocolError as error:
            self.answer(error.status, json.dumps({"error": str(error)}).encode())
            return
        self._raw = request.raw
        self.connection.server.dispatch(self, request.method, request.path, self.headers, request.body, request.tensors)

    def answer(
        self,
        status: int,
        body: bytes,
        *,
        content_type: str = "application/json",
        tensors: Sequence[bytes | memoryview] | None = None,
    ) -> None:
        assert self._method is not None
        self._busy = False
        message, error = b"", ""
        if status == 200:
            try:
                message = self._method.answer(RestAnswer(status, body, tensors, self._raw))
            except (ProtocolError, ValueError, KeyError, TypeError) as caught:
                status, error = 500, f"the answer cannot be written as a message: {caught}"
        elif self._method.absent is not None and status in (404, 503):
            message = self._method.absent
            status = 200
        else:
            error = _reason(body)
        if self._streaming:
            self._send(stream_answer(message, error))
            # In a turn of its own: a client may have sent thousands ahead.
            asyncio.get_running_loop().call_soon(self._next)
        elif status == 200:
            self._send(message)
            self._finish(_OK)
        else:
            self._fail(_GRPC_CODES.get(status, _INTERNAL), error)

    def _send(self, message: bytes) -> None:
        frames = self.connection.frames
        if not self._begun:
            self._begun = True
            frames.send_headers(self.stream, _GRPC_HEADERS, end=False)
        prefix = b"\0" + len(message).to_bytes(4, "big")
        if len(message) < _SMALL_PART:
            frames.send_data(self.stream, prefix + message)
        else:
            frames.send_data(self.stream, prefix)
            frames.send_data(self.stream, message)
        self.connection.flush()

    def _fail(self, code: int, message: str) -> None:
        self._messages.clear()
        self._finish(code, message)

    def _finish(self, code: int, message: str = "") -> None:
        trailers = [(b"grpc-status", b"%d" % code)]
        if message:
            trailers.append((b"grpc-message", quote(message, safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~\"").encode()))
        self.connection.frames.send_headers(
            self.stream, trailers if self._begun else [*_GRPC_HEADERS, *trailers], end=True
        )
        self.connection.end(self.stream)


def _reason(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body.decode("utf-8", "replace")


class Http2Connection(Http2Protocol):
    """A client's connection; ``start`` takes it over from the protocol that saw its first bytes."""

    def __init__(self, server: Application) -> None:
        super().__init__(Http2(client=False))
        self.server = server
        self.exchanges: dict[int, _Call] = {}

    def start(self, transport: asyncio.BaseTransport, data: bytes) -> None:
        self.server.connections.add(self)
        super().start(transport, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        for call in list(self.exchanges.values()):
            if call.on_lost:
                call.on_lost()
        self.exchanges.clear()

    def handle(self, event: Event) -> None:
        if isinstance(event, Headers):
            call = self.exchanges.get(event.stream)
            if call is None:
                if not is_well_formed(event.headers):
                    self.frames.reset(event.stream, PROTOCOL_ERROR)
                    return
                grpc = any(n == b"content-type" and v.startswith(b"application/grpc") for n, v in event.headers)
                call = (_GrpcCall if grpc else _Call)(self, event.stream, event.headers)
                self.exchanges[event.stream] = call
                call.begin()
            if event.end and event.stream in self.exchanges:
                call.take(b"", end=True)
        elif isinstance(event, Data):
            self.frames.acknowledge(event.stream, event.size)
            if call := self.exchanges.get(event.stream):
                call.take(event.data, end=event.end)
        elif isinstance(event, Reset):
            call = self.exchanges.pop(event.stream, None)
            if call and call.on_lost:
                call.on_lost()

    def end(self, stream: int) -> None:
        """A call is answered; what its client still sends is not read."""
        self.exchanges.pop(stream, None)
        self.flush()

    def finish_and_close(self) -> None:
        """Take no further calls, and close when those under way are answered."""
        if not self.frames.going:
            self.frames.go_away(NO_ERROR)
        self.flush()
