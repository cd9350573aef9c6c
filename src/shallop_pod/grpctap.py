"""
Reads along an HTTP/2 connection and logs predictions of gRPC as the V2 requests and answers in JSON that they are.

It never holds a byte up and changes none: messages become JSON where they are sent from, and what it cannot follow, or
what is too large, is counted and not logged.
"""

from __future__ import annotations

import threading
import uuid
import zlib
from functools import partial
from typing import Any, Callable, Mapping, Optional  # noqa: UP035  environments may be Python 3.9

from shallop_pod.graphhttp2 import with_data
from shallop_pod.http2 import NO_ERROR, Data, Headers, Http2, Http2Error, Reset
from shallop_pod.modelserver.openinference import INFER, METHODS, STREAM_INFER, read_answer
from shallop_pod.modelserver.protocol import ProtocolError, dumps, loads

__all__ = ["GrpcTap"]

_MAX_CALL = 64 * 2**20
_PREFIX = 5

Log = Callable[[str, str, Mapping[str, str], str, Callable[[], bytes]], None]


class _Call:
    def __init__(self, path: str, headers: Mapping[str, str]) -> None:
        self.path, self.headers = path, headers
        self.id = headers.get("ce-id") or headers.get("x-request-id") or str(uuid.uuid4())
        self.messages = {"request": bytearray(), "response": bytearray()}


class GrpcTap:
    """
    Follows one connection; both directions may be read by threads of their own.

    Args:
        log: called as ``Logger.log`` for each message of a prediction.
        drop: called for what cannot be logged.
    """

    def __init__(self, log: Log, drop: Callable[[], None]) -> None:
        self._log, self._drop = log, drop
        self._lock = threading.Lock()
        self._ends: Optional[dict[str, Http2]] = {"request": Http2(client=False), "response": Http2(client=True)}  # noqa: UP045
        self._calls: dict[int, _Call] = {}

    def request(self, data: bytes) -> None:
        """See what the client sends, before the component does."""
        self._read("request", data)

    def response(self, data: bytes) -> None:
        """See what the component sends."""
        self._read("response", data)

    def _read(self, side: str, data: bytes) -> None:
        with self._lock:
            if self._ends is None:
                return
            end = self._ends[side]
            try:
                for event in end.receive(data):
                    self._take(side, end, event)
                # What it would say itself is nobody's.
                end.take()
            except (Http2Error, ValueError, KeyError, TypeError):
                # Frames larger than ours may be, or an end that follows other rules: the connection goes on unlogged.
                self._ends = None
                self._calls.clear()
                self._drop()

    def _take(self, side: str, end: Http2, event: Any) -> None:
        assert self._ends is not None
        if isinstance(event, Headers):
            named = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
            if side == "request" and ":path" in named:
                self._ends["response"].follow(event.stream)
                if named[":path"] in (INFER, STREAM_INFER):
                    self._calls[event.stream] = _Call(named[":path"], named)
        elif isinstance(event, Data):
            end.acknowledge(event.stream, event.size)
            self._take_content(side, event)
        if isinstance(event, Reset) or (side == "response" and getattr(event, "end", False)):
            self._calls.pop(event.stream, None)
            for other in self._ends.values():
                other.reset(event.stream, NO_ERROR)

    def _take_content(self, side: str, event: Data) -> None:
        call = self._calls.get(event.stream)
        if call is None:
            return
        content = call.messages[side]
        content += event.data
        if len(content) > _MAX_CALL:
            del self._calls[event.stream]
            self._drop()
            return
        while len(content) >= _PREFIX:
            size = _PREFIX + int.from_bytes(content[1:_PREFIX], "big")
            if len(content) < size:
                return
            message = partial(_render, side, call.path, bytes(content[_PREFIX:size]), content[0] != 0)
            del content[:size]
            self._log(side, call.id, call.headers, "application/json", message)


def _render(side: str, path: str, message: bytes, compressed: bool) -> bytes:
    """
    Return the JSON of a message.

    Raises:
        ValueError: it is none that JSON could hold.
    """
    try:
        content = _unpacked(message) if compressed else message
        if side == "response":
            return dumps(read_answer(content, stream=path == STREAM_INFER))
        asked = METHODS[path].ask(content)
        return dumps(with_data(loads(asked.body), asked.tensors or ()))
    except (ProtocolError, zlib.error, KeyError, TypeError) as error:
        raise ValueError(f"a message of gRPC cannot be logged: {error}") from error


def _unpacked(message: bytes) -> bytes:
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    content = unpacker.decompress(message, _MAX_CALL)
    if unpacker.unconsumed_tail:
        raise ValueError("larger than what is logged")
    return content
