"""Calls of gRPC as requests of a graph, and its answers as messages."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from shallop_pod.graphhttp2 import as_inference, serve_http2, with_data
from shallop_pod.graphrouter import Answer, Graph
from shallop_pod.http2 import Data, Headers, Http2
from shallop_pod.modelserver.openinference import INFER, STREAM_INFER
from shallop_pod.modelserver.protocol import ProtocolError
from shallop_pod.protobuf import bytes_field

ROWS = struct.pack("<2d", 1.5, 2.0)
TENSOR = bytes_field(1, b"x") + bytes_field(2, b"FP64") + bytes_field(3, b"\x02")
REQUEST = bytes_field(1, b"any") + bytes_field(5, TENSOR) + bytes_field(7, ROWS)


class Played(Graph):
    """A graph whose steps double or negate the first input; ``v1`` speaks V1, ``bad`` is out of order."""

    def _step(self, step: Mapping[str, Any], body: bytes, headers: Mapping[str, str]) -> Answer:
        if step.get("nodeName"):
            return super()._step(step, body, headers)
        said = json.loads(body)
        name = step["serviceName"]
        if name == "bad":
            return Answer(503, b'{"error": "out of order"}')
        if name == "v1":
            return Answer(200, b'{"predictions": [1]}')
        factor = {"double": 2, "negate": -1}[name]
        data = [factor * value for value in said["inputs"][0]["data"]]
        output = {"name": "y", "datatype": "FP64", "shape": [len(data)], "data": data}
        return Answer(200, json.dumps({"model_name": name, "id": said.get("id", ""), "outputs": [output]}).encode())


def graph(router: str, *services: str, **fields: Any) -> Graph:
    steps = [{"serviceName": service, "name": service, "dependency": "Hard", **fields} for service in services]
    return Played({"nodes": {"root": {"routerType": router, "steps": steps}}})


def call(made: Graph, *messages: bytes, path: str = INFER, content_type: bytes = b"application/grpc") -> list[Any]:
    """Make one call over a connection of its own; return what was heard."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=serve_http2, args=(made, theirs, b""))
    thread.start()
    client, heard = Http2(client=True), []
    headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()), (b":authority", b"g")]
    stream = client.open([*headers, (b"content-type", content_type)], end=False)
    for message in messages:
        client.send_data(stream, message)
    client.send_data(stream, b"", end=True)
    ours.settimeout(30)
    with ours, theirs:
        while not any(getattr(event, "end", False) for event in heard):
            ours.sendall(client.take())
            heard += client.receive(ours.recv(65536))
        ours.shutdown(socket.SHUT_RDWR)
        thread.join(30)
    assert not thread.is_alive()
    return heard


def grpc(made: Graph, *messages: bytes, path: str = INFER) -> tuple[bytes, dict[bytes, bytes]]:
    framed = [b"\0" + len(message).to_bytes(4, "big") + message for message in messages]
    heard = call(made, *framed, path=path)
    content = b"".join(bytes(event.data) for event in heard if isinstance(event, Data))
    return content, dict(next(event.headers for event in reversed(heard) if isinstance(event, Headers)))


def test_a_sequence_hands_the_outputs_of_a_step_on_as_inputs() -> None:
    made = graph("Sequence", "double", "negate", data="$response", mapPredictionsToInstances=True)
    content, trailers = grpc(made, REQUEST)
    assert trailers[b"grpc-status"] == b"0"
    assert content.endswith(bytes_field(6, struct.pack("<2d", -3.0, -4.0)))


def test_outputs_of_an_ensemble_are_named_by_their_steps() -> None:
    content, _ = grpc(graph("Ensemble", "double", "negate"), REQUEST)
    assert b"double/y" in content
    assert b"negate/y" in content
    assert bytes_field(6, struct.pack("<2d", 3.0, 4.0)) + bytes_field(6, struct.pack("<2d", -1.5, -2.0)) in content


def test_conditions_read_a_call_as_json() -> None:
    condition = 'inputs.#(name=="x").data.#(>1.9)'
    assert grpc(graph("Switch", "double", condition=condition), REQUEST)[1][b"grpc-status"] == b"0"
    missed = grpc(graph("Switch", "double", condition='inputs.#(name=="nobody")'), REQUEST)[1]
    assert missed[b"grpc-status"] == b"5"


@pytest.mark.parametrize(("service", "code"), [("bad", b"14"), ("v1", b"12")])
def test_what_a_step_cannot_do_is_told_by_a_status(service: str, code: bytes) -> None:
    headers = grpc(graph("Sequence", service), REQUEST)[1]
    assert headers[b"grpc-status"] == code
    assert headers[b"grpc-message"]


def test_each_message_of_a_stream_is_walked() -> None:
    content, trailers = grpc(graph("Sequence", "double"), REQUEST, REQUEST, path=STREAM_INFER)
    assert trailers[b"grpc-status"] == b"0"
    assert content.count(struct.pack("<2d", 3.0, 4.0)) == 2


@pytest.mark.parametrize("method", ["ServerLive", "ServerReady", "ModelReady"])
def test_the_router_is_ready_when_it_lives(method: str) -> None:
    path = f"/inference.GRPCInferenceService/{method}"
    content, trailers = grpc(graph("Sequence", "double"), bytes_field(1, b"any"), path=path)
    assert (content, trailers[b"grpc-status"]) == (b"\0\0\0\0\2\x08\1", b"0")
    assert (
        grpc(graph("Sequence"), b"", path="/inference.GRPCInferenceService/RepositoryIndex")[1][b"grpc-status"] == b"12"
    )


def test_json_over_http2_walks_as_over_http1() -> None:
    body = json.dumps({"inputs": [{"name": "x", "data": [4]}]}).encode()
    heard = call(graph("Sequence", "double"), body, path="/", content_type=b"application/json")
    content = b"".join(bytes(event.data) for event in heard if isinstance(event, Data))
    assert json.loads(content)["outputs"][0]["data"] == [8]


def test_texts_become_texts_and_half_a_value_is_refused() -> None:
    def request(datatype: str) -> dict[str, Any]:
        tensor = {"datatype": datatype, "parameters": {"binary_data_size": 6}}
        return {"inputs": [tensor], "parameters": {"binary_data_output": True}}

    assert with_data(request("BYTES"), [b"\2\0\0\0ab"])["inputs"] == [
        {"datatype": "BYTES", "parameters": {}, "data": ["ab"]}
    ]
    for datatype in ("FP64", "BYTES", "FP128"):
        with pytest.raises(ProtocolError):
            with_data(request(datatype), [b"\2\0\0\0a"])


def test_an_error_stays_what_it_is() -> None:
    assert as_inference(Answer(404, b"x")) == (404, b"x")
