"""
The clients of one container that has standard input or a terminal: its shim serves them on ``<folder>/<id>.sock``.

Messages, both ways: one byte of channel, four of length (big-endian), data. From a client: 0 input, 4 a terminal's size
(JSON ``[columns, rows]``), 5 the end of input. To every client: 1 and 2, output as it comes. The socket is closed when
the container has ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import selectors
import socket
import struct
import termios
from typing import Callable  # noqa: UP035  environments may be Python 3.9

from shallop_pod.zygote import listen

__all__ = ["HEADER", "Attachments"]

HEADER = struct.Struct("!BI")
_INPUT, _SIZE, _END = 0, 4, 5
# A client that is so far behind is dropped: the container must not wait for it.
_MAX_BEHIND = 4 * 2**20
_MAX_MESSAGE = 2**20


class _Client:
    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = b""
        self.behind = b""
        self.events = 0


class Attachments:
    """
    Connects clients with a container.

    Args:
        given: descriptor of the container's input, or of its terminal, closed here in the end; -1 without input.
        once: whether input ends when the first client leaves.
    """

    def __init__(self, selector: selectors.BaseSelector, path: str, given: int, *, tty: bool, once: bool) -> None:
        self._selector = selector
        self._path = path
        self._input = given
        self._tty = tty
        self._once = once
        self._pending = b""
        self._ending = False
        self._clients: list[_Client] = []
        self._listener = listen(path)
        selector.register(self._listener, selectors.EVENT_READ, self._accept)

    def show(self, channel: int, data: bytes) -> None:
        """Pass output on to every client."""
        for client in list(self._clients):
            client.behind += HEADER.pack(channel, len(data)) + data
            self._send(client)

    def close(self) -> None:
        self._selector.unregister(self._listener)
        self._listener.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        self._close_input()
        for client in list(self._clients):
            # What it has not taken yet goes out by the kernel, or is lost with a client that does not read.
            client.connection.settimeout(1)
            with contextlib.suppress(OSError):
                client.connection.sendall(client.behind)
            self._drop(client)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        connection.setblocking(False)
        client = _Client(connection)
        self._clients.append(client)
        self._watch(client)

    def _watch(self, client: _Client) -> None:
        """Look for what can be done now: nothing is read while the container does not take what there is."""
        events = 0 if self._pending else selectors.EVENT_READ
        events |= selectors.EVENT_WRITE if client.behind else 0
        if events == client.events:
            return
        change: Callable[..., object] = self._selector.modify if client.events else self._selector.register
        if events:
            change(client.connection, events, lambda: self._serve(client))
        else:
            self._selector.unregister(client.connection)
        client.events = events

    def _drop(self, client: _Client) -> None:
        if client not in self._clients:
            return
        if client.events:
            self._selector.unregister(client.connection)
        client.connection.close()
        self._clients.remove(client)
        if self._once:
            self._end_input()

    def _serve(self, client: _Client) -> None:
        self._send(client)
        if client not in self._clients or self._pending:
            return
        try:
            data = client.connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        client.received += data
        while len(client.received) >= HEADER.size:
            channel, size = HEADER.unpack_from(client.received)
            if size > _MAX_MESSAGE:
                self._drop(client)
                return
            if len(client.received) < HEADER.size + size:
                return
            message = client.received[HEADER.size : HEADER.size + size]
            client.received = client.received[HEADER.size + size :]
            self._take(channel, message)

    def _send(self, client: _Client) -> None:
        try:
            while client.behind:
                client.behind = client.behind[client.connection.send(client.behind) :]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        if len(client.behind) > _MAX_BEHIND:
            self._drop(client)
        else:
            self._watch(client)

    def _take(self, channel: int, message: bytes) -> None:
        if channel == _INPUT and self._input >= 0:
            self._pending += message
            self._feed()
        elif channel == _SIZE and self._tty:
            with contextlib.suppress(OSError, ValueError, struct.error):
                columns, rows = json.loads(message)
                fcntl.ioctl(self._input, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        elif channel == _END and self._once:
            self._end_input()

    def _feed(self) -> None:
        """Give the container as much input as it takes."""
        waited = self._input in self._selector.get_map()
        try:
            while self._pending:
                self._pending = self._pending[os.write(self._input, self._pending) :]
        except BlockingIOError:
            if not waited:
                self._selector.register(self._input, selectors.EVENT_WRITE, self._feed)
        except OSError:
            self._pending = b""  # nobody reads any more
        if not self._pending:
            if waited:
                self._selector.unregister(self._input)
            if self._ending:
                self._end_input()
        for client in self._clients:
            self._watch(client)

    def _end_input(self) -> None:
        self._ending = True
        if self._input < 0 or self._pending:
            return
        if self._tty:
            with contextlib.suppress(OSError):
                os.write(self._input, b"\x04")
        self._close_input()

    def _close_input(self) -> None:
        self._pending = b""
        if self._input >= 0:
            if self._input in self._selector.get_map():
                self._selector.unregister(self._input)
            os.close(self._input)
            self._input = -1
