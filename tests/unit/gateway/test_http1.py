"""Messages: where they end, and which are refused."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop.gateway.http1 import Body, MessageError, parse_request, parse_response


def test_a_request_head_gives_host_length_and_keep_alive() -> None:
    head = parse_request(b"POST /v1/x?y=1 HTTP/1.1\r\nHost: Iris.Example.COM:80\r\nContent-Length: 12\r\nX: y")
    assert (head.host, head.length, head.keep_alive) == (b"iris.example.com", 12, True)
    assert head.start[1] == b"/v1/x?y=1"


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/2.0",
        b"GET /",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
        b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length : 1",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n folded",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\nContent-Length: 5",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rContent-Length: 5",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b",
        b"GET / HTTP/1.1\r\nHost: a\r\nX\x0bY: a",
        b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        b"GET / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5, 5",
        b"GET http://a/ HTTP/1.1\r\nHost: b",
        b"GET / HTTP/1.1\r\nX: no host",
        b"G(T / HTTP/1.1\r\nHost: a",
    ],
)
def test_what_two_readers_could_understand_differently_is_refused(head: bytes) -> None:
    with pytest.raises(MessageError):
        parse_request(head)


def test_responses_without_a_body_end_with_their_head() -> None:
    assert parse_response(b"HTTP/1.1 200 OK\r\nContent-Length: 5", b"HEAD").length == 0
    assert parse_response(b"HTTP/1.1 204 No Content", b"GET").length == 0
    assert parse_response(b"HTTP/1.1 200 OK", b"GET").length == -2
    assert not parse_response(b"HTTP/1.0 200 OK\r\nContent-Length: 5", b"GET").keep_alive


def test_hop_headers_can_be_dropped_and_lines_added() -> None:
    head = parse_request(b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX: y")
    assert head.render(drop=frozenset({b"connection"}), add=(b"K: v",)) == (
        b"GET /a HTTP/1.1\r\nHost: h\r\nX: y\r\nK: v\r\n\r\n"
    )


def test_connection_options_are_a_list_and_http_1_0_is_for_one_request() -> None:
    head = parse_request(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: X-Own, Close")
    assert not head.keep_alive
    assert b"x-own" in head.hop
    assert not parse_request(b"GET / HTTP/1.0\r\nConnection: keep-alive").keep_alive


def cut(data: bytes, places: list[int]) -> list[bytes]:
    points = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[a:b] for a, b in pairwise(points)]


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=6), st.lists(st.integers(0, 10_000), max_size=12))
def test_a_chunked_body_ends_at_the_same_byte_however_it_is_cut(chunks: list[bytes], places: list[int]) -> None:
    body = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\nTrailer: 1\r\n\r\n"
    follower, taken = Body(-1), 0
    for part in cut(body + b"GET /next", places):
        taken += follower.feed(part)
    assert follower.done
    assert taken == len(body)


@given(st.integers(0, 100), st.lists(st.integers(0, 10_000), max_size=8))
def test_a_sized_body_ends_at_its_length(length: int, places: list[int]) -> None:
    follower, taken = Body(length), 0
    for part in cut(b"x" * 120, places):
        taken += follower.feed(part)
    assert follower.done
    assert taken == length


@pytest.mark.parametrize(
    "body", [b"zz\r\n", b"2\r\nabcd\r\n", b"0x2\r\nab\r\n", b"+2\r\n", b"-2\r\n", b"1_0\r\n", b"2\nab\n", b"\r\n"]
)
def test_a_broken_chunk_is_refused(body: bytes) -> None:
    with pytest.raises(MessageError):
        Body(-1).feed(body)
