"""
The server's side of SPDY/3.1, as far as ``exec``, ``attach`` and ``port-forward`` use it.

No flow control: the clients of Kubernetes neither keep windows nor announce any.

Source: SPDY Protocol, draft 3.1; what a client-go of 1.32 sends.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Frame", "Pipe", "Spdy", "SpdyError", "Stream"]

_SYN_STREAM, _SYN_REPLY, _RST_STREAM, _PING, _GOAWAY = 1, 2, 3, 6, 7
_VERSION = 0x8003
_FIN = 1
_MAX_HEADERS = 64 * 1024
_WORDS = (
    b"options head post put delete trace accept accept-charset accept-encoding accept-language accept-ranges age allow "
    b"authorization cache-control connection content-base content-encoding content-language content-length "
    b"content-location content-md5 content-range content-type date etag expect expires from host if-match "
    b"if-modified-since if-none-match if-range if-unmodified-since last-modified location max-forwards pragma "
    b"proxy-authenticate proxy-authorization range referer retry-after server te trailer transfer-encoding upgrade "
    b"user-agent vary via warning www-authenticate method get status 200_OK version HTTP/1.1 url public set-cookie "
    b"keep-alive origin"
)
_TAIL = (
    b"100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Authoritative "
    b"Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 "
    b"Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec "
    b"00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,"
    b"application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset="
    b"iso-8859-1,utf-,*,enq=0."
)
# Both sides begin to compress headers with these words.
DICTIONARY = b"".join(struct.pack("!I", len(w)) + w.replace(b"_", b" ") for w in _WORDS.split(b" ")) + _TAIL


class SpdyError(Exception):
    """The client does not speak SPDY/3.1; the connection is of no use any more."""


class Pipe(Protocol):
    """A connection, or something in which one is tunnelled."""

    async def read(self) -> bytes | None:
        """Return what has come; empty or None at the end."""
        ...

    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None: ...


@dataclass(frozen=True, eq=False)
class Stream:
    """A stream that the client has opened; ``write`` and ``close`` are the server's half of it."""

    id: int
    headers: Mapping[str, str]


@dataclass(frozen=True)
class Frame:
    """What came on a stream: its opening (no data), data, its end (``final``)."""

    stream: Stream
    data: bytes = b""
    opened: bool = False
    final: bool = False


class Spdy:
    """One session; iterate over ``frames`` in one task, write in any."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe = pipe
        self._received = bytearray()
        self._streams: dict[int, Stream] = {}
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)
        self._deflate = zlib.compressobj(zdict=DICTIONARY)

    async def frames(self) -> AsyncIterator[Frame]:
        """
        Yield what comes until the client goes away; pings and openings are answered.

        Raises:
            SpdyError: what comes is not SPDY/3.1.
        """
        while True:
            head = await self._take(8)
            if head is None:
                return
            first, size = struct.unpack("!II", head)
            flags, size = size >> 24, size & 0xFFFFFF
            body = await self._take(size)
            if body is None:
                return
            if first >> 31:
                if first >> 16 != _VERSION:
                    raise SpdyError(f"version {first >> 16 & 0x7FFF} of SPDY is not spoken here")
                for frame in self._control(first & 0xFFFF, flags, body):
                    yield frame
            elif stream := self._streams.get(first):
                yield Frame(stream, body, final=bool(flags & _FIN))

    async def _take(self, size: int) -> bytes | None:
        while len(self._received) < size:
            data = await self._pipe.read()
            if not data:
                return None
            self._received += data
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    def _control(self, kind: int, flags: int, body: bytes) -> list[Frame]:
        if len(body) < 4 and kind in (_SYN_STREAM, _RST_STREAM):
            raise SpdyError("a frame is too short")
        if kind == _PING:
            self._send_control(_PING, body)
        elif kind == _SYN_STREAM:
            (number,) = struct.unpack("!I", body[:4])
            stream = self._streams[number & 0x7FFFFFFF] = Stream(number & 0x7FFFFFFF, self._headers(body[10:]))
            nothing = self._deflate.compress(struct.pack("!I", 0)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
            self._send_control(_SYN_REPLY, struct.pack("!I", stream.id) + nothing)
            return [Frame(stream, opened=True, final=bool(flags & _FIN))]
        elif kind == _RST_STREAM and (found := self._streams.get(struct.unpack("!I", body[:4])[0])):
            return [Frame(found, final=True)]
        return []

    def _headers(self, block: bytes) -> dict[str, str]:
        try:
            data = self._inflate.decompress(block, _MAX_HEADERS)
            (count,) = struct.unpack_from("!I", data)
            words, at = [], 4
            for _ in range(2 * count):
                (size,) = struct.unpack_from("!I", data, at)
                words.append(data[at + 4 : at + 4 + size].decode())
                at += 4 + size
        except (zlib.error, struct.error, UnicodeDecodeError) as error:
            raise SpdyError(f"the headers of a stream cannot be read: {error}") from error
        return dict(zip(words[::2], words[1::2], strict=True))

    def write(self, stream: Stream, data: bytes, *, final: bool = False) -> None:
        """Send data; ``drain`` waits until the client keeps up."""
        self._pipe.write(struct.pack("!II", stream.id, (_FIN if final else 0) << 24 | len(data)) + data)

    async def drain(self) -> None:
        await self._pipe.drain()

    def forget(self, stream: Stream) -> None:
        """Take nothing more of a stream that both sides have closed."""
        self._streams.pop(stream.id, None)

    def goodbye(self) -> None:
        last = max(self._streams, default=0)
        self._send_control(_GOAWAY, struct.pack("!II", last, 0))

    def _send_control(self, kind: int, body: bytes) -> None:
        self._pipe.write(struct.pack("!HHI", _VERSION, kind, len(body)) + body)
