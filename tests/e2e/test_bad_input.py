"""Whatever clients send, a model server and the gateway before it answer rightly, live on and keep nothing of it."""

from __future__ import annotations

import asyncio
import json
import os
import resource
import struct
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest

from shallop.gateway.proxy import Gateway
from shallop.gateway.routes import Backend, Route, RouteTable
from shallop_pod.http2 import Data, Event, GoAway, Header, Headers, Http2
from shallop_pod.modelserver.models import Model
from shallop_pod.modelserver.openinference import INFER
from shallop_pod.modelserver.server import ModelServer
from shallop_pod.protobuf import bytes_field

np = pytest.importorskip("numpy")
pytestmark = pytest.mark.anyio
DEADLINE_S = 30.0
V1, V2 = b"/v1/models/m:predict", b"/v2/models/m/infer"
GOOD = b'{"instances":[[1.0,2.0]]}'


class World:
    """A model that adds up rows of two numbers, asked directly or through a gateway."""

    def __init__(self) -> None:
        self.server = ModelServer([Model("m", "sklearn", self._predict, 2)], inline=True)
        table = RouteTable()
        table.replace_routes([Route(b"", b"/", False, None, (Backend("ns", "m", 80),), (), "ns/m", 0.0)])
        self.gateway = Gateway(table)
        self.ports: dict[str, int] = {}
        self._listeners: list[asyncio.Server] = []

    @staticmethod
    def _predict(rows: Any) -> Any:
        if rows.ndim != 2 or rows.shape[1] != 2:
            raise ValueError(f"rows of 2 numbers are expected, found shape {rows.shape}")
        return rows.sum(axis=1)

    async def start(self) -> None:
        for name, connect in (("model server", self.server.connect), ("gateway", self.gateway.connect)):
            listener = await asyncio.get_running_loop().create_server(connect, "127.0.0.1", 0, backlog=1024)
            self._listeners.append(listener)
            self.ports[name] = listener.sockets[0].getsockname()[1]
        self.gateway.table.endpoints = {("ns", "m"): [("127.0.0.1", {"": self.ports["model server"]})]}

    async def stop(self) -> None:
        self.gateway.close()
        for listener in self._listeners:
            listener.close()
        for connection in list(self.server.connections):
            connection.finish_and_close()
        await self.settled()

    async def settled(self, left: int = 0) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.server.connections) > left or self.gateway.clients:
                await asyncio.sleep(0.005)

    async def send(self, where: str, data: bytes, *, end: bool = False) -> tuple[int, Any]:
        """Send bytes and read one answer; ``end`` closes our half of the connection after them."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.ports[where])
        try:
            writer.write(data)
            if end:
                writer.write_eof()
            async with asyncio.timeout(DEADLINE_S):
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
                return int(head.split(b" ")[1]), json.loads(await reader.readexactly(length))
        finally:
            writer.close()

    async def predicts(self, where: str) -> None:
        assert await self.send(where, post(V1, GOOD)) == (200, {"predictions": [3.0]})


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


def post(path: bytes, body: bytes, *headers: bytes) -> bytes:
    lines = [b"POST %s HTTP/1.1" % path, b"host: m", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


def v2(**tensor: Any) -> bytes:
    made = {"name": "a", "shape": [1, 2], "datatype": "FP64", "data": [1, 2]} | tensor
    return json.dumps({"inputs": [made]}).encode()


HEADER = b"inference-header-content-length: %d"
BINARY = v2(data=None, parameters={"binary_data_size": 16})


REQUESTS = [
    (post(V1, b""), 400),
    (post(V1, b"\xff\xfe"), 400),
    (post(V1, b'{"instances": [[1, NaN]]}'), 400),
    (post(V1, b'{"instances": [[1, 2], [3]]}'), 400),
    (post(V1, b'{"instances": [[1, 2, 3]]}'), 400),
    (post(V1, b'{"instances": [["a", "b"]]}'), 400),
    (post(V1, b'{"instances": {"a": 1}}'), 400),
    (post(V1, b'{"instances": []}'), 400),
    (post(V1, b"[" * 50_000), 400),
    (post(V2, b"{}"), 400),
    (post(V2, v2(shape=[2, 2])), 400),
    (post(V2, v2(shape=[-1, 2])), 400),
    (post(V2, v2(shape="2")), 400),
    (post(V2, v2(datatype="FP128")), 400),
    (post(V2, v2(data=["x", "y"])), 400),
    (post(V2, BINARY + b"12345678", HEADER % len(BINARY)), 400),
    (post(V2, BINARY, HEADER % 10**6), 400),
    (post(V2, BINARY, b"inference-header-content-length: -1"), 400),
    (post(V2, v2(data=None, parameters={"binary_data_size": -5}) + b"x" * 16), 400),
    (post(V2, v2(data=None, parameters={"binary_data_size": "all"})), 400),
    (post(b"/v1/models/nobody:predict", GOOD), 404),
    (post(b"/v2/models/nobody/infer", v2()), 404),
    (post(b"/nothing", GOOD), 404),
    (b"BREW / HTTP/1.1\r\nhost: m\r\ncontent-length: 0\r\n\r\n", 405),
    (b"nonsense\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nhost: m\r\ncontent-length: many\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nhost: m\r\ncontent-length: %s\r\n\r\n" % (b"9" * 5000), 400),
    (b"POST / HTTP/1.1\r\nhost: m\r\ncontent-length: %d\r\n\r\n" % 2**40, 413),
    (b"POST / HTTP/1.1\r\nhost: m\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
    (b"POST / HTTP/1.1\r\nhost: m\r\n" + b"x-long: " + b"y" * 70_000, 431),
]


@pytest.mark.parametrize("where", ["model server", "gateway"])
@pytest.mark.parametrize(("request_", "status"), REQUESTS, ids=map(str, range(len(REQUESTS))))
async def test_it_is_told_what_is_wrong_in_the_shape_of_errors(
    world: World, where: str, request_: bytes, status: int
) -> None:
    found, said = await world.send(where, request_)
    assert found == status, said
    assert isinstance(said["error"], str)
    assert said["error"]
    await world.predicts(where)


def over_http2(request_: bytes) -> tuple[list[Header], bytes] | None:
    """Return the headers and the body of the request over HTTP/2; None where it is none that HTTP/2 could carry."""
    head, _, body = request_.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    words = first.split(b" ")
    if len(words) != 3 or b"transfer-encoding: chunked" in lines:
        return None
    headers = [(b":method", words[0]), (b":scheme", b"http"), (b":path", words[1]), (b":authority", b"m")]
    for line in lines:
        name, _, value = line.partition(b": ")
        if name != b"host":
            headers.append((name, value))
    return headers, body


class Http2Client:
    """A client that has said hello."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer, self.frames = reader, writer, Http2(client=True)

    @classmethod
    async def connect(cls, port: int) -> Http2Client:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def hear(self) -> list[Event]:
        self.writer.write(self.frames.take())
        async with asyncio.timeout(DEADLINE_S):
            data = await self.reader.read(65536)
        assert data, "the server closed the connection"
        return self.frames.receive(data)

    async def ask(self, headers: list[Header], body: bytes) -> tuple[int, Any]:
        stream = self.frames.open(headers, end=not body)
        if body:
            self.frames.send_data(stream, body, end=True)
        status, content = 0, b""
        while True:
            for event in await self.hear():
                if isinstance(event, Headers):
                    status = int(dict(event.headers)[b":status"])
                elif isinstance(event, Data):
                    content += event.data
                if isinstance(event, Headers | Data) and event.end:
                    return status, json.loads(content)


HTTP2_REQUESTS = [(made, status) for request_, status in REQUESTS if (made := over_http2(request_)) and status != 431]


@pytest.mark.parametrize("where", ["model server", "gateway"])
async def test_it_is_told_so_over_http2_too(world: World, where: str) -> None:
    client = await Http2Client.connect(world.ports[where])
    wrong = []
    for (headers, body), status in HTTP2_REQUESTS:
        # HTTP/2 knows without a length where a body ends: only one that is too large matters.
        expected = {b"many": 404, b"9" * 5000: 413}.get(dict(headers).get(b"content-length", b""), status)
        found, said = await client.ask(headers, body)
        if found != expected or not said["error"]:
            wrong.append((headers, body[:100], expected, found, said))
    assert not wrong
    good = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", V1), (b":authority", b"m")]
    assert await client.ask(good, GOOD) == (200, {"predictions": [3.0]})
    client.writer.close()
    world.gateway.close_idle_except(())
    await world.settled()


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


# Indexed fields of the static table: POST, http, / and an authority that is not remembered.
_BLOCK = b"\x83\x86\x84\x01\x01m"
FLOODS = {
    "streams given up": (b"".join(frame(1, 5, n, _BLOCK) + frame(3, 0, n, bytes(4)) for n in range(1, 2401, 2)), 11),
    "malformed streams": (b"".join(frame(1, 5, n, b"\x83") for n in range(1, 2401, 2)), 11),
    "settings": (frame(4, 0, 0) * 1200, 11),
    "priorities": (frame(2, 0, 1, bytes(5)) * 1200, 11),
    "continuations": (frame(1, 1, 1, _BLOCK) + frame(9, 0, 1) * 100, 11),
    "headers without end": (frame(1, 1, 1, _BLOCK) + frame(9, 0, 1, b"\0\1x\1y" * 3000) * 10, 11),
    "headers that grow": (frame(1, 5, 1, _BLOCK + b"\x40\1x\x7f\xa1\x1e" + b"y" * 4000 + b"\xbe" * 10_000), 9),
}


@pytest.mark.parametrize("where", ["model server", "gateway"])
@pytest.mark.parametrize("flood", FLOODS)
async def test_a_flood_over_http2_ends_with_its_connection(world: World, where: str, flood: str) -> None:
    frames, code = FLOODS[flood]
    client = await Http2Client.connect(world.ports[where])
    client.writer.write(client.frames.take())
    client.writer.write(frames)
    goodbyes: list[int] = []
    while not goodbyes:
        goodbyes += [event.code for event in await client.hear() if isinstance(event, GoAway)]
    assert goodbyes[0] == code
    try:
        async with asyncio.timeout(DEADLINE_S):
            while await client.reader.read(65536):
                pass
    except ConnectionError:
        pass
    client.writer.close()
    await world.predicts(where)
    world.gateway.close_idle_except(())
    await world.settled()


@pytest.mark.parametrize("where", ["model server", "gateway"])
@pytest.mark.parametrize("cut", [0.1, 0.5, 0.99])
async def test_half_a_request_over_http2_is_forgotten_with_its_connection(world: World, where: str, cut: float) -> None:
    client = await Http2Client.connect(world.ports[where])
    stream = client.frames.open(
        [(b":method", b"POST"), (b":scheme", b"http"), (b":path", V1), (b":authority", b"m")], end=False
    )
    client.frames.send_data(stream, GOOD, end=True)
    data = client.frames.take()
    client.writer.write(data[: int(len(data) * cut)])
    await client.writer.drain()
    client.writer.close()
    await world.predicts(where)
    world.gateway.close_idle_except(())
    await world.settled()


@pytest.mark.parametrize("where", ["model server", "gateway"])
async def test_a_client_that_sends_http2_byte_by_byte_is_answered(world: World, where: str) -> None:
    client = await Http2Client.connect(world.ports[where])
    for byte in client.frames.take():
        client.writer.write(bytes((byte,)))
        await client.writer.drain()
        await asyncio.sleep(0)
    headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", V1), (b":authority", b"m")]
    assert await client.ask(headers, GOOD) == (200, {"predictions": [3.0]})
    client.writer.close()
    world.gateway.close_idle_except(())
    await world.settled()


@pytest.mark.parametrize("where", ["model server", "gateway"])
async def test_what_is_no_number_is_predicted_from_and_answered_as_null(world: World, where: str) -> None:
    tensor = np.array([[1.0, np.nan]]).tobytes()
    assert (await world.send(where, post(V2, BINARY + tensor, HEADER % len(BINARY))))[1]["outputs"][0]["data"] == [None]


@pytest.mark.parametrize("where", ["model server", "gateway"])
async def test_half_a_request_is_forgotten_with_its_connection(world: World, where: str) -> None:
    whole = post(V1, GOOD)
    for cut in (1, 20, len(whole) - len(GOOD), len(whole) - 1):
        _, writer = await asyncio.open_connection("127.0.0.1", world.ports[where])
        writer.write(whole[:cut])
        await writer.drain()
        writer.close()
    await world.predicts(where)
    world.gateway.close_idle_except(())
    await world.settled()


@pytest.mark.parametrize("where", ["model server", "gateway"])
async def test_a_client_that_has_ended_its_side_is_answered(world: World, where: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.ports[where])
    writer.write(post(V1, GOOD) * 50 + post(V1, GOOD)[:-1])
    writer.write_eof()
    async with asyncio.timeout(DEADLINE_S):
        assert (await reader.read(-1)).count(b"[3.0]") == 50
    writer.close()
    world.gateway.close_idle_except(())
    await world.settled()


@pytest.mark.parametrize("where", ["model server", "gateway"])
async def test_a_client_that_sends_byte_by_byte_is_answered(world: World, where: str) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.ports[where])
    for byte in post(V1, GOOD):
        writer.write(bytes((byte,)))
        await writer.drain()
        await asyncio.sleep(0)
    async with asyncio.timeout(DEADLINE_S):
        assert (await reader.readuntil(b"}")).endswith(b"3.0]}")
    writer.close()


async def test_requests_sent_ahead_without_reading_do_not_fill_the_memory(world: World) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.ports["gateway"])
    flood = post(V1, GOOD) * 5000
    writer.write(flood)
    await asyncio.sleep(0.05)
    await world.predicts("gateway")
    async with asyncio.timeout(DEADLINE_S):
        for _ in range(5000):
            await reader.readuntil(b"3.0]}")
    writer.close()


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("where", ["model server", "gateway"])
async def test_thousands_of_idle_connections_take_nothing_from_others_and_leave_nothing(
    world: World, where: str
) -> None:
    await world.predicts(where)
    world.gateway.close_idle_except(())
    await world.settled()
    before = open_files()
    # Both ends of each are ours.
    count = min(2000, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - before) // 3)
    idle = [await asyncio.open_connection("127.0.0.1", world.ports[where]) for _ in range(count)]
    for _, writer in idle[::3]:
        writer.write(b"POST /v1/mod")
    for _, writer in idle[1::3]:
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
    await asyncio.gather(*(world.predicts(where) for _ in range(20)))
    for _, writer in idle:
        writer.close()
    world.gateway.close_idle_except(())
    await world.settled()
    async with asyncio.timeout(DEADLINE_S):
        while open_files() > before:
            await asyncio.sleep(0.005)
    await world.predicts(where)


def conversation(path: bytes, body: bytes, *headers: Header) -> bytes:
    """Return all that a client of HTTP/2 sends to ask once."""
    client = Http2(client=True)
    head = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"m"), *headers]
    client.send_data(client.open(head, end=False), body, end=True)
    return client.take()


def grpc(*, raw: bool) -> bytes:
    numbers, tensor = struct.pack("<2d", 1, 2), bytes_field(1, b"a") + bytes_field(2, b"FP64") + b"\x1a\x02\x01\x02"
    message = bytes_field(1, b"m") + bytes_field(5, tensor + (b"" if raw else bytes_field(5, bytes_field(7, numbers))))
    message += bytes_field(7, numbers) if raw else b""
    kind = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
    return conversation(INFER.encode(), b"\0" + len(message).to_bytes(4, "big") + message, *kind)


CONVERSATIONS = [
    post(V1, GOOD) * 2,
    post(V2, v2()),
    post(V2, BINARY + bytes(16), HEADER % len(BINARY)),
    post(V1, GOOD, b"ce-specversion: 1.0", b"ce-id: 1", b"ce-type: a", b"ce-source: b"),
    b"POST %s HTTP/1.1\r\nhost: m\r\ntransfer-encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (V1, len(GOOD), GOOD),
    conversation(V1, GOOD),
    conversation(V2, BINARY + bytes(16), (b"inference-header-content-length", b"%d" % len(BINARY))),
    grpc(raw=False),
    grpc(raw=True),
]
WORDS = [
    *(b"\r\n", b"\0", b"\xff\xff\xff\xff", b"-1", b"9" * 20, b"null", b"[[", b"{", b"1e999", b"\\ud800", b"HTTP/1.0"),
    *(b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n", b"expect: 100-continue\r\n", b"upgrade: h2c\r\n"),
    *(b'"shape":[-1]', b'"data":[]', b'"parameters":[]', b'"inputs":[null]', b"true"),
]


def mutated(random: Random) -> bytes:
    """Return what a client would send with some of it flipped, lost, sent twice, or from somewhere else."""
    data = bytearray(random.choice(CONVERSATIONS))
    for _ in range(random.randint(1, 6)):
        start = random.randrange(len(data) + 1)
        end = min(len(data), start + random.randint(0, 40))
        other = random.choice(CONVERSATIONS)
        place = random.randrange(len(other))
        pieces = (
            random.choice(WORDS),
            random.randbytes(1),
            bytes(data[start:end]) * 2,
            b"",
            other[place : place + 200],
        )
        data[start:end] = random.choice(pieces)
    return bytes(data)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("where", ["model server", "gateway"])
async def test_no_mutation_of_a_request_breaks_a_server_or_stays_in_it(world: World, where: str, seed: int) -> None:
    random, broken = Random(seed), list[Any]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: broken.append(context))

    async def send(data: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", world.ports[where])
        try:
            writer.write(data)
            # Who has said all is answered, or closed where that is no whole request.
            writer.write_eof()
            async with asyncio.timeout(DEADLINE_S):
                while await reader.read(65536):
                    pass
        except TimeoutError:
            broken.append(data)
        except OSError:
            pass  # a server may close before it has read all
        finally:
            writer.close()

    for _ in range(15):
        await asyncio.gather(*(send(mutated(random)) for _ in range(20)))
    await world.predicts(where)
    world.gateway.close_idle_except(())
    await world.settled()
    assert not broken
