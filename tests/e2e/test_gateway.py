"""The proxy between real sockets on loopback: scripted backends behind it, raw clients before it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from shallop.gateway.load import Load
from shallop.gateway.proxy import Gateway
from shallop.gateway.routes import Backend, Route, RouteTable

pytestmark = pytest.mark.anyio

Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Handler = Callable[[Reader, Writer], Awaitable[None]]
DEADLINE_S = 20.0
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def read_request(reader: Reader) -> tuple[bytes, bytes]:
    """Read head and body of one request."""
    head = await reader.readuntil(b"\r\n\r\n")
    lower = head.lower()
    if b"transfer-encoding: chunked" in lower:
        return head, await read_chunks(reader)
    length = int(lower.partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
    return head, await reader.readexactly(length)


async def read_chunks(reader: Reader) -> bytes:
    body = b""
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        body += (await reader.readexactly(size + 2))[:-2]
    await reader.readuntil(b"\r\n")
    return body


async def read_answer(reader: Reader) -> tuple[int, bytes, bytes]:
    """Read one answer: code, head, body."""
    head, body = await read_request(reader)
    return int(head.split(b" ")[1]), head, body


async def echo(reader: Reader, writer: Writer) -> None:
    """Answer every request of a connection with its own body; say its target in a header."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head, body = await read_request(reader)
            target = head.split(b" ")[1]
            content = b"" if head.startswith(b"HEAD ") else body
            writer.write(
                b"HTTP/1.1 200 OK\r\nx-target: %s\r\ncontent-length: %d\r\n\r\n" % (target, len(body)) + content
            )
            await writer.drain()


class World:
    """A gateway with one route ``/app`` to the backends that were started."""

    def __init__(self, tasks: asyncio.TaskGroup) -> None:
        self.tasks = tasks
        self.endpoints: list[tuple[str, int]] = []
        self.table = RouteTable()
        self.gateway = Gateway(self.table)
        self.port = 0
        self._servers: list[asyncio.Server] = []
        self._writers: list[Writer] = []
        self._handlers: set[asyncio.Task[None]] = set()
        self.route(timeout_s=0.0)

    def route(self, *, timeout_s: float = 0.0, repeat: bool = False) -> None:
        backends = (Backend("ns", "app", 80),)
        route = Route(b"", b"/app", False, b"/", backends, (), "ns/app", timeout_s, repeat=repeat)
        self.table.replace_routes([route])

    def scale(self, limit: int = 0) -> None:
        """Make the Service one whose Pods an autoscaler starts."""
        self.table.scalable.add(("ns", "app"))
        self.gateway.loads["ns", "app"] = Load(0.0, limit)

    def serve_at(self, *endpoints: tuple[str, int]) -> None:
        self.table.endpoints = {("ns", "app"): [(host, {"": port}) for host, port in endpoints]}

    async def backend(self, handler: Handler) -> asyncio.Server:
        async def handle(reader: Reader, writer: Writer) -> None:
            try:
                await handler(reader, writer)
            finally:
                writer.close()

        def accept(reader: Reader, writer: Writer) -> None:
            self._handlers.add(asyncio.get_running_loop().create_task(handle(reader, writer)))

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self._servers.append(server)
        self.endpoints.append(server.sockets[0].getsockname()[:2])
        self.serve_at(*self.endpoints)
        return server

    async def connect(self) -> tuple[Reader, Writer]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self._writers.append(writer)
        return reader, writer

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        for writer in self._writers:
            writer.transport.abort()
        self.gateway.close()
        for task in self._handlers:
            task.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)
        # Transports report their end in a later turn of the loop.
        await asyncio.sleep(0.01)

    async def ask(self, request: bytes) -> tuple[int, bytes, bytes]:
        reader, writer = await self.connect()
        writer.write(request)
        return await read_answer(reader)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
        made = World(tasks)
        listener = await asyncio.get_running_loop().create_server(made.gateway.connect, "127.0.0.1", 0)
        made.port = listener.sockets[0].getsockname()[1]
        yield made
        listener.close()
        await made.stop()


def get(path: str = "/app/x", *headers: str, method: str = "GET", version: str = "1.1", body: bytes = b"") -> bytes:
    lines = [f"{method} {path} HTTP/{version}", "Host: h", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


async def test_requests_of_one_connection_are_answered_in_order(world: World) -> None:
    await world.backend(echo)
    reader, writer = await world.connect()
    for number in range(3):
        writer.write(get(f"/app/{number}", body=b"a" * number))
        code, head, body = await read_answer(reader)
        assert (code, body) == (200, b"a" * number)
        assert b"x-target: /%d\r\n" % number in head


async def test_thousands_of_requests_sent_ahead_are_all_answered_in_order(world: World) -> None:
    await world.backend(echo)
    reader, writer = await world.connect()
    count = 3000
    sending = world.tasks.create_task(send(writer, b"".join(get(f"/app/{n}") for n in range(count))))
    for number in range(count):
        _, head, _ = await read_answer(reader)
        assert b"x-target: /%d\r\n" % number in head
    await sending
    writer.write(b"".join(get("/none") for _ in range(count)))
    assert {(await read_answer(reader))[0] for _ in range(count)} == {404}


async def send(writer: Writer, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def test_chunked_bodies_pass_both_ways(world: World) -> None:
    async def chunked(reader: Reader, writer: Writer) -> None:
        _, body = await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for byte in body:
            writer.write(b"1\r\n%c\r\n" % byte)
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        await reader.read()

    await world.backend(chunked)
    reader, writer = await world.connect()
    writer.write(get("/app", "Transfer-Encoding: chunked", method="POST"))
    for part in (b"3\r\nabc", b"\r\n2;x=", b"y\r\nde\r\n0", b"\r\n\r\n"):
        writer.write(part)
        await asyncio.sleep(0)
    assert await read_answer(reader) == (200, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"abcde")


async def test_ten_megabytes_pass_both_ways_and_the_connection_lives_on(world: World) -> None:
    await world.backend(echo)
    body = bytes(range(256)) * 40_960
    reader, writer = await world.connect()
    for _ in range(2):
        sending = world.tasks.create_task(send(writer, get(method="POST", body=body)))
        code, _, answer = await read_answer(reader)
        await sending
        assert (code, answer == body) == (200, True)


async def test_a_slow_reader_holds_the_backend_back(world: World) -> None:
    sent = 0
    total = 64 << 20

    async def pour(reader: Reader, writer: Writer) -> None:
        nonlocal sent
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % total)
        while sent < total:
            writer.write(b"x" * 65536)
            sent += 65536
            await writer.drain()

    await world.backend(pour)
    reader, writer = await world.connect()
    writer.write(get())
    previous = -1
    while sent != previous:
        previous = sent
        await asyncio.sleep(0.3)
    assert sent < total / 2, "the answer piles up in the gateway"
    assert len((await read_answer(reader))[2]) == total
    writer.write(get())
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")


async def test_a_slow_backend_holds_the_client_back(world: World) -> None:
    begin = asyncio.Event()
    total = 64 << 20

    async def sip(reader: Reader, writer: Writer) -> None:
        await begin.wait()
        await read_request(reader)
        writer.write(OK)
        await reader.read()

    await world.backend(sip)
    reader, writer = await world.connect()
    sending = world.tasks.create_task(send(writer, get(method="POST", body=b"x" * total)))
    transport = writer.transport
    previous = -1
    while (left := transport.get_write_buffer_size()) != previous:
        previous = left
        await asyncio.sleep(0.3)
    assert left > total / 2, "the request piles up in the gateway"
    begin.set()
    assert (await read_answer(reader))[0] == 200
    await sending


async def test_continue_is_the_backends_to_say(world: World) -> None:
    async def picky(reader: Reader, writer: Writer) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"Expect: 100-continue" in head
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        writer.write(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        assert await reader.readexactly(4) == b"body"
        writer.write(OK)
        await reader.read()

    await world.backend(picky)
    reader, writer = await world.connect()
    writer.write(get("/app", "Expect: 100-continue", "Content-Length: 4", method="POST"))
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 103 ")
    writer.write(b"body")
    assert (await read_answer(reader))[0] == 200


async def test_answers_to_head_have_no_body(world: World) -> None:
    await world.backend(echo)
    reader, writer = await world.connect()
    for path, code in (("/app/x", b"200"), ("/none", b"404"), ("/-/metrics", b"200"), ("/app/y", b"200")):
        writer.write(get(path, method="HEAD"))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 " + code)


async def until_left(world: World) -> asyncio.Event:
    """Add a backend that never answers; the event is set when it is asked no longer."""
    gone = asyncio.Event()

    async def wait(reader: Reader, writer: Writer) -> None:
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            await reader.read()
        gone.set()

    await world.backend(wait)
    return gone


async def test_a_client_that_leaves_ends_the_backends_work(world: World) -> None:
    gone = await until_left(world)
    for request in (get(), get("/app", "Content-Length: 100", method="POST") + b"part"):
        gone.clear()
        _, writer = await world.connect()
        writer.write(request)
        await asyncio.sleep(0.1)
        writer.transport.abort()
        await gone.wait()
    assert b'code="499"} 2' in world.gateway.metrics.render()


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_client_that_has_ended_its_side_gets_its_answers(world: World, version: str) -> None:
    asked, answer = asyncio.Event(), asyncio.Event()

    async def late(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        asked.set()
        await answer.wait()
        writer.write(OK)

    await world.backend(late)
    reader, writer = await world.connect()
    ahead = 1 if version == "1.0" else 3
    writer.write(get(method="POST", body=b"x", version=version) * ahead)
    writer.write_eof()
    await asked.wait()
    answer.set()
    for _ in range(ahead):
        assert (await read_answer(reader))[::2] == (200, b"ok")
    assert await reader.read() == b""
    reader, writer = await world.connect()
    writer.write(get() + get("/app", "Content-Length: 100", method="POST") + b"part")
    writer.write_eof()
    assert (await read_answer(reader))[::2] == (200, b"ok")
    assert await reader.read() == b""


async def test_a_client_that_has_ended_its_side_waits_for_the_first_pod(world: World) -> None:
    woken = asyncio.Event()
    world.gateway.wake = woken.set
    world.scale()
    reader, writer = await world.connect()
    writer.write(get(method="POST", body=b"patience"))
    writer.write_eof()
    await woken.wait()
    # Asked whether it is there, it says nothing and so is.
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    await world.backend(echo)
    world.gateway.admit_all()
    assert (await read_answer(reader))[::2] == (200, b"patience")


async def test_a_client_that_closed_its_connection_is_found_out(world: World) -> None:
    gone = await until_left(world)
    _, writer = await world.connect()
    writer.write(get())
    await writer.drain()
    writer.close()
    await gone.wait()
    assert b'code="499"} 1' in world.gateway.metrics.render()


async def test_a_backend_that_dies_before_its_answer_is_reported_and_not_asked_again(world: World) -> None:
    asked = 0

    async def die(reader: Reader, writer: Writer) -> None:
        nonlocal asked
        asked += 1
        await read_request(reader)

    await world.backend(die)
    code, _, body = await world.ask(get(method="POST", body=b"x"))
    assert (code, asked) == (502, 1)
    assert "ended before its answer" in json.loads(body)["error"]


@pytest.mark.parametrize(
    "part", [b"Content-Length: 10\r\n\r\nhalf", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhal", b"Content-Len"]
)
async def test_half_an_answer_is_never_passed_off_as_a_whole_one(world: World, part: bytes) -> None:
    async def die(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n" + part)

    await world.backend(die)
    reader, writer = await world.connect()
    writer.write(get())
    if part.endswith(b"Len"):
        assert (await read_answer(reader))[0] == 502
        return
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await read_answer(reader)


async def test_an_answer_that_ends_with_its_connection_is_passed_on(world: World) -> None:
    async def old(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.0 200 OK\r\n\r\nall of it")

    await world.backend(old)
    reader, writer = await world.connect()
    writer.write(get())
    answer = await reader.read()
    assert answer.endswith(b"\r\n\r\nall of it")
    assert b"connection: close" in answer


async def test_a_kept_connection_that_the_backend_closed_costs_nobody_an_error(world: World) -> None:
    async def one_then_close(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(OK)
        # The next request is read and left without an answer, as when both ends act in the same moment.
        with contextlib.suppress(asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")

    await world.backend(one_then_close)
    reader, writer = await world.connect()
    for _ in range(5):
        writer.write(get(method="POST", body=b"hello"))
        assert (await read_answer(reader))[0] == 200


async def test_a_refused_connection_moves_on_to_the_next_endpoint(world: World) -> None:
    await world.backend(echo)
    dead = [await world.backend(echo) for _ in range(2)]
    for server in dead:
        server.close()
    for _ in range(6):
        assert (await world.ask(get()))[0] == 200


async def test_errors_of_the_gateway_say_what_to_do(world: World) -> None:
    code, _, body = await world.ask(get())
    assert (code, json.loads(body)["error"]) == (
        503,
        "no ready endpoint behind route ns/app; see 'kubectl get pods,isvc -A'",
    )
    code, _, body = await world.ask(get("/other?x=1"))
    assert (code, "no route for host 'h' and path '/other'" in body.decode()) == (404, True)
    server = await world.backend(echo)
    server.close()
    code, _, body = await world.ask(get())
    assert code == 503


async def test_a_refused_upload_still_gets_its_answer(world: World) -> None:
    reader, writer = await world.connect()
    sending = world.tasks.create_task(send(writer, get("/none", method="POST", body=b"x" * (8 << 20))))
    code, head, _ = await read_answer(reader)
    await sending
    assert code == 404
    assert b"connection: close" in head
    assert await reader.read() == b""


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /app HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n",
        b"POST /app HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\n",
        b"GET /app HTTP/1.1\r\nHost: a\r\nX: y\nContent-Length: 5\r\n\r\n",
        b"GET /app HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\r\n\r\n",
    ],
)
async def test_what_could_be_read_in_two_ways_is_refused(world: World, request_: bytes) -> None:
    seen = []

    async def never(reader: Reader, writer: Writer) -> None:
        seen.append(await reader.read())

    await world.backend(never)
    reader, writer = await world.connect()
    writer.write(request_)
    assert (await read_answer(reader))[0] == 400
    assert await reader.read() == b""
    assert not any(data.endswith(b"5\r\n") for data in seen)


async def test_a_head_without_end_is_refused(world: World) -> None:
    reader, writer = await world.connect()
    writer.write(b"GET /app HTTP/1.1\r\n" + b"X: y\r\n" * 20_000)
    assert (await read_answer(reader))[0] == 431


@pytest.mark.parametrize(("version", "header"), [("1.1", "Connection: close"), ("1.0", "X: y")])
async def test_the_connection_ends_when_the_client_asks_for_it(world: World, version: str, header: str) -> None:
    await world.backend(echo)
    reader, writer = await world.connect()
    writer.write(get("/app", header, version=version))
    assert b"connection: close" in (await reader.read())


async def test_connection_headers_stop_at_the_gateway(world: World) -> None:
    heads: list[bytes] = []

    async def note(reader: Reader, writer: Writer) -> None:
        heads.append((await read_request(reader))[0])
        writer.write(OK)
        await reader.read()

    await world.backend(note)
    await world.ask(get("/app", "Connection: X-Secret, Content-Length", "X-Secret: 1", "X-Kept: 2", body=b"x"))
    assert b"X-Secret" not in heads[0]
    assert b"X-Kept: 2" in heads[0]
    assert b"Content-Length: 1" in heads[0]


async def test_a_backend_that_never_answers_runs_into_the_routes_timeout(world: World) -> None:
    async def hang(reader: Reader, writer: Writer) -> None:
        await reader.read()

    await world.backend(hang)
    world.route(timeout_s=0.2)
    code, _, body = await world.ask(get())
    assert (code, "no answer within 0.2 s" in body.decode()) == (504, True)


async def test_idle_connections_to_endpoints_that_are_gone_are_closed(world: World) -> None:
    closed = asyncio.Event()

    async def wait(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        writer.write(OK)
        await reader.read()
        closed.set()

    await world.backend(wait)
    await world.ask(get())
    world.gateway.close_idle_except(())
    await closed.wait()


async def test_a_connection_to_an_endpoint_that_went_during_a_request_is_closed_after_it(world: World) -> None:
    asked, answer, gone = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def last(reader: Reader, writer: Writer) -> None:
        await read_request(reader)
        asked.set()
        await answer.wait()
        writer.write(OK)
        await reader.read()
        gone.set()

    await world.backend(last)
    reader, writer = await world.connect()
    writer.write(get())
    await asked.wait()
    world.serve_at()
    world.gateway.close_idle_except(world.table.addresses())
    answer.set()
    assert (await read_answer(reader))[0] == 200
    await asyncio.wait_for(gone.wait(), DEADLINE_S)


async def test_metrics_count_by_route_and_code(world: World) -> None:
    await world.backend(echo)
    await world.ask(get())
    await world.ask(get("/none"))
    code, head, body = await world.ask(get("/-/metrics"))
    assert (code, b"text/plain; version=0.0.4" in head) == (200, True)
    assert b'shallop_gateway_requests_total{namespace="ns",route="app",code="200"} 1' in body
    assert b'shallop_gateway_requests_total{namespace="",route="",code="404"} 1' in body
    assert b'shallop_gateway_request_duration_seconds_count{namespace="ns",route="app"} 1' in body


async def test_a_request_waits_for_the_first_pod_of_its_service(world: World) -> None:
    woken = asyncio.Event()
    world.gateway.wake = woken.set
    world.scale()
    asking = world.tasks.create_task(world.ask(get("/app/x", body=b"hello")))
    await woken.wait()
    await world.backend(echo)
    world.gateway.admit_all()
    assert (await asking)[::2] == (200, b"hello")
    assert world.gateway.loads["ns", "app"].inflight == 0


async def test_a_waiting_client_that_leaves_is_forgotten(world: World) -> None:
    woken = asyncio.Event()
    world.gateway.wake = woken.set
    world.scale()
    _, writer = await world.connect()
    writer.write(get())
    await woken.wait()
    writer.transport.abort()
    async with asyncio.timeout(DEADLINE_S):
        while world.gateway.clients:
            await asyncio.sleep(0.01)
    assert world.gateway.loads["ns", "app"].inflight == 0
    world.gateway.admit_all()


async def test_a_pod_that_refuses_is_asked_until_another_takes_its_place(world: World) -> None:
    dead = await world.backend(echo)
    dead.close()
    world.scale()
    woken = asyncio.Event()
    world.gateway.wake = woken.set
    asking = world.tasks.create_task(world.ask(get()))
    await woken.wait()
    await world.backend(echo)
    assert (await asking)[0] == 200


async def test_no_pod_gets_more_requests_at_once_than_its_limit(world: World) -> None:
    inside, most = 0, 0

    async def slow(reader: Reader, writer: Writer) -> None:
        nonlocal inside, most
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                await read_request(reader)
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.01)
                inside -= 1
                writer.write(OK)

    await world.backend(slow)
    world.scale(limit=2)
    codes = await asyncio.gather(*(world.ask(get()) for _ in range(20)))
    assert {code for code, _, _ in codes} == {200}
    assert most == 2


async def test_a_prediction_that_died_with_its_pod_is_asked_once_more_elsewhere(world: World) -> None:
    asked = 0

    async def die(reader: Reader, writer: Writer) -> None:
        nonlocal asked
        asked += 1
        await read_request(reader)

    world.route(repeat=True)
    for _ in range(2):
        await world.backend(die)
    code, _, _ = await world.ask(get("/app/v1/models/m:predict", method="POST", body=b"x"))
    assert (code, asked) == (502, 2), "what kills each Pod that reads it must not go round"
    await world.backend(echo)
    answers = [await world.ask(get("/app/v1/models/m:predict", method="POST", body=b"x")) for _ in range(3)]
    assert any(code == 200 for code, _, _ in answers)
    asked = 0
    world.serve_at(world.endpoints[0])
    assert (await world.ask(get("/app/train", method="POST", body=b"x")))[0] == 502
    assert asked == 1, "only what changes nothing may be asked twice"


async def test_predictions_are_captured_once_someone_reads_and_never_wait_for_them(world: World) -> None:
    await world.backend(echo)
    backends = (Backend("ns", "app-00002", 80),)
    world.table.endpoints = {("ns", "app-00002"): world.table.endpoints["ns", "app"]}
    route = Route(b"", b"/app", False, b"/", backends, (), "ns/app.path", capture=True)
    world.table.replace_routes([route])
    reader, writer = await world.connect()

    async def predict(body: bytes) -> None:
        head = b"POST /app/v1/models/m:predict HTTP/1.1\r\nhost: x\r\nx-request-id: 7\r\ncontent-type: text/plain\r\n"
        writer.write(head + b"content-length: %d\r\n\r\n%s" % (len(body), body))
        assert (await read_answer(reader))[2] == body

    await predict(b"nobody reads")
    waiting = asyncio.create_task(world.gateway.captures.take())
    await asyncio.sleep(0)
    for size in (5, 5, 600_000, 3_000_000):
        await predict(b"x" * size)
    first, second, *rest = await asyncio.wait_for(waiting, DEADLINE_S) + list(world.gateway.captures._queue)
    assert first[:4] == ("ns/app", "app-00002", "/app/v1/models/m:predict", "7")
    assert (first.status, first.request, first.response, first.content_type) == (200, b"xxxxx", b"xxxxx", "text/plain")
    assert second.request == first.request
    assert [len(capture.response) for capture in rest] == [600_000]
    assert b"captures_dropped_total 1" in world.gateway.metrics.render(world.gateway.captures.dropped)
    for _ in range(60):
        await predict(b"x" * 900_000)
    assert world.gateway.captures.dropped > 1


async def test_a_head_that_was_seen_before_follows_the_routes_of_now(world: World) -> None:
    def named(name: bytes) -> Handler:
        async def answer(reader: Reader, writer: Writer) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                while True:
                    await read_request(reader)
                    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(name), name))

        return answer

    await world.backend(named(b"old"))
    await world.backend(named(b"new"))
    old, new = world.endpoints
    world.serve_at(old)
    world.table.endpoints = {**world.table.endpoints, ("ns", "new"): [(new[0], {"": new[1]})]}
    reader, writer = await world.connect()
    seen = []
    for turn in range(4):
        if turn == 2:
            world.table.replace_routes([Route(b"", b"/app", False, b"/", (Backend("ns", "new", 80),))])
        writer.write(b"GET /app/x HTTP/1.1\r\nhost: x\r\n\r\n")
        seen.append((await read_answer(reader))[2])
    world.table.replace_routes([])
    writer.write(b"GET /app/x HTTP/1.1\r\nhost: x\r\n\r\n")
    assert (await read_answer(reader))[0] == 404
    assert seen == [b"old", b"old", b"new", b"new"]


async def test_an_answer_seen_before_is_read_by_the_method_that_was_asked(world: World) -> None:
    async def same(reader: Reader, writer: Writer) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head, _ = await read_request(reader)
                writer.write(OK[:-2] if head.startswith(b"HEAD") else OK)

    await world.backend(same)
    reader, writer = await world.connect()
    for method in (b"GET", b"HEAD", b"GET", b"HEAD"):
        writer.write(method + b" /app HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        if method == b"GET":
            assert await reader.readexactly(2) == b"ok"
