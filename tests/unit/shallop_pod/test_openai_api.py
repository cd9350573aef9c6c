"""The OpenAI API over a model of texts that says what it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from shallop_pod.modelserver.language import Completion, Sampling, TextStream
from shallop_pod.modelserver.models import Model
from shallop_pod.modelserver.server import ModelServer

PICTURE = {"role": "user", "content": [{"type": "image_url"}]}


class Parrot:
    """Answers with its prompt, letter by letter, up to the limit."""

    generates = True

    def encode(self, text: str) -> list[int]:
        return list(map(ord, text))

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        return self.encode("".join(str(message["content"]) for message in messages))

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(map(chr, tokens))

    def generate(self, prompt: Sequence[int], sampling: Sampling, emit: Callable[[str], bool]) -> Completion:
        if not prompt:
            raise ValueError("nothing to say")
        stream = TextStream(self.decode, sampling.stop, emit)
        said = prompt[: sampling.max_tokens]
        ended = not all(stream.add(token) for token in said)
        stream.finish()
        return Completion(stream.text, len(stream.tokens), "stop" if ended else "length")

    def embed(self, texts: Sequence[str]) -> tuple[Sequence[Sequence[float]], int]:
        return [[float(len(text)), 0.5] for text in texts], sum(map(len, texts))


class Wire:
    """The transport of a connection; keeps what is written."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data

    def close(self) -> None:
        """Nothing to close."""

    def is_closing(self) -> bool:
        return False


def feed(connection: Any, data: bytes) -> None:
    """Let a connection read."""
    while data:
        room = connection.get_buffer(len(data))
        part, data = data[: len(room)], data[len(room) :]
        room[: len(part)] = part
        connection.buffer_updated(len(part))


def ask(path: str, payload: Any = None) -> tuple[int, bytes]:
    """Ask a server with the models ``parrot`` and ``table``; return status and body, of a stream all of it."""

    async def session() -> bytes:
        parrot = Model("parrot", "test", lambda rows: rows, language=Parrot())
        server = ModelServer([parrot, Model("table", "test", lambda rows: rows)], inline=True)
        wire, connection = Wire(), server.connect()
        connection.connection_made(wire)  # type: ignore[arg-type]
        body = b"" if payload is None else json.dumps(payload).encode()
        head = (
            f"{'GET' if payload is None else 'POST'} /openai/v1/{path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        feed(connection, head.encode() + body)
        async with asyncio.timeout(10):
            while server.busy or not wire.data:
                await asyncio.sleep(0.001)
        return wire.data

    head, _, body = asyncio.run(session()).partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def events(body: bytes) -> list[Any]:
    texts = [line.removeprefix(b"data: ") for line in body.splitlines() if line.startswith(b"data: ")]
    assert texts[-1] == b"[DONE]"
    return [json.loads(text) for text in texts[:-1]]


def test_models_of_texts_are_listed_and_others_are_not() -> None:
    status, body = ask("models")
    assert (status, [entry["id"] for entry in json.loads(body)["data"]]) == (200, ["parrot"])
    assert ask("models/parrot")[0] == 200
    assert ask("models/nobody")[0] == 404


def test_a_completion_counts_its_tokens_and_says_why_it_ended() -> None:
    status, body = ask("completions", {"model": "parrot", "prompt": ["hello", "abc"], "max_tokens": 4, "echo": True})
    answer = json.loads(body)
    assert status == 200
    assert [(choice["index"], choice["text"], choice["finish_reason"]) for choice in answer["choices"]] == [
        (0, "hellohell", "length"),
        (1, "abcabc", "length"),
    ]
    assert answer["usage"] == {"prompt_tokens": 8, "completion_tokens": 7, "total_tokens": 15}


def test_a_chat_is_streamed_piece_by_piece_and_stops_at_a_text() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "one two"}]}]
    asked = {"model": "parrot", "messages": messages, "stream": True, "stop": " two"}
    found = events(ask("chat/completions", asked | {"stream_options": {"include_usage": True}})[1])
    deltas = [choice["delta"] for event in found for choice in event["choices"]]
    assert deltas[0] == {"role": "assistant", "content": "o"}
    assert "".join(delta.get("content", "") for delta in deltas) == "one"
    assert found[-2]["choices"][0]["finish_reason"] == "stop"
    assert found[-1]["usage"]["prompt_tokens"] == 7


def test_embeddings_come_as_numbers_or_as_base64() -> None:
    _, body = ask("embeddings", {"model": "parrot", "input": ["ab", [97, 98, 99]]})
    assert [item["embedding"] for item in json.loads(body)["data"]] == [[2.0, 0.5], [3.0, 0.5]]
    _, body = ask("embeddings", {"model": "parrot", "input": "ab", "encoding_format": "base64"})
    assert json.loads(body)["data"][0]["embedding"] == "AAAAQAAAAD8="


@pytest.mark.parametrize(
    ("path", "payload", "status", "said"),
    [
        ("completions", {"prompt": "a"}, 400, "model: give the name"),
        ("completions", {"model": "nobody", "prompt": "a"}, 404, "does not exist"),
        ("completions", {"model": "table", "prompt": "a"}, 400, "no model of texts"),
        ("completions", {"model": "parrot", "prompt": 7}, 400, "prompt: expected"),
        ("completions", {"model": "parrot", "prompt": "a", "temperature": 9}, 400, "temperature: expected"),
        ("completions", {"model": "parrot", "prompt": ""}, 400, "nothing to say"),
        ("completions", {"model": "parrot", "prompt": "a", "logprobs": 3}, 400, "logprobs: not supported"),
        ("chat/completions", {"model": "parrot", "messages": []}, 400, "messages: expected"),
        ("chat/completions", {"model": "parrot", "messages": [PICTURE]}, 400, "type text"),
        ("embeddings", {"model": "parrot", "input": "a", "dimensions": 3}, 400, "dimensions: not supported"),
        ("rerank", {}, 404, "not found"),
        ("completions", [], 400, "JSON object"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_in_openai_s_form(path: str, payload: Any, status: int, said: str) -> None:
    found, body = ask(path, payload)
    error = json.loads(body)["error"]
    assert (found, error["code"], error["type"]) == (status, status, "invalid_request_error")
    assert said in error["message"]


def test_a_text_that_may_become_a_stop_text_is_held_back() -> None:
    pieces: list[str] = []
    stream = TextStream(lambda tokens: "".join(map(chr, tokens)), ["END"], lambda piece: not pieces.append(piece))
    assert [stream.add(ord(letter)) for letter in "aENbEND"] == [True] * 6 + [False]
    stream.finish()
    assert (pieces, stream.text, stream.ended) == (["a", "ENb"], "aENb", True)


def test_half_of_a_character_is_held_back() -> None:
    pieces: list[str] = []
    stream = TextStream(
        lambda tokens: bytes(tokens).decode("utf-8", "replace"), [], lambda piece: not pieces.append(piece)
    )
    for byte in "né".encode():
        assert stream.add(byte)
    assert pieces == ["n", "é"]


def test_nobody_listens_any_more() -> None:
    stream = TextStream(lambda tokens: "x" * len(tokens), [], lambda piece: False)
    assert not stream.add(1)
