"""The model server's batching: requests that fit together are predicted in one call, a bad one fails alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from shallop_pod.modelserver.models import Model
from shallop_pod.modelserver.server import ModelServer

np = pytest.importorskip("numpy")


class Wire:
    """The transport of a connection; keeps what is written."""

    def __init__(self) -> None:
        self.data = b""
        self.closed = False

    def write(self, data: bytes) -> None:
        self.data += data

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def ask(model: Any, *requests: bytes) -> list[bytes]:
    """Send each request over a connection of its own, all in one turn of the loop; return the answers."""

    async def session() -> list[bytes]:
        server = ModelServer([Model("m", "sklearn", model, 2)], inline=True)
        wires = []
        for request in requests:
            wire, connection = Wire(), server.connect()
            connection.connection_made(wire)  # type: ignore[arg-type]
            connection.data_received(request)  # type: ignore[attr-defined]
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
