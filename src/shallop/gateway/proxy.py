"""The proxy: one client connection, one pooled backend connection per request, bytes passed on as they come."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from http import HTTPStatus
from typing import cast

from shallop.gateway.http1 import Body, Head, MessageError, parse_request, parse_response
from shallop.gateway.routes import Endpoint, Route, RouteTable

__all__ = ["Gateway"]

log = logging.getLogger(__name__)
_MAX_HEAD = 64 * 1024
_MAX_IDLE_PER_ENDPOINT = 64
_HOP_HEADERS = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"upgrade"})
# A request up to this size is kept until the answer starts, so that a backend that closed a kept-alive connection
# under our hands costs nobody an error.
_MAX_REPLAY = 1 << 20
_CONNECT_S = 5.0


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
        if self._head is not None and self._head.length == -2:
            client.finish(keep_alive=False)
        else:
            client.backend_lost(self, answered=self._head is not None or bool(self._buffer))

    def begin(self, client: _Client, method: bytes) -> None:
        self.client = client
        self._method = method
        self._buffer = b""
        self._body = self._head = None

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
            client, self.client = self.client, None
            self.transport.abort()
            client.fail(error.status, str(error))

    def _pass_on(self, client: _Client, data: bytes) -> None:
        if self._body is None:
            data = self._buffer + data if self._buffer else data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > _MAX_HEAD:
                    raise MessageError("the backend's response head is longer than 64 KiB", 502)
                self._buffer = data
                return
            head = parse_response(data[:end], self._method)
            self._buffer = b""
            if head.start[1] == b"100":
                client.transport.write(data[: end + 4])
                if rest := data[end + 4 :]:
                    self._pass_on(client, rest)
                return
            self._head, self._body = head, Body(head.length)
            taken = self._body.feed(data[end + 4 :])
            client.answered = True
            if not head.keep_alive and head.length != -2:
                # The client's connection may live on although the backend's does not.
                client.transport.write(head.render(drop=_HOP_HEADERS) + data[end + 4 : end + 4 + taken])
            else:
                client.transport.write(data[: end + 4 + taken] if end + 4 + taken < len(data) else data)
        else:
            taken = self._body.feed(data)
            client.transport.write(data[:taken] if taken < len(data) else data)
        if self._body.done:
            self._end(client)

    def _end(self, client: _Client) -> None:
        self.client = None
        self.used = True
        if self._head is not None and self._head.keep_alive and client.sent_all:
            self._gateway.release(self)
        else:
            self.transport.close()
        client.finish(keep_alive=client.sent_all)


class _Client(asyncio.Protocol):
    """A connection of a client; requests one after the other."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self._buffer = bytearray()
        self._body: Body | None = None
        self._route: Route | None = None
        self._backend: _Backend | None = None
        self._replay: bytearray | None = None
        self._method = b""
        self._keep_alive = True
        self._connecting: asyncio.Task[None] | None = None
        self._tried: Endpoint | None = None
        self._retries = 0
        self.answered = False
        self.sent_all = False
        self.busy = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._gateway.clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gateway.clients.discard(self)
        if self._connecting:
            self._connecting.cancel()
        if self._backend:
            # Its answer has no reader any more.
            self._backend.client = None
            self._backend.transport.abort()

    def pause_writing(self) -> None:
        if self._backend:
            self._backend.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._backend:
            self._backend.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.busy and not self.sent_all:
            self._send_body(data)
            return
        self._buffer += data
        if not self.busy:
            self._next()
        elif len(self._buffer) > _MAX_HEAD:
            # Requests sent ahead wait in the kernel until this one is answered.
            self.transport.pause_reading()

    def drain(self) -> None:
        """Close when idle, else after the request under way."""
        self._keep_alive = False
        if not self.busy:
            self.transport.close()

    def _next(self) -> None:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD:
                self.fail(431, "the request head is longer than 64 KiB")
            return
        self.busy, self.answered, self.sent_all, self._retries, self._tried = True, False, False, 0, None
        try:
            head = parse_request(bytes(self._buffer[:end]))
            self._start(head, bytes(self._buffer[end + 4 :]))
        except MessageError as error:
            self.fail(error.status, str(error))

    def _start(self, head: Head, rest: bytes) -> None:
        self._buffer.clear()
        path = head.start[1].partition(b"?")[0]
        if head.start[1].startswith(b"/-/"):
            raise MessageError("paths under /-/ belong to the gateway", 404)
        route = self._gateway.table.find(head.host, path)
        if route is None:
            raise MessageError(
                f"no route for host {head.host.decode('latin-1')!r} and path {path.decode('latin-1')!r}; "
                "see 'kubectl get inferenceservices -A' for the URLs",
                404,
            )
        if not head.keep_alive:
            self._keep_alive = False
        self._route, self._method = route, head.start[0]
        start = (head.start[0], route.rewrite(head.start[1]), head.start[2])
        changed = head._replace(start=start)
        self._replay = bytearray(changed.render(drop=_HOP_HEADERS, add=route.headers))
        self._body = Body(head.length)
        self.sent_all = self._body.done
        if rest:
            self._send_body(rest)
        self._connect()

    def _send_body(self, data: bytes) -> None:
        assert self._body is not None
        try:
            taken = self._body.feed(data)
        except MessageError as error:
            self.fail(error.status, str(error))
            return
        part = data[:taken]
        self.sent_all = self._body.done
        if taken < len(data):
            self._buffer += data[taken:]
        if self._replay is not None:
            self._replay += part
        if self._backend is None:
            if self._replay is not None and len(self._replay) > _MAX_REPLAY:
                self.transport.pause_reading()
            return
        self._backend.transport.write(part)
        if self._replay is not None and len(self._replay) > _MAX_REPLAY:
            self._replay = None

    def _connect(self) -> None:
        assert self._route is not None
        endpoint = self._gateway.table.pick(self._route, self._tried)
        if endpoint is None:
            self.fail(503, f"no ready endpoint behind route {self._route.owner}; see 'kubectl get pods,isvc -A'")
            return
        self._tried = endpoint
        backend = self._gateway.take(endpoint) if not self._retries else None
        if backend is not None:
            self._attach(backend)
        else:
            self._connecting = asyncio.get_running_loop().create_task(self._open(endpoint))

    async def _open(self, endpoint: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(_CONNECT_S):
                _, backend = await loop.create_connection(lambda: _Backend(self._gateway, endpoint), *endpoint)
        except (OSError, TimeoutError) as error:
            self._connecting = None
            self._retry(f"backend {endpoint[0]}:{endpoint[1]} cannot be reached: {error or 'timed out'}")
            return
        self._connecting = None
        self._attach(backend)

    def _attach(self, backend: _Backend) -> None:
        assert self._replay is not None
        self._backend = backend
        backend.begin(self, self._method)
        backend.transport.write(bytes(self._replay))
        self.transport.resume_reading()

    def backend_lost(self, backend: _Backend, *, answered: bool) -> None:
        """Try again where nothing of an answer came over a connection that was kept from an earlier request."""
        self._backend = None
        if not answered and backend.used and self._replay is not None:
            self._retry("the backend closed the connection")
        else:
            self.fail(502, f"backend {backend.endpoint[0]}:{backend.endpoint[1]} ended before its answer was complete")

    def _retry(self, why: str) -> None:
        self._retries += 1
        if self._retries > 3:
            self.fail(503, why)
        else:
            self._connect()

    def fail(self, status: int, message: str) -> None:
        """Answer with an error of ours; a half-sent answer can only be cut off."""
        if self._backend:
            self._backend.client = None
            self._backend.transport.abort()
            self._backend = None
        if self.answered:
            self.transport.abort()
            return
        body = json.dumps({"error": message}).encode()
        closing = not self.sent_all or not self._keep_alive
        self.transport.write(
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\n{'connection: close' + chr(13) + chr(10) if closing else ''}\r\n".encode()
            + body
        )
        self.finish(keep_alive=not closing)

    def finish(self, *, keep_alive: bool) -> None:
        """The answer is complete; go on with the next request."""
        self._backend = self._replay = self._route = self._body = None
        self.busy = False
        self.transport.resume_reading()
        if not keep_alive or not self._keep_alive:
            self.transport.close()
        elif self._buffer:
            self._next()


class Gateway:
    """Accepts client connections and keeps idle connections to endpoints."""

    def __init__(self, table: RouteTable) -> None:
        self.table = table
        self.clients: set[_Client] = set()
        self._idle: dict[Endpoint, deque[_Backend]] = {}

    def connect(self) -> asyncio.Protocol:
        return _Client(self)

    def take(self, endpoint: Endpoint) -> _Backend | None:
        idle = self._idle.get(endpoint)
        while idle:
            backend = idle.pop()
            if not backend.transport.is_closing():
                return backend
        return None

    def release(self, backend: _Backend) -> None:
        idle = self._idle.setdefault(backend.endpoint, deque())
        if len(idle) < _MAX_IDLE_PER_ENDPOINT:
            idle.append(backend)
        else:
            backend.transport.close()

    def forget(self, backend: _Backend) -> None:
        idle = self._idle.get(backend.endpoint)
        if idle and backend in idle:
            idle.remove(backend)
            if not idle:
                del self._idle[backend.endpoint]

    def close(self) -> None:
        """Drain clients and close idle connections."""
        for client in list(self.clients):
            client.drain()
        for idle in list(self._idle.values()):
            for backend in list(idle):
                backend.transport.close()
