"""An HTTP/2 connection over a transport: what gateway and model server do alike with the frames of ``http2``."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from shallop_pod.http2 import Event, Http2, Http2Error

__all__ = ["Http2Protocol"]


class Http2Protocol(asyncio.Protocol):
    """
    One end of a connection.

    Args:
        frames: of this end; content is held back while the transport has no room.

    Attributes:
        exchanges: what is under way, by stream; the connection lives until it is empty.
    """

    def __init__(self, frames: Http2) -> None:
        self.frames = frames
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.exchanges: dict[int, Any] = {}
        self._loop = asyncio.get_running_loop()
        self._flushing = False

    def start(self, transport: asyncio.BaseTransport, data: bytes) -> None:
        """Take a connection over from the protocol that read its first bytes."""
        self.transport = cast(asyncio.Transport, transport)
        transport.set_protocol(self)
        self.data_received(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def pause_writing(self) -> None:
        self.frames.hold(held=True)

    def resume_writing(self) -> None:
        self.frames.hold(held=False)
        self.flush_soon()

    def data_received(self, data: bytes) -> None:
        try:
            for event in self.frames.receive(data):
                self.handle(event)
        except Http2Error as error:
            self.broken(error)
        self.flush()

    def flush_soon(self) -> None:
        """Write when this turn of the loop is over: frames written in one turn leave together."""
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what the frames have to say, and close when that was all."""
        self._flushing = False
        data = self.frames.take()
        if data and not self.transport.is_closing():
            self.transport.write(data)
        # Streams are over when all of their content has left, which may wait for the peer.
        if self.frames.going and not self.exchanges and not self.frames.streams:
            self.transport.close()

    def broken(self, error: Http2Error) -> None:
        """The peer broke the protocol: say so and end."""
        self.frames.go_away(error.code)
        self.flush()
        self.transport.close()

    def handle(self, event: Event) -> None:
        """Take what the peer said."""
        raise NotImplementedError
