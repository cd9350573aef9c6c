"""The agent and the router of graphs as processes of their own, before a scripted component."""

from __future__ import annotations

import asyncio
import base64
import http.client
import http.server
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shallop_pod.http2 import PREFACE, Data, Http2
from shallop_pod.modelserver.models import Model
from shallop_pod.modelserver.openinference import INFER
from shallop_pod.modelserver.server import ModelServer
from shallop_pod.protobuf import bytes_field

DEADLINE_S = 30.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(module: str, port: int, *arguments: str) -> Iterator[None]:
    """Run a module that listens on a port."""
    started = subprocess.Popen([sys.executable, "-m", module, "--port", str(port), *arguments])
    try:
        deadline = time.monotonic() + DEADLINE_S
        while True:
            assert started.poll() is None, "it has ended"
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        yield
    finally:
        started.kill()
        started.wait()


@pytest.fixture
def shouting() -> Iterator[int]:
    """A component that sends back what it gets, in capitals, until the client ends; its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(65536):
                connection.sendall(data.upper())

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,)).start()

    thread = threading.Thread(target=accept)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_http2_passes_the_agent_as_it_is(shouting: int) -> None:
    port = free_port()
    with (
        process("shallop_pod.agent", port, "--component-port", str(shouting), "--enable-batcher"),
        socket.create_connection(("127.0.0.1", port), DEADLINE_S) as client,
    ):
        client.sendall(PREFACE + b"x" * 20_000)
        client.shutdown(socket.SHUT_WR)
        found = b""
        while data := client.recv(65536):
            found += data
    assert found == PREFACE.upper() + b"X" * 20_000


@contextmanager
def model_server(asked: list[int] | None = None) -> Iterator[int]:
    """A server of the model ``m``, which doubles its rows and adds how many to ``asked``; its port."""
    loop, port = asyncio.new_event_loop(), free_port()

    def double(rows: Any) -> Any:
        if asked is not None:
            asked.append(len(rows))
        return rows * 2

    server = ModelServer([Model("m", "sklearn", double, 2)], inline=True)

    async def serve() -> None:
        listener = await loop.create_server(server.connect, "127.0.0.1", port)
        await stopped.wait()
        listener.close()
        for connection in list(server.connections):
            connection.finish_and_close()
        while server.connections:
            await asyncio.sleep(0.01)

    stopped = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
        loop.close()


@contextmanager
def sink() -> Iterator[tuple[int, list[Any]]]:
    """Keep the CloudEvents that come: their type, id and body."""
    events: list[Any] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            events.append((self.headers["ce-type"].rpartition(".")[2], self.headers["ce-id"], json.loads(body)))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Be quiet."""

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield made.server_address[1], events
    finally:
        made.shutdown()
        thread.join()
        made.server_close()


def ask_by_grpc(port: int) -> None:
    """Ask the model ``m`` for the double of two numbers."""
    tensor = bytes_field(1, b"x") + bytes_field(2, b"FP64") + bytes_field(3, b"\x01\x02")
    request = bytes_field(1, b"m") + bytes_field(5, tensor) + bytes_field(7, struct.pack("<2d", 1.5, 2.0))
    head = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", INFER.encode()), (b":authority", b"m")]
    head += [(b"content-type", b"application/grpc"), (b"ce-id", b"7")]
    with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as connection:
        client, heard = Http2(client=True), []
        stream = client.open(head, end=False)
        client.send_data(stream, b"\0" + len(request).to_bytes(4, "big") + request, end=True)
        while not any(getattr(event, "end", False) for event in heard):
            connection.sendall(client.take())
            heard += client.receive(connection.recv(65536))
        assert heard[-1].headers == [(b"grpc-status", b"0")]
        content = b"".join(bytes(event.data) for event in heard if isinstance(event, Data))
        assert struct.pack("<2d", 3.0, 4.0) in content


def until(check: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_predictions_of_grpc_are_logged_while_they_pass_the_agent() -> None:
    pytest.importorskip("numpy")
    port = free_port()
    with model_server() as component, sink() as (sink_port, events):
        url = f"http://127.0.0.1:{sink_port}"
        with process("shallop_pod.agent", port, "--component-port", str(component), "--log-url", url):
            ask_by_grpc(port)
            until(lambda: len(events) == 2)
    seen = {kind: (id_, body) for kind, id_, body in events}
    assert seen["request"][0] == seen["response"][0] == "7"
    assert seen["request"][1]["inputs"][0]["data"] == [1.5, 2.0]
    assert seen["response"][1]["outputs"][0]["data"] == [3.0, 4.0]


def test_predictions_of_grpc_are_logged_into_files_and_pass_a_batcher(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    port, store = free_port(), ("--log-url", f"file://{tmp_path}", "--log-store-path", "audit")
    named = ("--namespace", "team", "--inference-service", "m", "--enable-batcher")
    folder = tmp_path / "team" / "m" / "predictor" / "audit"
    with (
        model_server() as component,
        process("shallop_pod.agent", port, "--component-port", str(component), *store, *named),
    ):
        ask_by_grpc(port)
        until(lambda: len(list(folder.glob("7-*.json"))) == 2)
    found = {kind: json.loads((folder / f"7-{kind}.json").read_text()) for kind in ("request", "response")}
    bodies = {kind: json.loads(base64.b64decode(record["bytes"])) for kind, record in found.items()}
    assert bodies["request"]["inputs"][0]["data"] == [1.5, 2.0]
    assert bodies["response"]["outputs"][0]["data"] == [3.0, 4.0]


def test_bodies_may_come_in_chunks_and_broken_ones_are_refused() -> None:
    pytest.importorskip("numpy")
    port, path = free_port(), "/v1/models/m:predict"
    good = json.dumps({"instances": [[1.0, 2.0]]}).encode()
    with (
        model_server() as component,
        process(
            "shallop_pod.agent", port, "--component-port", str(component), "--enable-batcher", "--max-latency", "5"
        ),
    ):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
        for _ in range(2):
            connection.request("POST", path, iter([good[:7], good[7:]]), encode_chunked=True)
            assert json.load(connection.getresponse())["predictions"] == [[2.0, 4.0]]
        connection.close()
        with socket.create_connection(("127.0.0.1", port), DEADLINE_S) as client:
            client.sendall(b"POST %s HTTP/1.1\r\nhost: m\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n" % path.encode())
            assert client.recv(65536).split(b" ")[1] == b"400"


def test_calls_of_grpc_and_requests_of_rest_are_one_batch() -> None:
    pytest.importorskip("numpy")
    port, asked = free_port(), list[int]()
    # Nobody is answered before there are four rows: two of REST, two of gRPC.
    batcher = ("--enable-batcher", "--batch-grpc", "--max-batchsize", "4", "--max-latency", "60000")
    tensor = {"name": "x", "shape": [1, 2], "datatype": "FP64", "data": [5.0, 6.0]}
    answers: list[Any] = []

    def ask_by_rest() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
        connection.request("POST", "/v2/models/m/infer", json.dumps({"inputs": [tensor]}))
        answers.append(json.load(connection.getresponse())["outputs"][0]["data"])
        connection.close()

    with (
        model_server(asked) as component,
        process("shallop_pod.agent", port, "--component-port", str(component), *batcher),
    ):
        threads = [threading.Thread(target=call) for call in (ask_by_rest, lambda: ask_by_grpc(port)) * 2]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [[10.0, 12.0]] * 2
    assert asked == [4]


@pytest.mark.parametrize("module", ["graphrouter", "agent"])
def test_a_client_that_has_ended_its_side_is_answered(module: str) -> None:
    pytest.importorskip("numpy")
    port, body = free_port(), b'{"instances": [[1, 2]]}'
    head = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: m\r\nContent-Length: %d\r\n\r\n" % len(body)
    with model_server() as component:
        url = f"http://127.0.0.1:{component}/v1/models/m:predict"
        graph = {"nodes": {"root": {"routerType": "Sequence", "steps": [{"serviceUrl": url}]}}}
        arguments = ["--graph-json", json.dumps(graph)]
        if module == "agent":
            arguments = ["--component-port", str(component), "--enable-batcher", "--max-latency", "10"]
        with (
            process(f"shallop_pod.{module}", port, *arguments),
            socket.create_connection(("127.0.0.1", port), DEADLINE_S) as client,
        ):
            client.sendall(head + body)
            client.shutdown(socket.SHUT_WR)
            found = b""
            while data := client.recv(65536):
                found += data
    said, _, answer = found.partition(b"\r\n\r\n")
    assert said.startswith(b"HTTP/1.1 200"), found
    assert json.loads(answer)["predictions"] == [[2, 4]]


def test_a_client_that_sends_half_a_request_to_a_graph_is_dropped_in_time() -> None:
    port = free_port()
    graph = {"nodes": {"root": {"routerType": "Sequence", "steps": []}}, "routerTimeouts": {"serverRead": 1}}
    with (
        process("shallop_pod.graphrouter", port, "--graph-json", json.dumps(graph)),
        socket.create_connection(("127.0.0.1", port), DEADLINE_S) as client,
    ):
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf")
        assert client.recv(100) == b""


@pytest.mark.parametrize("module", ["graphrouter", "agent"])
def test_words_of_a_model_pass_a_graph_and_an_agent_as_they_come(module: str, tmp_path: Path) -> None:
    heard = [threading.Event() for _ in range(3)]

    class Model(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for number, event in enumerate(heard):
                word = b"data: %d\n\n" % number
                self.wfile.write(b"%x\r\n%b\r\n" % (len(word), word))
                assert event.wait(DEADLINE_S)
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    model = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Model)
    serving = threading.Thread(target=model.serve_forever, args=(0.05,))
    serving.start()
    url = f"http://127.0.0.1:{model.server_port}/openai/v1/completions"
    graph = {"nodes": {"root": {"routerType": "Sequence", "steps": [{"serviceUrl": url}]}}}
    arguments, port = ["--graph-json", json.dumps(graph)], free_port()

    def logged() -> list[Path]:
        return list(tmp_path.rglob("*-response.json"))

    if module == "agent":
        arguments = ["--component-port", str(model.server_port), "--log-url", f"file://{tmp_path}"]
    try:
        with process(f"shallop_pod.{module}", port, *arguments):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
            for _ in range(2):
                connection.request("POST", "/openai/v1/completions", b"{}")
                answer = connection.getresponse()
                assert answer.getheader("Content-Type") == "text/event-stream"
                for number, event in enumerate(heard):
                    assert answer.read1(100) == b"data: %d\n\n" % number
                    event.set()
                assert answer.read() == b""
            connection.close()
            until(lambda: len(logged()) == (2 if module == "agent" else 0))
    finally:
        model.shutdown()
        model.server_close()
        serving.join()
    bodies = [base64.b64decode(json.loads(path.read_text())["bytes"]) for path in logged()]
    assert bodies == [b"data: 0\n\ndata: 1\n\ndata: 2\n\n"] * len(bodies)
