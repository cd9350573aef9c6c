"""The model server's batching: requests that fit together are predicted in one call, a bad one fails alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest

from shallop_pod.modelserver.models import Model
from shallop_pod.modelserver.protocol import Tensor
from shallop_pod.modelserver.server import ModelServer

np = pytest.importorskip("numpy")


class Wire:
    """The transport of a connection; keeps what is written."""

    def __init__(self) -> None:
        self.data = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.data += data

    def writelines(self, parts: Iterable[bytes]) -> None:
        self.data += b"".join(parts)

    def pause_reading(self) -> None:
        """Pieces come when the test says so."""

    def resume_reading(self) -> None:
        """As above."""

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def feed(connection: Any, data: bytes) -> None:
    """Let a connection read."""
    while data:
        room = connection.get_buffer(len(data))
        part, data = data[: len(room)], data[len(room) :]
        room[: len(part)] = part
        connection.buffer_updated(len(part))


def ask(model: Any, *requests: bytes) -> list[bytes]:
    """Send each request over a connection of its own, all in one turn of the loop; return the answers."""

    async def session() -> list[bytes]:
        server = ModelServer([Model("m", "sklearn", model, 2)], inline=True)
        wires = []
        for request in requests:
            wire, connection = Wire(), server.connect()
            connection.connection_made(wire)  # type: ignore[arg-type]
            feed(connection, request)
            wires.append(wire)
        for _ in range(10):
            await asyncio.sleep(0)
        # The two JSON writers differ in white space.
        return [wire.data.replace(b", ", b",").replace(b": ", b":") for wire in wires]

    return asyncio.run(session())


def predict(body: bytes) -> bytes:
    return b"POST /v1/models/m:predict HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def test_requests_that_fit_together_are_predicted_in_one_call() -> None:
    calls = []

    def model(rows: Any) -> Any:
        calls.append(len(rows))
        return rows.sum(axis=1)

    first, second = ask(model, predict(b'{"instances": [[1, 2]]}'), predict(b'{"instances": [[3, 4], [5, 6]]}'))
    assert calls == [3]
    assert first.endswith(b'{"predictions":[3]}')
    assert second.endswith(b'{"predictions":[7,11]}')


def test_a_bad_request_fails_alone() -> None:
    def model(rows: Any) -> Any:
        if (rows < 0).any():
            raise ValueError("negative")
        return rows.sum(axis=1)

    good, bad = ask(model, predict(b'{"instances": [[1, 2]]}'), predict(b'{"instances": [[-1, 2]]}'))
    assert good.startswith(b"HTTP/1.1 200 ")
    assert bad.startswith(b"HTTP/1.1 400 ")


def test_an_answer_that_is_not_one_entry_per_row_is_never_taken_apart() -> None:
    answers = ask(lambda rows: [rows, rows], *[predict(b'{"instances": [[%d, 2]]}' % n) for n in (1, 3)])
    assert answers[0].endswith(b'{"predictions":[[[1,2]],[[1,2]]]}')
    assert answers[1].endswith(b'{"predictions":[[[3,2]],[[3,2]]]}')


def test_answers_to_head_have_no_body() -> None:
    head = b"HEAD /v1/models/m HTTP/1.1\r\n\r\n"
    (answer,) = ask(lambda rows: rows, head + b"GET /none HTTP/1.1\r\n\r\n")
    assert answer.count(b"HTTP/1.1 ") == 2
    assert b"\r\n\r\nHTTP/1.1 404" in answer


def test_a_large_tensor_comes_in_pieces_with_a_request_behind_it() -> None:
    tensor = np.arange(50_000, dtype="<f4").reshape(1000, 50)
    size = {"binary_data_size": tensor.nbytes}
    described = {"name": "x", "shape": list(tensor.shape), "datatype": "FP32", "parameters": size}
    head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    lengths = b"Content-Length: %d\r\nInference-Header-Content-Length: %d" % (len(head) + tensor.nbytes, len(head))
    request = b"POST /v2/models/m/infer HTTP/1.1\r\n%b\r\n\r\n%b%b" % (lengths, head, tensor.tobytes())
    behind = b"GET /v2/health/live HTTP/1.1\r\n\r\n"

    async def session(*pieces: bytes) -> bytes:
        server = ModelServer([Model("m", "sklearn", lambda rows: rows, 50)], inline=True)
        wire, connection = Wire(), server.connect()
        connection.connection_made(wire)  # type: ignore[arg-type]
        for piece in pieces:
            feed(connection, piece)
        for _ in range(10):
            await asyncio.sleep(0)
        return wire.data

    whole = request + behind
    for cuts in ([], [100], [100, 90_000], [len(request) - 1], [len(request)], [1000, len(request) + 3]):
        ends = [0, *cuts, len(whole)]
        answer = asyncio.run(session(*(whole[a:b] for a, b in pairwise(ends))))
        first, _, second = answer.partition(b"HTTP/1.1 200 OK")[2].partition(b"HTTP/1.1 200 OK")
        assert first.endswith(tensor.tobytes()), cuts
        assert b"live" in second, cuts


def serve(model: Model, *requests: tuple[str, Any]) -> list[tuple[int, Any]]:
    """Ask one server one thing after the other; return statuses and bodies."""

    async def session() -> list[tuple[int, Any]]:
        server = ModelServer([model], inline=True)
        answers = []
        for path, payload in requests:
            wire, connection = Wire(), server.connect()
            connection.connection_made(wire)  # type: ignore[arg-type]
            body = json.dumps(payload).encode()
            method = "GET" if payload is None else "POST"
            request = f"{method} {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
            feed(connection, request)
            for _ in range(10):
                await asyncio.sleep(0)
            head, _, content = wire.data.partition(b"\r\n\r\n")
            answers.append((int(head.split()[1]), json.loads(content)))
        return answers

    return asyncio.run(session())


def pair() -> Model:
    """Return a model with two named inputs."""
    inputs = (Tensor("a", "FP64", (-1,)), Tensor("b", "FP64", (-1,)))

    def predict(tensors: Any) -> Any:
        return {"sum": tensors["a"] + tensors["b"], "difference": tensors["a"] - tensors["b"]}

    return Model("m", "test", predict, inputs=inputs, named=True, batches=False)


def tensor(name: str, *values: float) -> dict[str, Any]:
    return {"name": name, "shape": [len(values)], "datatype": "FP64", "data": list(values)}


def test_named_tensors_are_asked_for_in_rows_in_columns_and_by_v2() -> None:
    rows = [{"a": 5.0, "b": 3.0}, {"a": 1.0, "b": 1.0}]
    by_order = {"inputs": [tensor("x", 5, 1), tensor("y", 3, 1)], "outputs": [{"name": "sum"}]}
    row, column, swapped, ordered = serve(
        pair(),
        ("/v1/models/m:predict", {"instances": rows}),
        ("/v1/models/m:predict", {"inputs": {"a": [5.0], "b": [3.0]}}),
        ("/v2/models/m/infer", {"inputs": [tensor("b", 3), tensor("a", 5)]}),
        ("/v2/models/m/infer", by_order),
    )
    assert row == (200, {"predictions": [{"sum": 8.0, "difference": 2.0}, {"sum": 2.0, "difference": 0.0}]})
    assert column == (200, {"outputs": {"sum": [8.0], "difference": [2.0]}})
    assert {item["name"]: item["data"] for item in swapped[1]["outputs"]} == {"sum": [8.0], "difference": [2.0]}
    assert [(item["name"], item["data"]) for item in ordered[1]["outputs"]] == [("sum", [8.0, 2.0])]


def test_too_few_tensors_are_refused_with_the_names_that_are_wanted() -> None:
    ((status, body),) = serve(pair(), ("/v2/models/m/infer", {"inputs": [tensor("x", 1)]}))
    assert status == 400
    assert "the model has a, b" in body["error"]


def test_an_output_may_be_another_way_to_predict() -> None:
    methods = {"predict": lambda rows: rows[:, :1], "predict_proba": lambda rows: rows / 10}
    model = Model("m", "sklearn", lambda rows: {"predict": rows[:, :1]}, methods=methods)
    given = {"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [1, 9]}
    usual, other = serve(
        model,
        ("/v2/models/m/infer", {"inputs": [given]}),
        ("/v2/models/m/infer", {"inputs": [given], "outputs": [{"name": "predict_proba"}]}),
    )
    assert [(item["name"], item["shape"]) for item in usual[1]["outputs"]] == [("predict", [1, 1])]
    assert [(item["name"], item["data"]) for item in other[1]["outputs"]] == [("predict_proba", [0.1, 0.9])]


def test_a_model_that_was_unloaded_is_not_ready_and_comes_back() -> None:
    model = Model("m", "sklearn", lambda rows: rows[:, 0], 2)
    repository = "/v2/repository/models/m"
    asked = ("/v1/models/m:predict", {"instances": [[1, 2]]})
    answers = serve(
        model, (f"{repository}/unload", {}), asked, ("/v2/models/m/ready", None), (f"{repository}/load", {}), asked
    )
    assert [status for status, _ in answers] == [200, 503, 503, 200, 200]


def test_an_explainer_answers_explain_and_others_say_they_have_none() -> None:
    model = Model("m", "art", lambda rows: rows, explain=lambda payload: {"explanations": payload["instances"]})
    asked = ("/v1/models/m:explain", {"instances": [1]})
    assert serve(model, asked) == [(200, {"explanations": [1]})]
    ((status, _),) = serve(model._replace(explain=None), asked)
    assert status == 501
