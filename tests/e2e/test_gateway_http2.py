"""HTTP/2 and gRPC through the gateway between real sockets on loopback: scripted Pods behind it, raw clients before."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest

from shallop.gateway.load import Load
from shallop.gateway.proxy import Gateway
from shallop.gateway.routes import Backend, Route, RouteTable
from shallop_pod.http2 import (
    CANCEL,
    INTERNAL_ERROR,
    PREFACE,
    REFUSED_STREAM,
    Data,
    GoAway,
    Headers,
    Http2,
    Http2Error,
    Reset,
)

pytestmark = pytest.mark.anyio

DEADLINE_S = 20.0
INFER = b"/inference.GRPCInferenceService/ModelInfer"
OTHER = b"/acme.Shop/Order"
ANSWER = [(b":status", b"200"), (b"content-type", b"application/grpc")]
OK = [(b"grpc-status", b"0")]


class Peer(asyncio.Protocol):
    """One end of a connection; ``script`` gets every event."""

    def __init__(self, script: Callable[[Peer, Any], None], *, client: bool, name: str = "") -> None:
        self.frames = Http2(client=client)
        self.name = name
        self.heard: list[Any] = []
        self.lost = False
        self._script = script

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True

    def data_received(self, data: bytes) -> None:
        try:
            events = self.frames.receive(data)
        except Http2Error:
            self.transport.abort()
            raise
        for event in events:
            self.heard.append(event)
            self._script(self, event)
        self.flush()

    def flush(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.frames.take())

    def say(self, stream: int, content: bytes) -> None:
        self.frames.send_headers(stream, ANSWER, end=False)
        self.frames.send_data(stream, content)
        self.frames.send_headers(stream, OK, end=True)
        self.flush()


def echo(pod: Peer, event: Any) -> None:
    """Answer with the Pod's name when the request is complete."""
    if isinstance(event, Data):
        pod.frames.acknowledge(event.stream, event.size)
    if isinstance(event, Headers | Data) and event.end:
        pod.say(event.stream, pod.name.encode())


def silent(pod: Peer, event: Any) -> None:
    """Read and say nothing."""


async def until(check: Callable[[], Any]) -> Any:
    async with asyncio.timeout(DEADLINE_S):
        while not (found := check()):
            await asyncio.sleep(0.005)
    return found


class World:
    """A gateway with one route for all hosts to the Service ``ns/app``."""

    def __init__(self) -> None:
        self.table = RouteTable()
        self.gateway = Gateway(self.table)
        self.pods: dict[str, list[Peer]] = {}
        self.clients: list[Peer] = []
        self.port = 0
        self._servers: list[asyncio.Server] = []
        self.route(Backend("ns", "app", 80))

    def route(self, *backends: Backend, timeout_s: float = 0.0, repeat: bool = True) -> None:
        route = Route(b"", b"/", False, None, backends, (b"X-Added: yes",), "ns/app", timeout_s, repeat=repeat)
        self.table.replace_routes([route])

    async def pod(self, name: str, script: Callable[[Peer, Any], None] = echo) -> tuple[str, int]:
        def accept() -> Peer:
            peer = Peer(script, client=False, name=name)
            self.pods.setdefault(name, []).append(peer)
            return peer

        server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
        self._servers.append(server)
        address: tuple[str, int] = server.sockets[0].getsockname()[:2]
        return address

    def serve_at(self, *endpoints: tuple[str, int], service: str = "app") -> None:
        self.table.endpoints = {**self.table.endpoints, ("ns", service): [(host, {"": n}) for host, n in endpoints]}

    async def client(self, script: Callable[[Peer, Any], None] = silent) -> Peer:
        _, peer = await asyncio.get_running_loop().create_connection(
            lambda: Peer(script, client=True), "127.0.0.1", self.port
        )
        self.clients.append(peer)
        return peer

    def call(self, client: Peer, path: bytes = INFER, content: bytes | None = b"\0\0\0\0\0") -> int:
        """Begin a call; None leaves its content out, and it open."""
        headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"iris:8081")]
        more = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
        stream = client.frames.open([*headers, *more], end=False)
        if content is not None:
            client.frames.send_data(stream, content, end=True)
        client.flush()
        return stream

    async def answer(self, client: Peer, stream: int) -> tuple[bytes, bytes, bytes]:
        """Wait for the end of a call: its content, grpc-status and grpc-message."""

        def ended() -> Any:
            events = [event for event in client.heard if getattr(event, "stream", 0) == stream]
            over = events and (isinstance(events[-1], Reset) or getattr(events[-1], "end", False))
            return events if over else None

        events = await until(ended)
        headers = dict(header for event in events if isinstance(event, Headers) for header in event.headers)
        content = b"".join(event.data for event in events if isinstance(event, Data))
        return content, headers.get(b"grpc-status", b"reset"), headers.get(b"grpc-message", b"")

    async def stop(self) -> None:
        self.gateway.close()
        for server in self._servers:
            server.close()
        for peer in [*self.clients, *(pod for pods in self.pods.values() for pod in pods)]:
            peer.transport.abort()
        # Transports report their end in a later turn of the loop.
        await asyncio.sleep(0.01)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    server = await asyncio.get_running_loop().create_server(made.gateway.connect, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        await made.stop()


async def test_calls_of_one_connection_go_to_all_pods_over_one_connection_each(world: World) -> None:
    world.serve_at(await world.pod("a"), await world.pod("b"))
    client = await world.client()
    streams = [world.call(client) for _ in range(20)]
    answers = Counter([(await world.answer(client, stream))[:2] for stream in streams])
    assert answers == {(b"a", b"0"): 10, (b"b", b"0"): 10}
    assert [len(pods) for pods in world.pods.values()] == [1, 1]
    asked = dict(world.pods["a"][0].heard[0].headers)
    assert asked[b":authority"] == b"iris:8081"
    assert asked[b"x-added"] == b"yes"
    assert asked[b"te"] == b"trailers"
    assert b'route="app",code="200"} 20' in world.gateway.metrics.render()


async def test_shares_are_met_exactly(world: World) -> None:
    world.route(Backend("ns", "app", 80, 80), Backend("ns", "canary", 80, 20))
    world.serve_at(await world.pod("a"))
    world.serve_at(await world.pod("c"), service="canary")
    client = await world.client()
    counts = Counter([(await world.answer(client, world.call(client)))[0] for _ in range(200)])
    assert abs(counts[b"c"] - 40) <= 2, counts


async def test_a_call_waits_for_the_first_pod(world: World) -> None:
    world.table.scalable.add(("ns", "app"))
    world.gateway.loads["ns", "app"] = Load(0.0)
    client = await world.client()
    stream = world.call(client, content=b"x" * 300_000)
    await until(lambda: world.gateway.loads["ns", "app"].inflight)
    world.serve_at(await world.pod("a"))
    world.gateway.admit_all()
    assert await world.answer(client, stream) == (b"a", b"0", b"")
    assert world.gateway.loads["ns", "app"].inflight == 0
    assert not world.gateway.loads["ns", "app"].working


async def test_no_pod_has_more_calls_at_once_than_its_limit(world: World) -> None:
    world.table.scalable.add(("ns", "app"))
    world.gateway.loads["ns", "app"] = Load(0.0, 2)
    world.serve_at(await world.pod("a", silent))
    client = await world.client()
    streams = [world.call(client) for _ in range(5)]
    pod = (await until(lambda: world.pods.get("a")))[0]
    await until(lambda: len([event for event in pod.heard if isinstance(event, Data)]) == 2)
    seen = [event.stream for event in pod.heard if isinstance(event, Headers)]
    assert len(seen) == 2
    for number in range(5):
        await until(lambda: len([e for e in pod.heard if isinstance(e, Data)]) > number)  # noqa: B023
        pod.say([event.stream for event in pod.heard if isinstance(event, Headers)][number], b"a")
    assert [(await world.answer(client, stream))[1] for stream in streams] == [b"0"] * 5


async def test_a_pod_that_says_goodbye_answers_what_it_has_and_gets_nothing_new(world: World) -> None:
    leaving, other = await world.pod("leaving", silent), await world.pod("other")
    world.serve_at(leaving)
    client = await world.client()
    first = world.call(client)
    pod = (await until(lambda: world.pods.get("leaving")))[0]
    await until(lambda: any(isinstance(event, Data) for event in pod.heard))
    pod.frames.go_away()
    pod.flush()
    await until(lambda: not world.gateway.http2._open)
    world.serve_at(other)
    assert (await world.answer(client, world.call(client, OTHER)))[:2] == (b"other", b"0")
    pod.say(pod.heard[0].stream, b"late")
    assert await world.answer(client, first) == (b"late", b"0", b"")
    await until(lambda: pod.lost)


async def test_a_call_that_a_pod_did_not_begin_is_sent_elsewhere(world: World) -> None:
    def refuse(pod: Peer, event: Any) -> None:
        if isinstance(event, Headers):
            pod.frames.reset(event.stream, REFUSED_STREAM)

    world.serve_at(await world.pod("full", refuse), await world.pod("other"))
    client = await world.client()
    answers = {(await world.answer(client, world.call(client, OTHER)))[:2] for _ in range(4)}
    assert answers == {(b"other", b"0")}


def die(pod: Peer, event: Any) -> None:
    if isinstance(event, Data) and event.end:
        pod.transport.abort()


async def test_a_prediction_that_died_with_its_pod_is_asked_once_more_elsewhere(world: World) -> None:
    dying, other = await world.pod("dying", die), await world.pod("other")
    world.serve_at(dying, other)
    client = await world.client()
    assert {(await world.answer(client, world.call(client)))[:2] for _ in range(4)} == {(b"other", b"0")}
    world.serve_at(dying)
    assert (await world.answer(client, world.call(client)))[1] == b"14"


async def test_anything_else_that_died_with_its_pod_is_not_asked_again(world: World) -> None:
    world.serve_at(await world.pod("dying", die))
    client = await world.client()
    _, code, said = await world.answer(client, world.call(client, OTHER))
    assert (code, b"ended before its answer" in said) == (b"14", True), said


async def test_half_an_answer_is_cut_off(world: World) -> None:
    def half(pod: Peer, event: Any) -> None:
        if isinstance(event, Data) and event.end:
            pod.frames.send_headers(event.stream, ANSWER, end=False)
            pod.frames.send_data(event.stream, b"half")
            pod.flush()
            pod.transport.close()

    world.serve_at(await world.pod("half", half))
    client = await world.client()
    stream = world.call(client)
    assert await world.answer(client, stream) == (b"half", b"reset", b"")
    assert client.heard[-1] == Reset(stream, INTERNAL_ERROR)


async def test_a_refused_connection_moves_on_and_none_at_all_is_unavailable(world: World) -> None:
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", 1)
    world.serve_at(("127.0.0.1", 1), await world.pod("a"))
    client = await world.client()
    assert {(await world.answer(client, world.call(client)))[:2] for _ in range(3)} == {(b"a", b"0")}
    world.table.endpoints = {}
    assert (await world.answer(client, world.call(client)))[1] == b"14"
    world.table.replace_routes([])
    assert (await world.answer(client, world.call(client)))[1] == b"12"


async def test_a_pod_that_speaks_http1_only_is_told_apart(world: World) -> None:
    async def http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(http1, "127.0.0.1", 0)
    world.serve_at(server.sockets[0].getsockname()[:2])
    client = await world.client()
    _, code, said = await world.answer(client, world.call(client, OTHER))
    server.close()
    assert (code, b"does not speak HTTP/2" in said) == (b"14", True), said


def answer_in_chunks(body: bytes) -> bytes:
    half = len(body) // 2
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:half], body[half:]))
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX-Kind: chunks\r\n\r\n" + chunks + b"0\r\n\r\n"


def answer_with_length(body: bytes) -> bytes:
    early = b"HTTP/1.1 100 Continue\r\n\r\n"
    return early + b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: keep-alive\r\n\r\n%b" % (len(body), body)


def answer_until_the_end(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\n\r\n" + body


@pytest.mark.parametrize("render", [answer_in_chunks, answer_with_length, answer_until_the_end])
@pytest.mark.parametrize("size", [10, 3_000_000])
@pytest.mark.parametrize("length_told", [True, False])
async def test_what_is_no_grpc_goes_on_by_http1_where_a_pod_speaks_nothing_else(
    world: World, render: Callable[[bytes], bytes], size: int, length_told: bool
) -> None:
    heads: list[bytes] = []

    async def http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        if head.startswith(b"PRI "):
            writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")
        else:
            heads.append(head)
            body = b""
            if b"content-length: " in head:
                body = await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
            while b"transfer-encoding: chunked" in head:
                count = int(await reader.readline(), 16)
                body += await reader.readexactly(count)
                await reader.readline()
                if not count:
                    break
            writer.write(render(body[::-1]))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(http1, "127.0.0.1", 0)
    world.serve_at(server.sockets[0].getsockname()[:2])
    client = await world.client(lambda peer, event: read(peer, event))
    body = bytes(range(256)) * (size // 256 + 1)
    for _ in range(2):
        headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/x?y=1"), (b":authority", b"iris:8081")]
        headers += [(b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"te", b"trailers")]
        headers += [(b"content-length", b"%d" % len(body))] if length_told else []
        stream = client.frames.open(headers, end=False)
        client.frames.send_data(stream, body, end=True)
        client.flush()
        assert (await world.answer(client, stream))[0] == body[::-1]
    server.close()
    assert len(heads) == 2
    assert heads[0].startswith(b"POST /x?y=1 HTTP/1.1\r\nhost: iris:8081\r\n")
    assert b"cookie: a=1; b=2\r\n" in heads[0]
    assert b"x-added: yes\r\n" in heads[0]
    assert b"trailers" not in heads[0]


def read(peer: Peer, event: Any) -> None:
    if isinstance(event, Data):
        peer.frames.acknowledge(event.stream, event.size)


async def serve_http1(world: World, answer: bytes) -> asyncio.Server:
    """Let the service be a Pod that speaks HTTP/1.1 only, and says the same to every request of it."""

    async def http1(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 505 No\r\n\r\n" if head.startswith(b"PRI ") else answer)
        writer.close()

    server = await asyncio.start_server(http1, "127.0.0.1", 0)
    world.serve_at(server.sockets[0].getsockname()[:2])
    return server


async def test_a_pod_of_http1_that_breaks_off_is_reported(world: World) -> None:
    server = await serve_http1(world, b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345")
    client = await world.client()
    headers = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"iris")]
    stream = client.frames.open(headers, end=True)
    client.flush()
    content, code, _ = await world.answer(client, stream)
    server.close()
    assert (content, code) == (b"12345", b"reset")


async def test_a_call_without_an_answer_runs_into_the_timeout(world: World) -> None:
    world.route(Backend("ns", "app", 80), timeout_s=0.2)
    world.serve_at(await world.pod("a", silent))
    client = await world.client()
    assert (await world.answer(client, world.call(client)))[1] == b"4"
    pod = world.pods["a"][0]
    await until(lambda: pod.heard[-1] == Reset(pod.heard[0].stream, CANCEL))


async def test_a_client_that_leaves_ends_the_pods_work(world: World) -> None:
    world.serve_at(await world.pod("a", silent))
    client = await world.client()
    kept, given_up = world.call(client), world.call(client)
    pod = (await until(lambda: world.pods.get("a")))[0]
    await until(lambda: len(pod.heard) == 4)
    client.frames.reset(given_up, CANCEL)
    client.flush()
    await until(lambda: isinstance(pod.heard[-1], Reset))
    assert kept
    client.transport.abort()
    await until(lambda: sum(isinstance(event, Reset) for event in pod.heard) == 2)
    assert b'code="499"} 2' in world.gateway.metrics.render()


async def test_messages_stream_both_ways_as_they_come(world: World) -> None:
    def talk(pod: Peer, event: Any) -> None:
        if isinstance(event, Headers):
            pod.frames.send_headers(event.stream, ANSWER, end=False)
        elif isinstance(event, Data):
            pod.frames.send_data(event.stream, event.data.upper())
            if event.end:
                pod.frames.send_headers(event.stream, OK, end=True)

    world.serve_at(await world.pod("a", talk))
    client = await world.client()
    stream = world.call(client, content=None)
    for number in range(3):
        client.frames.send_data(stream, b"m%d" % number)
        client.flush()
        await until(lambda: client.heard and client.heard[-1] == Data(stream, b"M%d" % number, 2, False))  # noqa: B023
    client.frames.send_data(stream, b"", end=True)
    client.flush()
    assert await world.answer(client, stream) == (b"M0M1M2", b"0", b"")


async def test_a_slow_reader_holds_the_pod_back_and_others_pass_it(world: World) -> None:
    left: list[int] = []

    def much(pod: Peer, event: Any) -> None:
        if isinstance(event, Data) and event.end and event.data == b"much":
            pod.frames._on_sent = lambda stream, size: left.append(size)
            pod.frames.send_headers(event.stream, ANSWER, end=False)
            pod.frames.send_data(event.stream, b"x" * 8_000_000)
            pod.frames.send_headers(event.stream, OK, end=True)
        elif isinstance(event, Data) and event.end:
            pod.say(event.stream, b"quick")

    world.serve_at(await world.pod("a", much))
    client = await world.client()
    slow = world.call(client, content=b"much")
    await until(lambda: sum(left) >= 1_000_000)
    assert (await world.answer(client, world.call(client)))[0] == b"quick"
    assert sum(left) < 3_000_000
    read = 0
    while read < 8_000_000:
        new = [event for event in client.heard if isinstance(event, Data) and event.stream == slow]
        total = sum(event.size for event in new)
        client.frames.acknowledge(slow, total - read)
        client.flush()
        read = total
        await asyncio.sleep(0.001)
    content, code, _ = await world.answer(client, slow)
    assert (len(content), code) == (8_000_000, b"0")


@pytest.mark.parametrize(
    "frames",
    [
        b"\0\0\1\0\0\0\0\0\1x",
        b"\xff\xff\xff\0\0\0\0\0\1",
        b"\0\0\1\1\4\0\0\0\1\xff",
        b"\0\0\0\x09\4\0\0\0\1",
        b"\0\0\5\1\5\0\0\0\1\x82\x86\x84\x41\x00" * 2,
    ],
)
async def test_a_client_that_breaks_the_rules_is_told_and_closed(world: World, frames: bytes) -> None:
    world.serve_at(await world.pod("a"))
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
    writer.write(PREFACE + b"\0\0\0\4\0\0\0\0\0" + frames)
    async with asyncio.timeout(DEADLINE_S):
        said = await reader.read()
    writer.close()
    assert b"\x07\0\0\0\0\0" in said, "GOAWAY"


async def test_a_malformed_request_costs_only_its_own_stream(world: World) -> None:
    world.serve_at(await world.pod("a"))
    client = await world.client()
    bad = client.frames.open([(b":method", b"POST"), (b"connection", b"close")], end=True)
    good = world.call(client)
    assert (await world.answer(client, bad))[1] == b"reset"
    assert (await world.answer(client, good))[0] == b"a"


async def test_a_gateway_that_stops_says_goodbye_and_lets_calls_end(world: World) -> None:
    world.serve_at(await world.pod("a", silent))
    client = await world.client()
    stream = world.call(client)
    pod = (await until(lambda: world.pods.get("a")))[0]
    await until(lambda: len(pod.heard) == 2)
    world.gateway.close()
    await until(lambda: any(isinstance(event, GoAway) for event in client.heard))
    pod.say(pod.heard[0].stream, b"late")
    assert (await world.answer(client, stream))[0] == b"late"
    await until(lambda: client.lost)


async def test_calls_are_captured_like_any_prediction(world: World) -> None:
    world.serve_at(await world.pod("a"))
    route = Route(b"", b"/", False, None, (Backend("ns", "app", 80),), (), "ns/app", capture=True)
    world.table.replace_routes([route])
    client = await world.client()
    taking = asyncio.create_task(world.gateway.captures.take())
    await asyncio.sleep(0)
    await world.answer(client, world.call(client, OTHER))
    await world.answer(client, world.call(client, INFER, b"question"))
    (capture,) = await asyncio.wait_for(taking, DEADLINE_S)
    assert (capture.request, capture.response, capture.status) == (b"question", b"a", 200)
    assert capture.content_type == "application/grpc"


# -- what comes by HTTP/1.1, to Pods that speak HTTP/2 only


class Plain:
    """A client of HTTP/1.1."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def head(self) -> tuple[int, bytes]:
        head = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), DEADLINE_S)
        return int(head.split(b" ")[1]), head

    async def chunk(self) -> bytes:
        size = int(await asyncio.wait_for(self.reader.readline(), DEADLINE_S), 16)
        return (await asyncio.wait_for(self.reader.readexactly(size + 2), DEADLINE_S))[:-2]

    async def answer(self, *, method: str = "POST") -> tuple[int, bytes, bytes]:
        code, head = await self.head()
        body = b""
        if b"transfer-encoding: chunked" in head:
            chunks = [await self.chunk()]
            while chunks[-1]:
                chunks.append(await self.chunk())
            body = b"".join(chunks)
        elif b"content-length: " in head and method != "HEAD":
            length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            body = await asyncio.wait_for(self.reader.readexactly(length), DEADLINE_S)
        return code, head, body


def request(
    method: str = "POST", *headers: str, body: bytes = b"", chunks: Sequence[bytes] = (), version: str = "1.1"
) -> bytes:
    lines = [f"{method} /v1/models/m:predict HTTP/{version}", "Host: iris:8081", "Accept: */*", *headers]
    lines += ["Transfer-Encoding: chunked"] if chunks else [f"Content-Length: {len(body)}"] if body else []
    framed = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in [*chunks, b""]) if chunks else body
    return "\r\n".join([*lines, "", ""]).encode() + framed


@pytest.fixture
async def plain(world: World) -> AsyncIterator[Callable[[], Any]]:
    """Connects clients of HTTP/1.1 to a gateway whose Service speaks HTTP/2."""
    world.table.http2_ports = {("ns", "app", 80), ("ns", "canary", 80)}
    writers: list[asyncio.StreamWriter] = []

    async def connect() -> Plain:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        writers.append(writer)
        return Plain(reader, writer)

    yield connect
    for writer in writers:
        writer.transport.abort()


def mirror(*, sized: bool) -> Callable[[Peer, Any], None]:
    """Answer with the request's content, backwards."""
    kept: dict[tuple[Peer, int], bytes] = {}

    def script(pod: Peer, event: Any) -> None:
        if isinstance(event, Data):
            pod.frames.acknowledge(event.stream, event.size)
            kept[pod, event.stream] = kept.get((pod, event.stream), b"") + event.data
        if isinstance(event, Headers | Data) and event.end:
            body = kept.pop((pod, event.stream), b"")[::-1]
            length = [(b"content-length", b"%d" % len(body))] if sized else []
            pod.frames.send_headers(event.stream, [(b":status", b"200"), (b"x-kind", b"mirror"), *length], end=not body)
            if body:
                pod.frames.send_data(event.stream, body)
                pod.frames.send_data(event.stream, b"", end=True)

    return script


@pytest.mark.parametrize("sized", [True, False])
async def test_requests_of_http1_reach_a_pod_that_speaks_http2_only(world: World, plain: Any, sized: bool) -> None:
    world.serve_at(await world.pod("a", mirror(sized=sized)))
    client = await plain()
    large = bytes(range(256)) * 12_000
    cases: list[tuple[bytes, bytes]] = [
        (request(body=b"abc"), b"cba"),
        (request(chunks=[b"ab", b"c"]), b"cba"),
        (request(body=large), large[::-1]),
        (request(chunks=[large, large]), (large + large)[::-1]),
        (request("GET"), b""),
    ]
    for sent, body in cases:
        client.writer.write(sent)
        code, head, answer = await client.answer()
        assert (code, answer == body, b"x-kind: mirror" in head) == (200, True, True), head
    client.writer.write(request("HEAD") + request(body=b"12") + request("GET"))
    assert (await client.answer(method="HEAD"))[0] == 200
    assert [(await client.answer())[2], (await client.answer())[2]] == [b"21", b""]
    (pod,) = world.pods["a"]
    (asked, *_) = [dict(event.headers) for event in pod.heard if isinstance(event, Headers)]
    assert (asked[b":authority"], asked[b":path"]) == (b"iris:8081", b"/v1/models/m:predict")
    assert (asked[b"accept"], asked[b"x-added"]) == (b"*/*", b"yes")
    await until(lambda: not pod.frames.streams)
    assert not any(isinstance(event, Reset) for event in pod.heard)
    old = await plain()
    old.writer.write(request(body=b"old", version="1.0"))
    assert (await asyncio.wait_for(old.reader.read(), DEADLINE_S)).endswith(b"\r\n\r\ndlo")


async def test_an_answer_of_http2_streams_to_a_client_of_http1(world: World, plain: Any) -> None:
    world.serve_at(await world.pod("a", silent))
    client = await plain()
    client.writer.write(request(body=b"go"))
    pod = (await until(lambda: world.pods.get("a")))[0]
    asked = (await until(lambda: pod.heard and pod.heard))[0]
    pod.frames.send_headers(asked.stream, [(b":status", b"103"), (b"link", b"<x>")], end=False)
    pod.frames.send_headers(asked.stream, [(b":status", b"200"), (b"content-type", b"text/event-stream")], end=False)
    pod.flush()
    assert (await client.head())[0] == 103
    assert b"content-type: text/event-stream" in (await client.head())[1]
    for number in range(3):
        pod.frames.send_data(asked.stream, b"data: %d\n\n" % number)
        pod.flush()
        assert await client.chunk() == b"data: %d\n\n" % number
    pod.frames.send_headers(asked.stream, [(b"x-trailer", b"1")], end=True)
    pod.flush()
    assert await client.chunk() == b""


async def test_a_slow_reader_of_http1_holds_a_pod_of_http2_back(world: World, plain: Any) -> None:
    left: list[int] = []
    total = 32 << 20

    def pour(pod: Peer, event: Any) -> None:
        if isinstance(event, Headers):
            pod.frames._on_sent = lambda stream, size: left.append(size)
            pod.frames.send_headers(event.stream, [(b":status", b"200")], end=False)
            pod.frames.send_data(event.stream, bytes(total), end=True)

    world.serve_at(await world.pod("a", pour))
    client = await plain()
    client.writer.write(request("GET"))
    await until(lambda: left)
    before = -1
    while before != sum(left):
        before = sum(left)
        await asyncio.sleep(0.3)
    assert before < total / 2, "the answer piles up in the gateway"
    assert len((await client.answer())[2]) == total


async def test_a_slow_pod_of_http2_holds_a_client_of_http1_back(world: World, plain: Any) -> None:
    world.serve_at(await world.pod("a", silent))
    client = await plain()
    total = 32 << 20
    client.writer.write(request(body=bytes(total)))
    left, before = client.writer.transport.get_write_buffer_size(), -1
    while left != before:
        await asyncio.sleep(0.3)
        left, before = client.writer.transport.get_write_buffer_size(), left
    assert left > total / 2, "the request piles up in the gateway"
    pod = world.pods["a"][0]
    pod.say(pod.heard[0].stream, b"enough")
    assert (await client.answer())[2] == b"enough"
    assert await asyncio.wait_for(client.reader.read(), DEADLINE_S) == b""


async def test_a_request_of_http1_that_a_pod_of_http2_did_not_begin_is_sent_elsewhere(world: World, plain: Any) -> None:
    def refuse(pod: Peer, event: Any) -> None:
        if isinstance(event, Headers):
            pod.frames.reset(event.stream, REFUSED_STREAM)

    gone = await world.pod("gone")
    world._servers[-1].close()
    world.serve_at(await world.pod("a", mirror(sized=True)), await world.pod("r", refuse), gone)
    client = await plain()
    for _ in range(6):
        client.writer.write(request(body=b"ab"))
        assert (await client.answer())[::2] == (200, b"ba")
    # What changes nothing is asked once more when a Pod has died over it.
    world.serve_at(await world.pod("b", mirror(sized=True)), await world.pod("d", die))
    for _ in range(4):
        client.writer.write(request(body=b"ab"))
        assert (await client.answer())[::2] == (200, b"ba")
    world.serve_at(await world.pod("e", die))
    client.writer.write(request(body=b"ab"))
    code, _, said = await client.answer()
    assert (code, b"no ready endpoint" in said) == (503, True)


async def test_an_answer_of_http2_that_breaks_off_or_cannot_be_read_is_never_passed_off_as_whole(
    world: World, plain: Any
) -> None:
    def script(pod: Peer, event: Any) -> None:
        if isinstance(event, Headers):
            odd = dict(event.headers)[b"x-how"]
            if odd == b"header":
                pod.frames.send_headers(event.stream, [(b":status", b"200"), (b"x", b"a\r\nb: c")], end=True)
                return
            length = [(b"content-length", b"10")] if odd == b"short" else []
            pod.frames.send_headers(event.stream, [(b":status", b"200"), *length], end=False)
            pod.frames.send_data(event.stream, b"half", end=odd == b"short")
            if odd == b"reset":
                pod.flush()
                pod.frames.reset(event.stream, INTERNAL_ERROR)

    world.serve_at(await world.pod("a", script))
    for how in ("short", "reset"):
        client = await plain()
        client.writer.write(request("GET", f"X-How: {how}"))
        # Without its last chunk, or shorter than its length.
        with pytest.raises((asyncio.IncompleteReadError, ConnectionError, ValueError)):
            raise AssertionError(await client.answer())
    client = await plain()
    client.writer.write(request("GET", "X-How: header"))
    assert (await client.answer())[0] == 502


async def test_a_client_of_http1_that_leaves_ends_the_work_of_a_pod_of_http2(world: World, plain: Any) -> None:
    world.serve_at(await world.pod("a", silent))
    client = await plain()
    client.writer.write(request("GET"))
    pod = (await until(lambda: world.pods.get("a")))[0]
    await until(lambda: pod.heard)
    client.writer.transport.abort()
    await until(lambda: pod.heard[-1] == Reset(pod.heard[0].stream, CANCEL))


async def test_a_pod_that_speaks_http1_although_its_port_says_http2_is_asked_so(world: World, plain: Any) -> None:
    server = await serve_http1(world, b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
    client = await plain()
    for _ in range(2):
        client.writer.write(request("GET"))
        assert (await client.answer())[2] == b"ok"
    server.close()
