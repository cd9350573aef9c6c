"""
The proxy for HTTP/2 over cleartext, which gRPC speaks: each stream of a client finds its own Pod.

Streams of all clients share a few connections to each Pod. Content is read from one side as the other side has room
for it. What is no gRPC goes on by HTTP/1.1 to a Pod that speaks nothing else. A stream is sent again only where nothing
was done with it (a connection is refused, the Pod says that it did not begin), and, where its route allows it, once
when a Pod died over a prediction.

What a gRPC call cannot have is told by a gRPC status, anything else by a status of HTTP and ``{"error": ...}``.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from shallop.gateway.http1 import MessageError
from shallop.gateway.placement import MAX_REPLAY, Placed, Recording
from shallop.gateway.plan import HOP_HEADERS, Captured, find_route, is_captured, is_repeatable
from shallop.gateway.routes import Endpoint, fixed_draw
from shallop.gateway.translation import Http1Stream
from shallop_pod.http2 import (
    CANCEL,
    INTERNAL_ERROR,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    Data,
    Event,
    GoAway,
    Header,
    Headers,
    Http2,
    Http2Error,
    Reset,
    is_well_formed,
)
from shallop_pod.http2protocol import Http2Protocol

if TYPE_CHECKING:
    from collections.abc import Collection

    from shallop.gateway.proxy import Gateway

__all__ = ["Exchange", "Http2Client", "Http2Pool", "Upstream"]

_CONNECT_S = 5.0
_CLIENT_LEFT = 499
# What users of gRPC are told, and what is counted.
_GRPC_OF_HTTP = {400: 3, 404: 12, 429: 8, 431: 8, 502: 14, 503: 14, 504: 4}
_HTTP_OF_GRPC = {0: 200, 1: 499, 3: 400, 4: 504, 5: 404, 6: 409, 7: 403, 8: 429, 10: 409, 12: 501, 14: 503, 16: 401}
_DROPPED = HOP_HEADERS - {b"te"}


class Exchange(Protocol):
    """A request on its way over a connection of the pool."""

    is_grpc: bool

    def attach(self, backend: Upstream) -> None:
        """Send the request over a connection."""

    def retry(self, why: str, refused: Endpoint | None = None) -> None:
        """There is no connection to that endpoint."""

    def request_sent(self, size: int) -> None:
        """So much of the content has left."""

    def answer_headers(self, headers: list[Header], *, end: bool) -> None:
        """Take headers or trailers."""

    def answer(self, data: bytes | memoryview, size: int, *, end: bool) -> None:
        """Take content, and acknowledge ``size`` for it."""

    def not_begun(self, backend: _Backend) -> None:
        """The backend did nothing with the request."""

    def backend_lost(self, backend: Upstream, said: str) -> None:
        """The connection has ended; ``said``: what a message says of the backend."""

    def backend_reset(self, code: int) -> None:
        """The backend gave the request up."""


class _Connection(Http2Protocol):
    """One end of an HTTP/2 connection of the gateway."""

    def __init__(self, gateway: Gateway, *, client: bool) -> None:
        super().__init__(Http2(client=client, on_sent=self.sent))
        self.gateway = gateway

    def sent(self, stream: int, size: int) -> None:
        """Content of a stream has left."""
        raise NotImplementedError


class Http2Client(_Connection):
    """A client's connection; ``start`` takes it over from the protocol that read its first bytes."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(gateway, client=False)
        self.exchanges: dict[int, _Exchange] = {}

    def start(self, transport: asyncio.BaseTransport, data: bytes) -> None:
        self.gateway.clients.add(self)
        super().start(transport, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gateway.clients.discard(self)
        for exchange in list(self.exchanges.values()):
            exchange.client_left()
        self.exchanges.clear()

    def drain(self) -> None:
        """Take no further streams; close after those under way."""
        if not self.frames.going:
            self.frames.go_away()
        self.flush()

    def handle(self, event: Event) -> None:
        if isinstance(event, Headers):
            exchange = self.exchanges.get(event.stream)
            if exchange is not None:
                exchange.take(b"", 0, end=event.end)
            elif not is_well_formed(event.headers):
                self.frames.reset(event.stream, PROTOCOL_ERROR)
            else:
                exchange = self.exchanges[event.stream] = _Exchange(self, event)
                exchange.begin()
        elif isinstance(event, Data):
            exchange = self.exchanges.get(event.stream)
            if exchange is None or exchange.done:
                self.frames.acknowledge(event.stream, event.size)
            else:
                exchange.take(event.data, event.size, end=event.end)
        elif isinstance(event, Reset) and (exchange := self.exchanges.pop(event.stream, None)):
            exchange.client_left()

    def sent(self, stream: int, size: int) -> None:
        if exchange := self.exchanges.get(stream):
            exchange.answer_sent(size)

    def forget(self, stream: int) -> None:
        self.exchanges.pop(stream, None)
        self.flush_soon()


class _Backend(_Connection):
    """A connection to an endpoint."""

    def __init__(self, gateway: Gateway, endpoint: Endpoint) -> None:
        super().__init__(gateway, client=True)
        self.endpoint = endpoint
        self.exchanges: dict[int, Exchange] = {}
        self._heard = False
        self._said = "ended before its answer was complete"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gateway.http2.forget(self)
        lost = list(self.exchanges.values())
        self.exchanges.clear()
        for exchange in lost:
            exchange.backend_lost(self, self._said)

    def broken(self, error: Http2Error) -> None:
        if not self._heard:
            self._said = "does not speak HTTP/2 without TLS, which gRPC needs"
            self.gateway.http2.http1_only.add(self.endpoint)
        self.transport.abort()

    def retire(self) -> None:
        """Take no further streams; close after those under way."""
        self.gateway.http2.forget(self)
        self.frames.going = True
        self.flush()

    def handle(self, event: Event) -> None:
        self._heard = True
        if isinstance(event, GoAway):
            self.gateway.http2.forget(self)
            for stream in [stream for stream in self.exchanges if stream > event.last]:
                self.exchanges.pop(stream).not_begun(self)
            return
        exchange = self.exchanges.get(event.stream)
        if isinstance(event, Data):
            if exchange is None:
                self.frames.acknowledge(event.stream, event.size)
            else:
                exchange.answer(event.data, event.size, end=event.end)
        elif isinstance(event, Headers) and exchange is not None:
            exchange.answer_headers(event.headers, end=event.end)
        elif isinstance(event, Reset) and exchange is not None:
            del self.exchanges[event.stream]
            if event.code == REFUSED_STREAM:
                exchange.not_begun(self)
            else:
                exchange.backend_reset(event.code)

    def sent(self, stream: int, size: int) -> None:
        if exchange := self.exchanges.get(stream):
            exchange.request_sent(size)


Upstream = _Backend | Http1Stream


class Http2Pool:
    """Connections to endpoints, opened as streams need them."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._open: dict[Endpoint, list[_Backend]] = {}
        self._waiting: dict[Endpoint, dict[Exchange, None]] = {}
        self._opening: dict[Endpoint, asyncio.Task[None]] = {}
        self._translating: dict[Exchange, asyncio.Task[None]] = {}
        # Endpoints that took the preface of HTTP/2 for nonsense.
        self.http1_only: set[Endpoint] = set()

    def ask(self, exchange: Exchange, endpoint: Endpoint) -> None:
        if endpoint in self.http1_only and not exchange.is_grpc:
            task = asyncio.get_running_loop().create_task(self._translate(exchange, endpoint))
            self._translating[exchange] = task
            return
        for backend in self._open.get(endpoint, ()):
            if backend.frames.has_room and not backend.transport.is_closing():
                exchange.attach(backend)
                return
        self._waiting.setdefault(endpoint, {})[exchange] = None
        if endpoint not in self._opening:
            self._opening[endpoint] = asyncio.get_running_loop().create_task(self._connect(endpoint))

    def cancel(self, exchange: Exchange, endpoint: Endpoint) -> None:
        self._waiting.get(endpoint, {}).pop(exchange, None)
        if task := self._translating.pop(exchange, None):
            task.cancel()

    async def _translate(self, exchange: Exchange, endpoint: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, stream = await loop.create_connection(lambda: Http1Stream(endpoint, exchange), *endpoint)
        except (OSError, TimeoutError) as error:
            self._translating.pop(exchange, None)
            why = f"backend {endpoint[0]}:{endpoint[1]} cannot be reached: {error or 'timed out'}"
            exchange.retry(why, endpoint)
            return
        self._translating.pop(exchange, None)
        exchange.attach(stream)

    async def _connect(self, endpoint: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, backend = await loop.create_connection(lambda: _Backend(self._gateway, endpoint), *endpoint)
        except (OSError, TimeoutError) as error:
            del self._opening[endpoint]
            why = f"backend {endpoint[0]}:{endpoint[1]} cannot be reached: {error or 'timed out'}"
            for exchange in self._waiting.pop(endpoint, {}):
                exchange.retry(why, endpoint)
            return
        del self._opening[endpoint]
        self._open.setdefault(endpoint, []).append(backend)
        for exchange in self._waiting.pop(endpoint, {}):
            self.ask(exchange, endpoint)

    def forget(self, backend: _Backend) -> None:
        known = self._open.get(backend.endpoint)
        if known and backend in known:
            known.remove(backend)
            if not known:
                del self._open[backend.endpoint]

    def close_except(self, endpoints: Collection[Endpoint]) -> None:
        """Close connections to endpoints that are gone, after the streams under way."""
        self.http1_only.intersection_update(endpoints)
        for endpoint in [known for known in self._open if known not in endpoints]:
            for backend in list(self._open[endpoint]):
                backend.retire()

    def close(self) -> None:
        for task in (*self._opening.values(), *self._translating.values()):
            task.cancel()
        self.close_except(())


class _Exchange(Placed):
    """One stream of a client and what answers it."""

    def __init__(self, client: Http2Client, request: Headers) -> None:
        self._loop = asyncio.get_running_loop()
        super().__init__(client.gateway, self._loop.time)
        self._client = client
        self._stream = request.stream
        self._request = request.headers
        self._headers: list[Header] = []
        self.is_grpc = any(n == b"content-type" and v.startswith(b"application/grpc") for n, v in request.headers)
        self._kept: list[bytes | memoryview] | None = []
        self._kept_size = 0
        self._all_received = request.end
        self._repeatable = False
        self._lost = 0
        self._backend: Upstream | None = None
        self._backend_stream = 0
        self._unread_request = self._unread_answer = 0
        self._code = 0
        self._since = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self.done = False

    # -- the request

    def begin(self) -> None:
        try:
            self._plan()
        except MessageError as error:
            self.fail(error.status, str(error))
            return
        assert self._route is not None
        if self._route.timeout_s:
            self._timer = self._loop.call_later(self._route.timeout_s, self._time_out)
        self.place()

    def _plan(self) -> None:
        pseudo = {name: value for name, value in self._request if name.startswith(b":")}
        method, path = pseudo[b":method"], pseudo[b":path"]
        if not path.startswith(b"/"):
            raise MessageError("the path of a request must begin with '/'")
        if path.startswith(b"/-/"):
            raise MessageError("paths under /-/ belong to the gateway; ask for them by HTTP/1.1", 404)
        authority = pseudo.get(b":authority") or next((v for n, v in self._request if n == b"host"), b"")
        name = authority.partition(b":")[0] if not authority.startswith(b"[") else authority[1:].partition(b"]")[0]
        lines = [n + b":" + v for n, v in self._request if not n.startswith(b":")]
        table = self._gateway.table
        route = find_route(table, name.lower().rstrip(b"."), method, path, lines)
        self._repeatable = is_repeatable(route, method, path.partition(b"?")[0])
        drop = _DROPPED | route.remove
        self._headers = [(n, route.rewrite(v) if n == b":path" else v) for n, v in self._request if n not in drop]
        for line in route.headers:
            header, _, value = line.partition(b":")
            self._headers.append((header.lower(), value.strip()))
        if self._gateway.captures.wanted and is_captured(route, path):
            self.recording = Recording(Captured.of(lines, path))
        number = fixed_draw(lines) if len(route.backends) > 1 else 0.0
        self.begin_placement(route, table.draw(route) if number is None else number)

    def take(self, data: bytes | memoryview, size: int, *, end: bool) -> None:
        """More of the request has come."""
        if self.done:
            return
        if size > len(data):
            self._client.frames.acknowledge(self._stream, size - len(data))
        self._unread_request += len(data)
        if self.recording is not None:
            self.note(request=data)
        self._all_received = self._all_received or end
        if self._kept is not None:
            self._kept.append(data)
            self._kept_size += len(data)
        if self._backend is not None:
            if self._kept_size > MAX_REPLAY:
                self._kept = None
            self._backend.frames.send_data(self._backend_stream, data, end=end)
            self._backend.flush_soon()

    def ask(self, endpoint: Endpoint) -> None:
        self._gateway.http2.ask(self, endpoint)

    def attach(self, backend: Upstream) -> None:
        """Send the request, as far as it is here, over a connection."""
        assert self._kept is not None
        self._backend = backend
        chunks = [chunk for chunk in self._kept if chunk]
        ends = self._all_received
        self._backend_stream = backend.frames.open(self._headers, end=ends and not chunks)
        backend.exchanges[self._backend_stream] = self
        for index, chunk in enumerate(chunks):
            backend.frames.send_data(self._backend_stream, chunk, end=ends and index == len(chunks) - 1)
        backend.flush_soon()

    def request_sent(self, size: int) -> None:
        size = min(size, self._unread_request)
        if size:
            self._unread_request -= size
            self._client.frames.acknowledge(self._stream, size)
            self._client.flush_soon()

    # -- the answer

    def answer_headers(self, headers: list[Header], *, end: bool) -> None:
        """Pass headers or trailers on."""
        status = next((value for name, value in headers if name == b":status"), b"")
        if not status.startswith(b"1"):
            self._kept = None
            if status:
                self._code = int(status) if status.isdigit() else 502
            grpc = next((value for name, value in headers if name == b"grpc-status"), b"")
            if grpc.isdigit():
                self._code = _HTTP_OF_GRPC.get(int(grpc), 500)
        self._client.frames.send_headers(self._stream, headers, end=end)
        self._client.flush_soon()
        if end:
            self._end()

    def answer(self, data: bytes | memoryview, size: int, *, end: bool) -> None:
        """Pass content on."""
        assert self._backend is not None
        if size > len(data):
            self._backend.frames.acknowledge(self._backend_stream, size - len(data))
        self._unread_answer += len(data)
        if self.recording is not None:
            self.note(response=data)
        self._client.frames.send_data(self._stream, data, end=end)
        self._client.flush_soon()
        if end:
            self._end()

    def answer_sent(self, size: int) -> None:
        if self._backend is not None:
            size = min(size, self._unread_answer)
            self._unread_answer -= size
            self._backend.frames.acknowledge(self._backend_stream, size)
            self._backend.flush_soon()
        if self.done and not self._unread_answer:
            self._client.forget(self._stream)

    def _end(self) -> None:
        """The backend's part is over; what it said may still wait for the client to have room."""
        if self._backend is not None:
            self._backend.exchanges.pop(self._backend_stream, None)
            if not self._all_received:
                self._backend.frames.reset(self._backend_stream, CANCEL)
            self._backend.flush_soon()
        self._finish(self._code)
        if not self._unread_answer:
            self._client.forget(self._stream)

    # -- what goes wrong

    def not_begun(self, backend: _Backend) -> None:
        """The backend did nothing with the request."""
        self._backend = None
        if self._kept is not None:
            self.retry(f"backend {backend.endpoint[0]}:{backend.endpoint[1]} takes no more requests", backend.endpoint)
        else:
            self.fail(503, "the backend takes no more requests, and this one is too large to be sent again")

    def backend_lost(self, backend: Upstream, said: str) -> None:
        self._backend = None
        if self._kept is not None and isinstance(backend, _Backend) and self._can_be_translated(backend.endpoint):
            # It read nothing of the request: it stumbled over the preface.
            self.retry("the backend speaks HTTP/1.1 only")
        elif self._kept is not None and self._repeatable and self._all_received and not self._lost:
            # Once: a request that kills what reads it must not go round.
            self._lost += 1
            self.retry("the backend closed the connection", backend.endpoint)
        else:
            self.fail(502, f"backend {backend.endpoint[0]}:{backend.endpoint[1]} {said}")

    def _can_be_translated(self, endpoint: Endpoint) -> bool:
        return not self.is_grpc and endpoint in self._gateway.http2.http1_only

    def backend_reset(self, code: int) -> None:
        self._backend = None
        self._client.frames.reset(self._stream, code)
        self._finish(502)
        self._client.forget(self._stream)

    def client_left(self) -> None:
        if not self.done:
            self._drop_backend()
            self._finish(_CLIENT_LEFT)
        elif self._backend is not None and self._unread_answer:
            self._backend.frames.acknowledge(self._backend_stream, self._unread_answer)
            self._backend.flush_soon()

    def _time_out(self) -> None:
        assert self._route is not None
        limit_s, owner = self._route.timeout_s, self._route.owner
        self.fail(504, f"no answer within {limit_s:g} s, the timeout of route {owner}")

    def fail(self, status: int, message: str, *, retry_after_s: int = 0) -> None:
        self._drop_backend()
        self.recording = None
        frames = self._client.frames
        if self._code:
            # Half of an answer can only be cut off.
            frames.reset(self._stream, INTERNAL_ERROR)
            status = 502
        elif self.is_grpc:
            said = quote(message, safe=" !#$&'()*+,-./:;<=>?@[]^_`{|}~\"").encode()
            headers = [(b":status", b"200"), (b"content-type", b"application/grpc")]
            headers += [(b"grpc-status", b"%d" % _GRPC_OF_HTTP.get(status, 13)), (b"grpc-message", said)]
            frames.send_headers(self._stream, headers, end=True)
        else:
            body = json.dumps({"error": message}).encode()
            headers = [(b":status", b"%d" % status), (b"content-type", b"application/json")]
            headers += [(b"retry-after", b"%d" % retry_after_s)] if retry_after_s else []
            frames.send_headers(self._stream, [*headers, (b"content-length", b"%d" % len(body))], end=False)
            frames.send_data(self._stream, body, end=True)
        self._finish(status)
        self._client.forget(self._stream)

    def _drop_backend(self) -> None:
        if self._backend is not None:
            self._backend.exchanges.pop(self._backend_stream, None)
            self._backend.frames.reset(self._backend_stream, CANCEL)
            self._backend.frames.acknowledge(self._backend_stream, self._unread_answer)
            self._backend.flush_soon()
            self._backend = None
        elif self._endpoint is not None:
            self._gateway.http2.cancel(self, self._endpoint)

    def _finish(self, code: int) -> None:
        self.done = True
        if self._timer:
            self._timer.cancel()
        if self._unread_request:
            self._client.frames.acknowledge(self._stream, self._unread_request)
            self._unread_request = 0
        self._kept = None
        if self.recording is not None:
            self.hand_over(code, self._since)
        owner = self._route.owner if self._route else ""
        self._gateway.metrics.observe(owner, code, self._loop.time() - self._since)
        self.leave()
