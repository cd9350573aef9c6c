"""Bodies of requests, of a length and in chunks."""

from __future__ import annotations

import io
from email.message import Message

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop_pod.httpbody import MAX_BODY, BodyError, read_body


def headers(**named: str) -> Message:
    made = Message()
    for name, value in named.items():
        made[name.replace("_", "-")] = value
    return made


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=8))
def test_chunks_are_put_together_and_nothing_after_them_is_read(parts: list[bytes]) -> None:
    chunks = b"".join(b"%x;a=b\r\n%b\r\n" % (len(part), part) for part in parts)
    file = io.BytesIO(chunks + b"0\r\nname: value\r\n\r\nGET / HTTP/1.1")
    assert read_body(headers(Transfer_Encoding="Chunked"), file) == b"".join(parts)
    assert file.read() == b"GET / HTTP/1.1"


def test_a_body_has_its_length() -> None:
    file = io.BytesIO(b"abcdef")
    assert read_body(headers(), file) == b""
    assert read_body(headers(Content_Length="4"), file) == b"abcd"
    assert file.read() == b"ef"


@pytest.mark.parametrize(
    ("given_", "data", "status"),
    [
        ({"Content_Length": "many"}, b"", 400),
        ({"Content_Length": "-1"}, b"", 400),
        ({"Content_Length": "3"}, b"ab", 400),
        ({"Content_Length": str(MAX_BODY + 1)}, b"", 413),
        ({"Content_Length": "9" * 5000}, b"", 413),
        ({"Transfer_Encoding": "gzip"}, b"", 400),
        ({"Transfer_Encoding": "chunked", "Content_Length": "1"}, b"", 400),
        ({"Transfer_Encoding": "chunked"}, b"", 400),
        ({"Transfer_Encoding": "chunked"}, b"zz\r\n", 400),
        ({"Transfer_Encoding": "chunked"}, b"-5\r\n", 400),
        ({"Transfer_Encoding": "chunked"}, b"2\r\nabc\r\n0\r\n\r\n", 400),
        ({"Transfer_Encoding": "chunked"}, b"5\r\nabc", 400),
        ({"Transfer_Encoding": "chunked"}, b"%x\r\n" % (MAX_BODY + 1), 413),
        ({"Transfer_Encoding": "chunked"}, b"0" * 40 + b"5\r\nabcde\r\n0\r\n\r\n", 413),
    ],
)
def test_what_is_no_body_is_refused(given_: dict[str, str], data: bytes, status: int) -> None:
    with pytest.raises(BodyError) as refused:
        read_body(headers(**given_), io.BytesIO(data))
    assert refused.value.status == status
