"""A tap beside an HTTP/2 connection logs the predictions that pass."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from shallop_pod.grpctap import GrpcTap
from shallop_pod.http2 import Http2
from shallop_pod.modelserver.openinference import INFER, STREAM_INFER, stream_answer
from shallop_pod.protobuf import bytes_field

Event = tuple[str, str, Any]
TENSOR = bytes_field(1, b"x") + bytes_field(2, b"FP64") + bytes_field(3, b"\x02")
ROWS = struct.pack("<2d", 1.5, 2.0)
REQUEST = bytes_field(1, b"m") + bytes_field(5, TENSOR) + bytes_field(7, ROWS)
ANSWER = bytes_field(1, b"m") + bytes_field(3, b"7") + bytes_field(5, TENSOR) + bytes_field(6, ROWS)
OUTPUT = {"name": "x", "datatype": "FP64", "shape": [2], "parameters": {}, "data": [1.5, 2.0]}


class Wire:
    """A client and a server with a tap between them."""

    def __init__(self) -> None:
        self.client, self.server = Http2(client=True), Http2(client=False)
        self.events: list[Event] = []
        self.dropped = 0
        self.tap = GrpcTap(self._log, self._drop)

    def _log(
        self, kind: str, id_: str, headers: Mapping[str, str], content_type: str, body: Callable[[], bytes]
    ) -> None:
        assert content_type == "application/json"
        self.events.append((kind, id_, json.loads(body())))

    def _drop(self) -> None:
        self.dropped += 1

    def carry(self, step: int = 1 << 16) -> None:
        for _ in range(4):
            sent = self.client.take()
            for start in range(0, len(sent), step):
                self.tap.request(sent[start : start + step])
                self.server.receive(sent[start : start + step])
            back = self.server.take()
            for start in range(0, len(back), step):
                self.tap.response(back[start : start + step])
                self.client.receive(back[start : start + step])

    def call(
        self, path: str = INFER, *, message: bytes = REQUEST, answer: bytes = ANSWER, packed: bool = False
    ) -> None:
        headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"m")]
        stream = self.client.open([*headers, (b"x-request-id", b"id-1")], end=False)
        self.client.send_data(stream, framed(message, packed=packed), end=True)
        self.carry()
        self.server.send_headers(stream, [(b":status", b"200")], end=False)
        self.server.send_data(stream, framed(answer, packed=packed))
        self.server.send_headers(stream, [(b"grpc-status", b"0")], end=True)
        self.carry()


def framed(message: bytes, *, packed: bool) -> bytes:
    content = gzip.compress(message) if packed else message
    return bytes((packed,)) + len(content).to_bytes(4, "big") + content


@pytest.mark.parametrize("packed", [False, True])
def test_a_prediction_is_logged_as_its_request_and_answer_in_json(packed: bool) -> None:
    wire = Wire()
    for _ in range(3):
        wire.call(packed=packed)
    assert [(kind, id_) for kind, id_, _ in wire.events] == [("request", "id-1"), ("response", "id-1")] * 3
    assert wire.events[0][2]["inputs"] == [OUTPUT]
    assert wire.events[1][2]["outputs"] == [OUTPUT]
    assert wire.events[1][2]["id"] == "7"
    assert wire.dropped == 0


def test_messages_of_a_stream_are_logged_and_its_errors_too() -> None:
    wire = Wire()
    wire.call(STREAM_INFER, answer=stream_answer(ANSWER))
    wire.call(STREAM_INFER, answer=stream_answer(error="no"))
    assert [body.get("error") for kind, _, body in wire.events if kind == "response"] == [None, "no"]


def test_other_calls_are_not_logged() -> None:
    wire = Wire()
    wire.call("/inference.GRPCInferenceService/ServerLive")
    wire.call("/acme.Shop/Order")
    assert (wire.events, wire.dropped) == ([], 0)


def test_thousands_of_calls_leave_nothing_behind() -> None:
    wire = Wire()
    for _ in range(2500):
        wire.call()
    assert len(wire.events) == 5000
    assert wire.dropped == 0


def test_what_is_no_http2_is_counted_once_and_goes_on_unlogged() -> None:
    wire = Wire()
    wire.tap.request(b"GET / HTTP/1.1\r\n\r\n" * 3)
    wire.tap.request(b"more")
    wire.tap.response(b"and more")
    assert wire.dropped == 1


def test_a_message_that_is_none_cannot_be_rendered() -> None:
    wire = Wire()
    bodies: list[Callable[[], bytes]] = []
    wire.tap = GrpcTap(lambda *given: bodies.append(given[-1]), wire._drop)
    wire.call(message=b"\x0b", answer=b"\x0a\x7fm")
    assert len(bodies) == 2
    for body in bodies:
        with pytest.raises(ValueError, match="cannot be logged"):
            body()
