"""``portforward``: connections to ports of a Pod, over SPDY streams or numbered WebSocket channels."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable, Coroutine
from typing import Any

from shallop.embedded.apiserver.streaming_spdy import Spdy, Stream
from shallop.embedded.apiserver.streaming_websocket import WebSocket

__all__ = ["CHANNEL_PROTOCOLS", "TUNNEL", "Dial", "WebSocketPipe", "forward_channels", "forward_spdy"]

# port -> a connection to it inside the Pod
Dial = Callable[[int], Coroutine[Any, Any, tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
TUNNEL = "SPDY/3.1+portforward.k8s.io"
CHANNEL_PROTOCOLS = ("v4.channel.k8s.io", "portforward.k8s.io")
_CHUNK = 64 * 1024
# A Pod that does not read stops its own connection only, until so much waits for it.
_MOST_WAITING = 8 * 1024 * 1024


class WebSocketPipe:
    """A byte stream inside binary messages."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def read(self) -> bytes | None:
        data = await self._socket.read()
        while data == b"":
            data = await self._socket.read()
        return data

    def write(self, data: bytes) -> None:
        self._socket.write(data)

    async def drain(self) -> None:
        await self._socket.drain()


class _Connection:
    """One forwarded connection: a pair of streams with one request id, and a socket to the Pod."""

    def __init__(
        self, dial: Dial, port: int, data: Callable[[bytes, bool], None], error: Callable[[str], None]
    ) -> None:
        self._dial = dial
        self._port = port
        self._data = data
        self._error = error
        self._received = bytearray()
        self._ended = False
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()

    async def feed(self, data: bytes) -> None:
        self._received += data
        self._news.set()
        if len(self._received) > _MOST_WAITING:
            self._room.clear()
        await self._room.wait()

    def end(self) -> None:
        self._ended = True
        self._news.set()

    async def run(self, drain: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Connect and copy both ways until both sides have ended."""
        try:
            reader, writer = await self._dial(self._port)
        except OSError as error:
            why = error.strerror or str(error)
            self._error(f"an error occurred forwarding {self._port}: connect to port {self._port} of the Pod: {why}")
            self._data(b"", True)
            self._room.set()
            return
        sending = asyncio.create_task(self._send(writer))
        try:
            while data := await reader.read(_CHUNK):
                self._data(data, False)
                await drain()
        except ConnectionError:
            pass
        finally:
            # The Pod has said all: what the client still says goes nowhere, as with a closed socket.
            self._data(b"", True)
            self._error("")
            sending.cancel()
            writer.close()
            self._room.set()
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await sending

    async def _send(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            data = bytes(self._received)
            self._received.clear()
            self._room.set()
            if data:
                writer.write(data)
                with contextlib.suppress(ConnectionError):
                    await writer.drain()
            if self._ended and not self._received:
                if writer.can_write_eof():
                    with contextlib.suppress(OSError):
                        writer.write_eof()
                return


async def forward_spdy(spdy: Spdy, dial: Dial) -> None:
    """Serve pairs of streams ``error`` and ``data`` until the client goes away."""
    waiting: dict[str, dict[str, Stream]] = {}
    connections: dict[int, _Connection] = {}
    async with asyncio.TaskGroup() as group:
        tasks: set[asyncio.Task[None]] = set()
        async for frame in spdy.frames():
            stream = frame.stream
            if frame.opened:
                pair = waiting.setdefault(stream.headers.get("requestid", str(stream.id)), {})
                pair[stream.headers.get("streamtype", "")] = stream
                if {"data", "error"} <= pair.keys():
                    waiting.pop(stream.headers.get("requestid", ""), None)
                    connection = connections[pair["data"].id] = _over_spdy(spdy, dial, pair["data"], pair["error"])
                    task = group.create_task(connection.run(spdy.drain))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
            found = connections.get(stream.id)
            if found is not None and frame.data:
                await found.feed(frame.data)
            if found is not None and frame.final:
                found.end()
                del connections[stream.id]
            if frame.final:
                spdy.forget(stream)
        for task in tasks:
            task.cancel()


def _over_spdy(spdy: Spdy, dial: Dial, data: Stream, error: Stream) -> _Connection:
    def give(content: bytes, final: bool) -> None:
        spdy.write(data, content, final=final)

    def say(text: str) -> None:
        spdy.write(error, text.encode(), final=True)

    port = data.headers.get("port", "")
    return _Connection(dial, int(port) if port.isdigit() else 0, give, say)


async def forward_channels(socket: WebSocket, ports: list[int], dial: Dial) -> None:
    """
    Serve channels 2n (data) and 2n + 1 (error) of the n-th port, until the client goes away.

    Each channel begins with its port as two bytes, little-endian first.
    """

    def over(index: int, port: int) -> _Connection:
        def give(content: bytes, final: bool) -> None:
            if content:
                socket.write(bytes([2 * index]) + content)

        def say(text: str) -> None:
            if text:
                socket.write(bytes([2 * index + 1]) + text.encode())

        return _Connection(dial, port, give, say)

    for index, port in enumerate(ports):
        for channel in (2 * index, 2 * index + 1):
            socket.write(bytes([channel]) + struct.pack("<H", port))
    async with asyncio.TaskGroup() as group:
        connections = [over(index, port) for index, port in enumerate(ports)]
        tasks = [group.create_task(connection.run(socket.drain)) for connection in connections]
        while message := await socket.read():
            if message[0] % 2 == 0 and message[0] // 2 < len(connections):
                await connections[message[0] // 2].feed(message[1:])
            if all(task.done() for task in tasks):
                break
        for task in tasks:
            task.cancel()
    await socket.close()
