"""What clients of exec and port-forward speak: WebSocket frames and SPDY frames."""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.embedded.apiserver.streaming_spdy import DICTIONARY, Frame, Spdy, SpdyError
from shallop.embedded.apiserver.streaming_websocket import WebSocket, choose_protocol
from shallop.errors import BadRequestError


class Pipe:
    """A connection whose client has said everything already."""

    def __init__(self, *chunks: bytes) -> None:
        self._chunks = list(chunks)
        self.sent = b""

    async def read(self) -> bytes | None:
        return self._chunks.pop(0) if self._chunks else None

    def write(self, data: bytes) -> None:
        self.sent += data

    async def drain(self) -> None:
        pass


class Client:
    """Frames as a client makes them."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(zdict=DICTIONARY)

    def open(self, stream: int, **headers: str) -> bytes:
        block = struct.pack("!I", len(headers))
        for text in (text for pair in headers.items() for text in pair):
            block += struct.pack("!I", len(text)) + text.encode()
        packed = self._deflate.compress(block) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
        return control(1, struct.pack("!IIH", stream, 0, 0) + packed)

    @staticmethod
    def data(stream: int, content: bytes, *, final: bool = False) -> bytes:
        return struct.pack("!II", stream, final << 24 | len(content)) + content


def control(kind: int, body: bytes) -> bytes:
    return struct.pack("!HHI", 0x8003, kind, len(body)) + body


def frames(*chunks: bytes) -> tuple[list[Frame], bytes]:
    async def collect() -> tuple[list[Frame], bytes]:
        pipe = Pipe(*chunks)
        return [frame async for frame in Spdy(pipe).frames()], pipe.sent

    return asyncio.run(collect())


def test_the_dictionary_is_that_of_the_specification() -> None:
    # Its checksum is in the first bytes of every compressed stream.
    assert zlib.adler32(DICTIONARY) == 0xE3C6A7C2


@given(cuts=st.lists(st.integers(0, 400), max_size=6))
def test_frames_are_the_same_however_they_are_cut(cuts: list[int]) -> None:
    client = Client()
    sent = client.open(1, streamtype="error", port="80") + client.open(3, streamtype="data", port="80")
    sent += client.data(3, b"x" * 100) + client.data(3, b"", final=True)
    edges = sorted({0, len(sent), *(cut for cut in cuts if cut < len(sent))})
    found, _ = frames(*(sent[start:end] for start, end in itertools.pairwise(edges)))
    assert [(f.stream.id, f.opened, f.data, f.final) for f in found] == [
        (1, True, b"", False), (3, True, b"", False), (3, False, b"x" * 100, False), (3, False, b"", True),
    ]  # fmt: skip
    assert dict(found[1].stream.headers) == {"streamtype": "data", "port": "80"}


def test_pings_and_openings_are_answered() -> None:
    _, sent = frames(control(6, b"\0\0\0\7"), Client().open(1, streamtype="error"))
    assert sent.startswith(control(6, b"\0\0\0\7"))
    assert struct.unpack("!HH", sent[12:16]) == (0x8003, 2), "SYN_REPLY"


@pytest.mark.parametrize(
    "nonsense",
    [b"GET / HTTP/1.1\r\n\r\n" + b"\x81" * 8, b"\x80\x02\0\1\0\0\0\0", control(1, b"\0" * 10 + b"not compressed")],
)
def test_nonsense_ends_the_session(nonsense: bytes) -> None:
    try:
        found, _ = frames(nonsense)
    except SpdyError:
        return
    assert found == []


def masked(kind: int, data: bytes, *, final: bool = True) -> bytes:
    mask = os.urandom(4)
    size = bytes([0x80 | len(data)]) if len(data) < 126 else struct.pack("!BH", 0x80 | 126, len(data))
    body = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
    return bytes([0x80 * final | kind]) + size + mask + body


def read_messages(sent: bytes) -> list[bytes]:
    async def read() -> list[bytes]:
        reader = asyncio.StreamReader()
        reader.feed_data(sent)
        reader.feed_eof()
        ours, theirs = socket.socketpair()
        _, writer = await asyncio.open_connection(sock=ours)
        web = WebSocket(reader, writer)
        found = []
        while (message := await web.read()) is not None:
            found.append(message)
        writer.close()
        await writer.wait_closed()
        theirs.close()
        return found

    return asyncio.run(read())


def test_messages_come_whole_and_pings_between_their_parts_do_not_matter() -> None:
    long = os.urandom(1000)
    sent = masked(2, b"\0hel", final=False) + masked(9, b"ping") + masked(0, b"lo") + masked(2, long) + masked(8, b"")
    assert read_messages(sent) == [b"\0hello", long]


def test_a_frame_that_is_not_masked_or_too_long_ends_the_connection() -> None:
    assert read_messages(b"\x82\x01x") == []
    assert read_messages(b"\x82\xff" + struct.pack("!Q", 1 << 40)) == []


def test_the_best_common_protocol_is_taken() -> None:
    served = ("v5.channel.k8s.io", "v4.channel.k8s.io")
    assert choose_protocol("v4.channel.k8s.io, v5.channel.k8s.io", served) == "v5.channel.k8s.io"
    assert choose_protocol("", served) == ""
    with pytest.raises(BadRequestError, match="unable to negotiate"):
        choose_protocol("chat", served)
