"""
The OpenAI API for models of texts: models, completions, chat completions (as a stream, too), embeddings.

What a request asks for and cannot be had is refused with its name, in OpenAI's form of errors.

Source: OpenAI's OpenAPI description 2.0.0; KServe 0.21 serves it below ``/openai``.
"""

from __future__ import annotations

import array
import asyncio
import base64
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from shallop_pod.modelserver.http import Connection
from shallop_pod.modelserver.language import Completion, Language, Sampling
from shallop_pod.modelserver.protocol import ProtocolError, dumps, loads

__all__ = ["OpenAi"]

_DEFAULT_COMPLETION_TOKENS = 16
# name -> the values that mean "as usual"
_REFUSED: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "functions": (None, []),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "best_of": (None, 1),
    "suffix": (None, ""),
    "response_format": (None, {"type": "text"}),
    "audio": (None,),
    "modalities": (None, ["text"]),
}


class _Ask(NamedTuple):
    """A request for texts, read."""

    chat: bool
    model: str
    language: Language
    prompts: Sequence[Any]
    sampling: Sampling
    choices: int
    stream: bool
    usage: bool
    echo: bool


class OpenAi:
    """
    Answers below one prefix.

    Args:
        find: model name -> what generates its texts; None for a model without any, KeyError for an unknown one.
        names: of the models that have any.
    """

    def __init__(self, prefix: str, find: Callable[[str], Language | None], names: Callable[[], Sequence[str]]) -> None:
        self.prefix = f"{prefix.rstrip('/')}/v1/"
        self._find = find
        self._names = names
        self._started = int(time.time())
        # One at a time: a generation takes all of a machine's cores, and seeds are the library's own state.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="language")
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def busy(self) -> bool:
        return bool(self._tasks)

    def dispatch(self, connection: Connection, method: str, path: str, body: bytes) -> None:
        """Answer one request; ``path`` begins with the prefix."""
        route = path[len(self.prefix) :]
        work: Callable[[], Any]
        try:
            if method == "GET" and route.split("/")[0] == "models":
                connection.answer(200, dumps(self._models(route.partition("/")[2])))
                return
            if method != "POST" or route not in ("completions", "chat/completions", "embeddings"):
                raise ProtocolError(f"{method} {path}: not found", 404)
            payload = loads(body)
            if not isinstance(payload, dict):
                raise ProtocolError("expected a JSON object")
            language = self._language(payload)
            if route == "embeddings":
                work = lambda: self._embed(connection, payload, language)  # noqa: E731
            else:
                ask = _read(payload, language, chat=route.startswith("chat"))
                work = lambda: self._generate(connection, ask)  # noqa: E731
        except ProtocolError as error:
            connection.answer(error.status, _error(str(error), error.status))
            return
        except ValueError as error:
            connection.answer(400, _error(f"the request cannot be read: {error}", 400))
            return
        task = asyncio.get_running_loop().create_task(work())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _models(self, name: str) -> Any:
        entries = [
            {"id": item, "object": "model", "created": self._started, "owned_by": "shallop"} for item in self._names()
        ]
        if not name:
            return {"object": "list", "data": entries}
        found = next((entry for entry in entries if entry["id"] == name), None)
        if found is None:
            raise ProtocolError(f"The model {name!r} does not exist", 404)
        return found

    def _language(self, payload: Mapping[str, Any]) -> Language:
        name = payload.get("model")
        if not isinstance(name, str):
            raise ProtocolError("model: give the name of a model")
        try:
            language = self._find(name)
        except KeyError as error:
            raise ProtocolError(f"The model {name!r} does not exist", 404) from error
        if language is None:
            raise ProtocolError(f"The model {name!r} is no model of texts")
        return language

    async def _embed(self, connection: Connection, payload: Mapping[str, Any], language: Language) -> None:
        try:
            texts = _texts(payload, language)
            vectors, tokens = await self._run(language.embed, texts)
        except Exception as error:
            connection.answer(*_failure(error))
            return
        encoded = payload.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _base64(vector) if encoded else vector}
            for index, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer = {"object": "list", "data": data, "model": payload["model"], "usage": usage}
        connection.answer(200, dumps(answer))

    async def _run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    async def _generate(self, connection: Connection, ask: _Ask) -> None:
        writer = _Writer(connection, ask)
        try:
            prompts = await self._run(lambda: [_tokens(ask, prompt) for prompt in ask.prompts])
            for index, (given, tokens) in enumerate(
                (given, tokens) for given, tokens in zip(ask.prompts, prompts, strict=True) for _ in range(ask.choices)
            ):
                emit = writer.emit_from_thread(index, given if ask.echo and isinstance(given, str) else "")
                completion = await self._run(ask.language.generate, tokens, ask.sampling, emit)
                writer.end_choice(index, completion, given)
            writer.end(sum(map(len, prompts)))
        except Exception as error:
            # The library may raise anything; whoever asked shall hear of it, in a stream too.
            writer.fail(error)


class _Writer:
    """Writes what is generated, whole or as a stream."""

    def __init__(self, connection: Connection, ask: _Ask) -> None:
        self._connection, self._ask = connection, ask
        self._loop = asyncio.get_running_loop()
        kind = "chat.completion" if ask.chat else "text_completion"
        identifier = f"{'chatcmpl' if ask.chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._head = {"id": identifier, "object": kind, "created": int(time.time()), "model": ask.model}
        self._choices: list[dict[str, Any]] = []
        self._tokens = 0
        self._streaming = False
        self._lost = False

    def emit_from_thread(self, index: int, echo: str) -> Callable[[str], bool]:
        """Return what takes pieces of one choice, in the thread that makes them."""
        first = [True]

        def emit(piece: str) -> bool:
            if self._ask.stream:
                self._loop.call_soon_threadsafe(self._send_piece, index, (echo if first[0] else "") + piece, first[0])
                first[0] = False
            return not self._lost

        return emit

    def _send_piece(self, index: int, text: str, first: bool) -> None:
        if self._ask.chat:
            delta = {"role": "assistant", "content": text} if first else {"content": text}
            self._send_event([{"index": index, "delta": delta, "finish_reason": None, "logprobs": None}])
        else:
            self._send_event([{"index": index, "text": text, "finish_reason": None, "logprobs": None}])

    def _send_event(self, choices: list[Any], **more: Any) -> None:
        if not self._streaming:
            self._streaming = True
            self._connection.start_stream("text/event-stream", self._on_lost)
        head = self._head | ({"object": "chat.completion.chunk"} if self._ask.chat else {})
        self._connection.send(b"data: " + dumps({**head, "choices": choices, **more}) + b"\n\n")

    def _on_lost(self) -> None:
        self._lost = True

    def end_choice(self, index: int, completion: Completion, prompt: Any) -> None:
        self._tokens += completion.tokens
        end: dict[str, Any] = {"index": index, "finish_reason": completion.reason, "logprobs": None}
        if self._ask.stream:
            nothing: dict[str, Any] = {"delta": {}} if self._ask.chat else {"text": ""}
            self._send_event([end | nothing])
        elif self._ask.chat:
            self._choices.append(end | {"message": {"role": "assistant", "content": completion.text}})
        else:
            echo = prompt if self._ask.echo and isinstance(prompt, str) else ""
            self._choices.append(end | {"text": echo + completion.text})

    def end(self, prompt_tokens: int) -> None:
        total = prompt_tokens + self._tokens
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": self._tokens, "total_tokens": total}
        if not self._ask.stream:
            self._connection.answer(200, dumps({**self._head, "choices": self._choices, "usage": usage}))
            return
        if self._ask.usage:
            self._send_event([], usage=usage)
        self._connection.send(b"data: [DONE]\n\n")
        self._connection.end_stream()

    def fail(self, error: Exception) -> None:
        status, body = _failure(error)
        if not self._streaming:
            self._connection.answer(status, body)
            return
        self._connection.send(b"data: " + body + b"\n\n")
        self._connection.end_stream()


def _read(payload: Mapping[str, Any], language: Language, *, chat: bool) -> _Ask:
    for name, usual in _REFUSED.items():
        if name in payload and payload[name] not in usual:
            raise ProtocolError(f"{name}: not supported by this server; leave it out")
    if not language.generates:
        raise ProtocolError(f"The model {payload['model']!r} does not generate texts")
    prompts = [payload.get("messages")] if chat else _prompts(payload.get("prompt"))
    if chat:
        _check_messages(prompts[0])
    limit = payload.get("max_completion_tokens", payload.get("max_tokens"))
    if limit is None and not chat:
        limit = _DEFAULT_COMPLETION_TOKENS
    stop = payload.get("stop") or ()
    return _Ask(
        chat,
        payload["model"],
        language,
        prompts,
        Sampling(
            None if limit is None else int(_number({"max_tokens": limit}, "max_tokens", 1, 2**31)),
            _number(payload, "temperature", 0, 2, 1.0),
            _number(payload, "top_p", 0, 1, 1.0),
            (stop,) if isinstance(stop, str) else tuple(map(str, stop)),
            payload.get("seed"),
            _number(payload, "presence_penalty", -2, 2, 0.0),
            _number(payload, "frequency_penalty", -2, 2, 0.0),
        ),
        int(_number(payload, "n", 1, 128, 1)),
        bool(payload.get("stream")),
        bool((payload.get("stream_options") or {}).get("include_usage")),
        bool(payload.get("echo")) and not chat,
    )


def _prompts(prompt: Any) -> Sequence[Any]:
    """Return the prompts of a completion: texts or lists of tokens."""
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt, list) and prompt:
        if all(isinstance(item, int) for item in prompt):
            return [prompt]
        if all(isinstance(item, str | list) for item in prompt):
            return prompt
    raise ProtocolError("prompt: expected a text, a list of texts, or lists of token numbers")


def _check_messages(messages: Any) -> None:
    if not isinstance(messages, list) or not messages:
        raise ProtocolError("messages: expected a list with at least one message")
    for number, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ProtocolError(f"messages[{number}]: expected an object with role and content")
        content = message.get("content")
        if isinstance(content, list):
            if any(not isinstance(part, dict) or part.get("type") != "text" for part in content):
                raise ProtocolError(f"messages[{number}].content: only parts of type text are supported")
            message["content"] = "".join(str(part.get("text", "")) for part in content)


def _number(payload: Mapping[str, Any], name: str, low: float, high: float, usual: float = 0) -> float:
    value = payload.get(name)
    if value is None:
        return usual
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        raise ProtocolError(f"{name}: expected a number from {low} to {high}, found {value!r}")
    return value


def _tokens(ask: _Ask, prompt: Any) -> list[int]:
    if ask.chat:
        return ask.language.encode_chat(prompt)
    return ask.language.encode(prompt) if isinstance(prompt, str) else list(prompt)


def _texts(payload: Mapping[str, Any], language: Language) -> list[str]:
    if payload.get("dimensions") is not None:
        raise ProtocolError("dimensions: not supported by this server; leave it out")
    given = _prompts(payload.get("input"))
    return [item if isinstance(item, str) else language.decode(item) for item in given]


def _base64(vector: Iterable[float]) -> str:
    return base64.b64encode(array.array("f", vector).tobytes()).decode()


def _failure(error: Exception) -> tuple[int, bytes]:
    if isinstance(error, ProtocolError):
        return error.status, _error(str(error), error.status)
    status = 400 if isinstance(error, ValueError | TypeError) else 500
    return status, _error(str(error) or type(error).__name__, status)


def _error(message: str, status: int) -> bytes:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return dumps({"error": {"message": message, "type": kind, "param": None, "code": status}})
