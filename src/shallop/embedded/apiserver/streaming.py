"""``pods/NAME/exec``, ``attach`` and ``portforward``: from a request to an upgraded connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from starlette.types import Scope

from shallop.embedded.apiserver.podlogs import choose_container
from shallop.embedded.apiserver.requests import parse_bool
from shallop.embedded.apiserver.streaming_command import (
    PROTOCOLS,
    Channels,
    SpdyChannels,
    Wanted,
    WebSocketChannels,
    converse,
)
from shallop.embedded.apiserver.streaming_forward import (
    CHANNEL_PROTOCOLS,
    TUNNEL,
    WebSocketPipe,
    forward_channels,
    forward_spdy,
)
from shallop.embedded.apiserver.streaming_spdy import Spdy, SpdyError
from shallop.embedded.apiserver.streaming_websocket import WebSocket, accept_websocket, choose_protocol
from shallop.errors import BadRequestError, ForbiddenError, UnavailableError
from shallop.kube.node import Execution, NodeApi
from shallop.kube.objects import Object

__all__ = ["STREAMING", "Upgrade", "connect", "no_ephemeral_containers", "parse_options", "render_options"]

STREAMING = ("attach", "exec", "portforward")
_CHUNK = 64 * 1024
_SPDY_PROTOCOLS = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")


class Upgrade(NamedTuple):
    """A request to leave HTTP: its query, its headers and how to take over its connection."""

    query: Mapping[str, list[str]]
    headers: Mapping[bytes, str]
    scope: Scope

    def first(self, name: str) -> str:
        return (self.query.get(name) or [""])[0]

    def flag(self, name: str) -> bool:
        return parse_bool(self.first(name))

    @property
    def kind(self) -> str:
        """``websocket`` or ``spdy/3.1``; empty when it is neither."""
        wanted = self.headers.get(b"upgrade", "").lower()
        possible = "shallop.upgrade" in (self.scope.get("extensions") or {})
        return wanted if possible and wanted in ("websocket", "spdy/3.1") else ""

    def take_over(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] = self.scope["extensions"]["shallop.upgrade"]()
        return connection


def no_ephemeral_containers(name: str) -> ForbiddenError:
    """Say at once that a running Pod gets no more containers: ``kubectl debug`` would wait for ever."""
    return ForbiddenError(
        f"pod {name}: ephemeral containers cannot be added on this node. Look inside with "
        f"'kubectl exec -it {name} -- sh', or debug a copy with 'kubectl debug {name} --copy-to NAME'"
    )


_KINDS = {"attach": "PodAttachOptions", "exec": "PodExecOptions", "portforward": "PodPortForwardOptions"}
_FLAGS = ("stdin", "stdout", "stderr", "tty")


def render_options(subresource: str, query: Mapping[str, list[str]]) -> Object:
    """Return what the query of a connection asks for, as the object that admission sees."""
    options: Object = {"kind": _KINDS[subresource], "apiVersion": "v1"}
    if subresource == "portforward":
        ports = [text for value in query.get("ports") or () for text in value.split(",")]
        return options | ({"ports": [int(text) if text.isdigit() else text for text in ports]} if ports else {})
    options |= {name: True for name in _FLAGS if parse_bool((query.get(name) or [""])[0])}
    if query.get("container"):
        options["container"] = query["container"][0]
    return options | ({"command": list(query["command"])} if query.get("command") else {})


def parse_options(options: Object) -> dict[str, list[str]]:
    """Return the query that stands for options which admission has seen, and perhaps changed."""
    query = {name: ["true"] for name in _FLAGS if options.get(name) is True}
    for name in ("command", "ports"):
        if options.get(name):
            query[name] = [str(value) for value in options[name]]
    return query | ({"container": [str(options["container"])]} if options.get("container") else {})


class _Raw:
    """The connection itself as the pipe of a SPDY session."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self.write: Callable[[bytes], None] = writer.write
        self.drain = writer.drain

    async def read(self) -> bytes:
        return await self._reader.read(_CHUNK)


async def connect(node: NodeApi | None, pod: Object, subresource: str, upgrade: Upgrade) -> None:
    """
    Serve one client from its upgrade to its end.

    Raises:
        ApiError: before the upgrade, so that it is answered as any other request.
    """
    if not upgrade.kind:
        raise BadRequestError("Upgrade request required")
    if node is None:
        raise UnavailableError(f"pod {pod['metadata']['name']}: the node that runs it is not connected")
    if subresource == "portforward":
        await _forward(node, pod, upgrade)
    else:
        await _command(node, pod, subresource, upgrade)


async def _command(node: NodeApi, pod: Object, subresource: str, upgrade: Upgrade) -> None:
    wanted = Wanted(*(upgrade.flag(name) for name in ("stdin", "stdout", "stderr", "tty")))
    if not (wanted.stdin or wanted.stdout or wanted.stderr):
        raise BadRequestError("you must specify at least 1 of stdin, stdout, stderr")
    command = upgrade.query.get("command") or []
    if subresource == "exec" and not command:
        raise BadRequestError("you must specify at least one command for the container")
    container = choose_container(pod, upgrade.first("container"))
    protocol = _negotiate(upgrade, PROTOCOLS if upgrade.kind == "websocket" else _SPDY_PROTOCOLS)
    execution: Execution
    if subresource == "exec":
        execution = await node.execute(pod, container, command, stdin=wanted.stdin, tty=wanted.tty)
    else:
        execution = await node.attach(pod, container)
    with _closing(*upgrade.take_over()) as (reader, writer):
        try:
            channels: Channels
            if upgrade.kind == "websocket":
                channels = WebSocketChannels(_websocket(upgrade, reader, writer, protocol))
            else:
                channels = _spdy_channels(reader, writer, protocol)
                if not await channels.wait_for(_expected(wanted, protocol)):
                    return
            await converse(channels, execution, wanted, protocol)
        except (ConnectionError, SpdyError):
            return  # who has gone away or talks nonsense is told nothing
        finally:
            execution.close()


def _expected(wanted: Wanted, protocol: str) -> set[int]:
    channels = {3} | ({0} if wanted.stdin else set()) | ({1} if wanted.stdout else set())
    channels |= {2} if wanted.stderr and not wanted.tty else set()
    return channels | ({4} if wanted.tty and protocol in _SPDY_PROTOCOLS[:2] else set())


async def _forward(node: NodeApi, pod: Object, upgrade: Upgrade) -> None:
    phase = (pod.get("status") or {}).get("phase")
    if phase != "Running":
        name = pod["metadata"]["name"]
        raise BadRequestError(f"unable to forward port because pod {name} is not running. Current status={phase}")

    async def dial(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await node.dial(pod, port)

    if upgrade.kind == "websocket":
        protocol = _negotiate(upgrade, (TUNNEL, *CHANNEL_PROTOCOLS))
        ports = [] if protocol == TUNNEL else _ports(upgrade)
    else:
        protocol = _negotiate(upgrade, ("portforward.k8s.io",))
    with _closing(*upgrade.take_over()) as (reader, writer), contextlib.suppress(ConnectionError, SpdyError):
        if upgrade.kind != "websocket":
            _accept_spdy(writer, protocol)
            await forward_spdy(Spdy(_Raw(reader, writer)), dial)
            return
        socket = _websocket(upgrade, reader, writer, protocol)
        if protocol == TUNNEL:
            await forward_spdy(Spdy(WebSocketPipe(socket)), dial)
        else:
            await forward_channels(socket, ports, dial)


def _ports(upgrade: Upgrade) -> list[int]:
    texts = [text for value in upgrade.query.get("ports") or () for text in value.split(",")]
    if not texts or not all(text.isdigit() and 0 < int(text) < 65536 for text in texts):
        raise BadRequestError("query parameter 'ports' is required: numbers from 1 to 65535")
    return [int(text) for text in texts]


def _negotiate(upgrade: Upgrade, served: tuple[str, ...]) -> str:
    header = b"sec-websocket-protocol" if upgrade.kind == "websocket" else b"x-stream-protocol-version"
    offered = ",".join(value.decode("latin-1") for name, value in upgrade.scope["headers"] if name == header)
    return choose_protocol(offered, served)


def _websocket(
    upgrade: Upgrade, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: str
) -> WebSocket:
    return accept_websocket(reader, writer, upgrade.headers.get(b"sec-websocket-key", ""), protocol)


def _accept_spdy(writer: asyncio.StreamWriter, protocol: str) -> None:
    lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: SPDY/3.1", "Connection: Upgrade"]
    lines += [f"X-Stream-Protocol-Version: {protocol}"] if protocol else []
    writer.write("\r\n".join([*lines, "", ""]).encode())


def _spdy_channels(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, protocol: str) -> SpdyChannels:
    _accept_spdy(writer, protocol)
    return SpdyChannels(Spdy(_Raw(reader, writer)))


@contextlib.contextmanager
def _closing(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> Iterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    try:
        yield reader, writer
    finally:
        writer.close()
