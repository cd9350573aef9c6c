"""
The proxy: one client connection, one pooled backend connection per request, bytes passed on as they come.

A request is sent again only where nothing of an answer was seen: to another endpoint when a connection is refused,
over a fresh connection when a backend closed one that was kept from an earlier request, and, where its route allows
it, once to another endpoint when a backend died over a prediction.

A request for an autoscaled Service without a Pod that can take it waits here until one can, up to its route's timeout.

The common case, a request and an answer that each arrive in one piece with a head that was seen before, is a look-up
and a write each way; what follows only happens where that is not so.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections import deque
from collections.abc import Callable, Collection
from http import HTTPStatus
from typing import cast

from shallop.controller.captures import Captures
from shallop.gateway.http1 import Body, Head, MessageError, parse_request, parse_response
from shallop.gateway.http2proxy import Http2Client, Http2Pool
from shallop.gateway.load import Load
from shallop.gateway.metrics import Metrics
from shallop.gateway.placement import MAX_REPLAY, MAX_WAITING, Placed, Recording
from shallop.gateway.plan import Plan, hop_headers, plan_request
from shallop.gateway.routes import Endpoint, RouteTable, ServiceKey
from shallop.gateway.tunnel import Tunnel

__all__ = ["Gateway"]

_MAX_HEAD = 64 * 1024
_MAX_IDLE_PER_ENDPOINT = 64
_CLOSE = (b"connection: close",)
# Pieces that are put together where they are kept: a client may send a body byte by byte.
_SMALL_PART = 16 * 1024
# How a connection preface of HTTP/2 looks to a reader of HTTP/1.1.
_HTTP2 = b"PRI * HTTP/2.0"
_CONNECT_S = 5.0
# How long the rest of a refused request is read and thrown away: closing at once would reset the connection, and the
# client might lose the answer that says why.
_LINGER_S = 2.0
_CLIENT_LEFT = 499
# A client that has ended its side may be gone or wait for its answer: after so long it is asked, by an answer that
# announces another one and that nobody minds; where it is gone, its system says so.
_ASK_CLIENT_S = 0.3
_STILL_THERE = b"HTTP/1.1 100 Continue\r\n\r\n"
# A Pod that refuses connections and is still listed as ready has just died: it is asked again until it is found out.
_ASK_AGAIN_S = 0.2
# Heads, of requests and of answers, that are remembered with what they mean.
_MAX_REMEMBERED, _MAX_REMEMBERED_HEAD = 1024, 2048


class _Backend(asyncio.Protocol):
    """A connection to an endpoint; serves one request at a time."""

    def __init__(self, gateway: Gateway, endpoint: Endpoint) -> None:
        self._gateway = gateway
        self.endpoint = endpoint
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.client: _Client | None = None
        self.used = False
        self._buffer = b""
        self._body: Body | None = None
        self._head: Head | None = None
        self._method = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gateway.forget(self)
        client, self.client = self.client, None
        if client is None:
            return
        if self._head is not None and self._head.length == -2 and exc is None:
            client.finish(keep_alive=False)
        else:
            client.backend_lost(self, answered=self._head is not None or bool(self._buffer))

    @property
    def unasked(self) -> bool:
        """Whether a request that was lost here may have found nobody: it may be sent again."""
        return self.used or (isinstance(self.transport, Tunnel) and not self.transport.begun)

    def begin(self, client: _Client, method: bytes) -> None:
        self.client = client
        self._method = method
        self._buffer = b""
        self._body = self._head = None
        # A slow reader of the last answer may have left it paused.
        self.transport.resume_reading()

    def pause_writing(self) -> None:
        if self.client:
            self.client.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.client:
            self.client.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.client is None:
            # A backend has nothing to say between requests.
            self.transport.abort()
            return
        try:
            self._pass_on(self.client, data)
        except MessageError as error:
            self.client.fail(502, f"backend {self.endpoint[0]}:{self.endpoint[1]}: {error}")

    def _pass_on(self, client: _Client, data: bytes) -> None:
        if self._body is not None:
            taken = self._body.feed(data)
            client.transport.write(data[:taken] if taken < len(data) else data)
            if client.recording is not None:
                client.note(response=data[:taken])
            if self._body.done:
                self._end(client, surplus=taken < len(data))
            return
        data = self._buffer + data if self._buffer else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > _MAX_HEAD:
                raise MessageError("the response head is longer than 64 KiB")
            self._buffer = data
            return
        head = self._gateway.parse_answer(data[:end], self._method)
        self._buffer = b""
        if head.start[1].startswith(b"1"):
            # 100 Continue and its like announce the answer proper.
            client.transport.write(data[: end + 4])
            if rest := data[end + 4 :]:
                self._pass_on(client, rest)
            return
        self._head = head
        taken = end + 4 + head.length
        if taken != len(data) or head.length < 0:
            self._body = Body(head.length)
            taken = end + 4 + self._body.feed(data[end + 4 :])
        if client.recording is not None:
            client.note(response=data[end + 4 : taken])
        if client.begin_answer(head) and head.keep_alive:
            client.transport.write(data[:taken] if taken < len(data) else data)
        else:
            # The client's connection may live on although the backend's does not, and the other way round.
            add = () if client.keep_alive else _CLOSE
            client.transport.write(head.render(drop=hop_headers(head), add=add) + data[end + 4 : taken])
        if self._body is None or self._body.done:
            self._end(client, surplus=taken < len(data))

    def _end(self, client: _Client, *, surplus: bool) -> None:
        self.client = None
        self.used = True
        assert self._head is not None
        idle = client.sent_all and not surplus and not self.transport.get_write_buffer_size()
        if idle and self._head.keep_alive and client.persistent:
            self._gateway.release(self)
        else:
            self.transport.close()
        client.finish(keep_alive=client.keep_alive)


class _Client(Placed, asyncio.Protocol):
    """A connection of a client; requests one after the other."""

    def __init__(self, gateway: Gateway) -> None:
        self._loop = asyncio.get_running_loop()
        super().__init__(gateway, self._loop.time)
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self._buffer = bytearray()
        self._body: Body | None = None
        self._backend: _Backend | None = None
        # The request as far as it was read, until its answer begins; None when it is too large to be asked again.
        self._replay: list[bytes] | None = None
        self._replay_size = 0
        self._connecting: asyncio.Task[None] | Tunnel | None = None
        self._lost = 0
        self._repeatable = False
        self._method = b""
        self._code = 0
        self._since = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._asking: asyncio.TimerHandle | None = None
        self._ended = self._asked = self._paused = False
        self._lingering = False
        self.persistent = True
        self.keep_alive = True
        self.sent_all = True
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._gateway.clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gateway.clients.discard(self)
        for timer in (self._timer, self._asking):
            if timer:
                timer.cancel()
        if self.busy:
            self._count(_CLIENT_LEFT)
        self._drop_backend()
        self.leave()

    def pause_writing(self) -> None:
        self._paused = True
        if self._backend:
            self._backend.transport.pause_reading()

    def resume_writing(self) -> None:
        self._paused = False
        if self._backend:
            self._backend.transport.resume_reading()
        self._next()

    def data_received(self, data: bytes) -> None:
        if not self.busy and not self._buffer and not self._paused and not self._lingering:
            end = data.find(b"\r\n\r\n")
            plan = self._gateway.plans().get(data[:end]) if end > 0 else None
            if plan is not None:
                missing = plan.length - len(data) + end + 4
                if missing == 0:
                    self._begin(plan)
                    self.sent_all = True
                    self._replay = [plan.head + data[end + 4 :]]
                    if self.recording is not None:
                        self.note(request=data[end + 4 :])
                    self.place()
                    return
                if missing > 0:
                    self._begin(plan)
                    self._expect(plan)
                    self._send_body(data[end + 4 :])
                    self.place()
                    return
        elif self._lingering:
            return
        elif not self.sent_all:
            try:
                self._send_body(data)
            except MessageError as error:
                self.fail(error.status, str(error))
            return
        self._buffer += data
        if self.busy or self._paused:
            if len(self._buffer) > _MAX_HEAD:
                # Requests sent ahead wait in the kernel until this one is answered.
                self.transport.pause_reading()
        else:
            self._next()

    def eof_received(self) -> bool:
        """The client has said all: what it asked completely is answered, half a request is forgotten."""
        self._ended = True
        if self.busy:
            if self.sent_all and self._asking is None:
                self._asking = self._loop.call_later(_ASK_CLIENT_S, self._ask_client)
            return self.sent_all
        if self._buffer and not self._lingering:
            # Closes when it holds no whole request.
            self._loop.call_soon(self._next)
            return True
        return False

    def _ask_client(self) -> None:
        """Find out whether a client that has ended its side is there, while nothing is sent that would tell."""
        self._asking = None
        if not self.busy or self._code or not self.persistent:
            return
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
            return
        if not self._asked:
            self._asked = True
            self.transport.write(_STILL_THERE)
        self._asking = self._loop.call_later(_ASK_CLIENT_S, self._ask_client)

    def drain(self) -> None:
        """Close when idle, else after the request under way."""
        self.keep_alive = False
        if not self.busy:
            self.transport.close()

    def _next(self) -> None:
        """Begin with the next request, if all of its head is here."""
        if self.busy or self._paused or self._lingering or self.transport.is_closing():
            return
        while self._buffer.startswith(b"\r\n"):
            del self._buffer[:2]
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0 and len(self._buffer) <= _MAX_HEAD:
            if self._ended:
                self.transport.close()
            return
        self.busy, self.sent_all, self._code, self._route, self._method = True, False, 0, None, b""
        self._since = self._loop.time()
        try:
            if not 0 <= end <= _MAX_HEAD:
                raise MessageError("the request head is longer than 64 KiB", 431)
            self._start(bytes(self._buffer[:end]))
        except MessageError as error:
            self.fail(error.status, str(error))

    def _start(self, raw: bytes) -> None:
        """Begin with the request of this head; what of its body is here follows in the buffer."""
        plan = self._gateway.plans().get(raw)
        if plan is None:
            if raw == _HTTP2:
                self._speak_http2()
                return
            request = parse_request(raw)
            if self._is_for_gateway(request, len(raw) + 4):
                return
            plan = plan_request(request, self._gateway.table)
            self._gateway.remember(raw, plan)
        else:
            del self._buffer[: len(raw) + 4]
        self._begin(plan)
        self._expect(plan)
        if self._buffer and not self.sent_all:
            data = bytes(self._buffer)
            self._buffer.clear()
            self._send_body(data)
        if self._ended and not self.sent_all:
            self.transport.close()
            return
        self.place()

    def _speak_http2(self) -> None:
        """Hand the connection over: its client knows that we speak HTTP/2."""
        self._gateway.clients.discard(self)
        self.busy = False
        self.sent_all = True
        if self._timer:
            self._timer.cancel()
        Http2Client(self._gateway).start(self.transport, bytes(self._buffer))

    def _is_for_gateway(self, request: Head, size: int) -> bool:
        """Answer what the gateway is asked about itself."""
        self._method, self.sent_all = request.start[0], request.length == 0
        self._body = Body(request.length)
        self.keep_alive = self.keep_alive and request.keep_alive
        del self._buffer[:size]
        path = request.start[1].partition(b"?")[0]
        if path == b"/-/metrics" and self._method in (b"GET", b"HEAD") and self.sent_all:
            self._answer(200, "text/plain; version=0.0.4", self._gateway.metrics.render(self._gateway.captures.dropped))
            return True
        if path.startswith(b"/-/"):
            raise MessageError("paths under /-/ belong to the gateway; there is 'GET /-/metrics'", 404)
        return False

    def _begin(self, plan: Plan) -> None:
        self.busy, self._code, self._lost = True, 0, 0
        self._since = self._loop.time()
        self._method, self._repeatable = plan.method, plan.repeatable
        self.persistent = plan.persistent
        if plan.captured is not None and self._gateway.captures.wanted:
            self.recording = Recording(plan.captured)
        self.keep_alive = self.keep_alive and plan.keep_alive
        route = plan.route
        number = plan.number
        self.begin_placement(route, self._gateway.table.draw(route) if number is None else number)
        if route.timeout_s and not self._timer:
            self._timer = self._loop.call_later(route.timeout_s, self._time_out)

    def _expect(self, plan: Plan) -> None:
        """The body of the request follows its head in pieces, if there is one."""
        self._body = Body(plan.length)
        self.sent_all = self._body.done
        self._replay, self._replay_size = [plan.head], len(plan.head)

    def _time_out(self) -> None:
        """Fail a request that took too long; one timer serves all requests of a connection."""
        self._timer = None
        limit_s = self._route.timeout_s if self._route else 0.0
        if not self.busy or not limit_s:
            return
        left_s = self._since + limit_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._time_out)
        else:
            self.fail(504, f"no answer within {limit_s:g} s, the timeout of route {self._owner()}")

    def _send_body(self, data: bytes) -> None:
        assert self._body is not None
        taken = self._body.feed(data)
        self.sent_all = self._body.done
        part = data
        if taken < len(data):
            part = data[:taken]
            self._buffer += data[taken:]
        if self.recording is not None:
            self.note(request=part)
        if self._replay is not None:
            if len(part) < _SMALL_PART and len(self._replay[-1]) < _SMALL_PART:
                self._replay[-1] += part
            else:
                self._replay.append(part)
            self._replay_size += len(part)
        if self._backend is not None:
            self._backend.transport.write(part)
            if self._replay is not None and self._replay_size > MAX_REPLAY:
                self._replay = None
        elif self._replay is not None and self._replay_size > MAX_REPLAY:
            self.transport.pause_reading()

    def ask(self, endpoint: Endpoint) -> None:
        table, http2 = self._gateway.table, self._gateway.http2
        if table.speaks_http2(self._target) and endpoint not in http2.http1_only:
            self._connecting = tunnel = Tunnel(http2, endpoint, self._use, self._refuse)
            tunnel.open()
            return
        backend = self._gateway.take(endpoint) if not self._attempts else None
        if backend is not None:
            self._attach(backend)
        else:
            self._connecting = self._loop.create_task(self._open(endpoint))

    async def _open(self, endpoint: Endpoint) -> None:
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, backend = await self._loop.create_connection(lambda: _Backend(self._gateway, endpoint), *endpoint)
        except (OSError, TimeoutError) as error:
            self._connecting = None
            self.retry(f"backend {endpoint[0]}:{endpoint[1]} cannot be reached: {error or 'timed out'}", endpoint)
            return
        self._connecting = None
        if backend.transport.is_closing():
            self.retry(f"backend {endpoint[0]}:{endpoint[1]} closed the connection at once", endpoint)
        else:
            self._attach(backend)

    def _use(self, tunnel: Tunnel) -> None:
        self._connecting = None
        tunnel.protocol = backend = _Backend(self._gateway, tunnel.endpoint)
        backend.connection_made(tunnel)
        self._attach(backend)

    def _refuse(self, why: str, endpoint: Endpoint | None) -> None:
        self._connecting = None
        self.retry(why, endpoint)

    def _attach(self, backend: _Backend) -> None:
        assert self._replay is not None
        self._backend = backend
        backend.begin(self, self._method)
        if self._paused:
            backend.transport.pause_reading()
        # Before the write, which pauses reading again where the backend is slower than the client.
        self.transport.resume_reading()
        if len(self._replay) == 1:
            backend.transport.write(self._replay[0])
        else:
            backend.transport.writelines(self._replay)

    def backend_lost(self, backend: _Backend, *, answered: bool) -> None:
        """Try again where nothing of an answer came over a connection that was kept from an earlier request."""
        self._backend = None
        if not answered and self._replay is not None and (backend.unasked or self._may_repeat()):
            if not backend.unasked:
                self._lost += 1
            self.retry("the backend closed the connection", None if backend.unasked else backend.endpoint)
        else:
            self.fail(502, f"backend {backend.endpoint[0]}:{backend.endpoint[1]} ended before its answer was complete")

    def _may_repeat(self) -> bool:
        """Once: a request that kills what reads it must not go round."""
        return self._repeatable and self.sent_all and not self._lost

    def begin_answer(self, head: Head) -> bool:
        """Note that an answer starts; return whether this connection lives on after it."""
        self._code = int(head.start[1])
        self._replay = None
        self.keep_alive = self.keep_alive and self.sent_all and head.length != -2
        return self.keep_alive

    def fail(self, status: int, message: str, *, retry_after_s: int = 0) -> None:
        """Answer with an error of ours; a half-sent answer can only be cut off."""
        self._drop_backend()
        self.leave()
        self.recording = None
        if self._code:
            self._count(502)
            self.busy = False
            self.transport.abort()
            return
        self.keep_alive = self.keep_alive and self.sent_all
        self._answer(status, "application/json", json.dumps({"error": message}).encode(), retry_after_s)

    def _answer(self, status: int, content_type: str, body: bytes, retry_after_s: int = 0) -> None:
        self._code = status
        extra = f"retry-after: {retry_after_s}\r\n" if retry_after_s else ""
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {content_type}\r\n"
            f"content-length: {len(body)}\r\n{extra}"
            f"{'' if self.keep_alive else 'connection: close' + chr(13) + chr(10)}\r\n"
        )
        self.transport.write(head.encode() + (b"" if self._method == b"HEAD" else body))
        self.finish(keep_alive=self.keep_alive)

    def finish(self, *, keep_alive: bool) -> None:
        """The answer is complete; go on with the next request."""
        self._count(self._code)
        if self.recording is not None:
            self.hand_over(self._code, self._since)
        self.leave()
        self._backend = self._replay = self._route = self._body = None
        self.busy = False
        if not keep_alive:
            self._close()
            return
        self.transport.resume_reading()
        if self._ended and not self._buffer:
            self.transport.close()
        elif self._buffer:
            # In a turn of its own: thousands of requests may wait in one buffer.
            self._loop.call_soon(self._next)

    def _close(self) -> None:
        if self.sent_all:
            self.transport.close()
            return
        self._lingering = True
        self._buffer.clear()
        self.transport.resume_reading()
        if not self.transport.is_closing():
            self.transport.write_eof()
            self._loop.call_later(_LINGER_S, self.transport.close)

    def _drop_backend(self) -> None:
        if self._connecting:
            self._connecting.cancel()
            self._connecting = None
        if self._backend:
            # Its answer has no reader any more.
            self._backend.client = None
            self._backend.transport.abort()
            self._backend = None

    def _owner(self) -> str:
        return self._route.owner if self._route else ""

    def _count(self, code: int) -> None:
        self._gateway.metrics.observe(self._owner(), code, self._loop.time() - self._since)


class Gateway:
    """Accepts client connections and keeps idle connections to endpoints."""

    def __init__(self, table: RouteTable, captures: Captures | None = None) -> None:
        self.table = table
        self.captures = captures or Captures()
        self.metrics = Metrics()
        self.clients: set[_Client | Http2Client] = set()
        self.http2 = Http2Pool(self)
        self.loads: dict[ServiceKey, Load] = {}
        self.wake: Callable[[], None] = lambda: None
        self._waiting: dict[ServiceKey, dict[Placed, None]] = {}
        self._idle: dict[Endpoint, deque[_Backend]] = {}
        # Those that there are, once they are known.
        self._endpoints: Collection[Endpoint] | None = None
        self._plans: dict[bytes, Plan] = {}
        self._planned = table.generation
        self._answers: dict[bytes, Head] = {}

    def plans(self) -> dict[bytes, Plan]:
        """Return what is known of requests, by the bytes of their heads."""
        if self._planned != self.table.generation:
            self._planned = self.table.generation
            self._plans.clear()
        return self._plans

    def remember(self, raw: bytes, plan: Plan) -> None:
        if len(raw) <= _MAX_REMEMBERED_HEAD:
            if len(self._plans) >= _MAX_REMEMBERED:
                self._plans.clear()
            self._plans[raw] = plan

    def parse_answer(self, raw: bytes, method: bytes) -> Head:
        head = self._answers.get(raw)
        # An answer to HEAD says what it does not have.
        if head is None or method == b"HEAD":
            head = parse_response(raw, method)
            if len(raw) <= _MAX_REMEMBERED_HEAD and method != b"HEAD":
                if len(self._answers) >= _MAX_REMEMBERED:
                    self._answers.clear()
                self._answers[raw] = head
        return head

    def connect(self) -> asyncio.Protocol:
        return _Client(self)

    def wait(self, client: Placed, key: ServiceKey, *, ask_again: bool) -> bool:
        """
        Let a request stand in line for a Pod; False when the line is too long.

        Args:
            ask_again: not only when endpoints change: the ones that are listed refuse connections.
        """
        line = self._waiting.setdefault(key, {})
        if len(line) >= MAX_WAITING:
            return False
        line[client] = None
        if ask_again:
            asyncio.get_running_loop().call_later(_ASK_AGAIN_S, self.admit, key)
        self.wake()
        return True

    def stop_waiting(self, client: Placed, key: ServiceKey) -> None:
        line = self._waiting.get(key)
        if line is not None:
            line.pop(client, None)
            if not line:
                del self._waiting[key]

    def admit_soon(self, key: ServiceKey) -> None:
        if key in self._waiting:
            asyncio.get_running_loop().call_soon(self.admit, key)

    def admit(self, key: ServiceKey) -> None:
        """Let as many requests go on as Pods can take, first come, first served."""
        for client in list(self._waiting.get(key, ())):
            load, line = self.loads.get(key), self._waiting.get(key)
            if line is None:
                return
            if load and load.limit and not self._has_room(key, load):
                return
            if client in line:
                del line[client]
                if not line:
                    del self._waiting[key]
                client.go_on()

    def _has_room(self, key: ServiceKey, load: Load) -> bool:
        pods = len(self.table.endpoints.get(key, ()))
        return sum(min(count, load.limit) for count in load.working.values()) < pods * load.limit

    def admit_all(self) -> None:
        """Look after every line: endpoints have changed."""
        for key in list(self._waiting):
            if self.table.endpoints.get(key):
                self.admit(key)

    def take(self, endpoint: Endpoint) -> _Backend | None:
        """Return an idle connection; the last one used, so that surplus ones grow old."""
        idle = self._idle.get(endpoint)
        while idle:
            backend = idle.pop()
            if not backend.transport.is_closing():
                return backend
        return None

    def release(self, backend: _Backend) -> None:
        if self._endpoints is not None and backend.endpoint not in self._endpoints:
            # Its Pod may wait for this to end.
            backend.transport.close()
            return
        idle = self._idle.setdefault(backend.endpoint, deque())
        if len(idle) < _MAX_IDLE_PER_ENDPOINT:
            idle.append(backend)
        else:
            backend.transport.close()

    def forget(self, backend: _Backend) -> None:
        idle = self._idle.get(backend.endpoint)
        if idle and backend in idle:
            idle.remove(backend)
        if idle is not None and not idle:
            del self._idle[backend.endpoint]

    def close_idle_except(self, endpoints: Collection[Endpoint]) -> None:
        """Close kept connections to endpoints that are gone: their address may soon be another Pod's."""
        self._endpoints = endpoints
        for endpoint in [known for known in self._idle if known not in endpoints]:
            for backend in self._idle.pop(endpoint):
                backend.transport.close()
        self.http2.close_except(endpoints)

    def close(self) -> None:
        """Drain clients and close idle connections."""
        for client in list(self.clients):
            client.drain()
        self.close_idle_except(())
        self.http2.close()
