"""A process that is started for one client (exec, hooks, probes), and its input and output."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import pty
import signal
import socket
import struct
import termios
from collections.abc import AsyncIterator
from pathlib import Path

from shallop.errors import NodeError
from shallop_pod.attach import HEADER
from shallop_pod.zygote import Child, Request, ZygoteError, spawn

__all__ = ["AttachedExecution", "LogExecution", "ProcessExecution", "dial", "read_all", "start_execution"]

_CHUNK = 64 * 1024
_MAX_OUTPUT = 16 * 1024
_CLONE_NEWNET = 0x40000000


async def start_execution(
    zygote: Path, request: Request, *, stdin: bool = False, tty: bool = False
) -> ProcessExecution:
    """
    Start a process by a fork-server with pipes, or a terminal, of this process.

    Raises:
        NodeError: it could not be started.
    """
    ours: dict[int, int] = {}
    theirs: list[int] = []
    if tty:
        terminal, side = pty.openpty()
        theirs = [side, side, side]
        ours = {0: terminal, 1: terminal}
    else:
        theirs = [os.open(os.devnull, os.O_RDONLY)]
        if stdin:
            os.close(theirs[0])
            theirs[0], ours[0] = os.pipe()
        for stream in (1, 2):
            ours[stream], side = os.pipe()
            theirs.append(side)
    try:
        child = await asyncio.to_thread(spawn, str(zygote), request, (theirs[0], theirs[1], theirs[2]))
    except (ZygoteError, OSError) as error:
        for descriptor in set(ours.values()):
            os.close(descriptor)
        raise NodeError(str(error)) from error
    finally:
        for descriptor in set(theirs):
            os.close(descriptor)
    for descriptor in set(ours.values()):
        os.set_blocking(descriptor, False)
    return ProcessExecution(child, ours, tty=tty)


class ProcessExecution:
    """See ``shallop.kube.node.Execution``; for one event loop."""

    def __init__(self, child: Child, descriptors: dict[int, int], *, tty: bool) -> None:
        self._child = child
        self._descriptors = descriptors
        self._tty = tty
        self._ended = asyncio.get_running_loop().create_task(self._wait())
        self._closed = False

    async def _wait(self) -> int:
        while True:
            await _ready(self._child.fileno())
            # After the process's own word its parent's is waited for, up to a second.
            ended = await asyncio.to_thread(self._child.wait, 0)
            if ended is not None:
                return ended.code

    async def read(self, stream: int) -> bytes:
        descriptor = self._descriptors.get(stream)
        while descriptor is not None and not self._closed:
            over = self._ended.done()
            try:
                return os.read(descriptor, _CHUNK)
            except BlockingIOError:
                # Somebody whom it left behind may hold the pipe open for ever.
                if over:
                    return b""
            except OSError:
                return b""  # the terminal's other side is closed
            await _ready(descriptor, self._ended)
        return b""

    async def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view and (descriptor := self._descriptors.get(0)) is not None and not self._ended.done():
            try:
                view = view[os.write(descriptor, view) :]
            except BlockingIOError:
                await _ready(descriptor, self._ended, writing=True)
            except OSError:
                return  # nobody reads any more

    def end_input(self) -> None:
        if self._tty:
            with contextlib.suppress(OSError):
                os.write(self._descriptors[0], b"\x04")
        elif (descriptor := self._descriptors.pop(0, None)) is not None:
            os.close(descriptor)

    def resize(self, width: int, height: int) -> None:
        if self._tty and not self._closed and 0 < width < 65536 and 0 < height < 65536:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._descriptors[0], termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    async def exit_code(self) -> int:
        return await asyncio.shield(self._ended)

    def kill(self) -> None:
        """End it and what it has started."""
        if not self._ended.done():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGKILL)

    def close(self) -> None:
        """Call when nobody reads or writes any more."""
        if self._closed:
            return
        self._closed = True
        if not self._ended.done():
            # As a terminal that is closed; who wants to stay on ignores it.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGHUP)
        self._ended.cancel()
        self._ended.add_done_callback(lambda _: self._child.close())
        for descriptor in set(self._descriptors.values()):
            os.close(descriptor)
        self._descriptors.clear()


class AttachedExecution:
    """A container that has input or a terminal, by its shim; see ``shallop_pod.attach`` and ``kube.node.Execution``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        # One message waits for each stream; who reads none of them stops the other.
        self._output: dict[int, asyncio.Queue[bytes]] = {1: asyncio.Queue(1), 2: asyncio.Queue(1)}
        self._task = asyncio.get_running_loop().create_task(self._listen(reader))

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                channel, size = HEADER.unpack(await reader.readexactly(HEADER.size))
                await self._output[channel].put(await reader.readexactly(size))
        for queue in self._output.values():
            await queue.put(b"")

    async def read(self, stream: int) -> bytes:
        return await self._output[stream].get()

    async def write(self, data: bytes) -> None:
        await self._send(0, data)

    def end_input(self) -> None:
        self._writer.write(HEADER.pack(5, 0))

    def resize(self, width: int, height: int) -> None:
        size = json.dumps([width, height]).encode()
        self._writer.write(HEADER.pack(4, len(size)) + size)

    async def _send(self, channel: int, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            for start in range(0, len(data), _CHUNK):
                part = data[start : start + _CHUNK]
                self._writer.write(HEADER.pack(channel, len(part)) + part)
                await self._writer.drain()

    async def exit_code(self) -> int:
        return 0  # that the container has ended is all that one who is attached is told

    def close(self) -> None:
        self._task.cancel()
        self._writer.close()


class LogExecution:
    """A container without input: what it prints from now on is read from its log. See ``kube.node.Execution``."""

    def __init__(self, lines: AsyncIterator[tuple[int, bytes]]) -> None:
        self._output: dict[int, asyncio.Queue[bytes]] = {1: asyncio.Queue(1), 2: asyncio.Queue(1)}
        self._task = asyncio.get_running_loop().create_task(self._follow(lines))

    async def _follow(self, lines: AsyncIterator[tuple[int, bytes]]) -> None:
        async for stream, text in lines:
            await self._output[stream].put(text)
        for queue in self._output.values():
            await queue.put(b"")

    async def read(self, stream: int) -> bytes:
        return await self._output[stream].get()

    async def write(self, data: bytes) -> None:
        """Nobody takes it."""

    def end_input(self) -> None: ...

    def resize(self, width: int, height: int) -> None: ...

    async def exit_code(self) -> int:
        return 0

    def close(self) -> None:
        self._task.cancel()


async def _ready(descriptor: int, ended: asyncio.Task[int] | None = None, *, writing: bool = False) -> None:
    """Wait until a descriptor can be read or written, or a task is done."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    add(descriptor, lambda: None if ready.done() else ready.set_result(None))
    try:
        await asyncio.wait([ready, *([ended] if ended else ())], return_when=asyncio.FIRST_COMPLETED)
    finally:
        remove(descriptor)
        ready.cancel()


async def read_all(execution: ProcessExecution) -> tuple[int, str]:
    """Return exit code and output of a process, both streams, cut after 16 KiB."""
    output = bytearray()

    async def read(stream: int) -> None:
        while data := await execution.read(stream):
            output.extend(data[: _MAX_OUTPUT - len(output)])

    await asyncio.gather(read(1), read(2))
    return await execution.exit_code(), output.decode(errors="replace")


async def dial(namespace: str, address: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """
    Connect to a port of a Pod.

    Args:
        namespace: path of its network namespace, whose loopback is tried first; empty when it has none.
    """
    if namespace:
        sock = await asyncio.to_thread(_socket_in, namespace)
        try:
            await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
            return await asyncio.open_connection(sock=sock)
        except OSError:
            sock.close()
    return await asyncio.open_connection(address, port)


def _socket_in(namespace: str) -> socket.socket:
    """Make a socket of another network namespace; this thread is there only meanwhile."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open("/proc/thread-self/ns/net", "rb") as own, open(namespace, "rb") as other:
        if libc.setns(other.fileno(), _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter {namespace}")
        try:
            sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        finally:
            libc.setns(own.fileno(), _CLONE_NEWNET)
    sock.setblocking(False)
    return sock
