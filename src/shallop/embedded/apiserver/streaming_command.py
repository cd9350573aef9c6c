"""``exec`` and ``attach``: input, output, errors and window sizes of a process, on numbered channels."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import NamedTuple, Protocol

from shallop.embedded.apiserver.streaming_spdy import Spdy, Stream
from shallop.embedded.apiserver.streaming_websocket import WebSocket
from shallop.kube.node import Execution
from shallop.kube.objects import Object

__all__ = ["PROTOCOLS", "Channels", "SpdyChannels", "Wanted", "WebSocketChannels", "converse"]

STDIN, STDOUT, STDERR, ERROR, RESIZE, _CLOSE = 0, 1, 2, 3, 4, 255
# With v4 errors became a Status, with v5 the end of one channel can be told.
PROTOCOLS = ("v5.channel.k8s.io", "v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io")
_STREAM_TYPES = {"stdin": STDIN, "stdout": STDOUT, "stderr": STDERR, "error": ERROR, "resize": RESIZE}
_OPENING_S = 30.0


class Wanted(NamedTuple):
    """What a client asks to be connected with."""

    stdin: bool
    stdout: bool
    stderr: bool
    tty: bool


class Channels(Protocol):
    """The channels of one client."""

    def messages(self) -> AsyncIterator[tuple[int, bytes | None]]:
        """Yield (channel, data) as it comes, None at the end of a channel; ends when the client goes away."""
        ...

    def write(self, channel: int, data: bytes) -> None: ...

    async def drain(self) -> None: ...

    async def close(self) -> None: ...


class WebSocketChannels:
    """The first byte of each message is its channel."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    async def messages(self) -> AsyncIterator[tuple[int, bytes | None]]:
        while message := await self._socket.read():
            if message[0] == _CLOSE:
                if len(message) > 1:
                    yield message[1], None
            else:
                yield message[0], message[1:]

    def write(self, channel: int, data: bytes) -> None:
        self._socket.write(bytes([channel]) + data)

    async def drain(self) -> None:
        await self._socket.drain()

    async def close(self) -> None:
        await self._socket.close()


class SpdyChannels:
    """One SPDY stream for each channel, opened by the client."""

    def __init__(self, spdy: Spdy) -> None:
        self._spdy = spdy
        self._frames = spdy.frames()
        self._open: dict[int, Stream] = {}

    async def wait_for(self, channels: set[int]) -> bool:
        """Wait until the client has opened all that it asked for; False when it went away or takes too long."""
        try:
            async with asyncio.timeout(_OPENING_S):
                while not channels <= self._open.keys():
                    frame = await anext(self._frames)
                    if frame.opened:
                        self._open[_STREAM_TYPES.get(frame.stream.headers.get("streamtype", ""), -1)] = frame.stream
        except (TimeoutError, StopAsyncIteration):
            return False
        return True

    async def messages(self) -> AsyncIterator[tuple[int, bytes | None]]:
        async for frame in self._frames:
            channel = _STREAM_TYPES.get(frame.stream.headers.get("streamtype", ""), -1)
            if frame.opened:
                self._open[channel] = frame.stream
            if frame.data:
                yield channel, frame.data
            if frame.final:
                yield channel, None

    def write(self, channel: int, data: bytes) -> None:
        if data and channel in self._open:
            self._spdy.write(self._open[channel], data)

    async def drain(self) -> None:
        await self._spdy.drain()

    async def close(self) -> None:
        for stream in self._open.values():
            self._spdy.write(stream, b"", final=True)
        self._spdy.goodbye()
        await self._spdy.drain()


async def converse(channels: Channels, execution: Execution, wanted: Wanted, protocol: str) -> None:
    """Pass on input and output until the process has ended or the client goes away."""
    outputs = [STDOUT] * wanted.stdout + [STDERR] * (wanted.stderr and not wanted.tty)
    # Clients take the first message, even an empty one, as the sign that all is set up.
    channels.write(outputs[0] if outputs else ERROR, b"")
    taking = asyncio.create_task(_take_input(channels, execution, wanted))
    giving = asyncio.create_task(_give_output(channels, execution, outputs, protocol))
    try:
        await asyncio.wait({taking, giving}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        # After an end of input there may be more output; after the client's end there is nobody for it.
        taking.cancel()
        giving.cancel()
        results = await asyncio.gather(taking, giving, return_exceptions=True)
        execution.close()
    for result in results:
        if isinstance(result, Exception) and not isinstance(result, ConnectionError):
            raise result
    await channels.close()


async def _take_input(channels: Channels, execution: Execution, wanted: Wanted) -> None:
    async for channel, data in channels.messages():
        if channel == STDIN and wanted.stdin:
            if data is None:
                execution.end_input()
            else:
                await execution.write(data)
        elif channel == RESIZE and data:
            size = _parse_size(data)
            if size is not None:
                execution.resize(*size)


def _parse_size(data: bytes) -> tuple[int, int] | None:
    try:
        size = json.loads(data)
        return int(size["Width"]), int(size["Height"])
    except (ValueError, KeyError, TypeError):
        return None


async def _give_output(channels: Channels, execution: Execution, outputs: list[int], protocol: str) -> None:
    async def copy(stream: int) -> None:
        while data := await execution.read(stream):
            if stream in outputs:
                channels.write(stream, data)
                await channels.drain()

    await asyncio.gather(copy(STDOUT), copy(STDERR))
    code = await execution.exit_code()
    if protocol in PROTOCOLS[:2]:
        channels.write(ERROR, json.dumps(_exit_status(code)).encode())
    elif code:
        channels.write(ERROR, f"command terminated with exit code {code}".encode())
    await channels.drain()


def _exit_status(code: int) -> Object | Mapping[str, object]:
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    return {
        "metadata": {},
        "status": "Failure",
        "message": f"command terminated with non-zero exit code: exit status {code}",
        "reason": "NonZeroExitCode",
        "details": {"causes": [{"reason": "ExitCode", "message": str(code)}]},
    }
