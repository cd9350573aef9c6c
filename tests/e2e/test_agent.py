"""The agent and the router of graphs as processes of their own, before a scripted component."""

from __future__ import annotations

import http.client
import http.server
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from shallop_pod.http2 import PREFACE

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


def test_a_client_that_sends_half_a_request_to_a_graph_is_dropped_in_time() -> None:
    port = free_port()
    graph = {"nodes": {"root": {"routerType": "Sequence", "steps": []}}, "routerTimeouts": {"serverRead": 1}}
    with (
        process("shallop_pod.graphrouter", port, "--graph-json", json.dumps(graph)),
        socket.create_connection(("127.0.0.1", port), DEADLINE_S) as client,
    ):
        client.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf")
        assert client.recv(100) == b""


def test_words_of_a_model_pass_a_graph_as_they_come() -> None:
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
    port = free_port()
    try:
        with process("shallop_pod.graphrouter", port, "--graph-json", json.dumps(graph)):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
            for _ in range(2):
                connection.request("POST", "/", b"{}")
                answer = connection.getresponse()
                assert answer.getheader("Content-Type") == "text/event-stream"
                for number, event in enumerate(heard):
                    assert answer.read1(100) == b"data: %d\n\n" % number
                    event.set()
                assert answer.read() == b""
            connection.close()
    finally:
        model.shutdown()
        model.server_close()
        serving.join()
