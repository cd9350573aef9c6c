"""Messages of the Open Inference Protocol as REST requests, and answers back; bytes written by hand."""

from __future__ import annotations

import asyncio
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shallop_pod.http2 import Data, Headers, Http2
from shallop_pod.modelserver.models import Model
from shallop_pod.modelserver.openinference import INFER, METHODS, RestAnswer
from shallop_pod.modelserver.protocol import ProtocolError
from shallop_pod.modelserver.server import ModelServer

SERVICE = "/inference.GRPCInferenceService/"


def field(number: int, value: bytes) -> bytes:
    assert number < 16 and len(value) < 128
    return bytes((number << 3 | 2, len(value))) + value


def tensor(name: bytes, datatype: bytes, shape: list[int], contents: bytes = b"") -> bytes:
    made = field(1, name) + field(2, datatype) + field(3, bytes(shape))
    return field(5, made + (field(5, contents) if contents else b""))


def ask(message: bytes, method: str = INFER) -> Any:
    return METHODS[method].ask(message)


def infer(*inputs: bytes, raw: list[bytes] | None = None) -> bytes:
    return field(1, b"m") + field(3, b"7") + b"".join(inputs) + b"".join(field(7, item) for item in raw or ())


@pytest.mark.parametrize(
    ("datatype", "contents", "expected"),
    [
        (b"FP64", field(7, struct.pack("<2d", 1.5, -2)), struct.pack("<2d", 1.5, -2)),
        (b"FP64", b"\x39" + struct.pack("<d", 1.5) + b"\x39" + struct.pack("<d", -2), struct.pack("<2d", 1.5, -2)),
        (b"FP32", field(6, struct.pack("<2f", 1.5, -2)), struct.pack("<2f", 1.5, -2)),
        (b"INT32", field(2, b"\x05" + b"\xff" * 9 + b"\x01"), struct.pack("<2i", 5, -1)),
        (b"INT8", b"\x10\x05\x10" + b"\xff" * 9 + b"\x01", struct.pack("<2b", 5, -1)),
        (b"UINT64", field(5, b"\x05" + b"\xff" * 9 + b"\x01"), struct.pack("<2Q", 5, 2**64 - 1)),
        (b"BOOL", field(1, b"\x01\x00"), b"\x01\x00"),
        (b"BYTES", field(8, b"ab") + field(8, b""), b"\x02\0\0\0ab\0\0\0\0"),
    ],
)
def test_typed_contents_become_the_bytes_of_the_tensor(datatype: bytes, contents: bytes, expected: bytes) -> None:
    request = ask(infer(tensor(b"a", datatype, [2], contents)))
    assert (request.method, request.path, request.raw) == ("POST", "/v2/models/m/infer", False)
    head = json.loads(request.body)
    assert head["inputs"][0] | {"parameters": None} == {
        "name": "a",
        "datatype": datatype.decode(),
        "shape": [2],
        "parameters": None,
    }
    assert head["id"] == "7"
    assert head["inputs"][0]["parameters"] == {"binary_data_size": len(expected)}
    assert b"".join(request.tensors or ()) == expected


def test_raw_contents_are_passed_on_as_they_are() -> None:
    request = ask(infer(tensor(b"a", b"FP16", [2]), tensor(b"b", b"INT8", [1]), raw=[b"wxyz", b"1"]))
    assert request.raw
    assert request.tensors == [b"wxyz", b"1"]


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (infer(tensor(b"a", b"FP32", [1], field(7, b"12345678"))), "contents of FP32 are fp32_contents, found fp64"),
        (infer(tensor(b"a", b"FP16", [1], field(6, b"1234"))), "send raw_input_contents"),
        (infer(tensor(b"a", b"INT8", [1], field(2, b"\x80\x02"))), "does not fit INT8"),
        (infer(tensor(b"a", b"FP32", [1], field(6, b"1234")), raw=[b"1234"]), "must be empty"),
        (infer(tensor(b"a", b"FP32", [1]), raw=[b"1234", b"5678"]), "2 for 1 inputs"),
        (b"\x0a\x7fm", "ends within a field"),
        (b"\x0b", "wire type 3"),
        (b"\x0a\x01\xff", "no UTF-8"),
    ],
)
def test_what_cannot_be_read_is_said(message: bytes, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        ask(message)


@given(st.binary(max_size=100), st.sampled_from(sorted(METHODS)))
def test_garbage_is_refused_or_read(message: bytes, method: str) -> None:
    try:
        ask(message, method)
    except ProtocolError:
        pass


def answer(raw: bool) -> bytes:
    tensors = [("o", "FP64", struct.pack("<d", 2.5)), ("i", "INT32", struct.pack("<i", -1))]
    outputs = [
        {"name": n, "datatype": d, "shape": [1], "parameters": {"binary_data_size": len(c)}} for n, d, c in tensors
    ]
    head = json.dumps({"model_name": "m", "model_version": "1", "id": "7", "outputs": outputs}).encode()
    return METHODS[INFER].answer(RestAnswer(200, head, [content for *_, content in tensors], raw))


def test_an_answer_has_the_form_of_its_request() -> None:
    head = field(1, b"m") + field(2, b"1") + field(3, b"7")
    first, second = (field(1, b"o") + field(2, b"FP64") + field(3, b"\x01"), field(1, b"i") + field(2, b"INT32"))
    second += field(3, b"\x01")
    number, minus = struct.pack("<d", 2.5), b"\xff" * 9 + b"\x01"
    raw = field(6, number) + field(6, struct.pack("<i", -1))
    assert answer(raw=True) == head + field(5, first) + field(5, second) + raw
    typed = field(5, first + field(5, field(7, number))) + field(5, second + field(5, field(2, minus)))
    assert answer(raw=False) == head + typed


def test_the_name_of_a_model_is_where_kserve_and_where_triton_write_it() -> None:
    load = f"{SERVICE}RepositoryModelLoad"
    assert ask(field(1, b"m"), load).path == "/v2/repository/models/m/load"
    assert ask(field(1, b"repository") + field(2, b"m"), load).path == "/v2/repository/models/m/load"
    assert ask(field(2, b"m"), load).path == "/v2/repository/models/m/load"


class Wire:
    """The transport of a connection; keeps what is written."""

    def __init__(self) -> None:
        self.data, self.closed, self.protocol = b"", False, None

    def write(self, data: bytes) -> None:
        self.data += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def pause_reading(self) -> None:
        """All has come."""

    def resume_reading(self) -> None:
        """As above."""


def feed(connection: Any, data: bytes) -> None:
    """Let a connection read."""
    while data:
        room = connection.get_buffer(len(data))
        part, data = data[: len(room)], data[len(room) :]
        room[: len(part)] = part
        connection.buffer_updated(len(part))


def call(path: str, message: bytes, *more: tuple[bytes, bytes]) -> list[Any]:
    """Make one call to a model server over HTTP/2; return the events that came back."""

    async def session() -> list[Any]:
        server = ModelServer([Model("m", "sklearn", lambda rows: rows.sum(axis=1), 2)], inline=True)
        wire, client = Wire(), Http2(client=True)
        headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"x")]
        number = client.open([*headers, (b"content-type", b"application/grpc"), *more], end=False)
        client.send_data(number, b"\0" + len(message).to_bytes(4, "big") + message, end=True)
        connection = server.connect()
        connection.connection_made(wire)  # type: ignore[arg-type]
        feed(connection, client.take())
        assert wire.protocol is not None
        for _ in range(10):
            await asyncio.sleep(0)
        return client.receive(wire.data)

    return asyncio.run(session())


def test_a_model_server_predicts_over_grpc() -> None:
    pytest.importorskip("numpy")
    rows = struct.pack("<4d", 1, 2, 3, 4)
    events = call(INFER, infer(tensor(b"a", b"FP64", [2, 2]), raw=[rows]))
    assert [type(event) for event in events] == [Headers, Data, Headers]
    assert events[1].data.endswith(field(6, struct.pack("<2d", 3, 7)))
    assert events[2].headers == [(b"grpc-status", b"0")]


@pytest.mark.parametrize(
    ("path", "message", "code"),
    [
        (f"{SERVICE}Nothing", b"", b"12"),
        (INFER, b"\x0b", b"3"),
        (INFER, field(1, b"nobody") + tensor(b"a", b"FP64", [1]) + field(7, b"12345678"), b"5"),
        (INFER, infer(tensor(b"a", b"FP64", [3]), raw=[b"12345678"]), b"3"),
        (INFER, infer(tensor(b"a", b"FP64", [1, 2]) + tensor(b"b", b"FP64", [1, 2]), raw=[bytes(16)]), b"3"),
        (INFER, infer(tensor(b"a", b"FP64", [1, 2]), raw=[bytes(16), bytes(16)]), b"3"),
        (INFER, infer(tensor(b"a", b"FP128", [1, 2]), raw=[bytes(32)]), b"3"),
        (INFER, infer(tensor(b"a", b"BYTES", [1]), raw=[b"\xff\xff\xff\x7fabc"]), b"3"),
        (f"{SERVICE}ModelMetadata", field(1, b"nobody"), b"5"),
    ],
)
def test_errors_have_the_codes_of_grpc(path: str, message: bytes, code: bytes) -> None:
    pytest.importorskip("numpy")
    events = call(path, message)
    assert len(events) == 1
    headers = dict(events[0].headers)
    assert headers[b":status"] == b"200"
    assert headers[b"grpc-status"] == code
    assert headers[b"grpc-message"]


def test_what_is_no_number_comes_back_from_grpc_as_it_is() -> None:
    pytest.importorskip("numpy")
    rows = struct.pack("<4d", 1, float("nan"), 3, float("inf"))
    events = call(INFER, infer(tensor(b"a", b"FP64", [2, 2]), raw=[rows]))
    assert events[1].data.endswith(field(6, struct.pack("<2d", float("nan"), float("inf"))))


def test_a_message_that_is_announced_as_huge_is_refused_before_it_comes() -> None:
    server, wire, client = ModelServer([], inline=True), Wire(), Http2(client=True)
    headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", INFER.encode()), (b":authority", b"x")]
    number = client.open([*headers, (b"content-type", b"application/grpc")], end=False)
    client.send_data(number, b"\0" + (2**31).to_bytes(4, "big"))

    async def session() -> None:
        connection = server.connect()
        connection.connection_made(wire)  # type: ignore[arg-type]
        feed(connection, client.take())

    asyncio.run(session())
    (refused,) = (event for event in client.receive(wire.data) if isinstance(event, Headers))
    assert dict(refused.headers)[b"grpc-status"] == b"8"


def test_an_unknown_model_is_not_ready_which_is_no_error() -> None:
    events = call(f"{SERVICE}ModelReady", field(1, b"nobody"))
    assert [event.data for event in events if isinstance(event, Data)] == [b"\0\0\0\0\0"]
    events = call(f"{SERVICE}ModelReady", field(1, b"m"))
    assert [event.data for event in events if isinstance(event, Data)] == [b"\0\0\0\0\x02\x08\x01"]
