"""
The agent beside a component: logs its requests and answers as CloudEvents, and gathers predictions into batches.

``python3 -m shallop_pod.agent --log-url URL --enable-batcher ...``: the arguments of KServe's agent that we honour are
in ``parse_options``. It listens on port 9081 and passes everything to the component's port.

Unlike upstream's: a sink that is slow or gone never holds a request up (events are dropped, counted in ``/metrics`` as
``shallop_agent_events_dropped_total``), predictions of gRPC are logged too, as JSON, requests of different paths are
not mixed in a batch, and a batch that fails answers with the component's own status and body.

Source: KServe 0.21 agent; CloudEvents 1.0, binary mode over HTTP.
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import http.server
import json
import math
import os
import queue
import signal
import socket
import sys
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from shallop_pod.grpctap import GrpcTap

from shallop_pod.httpbody import BodyError, read_body
from shallop_pod.logstore import Record, StoredLog, StoreOptions, store_for
from shallop_pod.storage import with_config

__all__ = ["Agent", "Answer", "Batcher", "Logger", "Options", "main", "parse_options"]

_QUEUE = 1000
_SENDERS = 2
_SINK_TIMEOUT_S = 10.0
_LAME_DUCK_S = 0.5
# Of an answer of unknown length; what is larger passes, and is not logged.
_MAX_LOGGED = 64 * 2**20
# Together less than the half minute that a Pod has to end.
_SETTLE_S, _DRAIN_S = 10.0, 10.0
_HOP = frozenset(("connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade", "host"))
# Asked by the kubelet and by monitors, not by users.
_UNLOGGED = frozenset(("/", "/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"))


_Body = bytes | Callable[[], bytes]


class Options(NamedTuple):
    """What the agent is told; see ``parse_options``."""

    port: int
    component_port: int
    log_url: str
    log_mode: str
    source: str
    service: str
    namespace: str
    component: str
    endpoint: str
    metadata_headers: Sequence[str]
    annotations: Mapping[str, str]
    batch_size: int
    batch_latency_s: float
    timeout_s: float
    store: StoreOptions | None = None
    batch_grpc: bool = False


class Answer(NamedTuple):
    """What the component, or the agent itself, answers; with a ``stream``, whose end is not known yet, as its body."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes
    stream: Iterator[bytes] | None = None

    def read(self) -> Answer:
        """Return the answer with its whole body."""
        return self if self.stream is None else Answer(self.status, self.headers, b"".join(self.stream))


def parse_options(argv: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(prog="agent", description="Log and batch the requests of a component.")
    parser.add_argument("--port", type=int, default=9081)
    parser.add_argument("--component-port", type=int, default=8080)
    parser.add_argument("--log-url", default="")
    parser.add_argument("--log-mode", default="all", choices=("all", "request", "response"))
    parser.add_argument("--source-uri", default="")
    parser.add_argument("--inference-service", default="")
    parser.add_argument("--namespace", default="")
    parser.add_argument("--component", default="predictor")
    parser.add_argument("--endpoint", default="")
    parser.add_argument("--metadata-headers", default="", help="comma list")
    parser.add_argument("--log-annotations", default="{}", help="JSON object")
    parser.add_argument("--log-store-path", default="", help="folder of stored logs; stores instead of posting")
    parser.add_argument("--log-store-format", default="json", choices=("json", "csv", "parquet"))
    parser.add_argument("--log-batch-size", type=int, default=1, help="records in one stored file")
    parser.add_argument("--log-batch-interval", type=float, default=1.0, help="seconds that a record waits for others")
    parser.add_argument("--log-marshaller-url", default="", help="service that makes the stored files")
    parser.add_argument("--enable-batcher", action="store_true")
    parser.add_argument("--max-batchsize", type=int, default=32)
    parser.add_argument("--max-latency", type=int, default=5000, help="milliseconds")
    parser.add_argument("--batch-grpc", action="store_true", help="the component answers calls of gRPC by REST, too")
    parser.add_argument("--timeout", type=float, default=600, help="of one request to the component, seconds")
    given = parser.parse_args(argv)
    stored = StoreOptions(
        given.log_url,
        given.log_store_path,
        given.log_store_format,
        given.log_batch_size,
        given.log_batch_interval,
        given.log_marshaller_url,
    )
    return Options(
        port=given.port,
        component_port=given.component_port,
        log_url=given.log_url,
        log_mode=given.log_mode,
        source=given.source_uri or os.environ.get("HOSTNAME") or socket.gethostname(),
        service=given.inference_service,
        namespace=given.namespace,
        component=given.component,
        endpoint=given.endpoint,
        metadata_headers=[name.strip().lower() for name in given.metadata_headers.split(",") if name.strip()],
        annotations=json.loads(given.log_annotations),
        batch_size=given.max_batchsize if given.enable_batcher else 0,
        batch_latency_s=given.max_latency / 1000,
        timeout_s=given.timeout,
        store=stored if given.log_url.startswith(("file://", "s3://")) else None,
        batch_grpc=given.enable_batcher and given.batch_grpc,
    )


class Logger:
    """Sends CloudEvents in the background; one that does not fit into the queue is dropped and counted."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._events: queue.Queue[tuple[dict[str, str], _Body]] = queue.Queue(_QUEUE)
        self._lock = threading.Lock()
        self.dropped = 0
        for _ in range(_SENDERS):
            threading.Thread(target=self._send, daemon=True).start()

    def log(self, kind: str, id_: str, headers: Mapping[str, str], content_type: str, body: _Body) -> None:
        """
        Log a message.

        Args:
            kind: request or response.
            headers: the request's, names in lower case.
            body: or what makes it, in another thread; ValueError when it cannot.
        """
        if self._options.log_mode not in ("all", kind):
            return
        try:
            self._events.put_nowait((self.render(kind, id_, headers, content_type), body))
        except queue.Full:
            self.drop()

    def render(self, kind: str, id_: str, headers: Mapping[str, str], content_type: str) -> dict[str, str]:
        """Return the headers of an event."""
        options = self._options
        now = datetime.datetime.now(datetime.UTC).isoformat().replace("+00:00", "Z")
        event = {
            "ce-specversion": "1.0",
            "ce-id": id_,
            "ce-type": f"org.kubeflow.serving.inference.{kind}",
            "ce-source": options.source,
            "ce-time": now,
            "ce-recordedtime": now,
            "ce-inferenceservicename": options.service,
            "ce-namespace": options.namespace,
            "ce-component": options.component,
            "ce-endpoint": options.endpoint,
            "content-type": content_type,
        }
        found = {name: [headers[name]] for name in options.metadata_headers if name in headers}
        if found:
            event["ce-metadata"] = json.dumps(found)
        if options.annotations:
            event["ce-annotations"] = json.dumps(dict(options.annotations))
        return event

    def drop(self) -> None:
        """Count an event that cannot be sent."""
        with self._lock:
            self.dropped += 1

    def _send(self) -> None:
        while True:
            headers, body = self._events.get()
            try:
                content = body() if callable(body) else body
                request = urllib.request.Request(self._options.log_url, content, headers)
                urllib.request.urlopen(request, timeout=_SINK_TIMEOUT_S).close()
            except (OSError, http.client.HTTPException, ValueError) as error:
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                if not self.dropped:
                    print(f"logger: {self._options.log_url}: {error}", file=sys.stderr, flush=True)
                self.drop()
            finally:
                self._events.task_done()

    def drain(self, seconds: float) -> None:
        """Wait until everything logged so far is sent, at most so long."""
        waiter = threading.Thread(target=self._events.join, daemon=True)
        waiter.start()
        waiter.join(seconds)


class StoredLogger:
    """Logs as ``Logger`` does, into files instead of to a sink."""

    def __init__(self, options: Options, store: StoreOptions) -> None:
        self._options = options
        folder = "/".join(part for part in (options.namespace, options.service, options.component) if part)
        self._log = StoredLog(store, folder, store_for(store.url, with_config(os.environ)))
        self._makers, self._room = ThreadPoolExecutor(1), threading.Semaphore(_QUEUE)

    @property
    def dropped(self) -> int:
        return self._log.dropped

    def drop(self) -> None:
        """As ``Logger.drop``."""
        self._log.drop(1)

    def log(self, kind: str, id_: str, headers: Mapping[str, str], content_type: str, body: _Body) -> None:
        """As ``Logger.log``."""
        options = self._options
        if options.log_mode not in ("all", kind):
            return
        if callable(body):
            if self._room.acquire(blocking=False):
                self._makers.submit(self._make, kind, id_, headers, content_type, body)
            else:
                self.drop()
            return
        record = Record(
            url=options.log_url,
            bytes=body,
            contentType=content_type,
            reqType=f"org.kubeflow.serving.inference.{kind}",
            id=id_,
            sourceUri=options.source,
            inferenceService=options.service,
            namespace=options.namespace,
            component=options.component,
            endpoint=options.endpoint,
            metadata={name: [headers[name]] for name in options.metadata_headers if name in headers},
            annotations=options.annotations,
        )
        self._log.add(record)

    def _make(
        self, kind: str, id_: str, headers: Mapping[str, str], content_type: str, body: Callable[[], bytes]
    ) -> None:
        try:
            self.log(kind, id_, headers, content_type, body())
        except ValueError:
            self.drop()
        finally:
            self._room.release()

    def drain(self, seconds: float) -> None:
        """As ``Logger.drain``."""
        self._makers.shutdown()
        self._log.drain(seconds)


def _logger_of(options: Options) -> Logger | StoredLogger | None:
    if options.store is not None:
        return StoredLogger(options, options.store)
    return Logger(options) if options.log_url else None


class _Batch:
    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.counts: list[int] = []
        self.done = threading.Event()
        self.answer = Answer(500, (), b"")
        self.parts: list[Any] | None = None
        self.id = str(uuid.uuid4())


class Batcher:
    """Gathers rows of predictions until there are enough or the first has waited long enough."""

    def __init__(self, size: int, latency_s: float, ask: Any) -> None:
        self._size = size
        self._latency_s = latency_s
        self._ask = ask
        self._lock = threading.Lock()
        self._open: dict[str, _Batch] = {}

    def predict(self, path: str, headers: Mapping[str, str], instances: list[Any]) -> Answer:
        """Answer one V1 request, which has these instances, with its part of a batch."""
        return self._join(path, path, headers, instances, len(instances), _V1)

    def infer(self, path: str, headers: Mapping[str, str], payload: Mapping[str, Any]) -> Answer | None:
        """Answer one V2 request with its part of a batch; None for one that cannot be part of any."""
        rows = _rows(payload)
        if rows is None:
            return None
        kind = [(tensor["name"], tensor["datatype"], tensor["shape"][1:]) for tensor in payload["inputs"]]
        other = {key: value for key, value in payload.items() if key not in ("id", "inputs") and value}
        return self._join(json.dumps([path, kind, other]), path, headers, payload, rows, _V2)

    def _join(
        self, key: str, path: str, headers: Mapping[str, str], request: Any, rows: int, protocol: _Protocol
    ) -> Answer:
        with self._lock:
            batch = self._open.get(key)
            first = batch is None
            if batch is None:
                batch = self._open[key] = _Batch()
            place = len(batch.requests)
            batch.requests.append(request)
            batch.counts.append(rows)
            full = sum(batch.counts) >= self._size
            if full:
                del self._open[key]
        if full:
            self._run(path, headers, batch, protocol)
        # Somebody else may fill it meanwhile; otherwise the first one sends what has come together.
        elif first and not batch.done.wait(self._latency_s):
            with self._lock:
                mine = self._open.get(key) is batch
                if mine:
                    del self._open[key]
            if mine:
                self._run(path, headers, batch, protocol)
        batch.done.wait()
        if batch.parts is None:
            return batch.answer
        body = json.dumps(protocol.render(request, batch.parts[place], batch.id)).encode()
        return Answer(200, [("Content-Type", "application/json")], body)

    def _run(self, path: str, headers: Mapping[str, str], batch: _Batch, protocol: _Protocol) -> None:
        try:
            body = json.dumps(protocol.merge(batch.requests)).encode()
            batch.answer = self._ask("POST", path, {**headers, "content-type": "application/json"}, body)
            if batch.answer.status == 200:
                batch.parts = protocol.split(json.loads(batch.answer.body), batch.counts)
                if batch.parts is None:
                    batch.answer = _error(502, "the component did not answer with one prediction per instance")
        except (OSError, http.client.HTTPException, ValueError, AttributeError, KeyError, TypeError) as error:
            batch.answer = _error(502, f"the component cannot be asked: {error}")
        finally:
            batch.done.set()


class _Protocol(NamedTuple):
    """
    How requests are put together and answers taken apart.

    Args:
        merge: requests -> the request of all.
        split: answer, rows of each request -> the part of each; None where the answer has not that many.
        render: request, its part, id of the batch -> its answer.
    """

    merge: Callable[[Sequence[Any]], Any]
    split: Callable[[Any, Sequence[int]], list[Any] | None]
    render: Callable[[Any, Any, str], Any]


def _slices(values: Sequence[Any], counts: Sequence[int], size: int = 1) -> list[Any]:
    parts, start = [], 0
    for count in counts:
        parts.append(values[start : start + count * size])
        start += count * size
    return parts


def _split_v1(answer: Any, counts: Sequence[int]) -> list[Any] | None:
    predictions = answer.get("predictions")
    if not isinstance(predictions, list) or len(predictions) != sum(counts):
        return None
    return _slices(predictions, counts)


_V1 = _Protocol(
    lambda requests: {"instances": [instance for instances in requests for instance in instances]},
    _split_v1,
    lambda request, part, batch_id: {"message": "", "batchId": batch_id, "predictions": part},
)


def _rows(payload: Mapping[str, Any]) -> int | None:
    """Return how many rows all tensors of a request have; None where they differ or are not in it as JSON."""
    try:
        tensors = payload["inputs"]
        counts = {tensor["shape"][0] for tensor in tensors}
        whole = all(len(_flat(t["data"])) == math.prod(t["shape"]) and t["name"] and t["datatype"] for t in tensors)
    except (KeyError, TypeError, IndexError, ValueError):
        return None
    rows = counts.pop() if len(counts) == 1 and whole else 0
    return rows if isinstance(rows, int) and rows > 0 else None


def _flat(data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise ValueError("data is no list")
    if data and isinstance(data[0], list):
        return [value for item in data for value in _flat(item)]
    return data


def _merge_v2(requests: Sequence[Any]) -> Any:
    first, inputs = requests[0], []
    for index, tensor in enumerate(first["inputs"]):
        same = [request["inputs"][index] for request in requests]
        shape = [sum(item["shape"][0] for item in same), *tensor["shape"][1:]]
        inputs.append({**tensor, "shape": shape, "data": [value for item in same for value in _flat(item["data"])]})
    return {**{key: value for key, value in first.items() if key != "id"}, "inputs": inputs}


def _split_v2(answer: Any, counts: Sequence[int]) -> list[Any] | None:
    parts: list[Any] = [{**answer, "outputs": []} for _ in counts]
    for tensor in answer["outputs"]:
        shape, data = tensor["shape"], _flat(tensor["data"])
        if not shape or shape[0] != sum(counts) or len(data) != math.prod(shape):
            return None
        for part, count, values in zip(parts, counts, _slices(data, counts, math.prod(shape[1:]))):  # noqa: B905
            part["outputs"].append({**tensor, "shape": [count, *shape[1:]], "data": values})
    return parts


_V2 = _Protocol(
    _merge_v2,
    _split_v2,
    lambda request, part, batch_id: {**part, "id": request.get("id") or batch_id},
)


def _error(status: int, message: str) -> Answer:
    return Answer(status, [("Content-Type", "application/json")], json.dumps({"error": message}).encode())


class Agent:
    """Passes requests to the component; used by many threads at once."""

    def __init__(self, options: Options, host: str) -> None:
        self._options = options
        self._host = host
        self._connections = threading.local()
        self.logger = _logger_of(options)
        self._pending = 0
        self._settled = threading.Condition()
        batching = options.batch_size > 0
        self._batcher = Batcher(options.batch_size, options.batch_latency_s, self._ask_whole) if batching else None

    def handle(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Answer one request; ``headers`` with names in lower case."""
        if path == "/metrics" and self.logger and method == "GET":
            return self._metrics(headers)
        id_ = headers.get("ce-id") or headers.get("x-request-id") or str(uuid.uuid4())
        logged = self.logger is not None and path.partition("?")[0] not in _UNLOGGED
        if not logged or not self.logger:
            return self._asked(method, path, headers, body)
        with self._settled:
            self._pending += 1
        try:
            return self._logged(id_, method, path, headers, body)
        finally:
            with self._settled:
                self._pending -= 1
                self._settled.notify_all()

    def settle(self, seconds: float) -> None:
        """Wait until every request that is logged has its answer, at most so long."""
        with self._settled:
            self._settled.wait_for(lambda: not self._pending, seconds)

    def _asked(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        try:
            return self._answer(method, path, headers, body)
        except (OSError, http.client.HTTPException) as error:
            return _error(502, f"the component cannot be asked: {error}")

    def _logged(self, id_: str, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        assert self.logger is not None
        self.logger.log("request", id_, headers, headers.get("content-type", "application/json"), body)
        answer = self._asked(method, path, headers, body)
        if answer.status == 200:
            content_type = next((value for name, value in answer.headers if name.lower() == "content-type"), "")

            def log(body: bytes) -> None:
                assert self.logger is not None
                self.logger.log("response", id_, headers, content_type or "application/json", body)

            if answer.stream is not None:
                return answer._replace(stream=self._seen(answer.stream, log))
            log(answer.body)
        return answer

    def _seen(self, stream: Iterator[bytes], log: Callable[[bytes], None]) -> Iterator[bytes]:
        """Pass a stream on and log it when it is whole."""
        assert self.logger is not None
        with self._settled:
            self._pending += 1
        try:
            kept = bytearray()
            for part in stream:
                yield part
                if len(kept) <= _MAX_LOGGED:
                    kept += part
            if len(kept) <= _MAX_LOGGED:
                log(bytes(kept))
            else:
                self.logger.drop()
        finally:
            with self._settled:
                self._pending -= 1
                self._settled.notify_all()

    def _answer(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        plain = path.partition("?")[0]
        if self._batcher and method == "POST" and plain.endswith((":predict", "/infer")):
            try:
                payload = json.loads(body)
            except ValueError:
                payload = None
            answer = None
            if isinstance(payload, dict) and plain.endswith("/infer"):
                answer = self._batcher.infer(path, headers, payload)
            elif isinstance(payload, dict) and isinstance(payload.get("instances"), list) and payload["instances"]:
                answer = self._batcher.predict(path, headers, payload["instances"])
            # What is no batchable request the component shall judge itself.
            if answer is not None:
                return answer
        return self._ask(method, path, headers, body)

    def _ask(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        sent = {name: value for name, value in headers.items() if name not in _HOP and name != "content-length"}
        sent["host"] = headers.get("host", "localhost")
        while True:
            connection: http.client.HTTPConnection | None = getattr(self._connections, "one", None)
            kept = connection is not None and connection.sock is not None
            if connection is None:
                timeout_s, port = self._options.timeout_s, self._options.component_port
                connection = self._connections.one = http.client.HTTPConnection(self._host, port, timeout=timeout_s)
            try:
                connection.request(method, path, body or None, sent)
                response = connection.getresponse()
                streams = response.length is None
                content = b"" if streams else response.read()
            except (OSError, http.client.HTTPException):
                connection.close()
                if kept:
                    continue  # closed under our hands since the last request; a fresh one says how it is
                raise
            kept_headers = [(k, v) for k, v in response.getheaders() if k.lower() not in (*_HOP, "content-length")]
            return Answer(response.status, kept_headers, content, _parts(connection, response) if streams else None)

    def _ask_whole(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        return self._ask(method, path, headers, body).read()

    def serve_http2(self, client: socket.socket) -> None:
        """Serve a client of HTTP/2 until it leaves: by batches, or as it is."""
        if not self._options.batch_grpc:
            self._splice(client)
            return
        # Imported late: only those who batch gRPC need hpack.
        from shallop_pod.agenthttp2 import serve_http2

        serve_http2(self, client)

    def _splice(self, client: socket.socket) -> None:
        """Carry bytes of HTTP/2 between a client and the component until both have ended; predictions are logged."""
        seen = self._tap()
        try:
            component = socket.create_connection((self._host, self._options.component_port), self._options.timeout_s)
        except OSError:
            return
        with component:
            component.settimeout(None)
            back = threading.Thread(
                target=_copy, args=(component, client, seen.response if seen else None), daemon=True
            )
            back.start()
            _copy(client, component, seen.request if seen else None)
            back.join()

    def _tap(self) -> GrpcTap | None:
        if self.logger is None:
            return None
        # Imported late: only those who log gRPC need hpack.
        from shallop_pod.grpctap import GrpcTap

        return GrpcTap(self.logger.log, self.logger.drop)

    def _metrics(self, headers: Mapping[str, str]) -> Answer:
        try:
            own = self._ask_whole("GET", "/metrics", headers, b"")
        except (OSError, http.client.HTTPException):
            own = Answer(200, (), b"")
        dropped = self.logger.dropped if self.logger else 0
        text = f"# TYPE shallop_agent_events_dropped_total counter\nshallop_agent_events_dropped_total {dropped}\n"
        body = (own.body if own.status == 200 else b"") + text.encode()
        return Answer(200, [("Content-Type", "text/plain; version=0.0.4")], body)


def _parts(connection: http.client.HTTPConnection, response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield an answer as it comes; its connection is closed when not all was read."""
    whole = False
    try:
        while part := response.read1(1 << 16):
            yield part
        whole = True
    finally:
        if not whole:
            connection.close()


def _copy(source: socket.socket, target: socket.socket, see: Callable[[bytes], None] | None) -> None:
    """Copy until the source ends, and say so to the target; ``see`` is shown all of it."""
    try:
        while data := source.recv(1 << 16):
            if see is not None:
                see(data)
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        # One of both is gone: the other one shall not wait.
        for end in (source, target):
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    agent: Agent

    def handle(self) -> None:
        """Answer requests of HTTP/1.1, and those of HTTP/2, which are passed on as they are unless gRPC is batched."""
        try:
            http2 = self.connection.recv(3, socket.MSG_PEEK | socket.MSG_WAITALL) == b"PRI"
        except OSError:
            return
        if http2:
            self.close_connection = True
            self.agent.serve_http2(self.connection)
        else:
            super().handle()

    def _handle(self) -> None:
        try:
            body = read_body(self.headers, self.rfile)
        except BodyError as error:
            self.close_connection = True
            self._send(_error(error.status, str(error)))
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        self._send(self.agent.handle(self.command, self.path, headers, body))

    do_GET = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = do_HEAD = _handle

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        for name, value in answer.headers:
            if name.lower() not in ("date", "server"):
                self.send_header(name, value)
        if answer.stream is not None:
            self._pass_on(answer.stream)
            return
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _pass_on(self, stream: Iterator[bytes]) -> None:
        """Send an answer as it comes; one that breaks off ends the connection without its proper end."""
        chunked = self.request_version != "HTTP/1.0"
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.close_connection = True
        try:
            self.end_headers()
            for part in stream:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            self.wfile.write(b"0\r\n\r\n" if chunked else b"")
        except (OSError, http.client.HTTPException):
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet: the gateway counts requests."""


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True


def main(argv: Sequence[str]) -> int:
    """Serve until SIGTERM."""
    options = parse_options(argv)
    pod = os.environ.get("SHALLOP_POD_IP") or ""
    agent = Agent(options, pod or "127.0.0.1")
    server = _Server((pod or "0.0.0.0", options.port), type("Handler", (_Handler,), {"agent": agent}))

    def stop(*_: Any) -> None:
        # Who sends requests hears of the end at the same moment as we do: stay open until it must have acted.
        threading.Timer(_LAME_DUCK_S, server.shutdown).start()

    signal.signal(signal.SIGTERM, stop)
    server.serve_forever(poll_interval=0.1)
    if agent.logger:
        agent.settle(_SETTLE_S)
        agent.logger.drain(_DRAIN_S)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
