"""
One end of an HTTP/2 connection over cleartext, from prior knowledge: bytes to events and back. No I/O.

Used by the gateway, before clients and towards Pods, and by the model server. Own framing, because the ``h2`` package
ends a connection at once when its peer says GOAWAY, which servers say while answers are still under way. Headers are
compressed by ``hpack``. No server push and no priorities.

Source: RFC 9113 (HTTP/2), RFC 7541 (HPACK).
"""

from __future__ import annotations

import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from hpack import Decoder, Encoder, HPACKError

__all__ = [
    "CANCEL",
    "ENHANCE_YOUR_CALM",
    "INTERNAL_ERROR",
    "NO_ERROR",
    "PREFACE",
    "PROTOCOL_ERROR",
    "REFUSED_STREAM",
    "Data",
    "Event",
    "GoAway",
    "Header",
    "Headers",
    "Http2",
    "Http2Error",
    "Reset",
    "is_well_formed",
]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 6, 7, 8, 9, 11
Header = tuple[bytes, bytes]

_DATA, _HEADERS, _PRIORITY, _RST_STREAM, _SETTINGS, _PUSH_PROMISE, _PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = (
    range(10)
)
_END_STREAM, _ACK, _END_HEADERS, _PADDED, _PRIORITIZED = 0x1, 0x1, 0x4, 0x8, 0x20
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _MAX_STREAMS, _INITIAL_WINDOW, _MAX_FRAME, _MAX_HEADER_LIST = 1, 2, 3, 4, 5, 6
_DEFAULT_WINDOW, _LARGEST_WINDOW = 65535, 2**31 - 1
# What we take before the reader of a stream has taken it: of one stream, and of all of a connection together.
_STREAM_WINDOW, _CONNECTION_WINDOW = 1 << 20, 1 << 24
_FRAME_SIZE = 1 << 17
_LARGE = 16 * 1024
_MAX_HEADER_BYTES = 64 * 1024
_MAX_CONTINUATIONS = 32
_MAX_STREAMS_HERE = 1000
# Answers to pings, settings and refused streams that nobody reads.
_MAX_UNSENT_CONTROL = 10_000
# Frames that cost us more than their sender: streams given up at once, settings, priorities, empty content. So many
# at once and so many a second are forgiven, as by nghttp2; a client with 1,000 calls may give up all of them.
_MAX_ABUSES, _ABUSES_PER_S = 1000, 33.0
_HEAD = struct.Struct(">HBBBI")
_CONNECTION_HEADERS = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))
_BAD_NAME_CHARACTERS = bytes(set(range(256)) - set(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz"))


class Http2Error(Exception):
    """The peer broke the protocol: the connection has to end; ``code`` is told in GOAWAY."""

    def __init__(self, message: str, code: int = PROTOCOL_ERROR) -> None:
        super().__init__(message)
        self.code = code


class Headers(NamedTuple):
    """Headers, or trailers, of a stream; ``end``: nothing follows."""

    stream: int
    headers: list[Header]
    end: bool


class Data(NamedTuple):
    """Content of a stream; ``size`` is what has to be acknowledged for it. Large content is a view of what was read."""

    stream: int
    data: bytes | memoryview
    size: int
    end: bool


class Reset(NamedTuple):
    """The peer gave a stream up."""

    stream: int
    code: int


class GoAway(NamedTuple):
    """The peer takes no stream after ``last``; earlier ones go on."""

    last: int
    code: int


_Content = TypeVar("_Content", bytes, memoryview, bytes | memoryview)
Event = Headers | Data | Reset | GoAway


class _Stream:
    __slots__ = ("end", "queue", "received_all", "sent_all", "taken", "trailers", "unread", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.unread = 0
        self.taken = 0
        self.queue: deque[bytes | memoryview] = deque()
        self.trailers: Sequence[Header] | None = None
        self.end = False
        self.sent_all = False
        self.received_all = False


class Http2:
    """
    Frames of one connection.

    Args:
        client: whether this end opens the streams.
        on_sent: called with stream and size when content that was queued has left for the peer.
    """

    def __init__(
        self,
        *,
        client: bool,
        on_sent: Callable[[int, int], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._client = client
        self._on_sent = on_sent
        self._clock = clock
        self._abuses, self._abused_at, self._calmed = 0.0, clock(), False
        self._decoder, self._encoder = Decoder(max_header_list_size=_MAX_HEADER_BYTES), Encoder()
        self._buffer = b""
        self._out: list[bytes | memoryview] = []
        self._streams: dict[int, _Stream] = {}
        self._preface = not client
        self._window = _DEFAULT_WINDOW
        self._peer_window = _DEFAULT_WINDOW
        self._peer_frame = 16384
        self._unread = self._taken = 0
        self._next, self._last = 1, 0
        self._partial: tuple[int, bytearray, bool, int] | None = None
        self._events: list[Event] = []
        self._control = 0
        self._held = False
        self.max_streams = 100
        self.going = False
        settings = {_INITIAL_WINDOW: _STREAM_WINDOW, _MAX_FRAME: _FRAME_SIZE, _MAX_HEADER_LIST: _MAX_HEADER_BYTES}
        settings |= {_ENABLE_PUSH: 0} if client else {_MAX_STREAMS: _MAX_STREAMS_HERE}
        if client:
            self._out.append(PREFACE)
        self._frame(_SETTINGS, 0, 0, b"".join(struct.pack(">HI", key, value) for key, value in settings.items()))
        self._frame(_WINDOW_UPDATE, 0, 0, (_CONNECTION_WINDOW - _DEFAULT_WINDOW).to_bytes(4, "big"))

    @property
    def streams(self) -> int:
        """How many streams are open."""
        return len(self._streams)

    @property
    def has_room(self) -> bool:
        """Whether another stream may be opened."""
        return not self.going and len(self._streams) < self.max_streams and self._next < _LARGEST_WINDOW

    def take(self) -> bytes:
        """Return what has to be written to the peer."""
        data = b"".join(self._out)
        self._out.clear()
        if not self._held:
            self._control = 0
        return data

    # -- sending

    def open(self, headers: Sequence[Header], *, end: bool) -> int:
        """Begin a stream; returns its number."""
        number, self._next = self._next, self._next + 2
        self._streams[number] = _Stream(self._peer_window)
        self.send_headers(number, headers, end=end)
        return number

    def follow(self, number: int) -> None:
        """Read the answer of a stream that another end opened, whose connection is read along."""
        stream = self._streams[number] = _Stream(self._peer_window)
        stream.sent_all = True
        self._next = max(self._next, number + 2)

    def send_headers(self, number: int, headers: Sequence[Header], *, end: bool) -> None:
        """Send headers, or trailers behind what is queued; nothing where the stream is over."""
        stream = self._streams.get(number)
        if stream is None or stream.sent_all or stream.end:
            return
        if end:
            stream.end = True
            if stream.queue:
                stream.trailers = headers
                return
        self._write_headers(number, headers, end=end)
        if end:
            self._sent_all(number, stream)

    def send_data(self, number: int, data: bytes | memoryview, *, end: bool = False) -> None:
        """Queue content; it leaves as the peer has room for it."""
        stream = self._streams.get(number)
        if stream is None or stream.end:
            return
        if data:
            # Of a view parts can be taken without copying the rest.
            stream.queue.append(data if len(data) < _LARGE else memoryview(data))
        stream.end = end
        self._pump(number, stream)

    def reset(self, number: int, code: int) -> None:
        """Give a stream up; one that its client made us refuse counts as one that the client gave up."""
        if self._streams.pop(number, None) is not None:
            self._frame(_RST_STREAM, 0, number, code.to_bytes(4, "big"))
            if code == PROTOCOL_ERROR:
                self._abused()

    def go_away(self, code: int = NO_ERROR) -> None:
        """Take no further streams."""
        self.going = True
        self._frame(_GOAWAY, 0, 0, struct.pack(">II", self._last, code))

    def acknowledge(self, number: int, size: int) -> None:
        """Say that content has been taken, so that the peer may send more."""
        self._taken += size
        if self._taken >= _CONNECTION_WINDOW // 4:
            self._frame(_WINDOW_UPDATE, 0, 0, self._taken.to_bytes(4, "big"))
            self._unread -= self._taken
            self._taken = 0
        stream = self._streams.get(number)
        if stream is None or stream.received_all:
            return
        stream.taken += size
        if stream.taken >= _STREAM_WINDOW // 4:
            self._frame(_WINDOW_UPDATE, 0, number, stream.taken.to_bytes(4, "big"))
            stream.unread -= stream.taken
            stream.taken = 0

    def hold(self, *, held: bool) -> None:
        """Queue all content while the transport has no room."""
        self._held = held
        if not held:
            self._pump_all()

    def _pump_all(self) -> None:
        for number, stream in list(self._streams.items()):
            if stream.queue:
                self._pump(number, stream)

    def _pump(self, number: int, stream: _Stream) -> None:
        queue = stream.queue
        while queue and not self._held:
            room = min(self._window, stream.window, self._peer_frame)
            if room <= 0:
                return
            data = queue.popleft()
            if len(data) > room:
                queue.appendleft(data[room:])
                data = data[:room]
            size = len(data)
            self._window -= size
            stream.window -= size
            last = stream.end and not queue and stream.trailers is None
            self._frame(_DATA, _END_STREAM if last else 0, number, data)
            if self._on_sent:
                self._on_sent(number, size)
            if last:
                self._sent_all(number, stream)
                return
        if stream.end and not queue and not stream.sent_all:
            if stream.trailers is not None:
                self._write_headers(number, stream.trailers, end=True)
            else:
                self._frame(_DATA, _END_STREAM, number, b"")
            self._sent_all(number, stream)

    def _sent_all(self, number: int, stream: _Stream) -> None:
        stream.sent_all = True
        if stream.received_all:
            self._streams.pop(number, None)
        elif not self._client:
            # Answered before the request was complete: the rest of it is not read.
            self.reset(number, NO_ERROR)

    def _write_headers(self, number: int, headers: Sequence[Header], *, end: bool) -> None:
        block = self._encoder.encode(headers, huffman=False)
        first, rest = block[: self._peer_frame], block[self._peer_frame :]
        self._frame(_HEADERS, (_END_STREAM if end else 0) | (0 if rest else _END_HEADERS), number, first)
        while rest:
            part, rest = rest[: self._peer_frame], rest[self._peer_frame :]
            self._frame(_CONTINUATION, 0 if rest else _END_HEADERS, number, part)

    def _frame(self, kind: int, flags: int, number: int, payload: bytes | memoryview) -> None:
        size = len(payload)
        self._out.append(_HEAD.pack(size >> 8, size & 0xFF, kind, flags, number))
        self._out.append(payload)

    # -- receiving

    def receive(self, data: bytes) -> list[Event]:
        """
        Read what the peer sent.

        Raises:
            Http2Error: what it sent is no HTTP/2; events before the fault are lost.
        """
        if self._buffer:
            data = b"".join((self._buffer, data))
        position, end = 0, len(data)
        if self._preface:
            if not PREFACE.startswith(data[: len(PREFACE)]):
                raise Http2Error("this is no HTTP/2 connection preface")
            if end < len(PREFACE):
                self._buffer = data
                return []
            position = len(PREFACE)
            self._preface = False
        view = memoryview(data)
        while end - position >= 9:
            high, low, kind, flags, number = _HEAD.unpack_from(data, position)
            size = high << 8 | low
            if size > _FRAME_SIZE:
                raise Http2Error("a frame is larger than agreed", FRAME_SIZE_ERROR)
            position += 9
            if end - position < size:
                position -= 9
                break
            number &= _LARGEST_WINDOW
            if kind == _DATA and self._partial is None:
                # Small content is copied: a view keeps all alive that was read with it.
                part = view if size >= _LARGE else data
                self._take_data(flags, number, part[position : position + size])
            else:
                self._take_frame(kind, flags, number, data[position : position + size])
            position += size
        self._buffer = data[position:]
        events, self._events = self._events, []
        return events

    def _take_frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self._partial is not None and (kind != _CONTINUATION or number != self._partial[0]):
            raise Http2Error("headers are interrupted by another frame")
        if kind == _HEADERS:
            block = _unpadded(flags, payload)
            if flags & _PRIORITIZED:
                if len(block) < 5:
                    raise Http2Error("a HEADERS frame is too short", FRAME_SIZE_ERROR)
                block = block[5:]
            self._take_block(number, bytearray(block), flags, end=bool(flags & _END_STREAM), parts=0)
        elif kind == _CONTINUATION:
            if self._partial is None:
                raise Http2Error("CONTINUATION without HEADERS")
            _, block_so_far, ended, parts = self._partial
            self._take_block(number, block_so_far + payload, flags, end=ended, parts=parts + 1)
        elif kind == _WINDOW_UPDATE:
            self._take_window(number, payload)
        elif kind == _RST_STREAM:
            if len(payload) != 4 or not number:
                raise Http2Error("a malformed RST_STREAM frame", FRAME_SIZE_ERROR)
            if self._streams.pop(number, None) is not None:
                self._events.append(Reset(number, int.from_bytes(payload, "big")))
                self._abused()
        elif kind == _SETTINGS:
            self._take_settings(flags, number, payload)
        elif kind == _PING:
            if len(payload) != 8 or number:
                raise Http2Error("a malformed PING frame", FRAME_SIZE_ERROR)
            if not flags & _ACK:
                self._answer(_PING, 0, payload)
        elif kind == _GOAWAY:
            if len(payload) < 8 or number:
                raise Http2Error("a malformed GOAWAY frame", FRAME_SIZE_ERROR)
            last, code = struct.unpack_from(">II", payload)
            self.going = self.going or self._client
            self._events.append(GoAway(last & _LARGEST_WINDOW, code))
        elif kind == _PRIORITY:
            self._abused()
        elif kind == _PUSH_PROMISE:
            raise Http2Error("pushing was not allowed")

    def _answer(self, kind: int, number: int, payload: bytes) -> None:
        self._control += 1
        if self._control > _MAX_UNSENT_CONTROL:
            raise Http2Error("too many frames that ask for an answer", ENHANCE_YOUR_CALM)
        self._frame(kind, 0 if kind == _RST_STREAM else _ACK, number, payload)

    def _abused(self) -> None:
        """
        Count a frame that makes us work for nothing; a client that sends too many of them gets no more streams.

        Those under way go on: the client may be a proxy, with calls of others. What goes on all the same is cut off.
        """
        if self._client:
            return
        now = self._clock()
        self._abuses = max(0.0, self._abuses - (now - self._abused_at) * _ABUSES_PER_S) + 1
        self._abused_at = now
        if self._abuses <= _MAX_ABUSES:
            return
        if self._calmed:
            raise Http2Error("too many streams given up, or frames that say nothing", ENHANCE_YOUR_CALM)
        self._calmed, self._abuses = True, 0.0
        self.go_away(ENHANCE_YOUR_CALM)

    def _take_data(self, flags: int, number: int, payload: bytes | memoryview) -> None:
        size = len(payload)
        self._unread += size
        stream = self._streams.get(number)
        if self._unread > _CONNECTION_WINDOW:
            raise Http2Error("more content than the connection has room for", FLOW_CONTROL_ERROR)
        if stream is None or stream.received_all:
            if self._is_idle(number):
                raise Http2Error("content of a stream that was not begun")
            # Sent before the peer heard that the stream is over.
            self.acknowledge(number, size)
            return
        stream.unread += size
        if stream.unread > _STREAM_WINDOW:
            raise Http2Error("more content than the stream has room for", FLOW_CONTROL_ERROR)
        data = _unpadded(flags, payload)
        end = bool(flags & _END_STREAM)
        if end:
            self._received_all(number, stream)
        elif not data:
            self._abused()
        self._events.append(Data(number, data, size, end))

    def _take_block(self, number: int, block: bytearray, flags: int, *, end: bool, parts: int) -> None:
        if len(block) > _MAX_HEADER_BYTES or parts > _MAX_CONTINUATIONS:
            raise Http2Error("the headers are larger than 64 KiB", ENHANCE_YOUR_CALM)
        if not flags & _END_HEADERS:
            self._partial = (number, block, end, parts)
            return
        self._partial = None
        try:
            headers = [(bytes(name), bytes(value)) for name, value in self._decoder.decode(bytes(block), raw=True)]
        except HPACKError as error:
            raise Http2Error(f"headers cannot be decompressed: {error}", COMPRESSION_ERROR) from error
        stream = self._streams.get(number)
        if stream is None:
            if not self._is_idle(number):
                return  # trailers of a stream that we gave up
            if self._client or not number % 2:
                raise Http2Error("a stream with a number that is not the peer's to choose")
            self._last = number
            if len(self._streams) >= _MAX_STREAMS_HERE or self.going:
                self._answer(_RST_STREAM, number, REFUSED_STREAM.to_bytes(4, "big"))
                if self._calmed or not self.going:
                    self._abused()
                return
            stream = self._streams[number] = _Stream(self._peer_window)
        elif stream.received_all:
            raise Http2Error("headers after the end of a stream")
        if end:
            self._received_all(number, stream)
        self._events.append(Headers(number, headers, end))

    def _is_idle(self, number: int) -> bool:
        if number % 2 == 0:
            return True
        return number >= self._next if self._client else number > self._last

    def _received_all(self, number: int, stream: _Stream) -> None:
        stream.received_all = True
        if stream.sent_all:
            del self._streams[number]

    def _take_window(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Http2Error("a malformed WINDOW_UPDATE frame", FRAME_SIZE_ERROR)
        grown = int.from_bytes(payload, "big") & _LARGEST_WINDOW
        if not number:
            self._window += grown
            if not grown or self._window > _LARGEST_WINDOW:
                raise Http2Error("a window of wrong size", FLOW_CONTROL_ERROR)
            self._pump_all()
        elif stream := self._streams.get(number):
            stream.window += grown
            if not grown or stream.window > _LARGEST_WINDOW:
                raise Http2Error("a window of wrong size", FLOW_CONTROL_ERROR)
            self._pump(number, stream) if stream.queue else None
        elif self._is_idle(number):
            raise Http2Error("a window of a stream that was not begun")

    def _take_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) % 6 or (flags & _ACK and payload):
            raise Http2Error("a malformed SETTINGS frame", FRAME_SIZE_ERROR)
        if flags & _ACK:
            return
        self._abused()
        for key, value in struct.iter_unpack(">HI", payload):
            if key == _HEADER_TABLE_SIZE:
                self._encoder.header_table_size = min(value, 4096)
            elif key == _MAX_STREAMS:
                self.max_streams = value
            elif key == _INITIAL_WINDOW:
                if value > _LARGEST_WINDOW:
                    raise Http2Error("a window of wrong size", FLOW_CONTROL_ERROR)
                for stream in self._streams.values():
                    stream.window += value - self._peer_window
                self._peer_window = value
            elif key == _MAX_FRAME:
                if not 16384 <= value < 1 << 24:
                    raise Http2Error("a frame size of wrong size")
                self._peer_frame = min(value, _FRAME_SIZE)
        self._answer(_SETTINGS, 0, b"")
        self._pump_all()


def _unpadded(flags: int, payload: _Content) -> _Content:
    if not flags & _PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Http2Error("more padding than frame")
    return payload[1 : len(payload) - payload[0]]


def is_well_formed(headers: Sequence[Header], *, trailers: bool = False) -> bool:
    """
    Say whether headers of a request can only be read in one way.

    Args:
        trailers: they follow the content, so that nothing in them says where the request goes.
    """
    pseudo: set[bytes] = set()
    regular = False
    for name, value in headers:
        if b"\r" in value or b"\n" in value or b"\0" in value:
            return False
        if name.startswith(b":"):
            if trailers or regular or name in pseudo:
                return False
            pseudo.add(name)
            continue
        regular = True
        if not name or name.translate(None, _BAD_NAME_CHARACTERS) != name or name in _CONNECTION_HEADERS:
            return False
        if name == b"te" and value.lower() != b"trailers":
            return False
    if trailers:
        return True
    return {b":method", b":path", b":scheme"} <= pseudo <= {b":method", b":path", b":scheme", b":authority"}
