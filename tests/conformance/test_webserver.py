"""What a server does with clients that send too much, too slowly, or for ever: over real sockets."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from starlette.types import Receive, Scope, Send

from shallop import webserver
from shallop.webserver import Server, bind

_DEADLINE_S = 30.0
Conversation = Callable[[int], Awaitable[None]]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the size of the body; ``/no`` refuses before it reads, ``/long`` never ends."""
    size, more = 0, scope["path"] != "/no"
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    if scope["path"] == "/long":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
        await receive()
        return
    text = str(size).encode()
    headers = [(b"content-length", str(len(text)).encode())]
    await send({"type": "http.response.start", "status": 413 if scope["path"] == "/no" else 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


def serve(conversation: Conversation) -> None:
    async def inside() -> None:
        sock = bind("127.0.0.1", 0, "api_port")
        server = Server(app, sock)
        await server.start()
        try:
            async with asyncio.timeout(_DEADLINE_S):
                await conversation(sock.getsockname()[1])
        finally:
            await server.stop()

    asyncio.run(inside())


async def exchange(port: int, *parts: bytes) -> bytes:
    """Send some bytes and read until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        return await reader.read()
    finally:
        writer.close()


def request(path: str = "/", *headers: str) -> bytes:
    return "\r\n".join([f"POST {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def test_a_head_without_end_is_refused() -> None:
    async def talk(port: int) -> None:
        for begin in (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: ", b"GET /"):
            longest = begin + b"x" * (webserver.MAX_HEAD + 1 - len(begin))
            assert (await exchange(port, longest)).startswith(b"HTTP/1.1 431 ")
        many = [f"X-{number}: 1" for number in range(300)]
        assert (await exchange(port, request("/", *many))).startswith(b"HTTP/1.1 431 ")
        usual = [f"X-{number}: 1" for number in range(100)]
        done = await exchange(
            port, request("/" + "x" * 60_000, *usual, "Connection: close", "Content-Length: 2") + b"ok"
        )
        assert done.startswith(b"HTTP/1.1 200 ")

    serve(talk)


def test_whoever_sends_a_head_slowly_loses_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webserver, "HEAD_S", 0.3)

    async def talk(port: int) -> None:
        started = [b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "]
        answers = await asyncio.gather(exchange(port), *(exchange(port, head) for head in started))
        assert answers[0] == b""
        assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers[1:])

    serve(talk)


def test_a_second_request_is_not_waited_for_longer_than_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webserver, "HEAD_S", 0.3)

    async def talk(port: int) -> None:
        whole = request("/", "Content-Length: 2") + b"ok"
        answer = await exchange(port, whole + b"GET / HTTP/1.1\r\nHos")
        assert answer.startswith(b"HTTP/1.1 200 ") and b"HTTP/1.1 408 " in answer

    serve(talk)


def test_a_slow_second_head_does_not_spoil_the_first_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webserver, "HEAD_S", 0.3)

    async def talk(port: int) -> None:
        answer = await exchange(port, request("/long", "Content-Length: 0") + b"GET / HTTP/1.1\r\nHos")
        assert answer.startswith(b"HTTP/1.1 200 ") and b"408" not in answer

    serve(talk)


def test_a_body_that_trickles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webserver, "BODY_S", 0.3)

    async def talk(port: int) -> None:
        trickled = exchange(port, request("/", "Content-Length: 1000000"), b"x")
        chunked = exchange(port, request("/", "Transfer-Encoding: chunked"), b"1\r\nx\r\n")
        for answer in await asyncio.gather(trickled, chunked):
            assert answer.startswith(b"HTTP/1.1 408 ")

    serve(talk)


def test_a_large_body_that_comes_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webserver, "BODY_S", 0.2)

    async def talk(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("/", "Content-Length: 1000000"))
        ends = time.monotonic() + 0.7
        sent = 0
        while sent < 1_000_000:
            # Faster than the least that is asked for, whatever the machine does meanwhile.
            size = min(50_000 if time.monotonic() < ends else 1_000_000, 1_000_000 - sent)
            writer.write(b"x" * size)
            sent += size
            await asyncio.sleep(0.05)
        assert (await reader.readuntil(b"1000000")).startswith(b"HTTP/1.1 200 ")
        writer.close()

    serve(talk)


def test_a_refused_body_is_not_read_for_ever() -> None:
    async def talk(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("/no", "Content-Length: 1000000000"))
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 413 ")
        sent = 0
        with pytest.raises(ConnectionError):
            while sent < 1_000_000_000:
                writer.write(b"x" * 1_000_000)
                sent += 1_000_000
                await writer.drain()
        assert sent < 200_000_000
        writer.close()

    serve(talk)
