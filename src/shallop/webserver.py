"""The web origins: which requests come in at all, and how a server is started and stopped."""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from shallop.errors import PortTakenError, TooLargeError

__all__ = ["OriginGuard", "Server", "TokenCookie", "bind", "read_body", "token_cookie"]

_Headers = list[tuple[bytes, bytes]]
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Names that Pods use for the platform. No public DNS name can end so, hence none can be rebound to us.
_CLUSTER_SUFFIXES = (".svc", ".svc.cluster.local", ".kubeflow")


class OriginGuard:
    """
    ASGI middleware that refuses what a foreign web page could send to a server on loopback.

    Args:
        hosts: names that a ``Host`` header may carry, besides loopback names and addresses of this cluster.

    A Host that is not ours means DNS rebinding: 403. A write that a browser marks as coming from another site: 403.
    Programs send neither ``Origin`` nor ``Sec-Fetch-Site`` and are not concerned.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str]) -> None:
        self._app = app
        self._hosts = frozenset(hosts) | {"localhost", "127.0.0.1", "::1", "ml-pipeline", "model-registry-service"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        problem = self._problem(scope.get("method", "GET"), scope["type"], headers)
        if problem is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await JSONResponse({"error": problem, "message": problem, "code": 7}, 403)(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": problem[:120]})

    def _problem(self, method: str, type_: str, headers: dict[bytes, str]) -> str | None:
        host = headers.get(b"host", "")
        if not self._is_ours(_host_name(host)):
            return f"Host {host!r} is not a name of this server; use localhost or 127.0.0.1."
        if method in _SAFE_METHODS and type_ == "http":
            return None
        site = headers.get(b"sec-fetch-site")
        if site is not None and site not in ("same-origin", "none"):
            return "A page of another site may not change anything here."
        origin = headers.get(b"origin")
        if site is None and origin is not None and urlsplit(origin).netloc != host:
            return f"Origin {origin!r} may not change anything here."
        return None

    def _is_ours(self, name: str) -> bool:
        if name in self._hosts or name.endswith(_CLUSTER_SUFFIXES):
            return True
        # Addresses cannot be rebound; these are the platform's Services as Pods see them.
        return name.startswith(("127.", "10.")) and name.replace(".", "").isdigit()


def _host_name(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().rstrip(".")


def token_cookie(web_port: int, token: str) -> str:
    """Return the value of a ``Set-Cookie`` header that keeps a token in a browser; an empty token forgets it."""
    # Cookies know no ports: the name tells platforms on one machine apart.
    cookie = f"shallop-{web_port}={token}; Path=/; HttpOnly; SameSite=Strict"
    return cookie if token else f"{cookie}; Max-Age=0"


class TokenCookie:
    """
    ASGI middleware: a bearer token that a browser keeps in a cookie counts as one in the header ``Authorization``.

    Only behind ``OriginGuard``. A write counts only if the browser says that a page of this very origin asks for it.
    """

    def __init__(self, app: ASGIApp, web_port: int) -> None:
        self._app = app
        self._name = f"shallop-{web_port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
            token = self._token(headers)
            if token and b"authorization" not in headers and _is_own_page(scope["method"], headers):
                header = (b"authorization", f"Bearer {token}".encode("latin-1"))
                scope = {**scope, "headers": [*scope["headers"], header]}
        await self._app(scope, receive, send)

    def _token(self, headers: dict[bytes, str]) -> str:
        for part in headers.get(b"cookie", "").split(";"):
            name, _, value = part.strip().partition("=")
            if name == self._name:
                return value
        return ""


def _is_own_page(method: str, headers: dict[bytes, str]) -> bool:
    if method in _SAFE_METHODS:
        return True
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin", "")
    return site == "same-origin" or (site is None and urlsplit(origin).netloc == headers.get(b"host", "-"))


async def read_body(request: Request, limit: int, refusal: str) -> bytes:
    """
    Read a body of at most ``limit`` bytes.

    Raises:
        TooLargeError: it is longer, or says that it will be, with ``refusal`` as the message.
    """
    size = int(request.headers.get("content-length") or 0)
    body = bytearray()
    if size <= limit:
        async for chunk in request.stream():
            body += chunk
            if (size := len(body)) > limit:
                break
    if size > limit:
        raise TooLargeError(refusal)
    return bytes(body)


def bind(host: str, port: int, setting: str) -> socket.socket:
    """
    Listen on a port; 0 takes a free one.

    Raises:
        PortTakenError: another program has it; the message names the setting.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        # 1000 clients that connect at once wait a minute in SYN retries behind a backlog of 100.
        sock.listen(2048)
    except OSError as error:
        sock.close()
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "is taken by another program" if error.errno == errno.EADDRINUSE else "may not be used by this user"
        option = setting.replace("_", "-")
        raise PortTakenError(
            f"{setting}: port {port} on {host} {why}. Choose another with --{option}, or free ones with --port auto."
        ) from error
    sock.setblocking(False)
    return sock


# A real API server waits 32 s for a head, and takes 1 MiB of it; commands of exec are in there.
HEAD_S, MAX_HEAD, MAX_HEADERS = 30.0, 512 * 1024, 256
# A body may be slow, not dead: this many bytes in each interval.
BODY_S, _MIN_BODY = 20.0, 10_000
# What is still read of a body after its request was answered, so that the client sees the answer.
_MAX_UNREAD = 8 * 1024 * 1024
_IDLE, _HEAD, _BODY = range(3)


class _UpgradableHttp(HttpToolsProtocol):
    """
    HTTP/1.1 whose connection an application may take over.

    Every request has ``scope["extensions"]["shallop.answer"]``: called with status, headers (``content-length`` among
    them) and body instead of ``send``, it writes a whole answer at once; False = it did nothing, ``send`` must do it. A
    request with ``Connection: Upgrade`` has ``scope["extensions"]["shallop.upgrade"]`` instead: called instead of
    ``send``, it returns the reader and writer of the raw connection, on which the application answers ``101`` itself.
    They are closed when the server stops.

    A client that sends too much head (431), takes too long for it or trickles its body (408), or goes on with a body
    that was refused, loses its connection.
    """

    _handed_over = False
    _phase = _IDLE
    # Bytes of a head that is not complete, or of a body since the last look.
    _received = 0
    _refusal: tuple[int, str] | None = None
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._patience = self.loop.call_later(HEAD_S, self._lose_patience)

    def connection_lost(self, exc: Exception | None) -> None:
        self._be_patient()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._phase == _IDLE:
            if self._patience is not None:
                self._be_patient()
            return
        self._received += len(data)
        if self._phase == _HEAD:
            if self._received > MAX_HEAD:
                self._refuse(431, f"the head of a request may have {MAX_HEAD} bytes")
        elif self.cycle.response_complete and self._received > _MAX_UNREAD:
            self.transport.close()
        if self._patience is None:
            after_s = HEAD_S if self._phase == _HEAD else BODY_S
            self._patience = self.loop.call_later(after_s, self._lose_patience)

    def _be_patient(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _lose_patience(self) -> None:
        """Look at a request that is not complete yet: is there any hope?"""
        self._patience = None
        if self._phase == _IDLE:
            if self.cycle is None:
                self.transport.close()
            return
        if self._phase == _HEAD:
            self._refuse(408, f"the head of a request must be here within {HEAD_S:g} s")
        elif self._is_body_awaited():
            self._received = 0
            self._patience = self.loop.call_later(BODY_S, self._lose_patience)
        elif self.cycle.response_started:
            self.transport.close()
        else:
            self._refuse(408, f"the body of a request must have {_MIN_BODY} bytes in {BODY_S:g} s")

    def _is_body_awaited(self) -> bool:
        """Whether a body comes fast enough, or nobody has asked for more of it yet."""
        waits = self.flow.read_paused or self.cycle.waiting_for_100_continue
        return waits or (self._received >= _MIN_BODY and not self.cycle.response_complete)

    def _refuse(self, status: int, why: str) -> None:
        self._refusal = status, why
        self.send_400_response(why)

    def send_400_response(self, msg: str) -> None:
        status, why = self._refusal or (400, msg)
        if self.transport.is_closing():
            return
        earlier = self._phase != _BODY and self.cycle is not None and not self.cycle.response_complete
        if earlier or self.pipeline:
            # Its answer may have begun: this one would stand in the midst of it.
            self.transport.close()
            return
        body = why.encode()
        head = f"content-type: text/plain; charset=utf-8\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        self.transport.write(STATUS_LINE[status] + head.encode() + body)
        self.transport.close()

    def on_message_begin(self) -> None:
        self._phase, self._received = _HEAD, 0
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._phase = _IDLE
        super().on_message_complete()

    def on_headers_complete(self) -> None:
        if len(self.headers) > MAX_HEADERS:
            self._refusal = 431, f"a request may have {MAX_HEADERS} headers"
            raise ValueError(self._refusal)  # the parser makes an error of it, which ends in send_400_response
        self._phase, self._received = _BODY, 0
        self._be_patient()
        upgrade = self.parser.should_upgrade()
        extensions: dict[str, Any] = {"shallop.upgrade": self._hand_over} if upgrade else {}
        self.scope["extensions"] = extensions
        super().on_headers_complete()
        if not upgrade:
            extensions["shallop.answer"] = partial(self._answer, self.cycle)
        if upgrade:
            # The parser reads nothing more: without an upgrade this was the connection's last request.
            self.cycle.keep_alive = False

    def _answer(self, cycle: RequestResponseCycle, status: int, headers: _Headers, body: bytes) -> bool:
        if cycle.disconnected or cycle.response_started or self.flow.write_paused or not cycle.keep_alive:
            return False
        parts: list[bytes] = [STATUS_LINE[status]]
        for name, value in (*cycle.default_headers, *headers):
            if b"\n" in value or b"\r" in value:
                raise ValueError(f"a line break in the header {name!r}")
            parts += (name, b": ", value, b"\r\n")
        self.transport.write(b"".join((*parts, b"\r\n", body)))
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        cycle.on_response()
        return True

    def _unsupported_upgrade_warning(self) -> None:
        """Whether it is supported the application decides."""

    def _hand_over(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self._be_patient()
        self._handed_over = self.cycle.disconnected = True
        reader = asyncio.StreamReader(loop=self.loop)
        protocol = _Upgraded(reader, lambda: self.connections.discard(self))
        protocol.connection_made(self.transport)
        self.transport.set_protocol(protocol)
        return reader, asyncio.StreamWriter(self.transport, protocol, reader, self.loop)

    def shutdown(self) -> None:
        if self._handed_over:
            self.transport.close()
        else:
            super().shutdown()


class _Upgraded(asyncio.StreamReaderProtocol):
    def __init__(self, reader: asyncio.StreamReader, lost: Callable[[], None]) -> None:
        super().__init__(reader)
        self._lost = lost

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._lost()


class Server:
    """One uvicorn server inside our event loop; the caller owns signals and the socket."""

    def __init__(self, app: ASGIApp, sock: socket.socket, *, tls: tuple[str, str] | None = None) -> None:
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=2,
            timeout_keep_alive=65,
            ws="none",
            http=_UpgradableHttp,
        )
        if tls:
            config.ssl_certfile, config.ssl_keyfile = tls
            config.ssl_version = ssl.PROTOCOL_TLS_SERVER
        self._server = uvicorn.Server(config)
        self._socket = sock
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when requests are accepted."""
        self._task = asyncio.create_task(self._server._serve(sockets=[self._socket]))
        while not self._server.started:
            if self._task.done():
                self._task.result()
                raise RuntimeError("the server ended before it had started")
            await asyncio.sleep(0.002)

    async def stop(self) -> None:
        """Refuse new requests, give those under way two seconds, close."""
        self._server.should_exit = True
        if self._task is not None:
            await self._task
