"""Frames of HTTP/2: against the ``h2`` package as the peer, and against peers that break the rules."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, RequestReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived
from hypothesis import given
from hypothesis import strategies as st

from shallop_pod.http2 import (
    CANCEL,
    ENHANCE_YOUR_CALM,
    PREFACE,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    Data,
    GoAway,
    Headers,
    Http2,
    Http2Error,
    Reset,
    is_well_formed,
)

REQUEST = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":authority", b"iris.ns"),
    (b":path", b"/s/M"),
    (b"te", b"trailers"),
]
ANSWER = [(b":status", b"200"), (b"content-type", b"application/grpc")]


def peer(*, client: bool) -> H2Connection:
    made = H2Connection(H2Configuration(client_side=client, header_encoding=None))
    made.initiate_connection()
    return made


def exchange(ours: Http2, theirs: H2Connection) -> tuple[list[Any], list[Any]]:
    """Carry bytes both ways until both are silent; return what each has seen."""
    seen, heard = [], []
    while True:
        out, back = ours.take(), theirs.data_to_send()
        if not out and not back:
            return seen, heard
        if out:
            heard += theirs.receive_data(out)
        if back:
            seen += ours.receive(back)


@pytest.mark.parametrize("size", [0, 1, 65_535, 65_536, 400_000])
def test_a_request_of_any_size_arrives_and_its_answer_with_trailers_goes_back(size: int) -> None:
    ours, theirs = Http2(client=False), peer(client=True)
    content = bytes(range(256)) * (size // 256 + 1)
    content = content[:size]
    theirs.send_headers(1, REQUEST)
    received, sent, heard = b"", 0, []
    while sent < size or not sent:
        room = min(theirs.local_flow_control_window(1), theirs.max_outbound_frame_size, size - sent)
        theirs.send_data(1, content[sent : sent + room], end_stream=sent + room == size)
        sent += room
        for event in exchange(ours, theirs)[0]:
            if isinstance(event, Data):
                received += event.data
                ours.acknowledge(1, event.size)
        if not size:
            break
    assert received == content
    ours.send_headers(1, ANSWER, end=False)
    ours.send_data(1, content)
    ours.send_headers(1, [(b"grpc-status", b"0")], end=True)
    back = b""
    while True:
        events = exchange(ours, theirs)[1]
        if not events:
            break
        for event in events:
            heard.append(type(event))
            if isinstance(event, DataReceived):
                back += event.data
                theirs.acknowledge_received_data(event.flow_controlled_length, 1)
    assert back == content
    assert heard[-2:] == [TrailersReceived, StreamEnded]
    assert ResponseReceived in heard
    assert ours.streams == 0


def test_we_ask_a_server_and_hear_it_out() -> None:
    ours, theirs = Http2(client=True), peer(client=False)
    number = ours.open(REQUEST, end=False)
    ours.send_data(number, b"x" * 100_000, end=True)
    heard = exchange(ours, theirs)[1]
    assert any(isinstance(event, RequestReceived) for event in heard)
    for event in heard:
        if isinstance(event, DataReceived):
            theirs.acknowledge_received_data(event.flow_controlled_length, number)
    heard = exchange(ours, theirs)[1]
    assert any(isinstance(event, StreamEnded) for event in heard)
    theirs.send_headers(number, ANSWER)
    theirs.send_data(number, b"hello")
    theirs.send_headers(number, [(b"grpc-status", b"0")], end_stream=True)
    seen = exchange(ours, theirs)[0]
    assert seen == [
        Headers(number, ANSWER, False),
        Data(number, b"hello", 5, False),
        Headers(number, [(b"grpc-status", b"0")], True),
    ]
    assert ours.streams == 0


def test_content_waits_for_room_and_its_sender_hears_when_it_has_left() -> None:
    gone: list[int] = []
    ours = Http2(client=True, on_sent=lambda number, size: gone.append(size))
    theirs = peer(client=False)
    number = ours.open(REQUEST, end=False)
    ours.send_data(number, b"x" * 100_000, end=True)
    exchange(ours, theirs)
    assert sum(gone) == 65_535
    theirs.acknowledge_received_data(65_535, number)
    exchange(ours, theirs)
    assert sum(gone) == 100_000


def test_an_answer_before_the_end_of_the_request_ends_the_stream() -> None:
    ours, theirs = Http2(client=False), peer(client=True)
    theirs.send_headers(1, REQUEST)
    exchange(ours, theirs)
    ours.send_headers(1, [*ANSWER, (b"grpc-status", b"12")], end=True)
    heard = exchange(ours, theirs)[1]
    assert [event.error_code for event in heard if isinstance(event, StreamReset)] == [0]
    assert ours.streams == 0


def test_streams_go_on_after_the_peer_said_goodbye() -> None:
    server, client = Http2(client=False), Http2(client=True)

    def carry() -> tuple[list[Any], list[Any]]:
        seen, heard = [], []
        while (out := client.take()) or (back := server.take()):
            seen += server.receive(out)
            heard += client.receive(server.take() if out else back)
        return seen, heard

    first = client.open(REQUEST, end=True)
    carry()
    server.go_away()
    assert carry()[1] == [GoAway(first, 0)]
    assert not client.has_room
    server.send_headers(first, ANSWER, end=False)
    server.send_data(first, b"late", end=True)
    assert carry()[1] == [Headers(first, ANSWER, False), Data(first, b"late", 4, True)]
    refused = client.open(REQUEST, end=True)
    assert carry()[1] == [Reset(refused, REFUSED_STREAM)]


FRAME = bytes.fromhex
SETTINGS = FRAME("000000040000000000")


@pytest.mark.parametrize(
    "frames",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        PREFACE + SETTINGS + FRAME("ffffff000000000001"),
        PREFACE + SETTINGS + FRAME("000001000000000001") + b"x",
        PREFACE + SETTINGS + FRAME("000001010400000002") + b"\x82",
        PREFACE + SETTINGS + FRAME("000001010000000001") + b"\x82" + FRAME("000000060000000000"),
        PREFACE + SETTINGS + FRAME("000001010400000001") + b"\xff",
        PREFACE + SETTINGS + FRAME("000000090400000001"),
        PREFACE + SETTINGS + FRAME("000004080000000000") + FRAME("00000000"),
        PREFACE + FRAME("000006040000000000") + FRAME("0004ffffffff"),
        PREFACE + FRAME("000006040000000000") + FRAME("000500000001"),
        PREFACE + SETTINGS + FRAME("000004050400000001") + FRAME("00000000"),
        PREFACE + SETTINGS + FRAME("000003030000000001") + b"xxx",
        PREFACE + SETTINGS + FRAME("000002010c00000001") + b"\x05\x82",
        PREFACE
        + SETTINGS
        + FRAME("000008060000000000") * 1
        + b"12345678"
        + (FRAME("000008060000000000") + b"12345678") * 10_001,
    ],
)
def test_a_broken_rule_ends_the_connection(frames: bytes) -> None:
    with pytest.raises(Http2Error):
        Http2(client=False).receive(frames)


def test_a_flood_of_continuations_ends_the_connection() -> None:
    ours = Http2(client=False)
    ours.receive(PREFACE + SETTINGS + FRAME("000001010000000001") + b"\x82")
    with pytest.raises(Http2Error):
        ours.receive(FRAME("000000090000000001") * 100)


def attack(ours: Http2, frames: Iterator[bytes]) -> list[Any]:
    """Send frames one by one; return what was heard until the connection ended."""
    heard: list[Any] = []
    theirs = Http2(client=True)
    ours.receive(PREFACE + SETTINGS)
    theirs.receive(ours.take())
    with pytest.raises(Http2Error) as error:
        for frame in frames:
            ours.receive(frame)
            heard += theirs.receive(ours.take())
    assert error.value.code == ENHANCE_YOUR_CALM
    return heard


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


# Indexed fields of the static table: POST, http, / and an authority that is not remembered.
BLOCK = b"\x83\x86\x84\x01\x01x"


def test_streams_that_are_given_up_at_once_are_bounded() -> None:
    ours = Http2(client=False, clock=lambda: 0.0)
    numbers = range(1, 20_001, 2)
    heard = attack(ours, (frame(1, 5, n, BLOCK) + frame(3, 0, n, bytes(4)) for n in numbers))
    assert GoAway(1999, ENHANCE_YOUR_CALM) in heard, "after 1,000 of them there are no new ones"


def test_streams_that_a_client_makes_us_refuse_count_too() -> None:
    ours = Http2(client=False, clock=lambda: 0.0)

    def frames() -> Iterator[bytes]:
        for number in range(1, 20_001, 2):
            yield frame(1, 5, number, BLOCK)
            ours.reset(number, PROTOCOL_ERROR)

    heard = attack(ours, frames())
    assert sum(isinstance(event, GoAway) for event in heard) == 1


@pytest.mark.parametrize(
    "flood",
    [frame(4, 0, 0), frame(4, 0, 0, b"\0\4\0\1\0\0"), frame(2, 0, 1, bytes(5)), frame(0, 0, 1)],
    ids=["settings", "settings of windows", "priorities", "empty content"],
)
def test_floods_of_frames_that_say_nothing_are_bounded(flood: bytes) -> None:
    ours = Http2(client=False, clock=lambda: 0.0)
    attack(ours, itertools.chain([frame(1, 4, 1, BLOCK)], itertools.repeat(flood, 5000)))


def test_pings_whose_answers_nobody_reads_are_bounded() -> None:
    ours = Http2(client=False)
    ours.hold(held=True)
    attack(ours, itertools.repeat(frame(6, 0, 0, bytes(8)), 20_000))


def test_headers_that_grow_when_they_are_unpacked_are_refused() -> None:
    ours = Http2(client=False)
    # One field of 4,000 bytes that is remembered, and then named by one byte each time.
    bomb = b"\x40\x01x\x7f" + bytes((4000 - 127 & 0x7F | 0x80, 4000 - 127 >> 7)) + b"y" * 4000 + b"\xbe" * 10_000
    ours.receive(PREFACE + SETTINGS)
    with pytest.raises(Http2Error):
        ours.receive(frame(1, 5, 1, BLOCK + bomb))


def test_whoever_gives_up_now_and_then_goes_on() -> None:
    now = 0.0
    ours = Http2(client=False, clock=lambda: now)
    ours.receive(PREFACE + SETTINGS)
    for number in range(1, 10_001, 2):
        now += 0.05
        ours.receive(frame(1, 5, number, BLOCK) + frame(3, 0, number, bytes(4)))
    assert not ours.going


def test_calls_under_way_end_when_their_client_is_told_to_calm_down() -> None:
    ours, theirs = Http2(client=False, clock=lambda: 0.0), Http2(client=True)
    ours.receive(theirs.take())
    first = theirs.open(REQUEST, end=True)
    for _ in range(1100):
        given_up = theirs.open(REQUEST, end=True)
        theirs.reset(given_up, CANCEL)
    ours.receive(theirs.take())
    ours.send_headers(first, ANSWER, end=False)
    ours.send_data(first, b"all the same", end=True)
    heard = theirs.receive(ours.take())
    assert [event.data for event in heard if isinstance(event, Data)] == [b"all the same"]
    assert [event.code for event in heard if isinstance(event, GoAway)] == [ENHANCE_YOUR_CALM]


@given(st.binary(max_size=200), st.integers(1, 50))
def test_garbage_never_does_anything_but_end_the_connection(data: bytes, step: int) -> None:
    ours = Http2(client=False)
    stream = PREFACE + SETTINGS + data
    try:
        for start in range(0, len(stream), step):
            ours.receive(stream[start : start + step])
    except Http2Error:
        pass


@pytest.mark.parametrize(
    ("changed", "good"),
    [
        ([], True),
        ([(b"connection", b"close")], False),
        ([(b"Upper", b"x")], False),
        ([(b"x", b"a\r\nb")], False),
        ([(b":path", b"/twice")], False),
        ([(b"transfer-encoding", b"chunked")], False),
        ([(b"", b"x")], False),
    ],
)
def test_headers_that_two_readers_could_take_differently_are_refused(
    changed: list[tuple[bytes, bytes]], good: bool
) -> None:
    assert is_well_formed([*REQUEST, *changed]) is good
