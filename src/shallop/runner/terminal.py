"""Ties this process' standard streams, or its terminal, to a command that runs in a Pod."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import termios
import tty as terminal
from collections.abc import Callable, Iterator

import aiohttp

__all__ = ["attach", "exit_code_of"]

_STDIN, _STDOUT, _STDERR, _STATUS, _SIZE = range(5)
_CLOSE = 255
_CHUNK_BYTES = 1 << 16


async def attach(socket: aiohttp.ClientWebSocketResponse, *, stdin: bool, tty: bool) -> int:
    """
    Pass everything to and fro until the command ends; return its exit code.

    Args:
        stdin: whether what is typed, or piped in, goes to the command.
        tty: whether it has a terminal, which then gets every key as it is.
    """
    sending: set[asyncio.Task[None]] = set()

    def send(channel: int, data: bytes) -> None:
        task = asyncio.ensure_future(socket.send_bytes(bytes([channel]) + data))
        sending.add(task)
        task.add_done_callback(sending.discard)

    with contextlib.ExitStack() as stack:
        if tty:
            stack.enter_context(_raw())
            stack.enter_context(_resizes(lambda size: send(_SIZE, size)))
        if stdin:
            stack.enter_context(_input(send))
        code = 1
        async for message in socket:
            if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
                continue
            channel, data = message.data[0], message.data[1:]
            if channel in (_STDOUT, _STDERR):
                out = sys.stdout.buffer if channel == _STDOUT else sys.stderr.buffer
                out.write(data)
                out.flush()
            elif channel == _STATUS:
                code = exit_code_of(data)
        return code


def exit_code_of(status: bytes) -> int:
    """Read the Status that ends a command."""
    value = json.loads(status)
    if value.get("status") == "Success":
        return 0
    for cause in (value.get("details") or {}).get("causes") or ():
        if cause.get("reason") == "ExitCode":
            return int(cause["message"])
    print(value.get("message", ""), file=sys.stderr)
    return 1


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """Switch this terminal to passing every key on."""
    file = sys.stdin.fileno()
    before = termios.tcgetattr(file)
    terminal.setraw(file)
    try:
        yield
    finally:
        termios.tcsetattr(file, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _resizes(send: Callable[..., None]) -> Iterator[None]:
    def tell() -> None:
        size = shutil.get_terminal_size()
        send(json.dumps({"Width": size.columns, "Height": size.lines}).encode())

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGWINCH, tell)
    tell()
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)


@contextlib.contextmanager
def _input(send: Callable[..., None]) -> Iterator[None]:
    loop, file = asyncio.get_running_loop(), sys.stdin.fileno()

    def read() -> None:
        data = os.read(file, _CHUNK_BYTES)
        if data:
            send(_STDIN, data)
        else:
            loop.remove_reader(file)
            send(_CLOSE, bytes([_STDIN]))

    try:
        loop.add_reader(file, read)
    except PermissionError:  # a regular file, which is always ready
        send(_STDIN, sys.stdin.buffer.read())
        send(_CLOSE, bytes([_STDIN]))
    try:
        yield
    finally:
        loop.remove_reader(file)
