"""
The router of an InferenceGraph: walks a request through its nodes.

``python3 -m shallop_pod.graphrouter --graph-json GRAPH``. Requests come by HTTP/1.1, HTTP/2 or gRPC (``graphhttp2``).
Every POST is a request; a GET such as ``/readyz`` says that the router lives. A step is asked at its ``serviceUrl``,
which the control plane has filled in. Headers named by the regular expressions in ``PROPAGATE_HEADERS`` (comma list) go
along; without it those of tracing and authorization.

An answer of unknown length, such as the words of a language model, is passed on as it comes where no step follows.

Source: KServe 0.21 inference router.
"""

from __future__ import annotations

import argparse
import http.client
import http.server
import json
import os
import random
import re
import signal
import socket
import sys
import threading
import urllib.parse
from typing import Any, Iterator, Mapping, NamedTuple, Optional  # noqa: UP035  environments may be Python 3.9

from shallop_pod.conditions import exists
from shallop_pod.httpbody import BodyError, read_body

__all__ = ["Answer", "Graph", "main"]

_HEADERS = "authorization,x-request-id,x-b3-.*,traceparent,tracestate"
_LAME_DUCK_S = 0.5


class Stream(NamedTuple):
    """An answer whose end is not known yet; its connection is free again when all of it was read."""

    response: http.client.HTTPResponse
    connection: http.client.HTTPConnection

    def parts(self) -> Iterator[bytes]:
        """Yield what comes as it comes; the connection is closed when not all was read."""
        whole = False
        try:
            while part := self.response.read1(1 << 16):
                yield part
            whole = True
        finally:
            if not whole:
                self.connection.close()


class Answer(NamedTuple):
    """What a step said; with a ``stream``, which comes in place of the body."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    stream: Optional[Stream] = None  # noqa: UP045  environments may be Python 3.9

    @property
    def good(self) -> bool:
        return 200 <= self.status < 300

    def read(self) -> Answer:
        """Return the answer with its whole body."""
        if self.stream is None:
            return self
        return Answer(self.status, b"".join(self.stream.parts()), self.content_type)


class StepError(Exception):
    """A step could not be asked, or said what cannot be passed on."""


class Graph:
    """A graph that answers requests; used by many threads at once."""

    def __init__(self, spec: Mapping[str, Any], headers: str = _HEADERS) -> None:
        self._nodes: Mapping[str, Any] = spec["nodes"]
        timeouts = spec.get("routerTimeouts") or {}
        self._timeout_s = float(timeouts.get("serviceClient") or spec.get("timeout") or 300)
        # Of one read or write of a client's connection, and between its requests.
        self.read_s = float(timeouts.get("serverRead") or 60)
        self.write_s = float(timeouts.get("serverWrite") or 60)
        self.idle_s = float(timeouts.get("serverIdle") or 180)
        self._propagated = re.compile("|".join(f"(?:{part.strip()})" for part in headers.split(",")), re.IGNORECASE)
        self._connections = threading.local()

    def answer(self, body: bytes, headers: Mapping[str, str]) -> Answer:
        """Walk one request from the root node."""
        kept = {name: value for name, value in headers.items() if self._propagated.fullmatch(name)}
        kept["Content-Type"] = headers.get("Content-Type") or "application/json"
        try:
            return self._node("root", body, kept)
        except (StepError, ValueError) as error:
            return _failed(500, str(error))

    def _node(self, name: str, body: bytes, headers: Mapping[str, str]) -> Answer:
        node = self._nodes[name]
        walk = {
            "Sequence": self._sequence,
            "Splitter": self._splitter,
            "Switch": self._switch,
            "Ensemble": self._ensemble,
        }[node["routerType"]]
        return walk(node.get("steps") or [], body, headers)

    def _sequence(self, steps: list[Mapping[str, Any]], body: bytes, headers: Mapping[str, str]) -> Answer:
        last = Answer(200, body)
        for index, step in enumerate(steps):
            last = last.read()
            sent = last.body if index and step.get("data") == "$response" else body
            if index and step.get("condition") and not _holds(step["condition"], last.body):
                return Answer(200, last.body)
            if step.get("mapPredictionsToInstances"):
                sent = _as_instances(sent)
            last = self._step(step, sent, headers)
            if not last.good and step.get("dependency") == "Hard":
                return last
        return last

    def _splitter(self, steps: list[Mapping[str, Any]], body: bytes, headers: Mapping[str, str]) -> Answer:
        point = random.randrange(100)
        for step in steps:
            point -= int(step.get("weight") or 0)
            if point < 0:
                return self._step(step, body, headers)
        return self._step(steps[-1], body, headers)

    def _switch(self, steps: list[Mapping[str, Any]], body: bytes, headers: Mapping[str, str]) -> Answer:
        for step in steps:
            if _holds(step.get("condition") or "@this", body):
                return self._step(step, body, headers)
        return _failed(404, "None of the routes matched with the switch condition")

    def _ensemble(self, steps: list[Mapping[str, Any]], body: bytes, headers: Mapping[str, str]) -> Answer:
        answers: list[Answer | Exception] = [StepError("not asked")] * len(steps)

        def ask(index: int) -> None:
            try:
                answers[index] = self._step(steps[index], body, headers).read()
            except (StepError, ValueError) as error:
                answers[index] = error

        threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(steps))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        merged: dict[str, Any] = {}
        for index, (step, answer) in enumerate(zip(steps, answers)):  # noqa: B905  strict is Python 3.10
            if isinstance(answer, Exception):
                raise answer
            if not answer.good and step.get("dependency") == "Hard":
                return answer
            value = json.loads(answer.body)
            if not isinstance(value, dict):
                raise StepError(f"step {step.get('name') or index}: its answer is no JSON object")
            merged[step.get("name") or str(index)] = value
        return Answer(200, json.dumps(merged).encode())

    def _step(self, step: Mapping[str, Any], body: bytes, headers: Mapping[str, str]) -> Answer:
        if step.get("nodeName"):
            return self._node(step["nodeName"], body, headers)
        url = urllib.parse.urlsplit(step["serviceUrl"])
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        where = f"step {step.get('name') or step.get('serviceName') or step['serviceUrl']}"
        for attempt in range(2):
            connection, kept = self._connection(url)
            try:
                connection.request("POST", target, body, dict(headers))
                response = connection.getresponse()
                content_type = response.getheader("Content-Type") or "application/json"
                if response.length is None:
                    return Answer(response.status, content_type=content_type, stream=Stream(response, connection))
                return Answer(response.status, response.read(), content_type)
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                # A kept connection may have been closed under our hands; a fresh one has failed for good.
                if not kept or attempt:
                    raise StepError(f"{where}: {step['serviceUrl']} cannot be asked: {error}") from error
        raise StepError(f"{where}: {step['serviceUrl']} cannot be asked")

    def _connection(self, url: urllib.parse.SplitResult) -> tuple[http.client.HTTPConnection, bool]:
        known: dict[str, http.client.HTTPConnection] = self._connections.__dict__.setdefault("known", {})
        connection = known.get(url.netloc)
        if connection is None:
            kind = http.client.HTTPSConnection if url.scheme == "https" else http.client.HTTPConnection
            connection = known[url.netloc] = kind(url.netloc, timeout=self._timeout_s)
        return connection, connection.sock is not None


def _holds(condition: str, body: bytes) -> bool:
    try:
        return exists(json.loads(body), condition)
    except json.JSONDecodeError:
        return False


def _as_instances(body: bytes) -> bytes:
    value = json.loads(body)
    if isinstance(value, dict) and "predictions" in value:
        value["instances"] = value.pop("predictions")
    elif isinstance(value, dict) and "outputs" in value:
        value["inputs"] = value.pop("outputs")
    return json.dumps(value).encode()


def _failed(status: int, cause: str) -> Answer:
    return Answer(status, json.dumps({"error": "Failed to process request", "cause": cause}).encode())


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    graph: Graph

    def handle_one_request(self) -> None:
        self.connection.settimeout(self.graph.idle_s)
        super().handle_one_request()

    def parse_request(self) -> bool:
        self.connection.settimeout(self.graph.read_s)
        line: bytes = self.raw_requestline  # type: ignore[attr-defined]
        if line == b"PRI * HTTP/2.0\r\n":
            # Imported late: it takes an event loop and hpack, which requests over HTTP/1.1 do without.
            from shallop_pod.graphhttp2 import serve_http2

            self.close_connection = True
            serve_http2(self.graph, self.connection, line + self.rfile.peek())  # type: ignore[attr-defined]
            return False
        return super().parse_request()

    def do_GET(self) -> None:
        self._send(Answer(200, b'{"status":"alive"}'))

    def do_POST(self) -> None:
        try:
            body = read_body(self.headers, self.rfile)
        except BodyError as error:
            self.close_connection = True
            self._send(_failed(error.status, str(error)))
            return
        self._send(self.graph.answer(body, dict(self.headers.items())))

    def _send(self, answer: Answer) -> None:
        self.connection.settimeout(self.graph.write_s)
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        if answer.stream is not None:
            self._pass_on(answer.stream)
            return
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def _pass_on(self, stream: Stream) -> None:
        """Send a stream as it comes; one that breaks off ends the connection without its proper end."""
        chunked = self.request_version != "HTTP/1.0"
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.close_connection = True
        self.end_headers()
        try:
            for part in stream.parts():
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            self.wfile.write(b"0\r\n\r\n" if chunked else b"")
        except (OSError, http.client.HTTPException):
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet: requests are counted by the gateway."""


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True


def main(argv: list[str]) -> int:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser(prog="graphrouter", description="Route requests through an InferenceGraph.")
    parser.add_argument("--graph-json", required=True)
    parser.add_argument("--port", type=int, default=8080)
    options, ignored = parser.parse_known_args(argv)
    if ignored:
        print(f"arguments without effect here: {' '.join(ignored)}", file=sys.stderr, flush=True)
    graph = Graph(json.loads(options.graph_json), os.environ.get("PROPAGATE_HEADERS") or _HEADERS)
    handler = type("Handler", (_Handler,), {"graph": graph})
    server = _Server((os.environ.get("SHALLOP_POD_IP") or "0.0.0.0", options.port), handler)
    server.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def stop(*_: Any) -> None:
        # Who sends requests hears of the end at the same moment as we do: stay open until it must have acted.
        threading.Timer(_LAME_DUCK_S, server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    server.serve_forever(poll_interval=0.1)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
