"""HTTP for one model: parsing without a framework, requests that arrive together predicted together."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

from shallop_pod.modelserver.metrics import Histogram, render_metrics
from shallop_pod.modelserver.models import LoadError, Model, load_model
from shallop_pod.modelserver.protocol import ProtocolError, Request, dumps, parse_v1, parse_v2, render_v1, render_v2

__all__ = ["ModelServer", "main"]

_MAX_HEAD = 64 * 1024
_MAX_BODY = 512 * 2**20
# A model that needs longer than this for one row is asked in a thread, so that probes are answered meanwhile.
_INLINE_S = 0.002
_MAX_BATCH_ROWS = 4096
_LAME_DUCK_S = 0.3


_SERVER = {
    "name": "shallop",
    "version": "0.1.0",
    "extensions": ["binary_tensor_data", "model_repository", "statistics"],
}


class _Connection(asyncio.Protocol):
    """One client connection: HTTP/1.1 with keep-alive; requests of one connection are answered in order."""

    def __init__(self, server: ModelServer) -> None:
        self._server = server
        self._buffer = bytearray()
        self._head: tuple[str, str, dict[bytes, bytes]] | None = None
        self._length = 0
        self._chunks: bytearray | None = None
        self._busy = False
        self._close = False
        self._without_body = False
        self._transport: asyncio.Transport = None  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._busy:
            self._advance()

    def finish_and_close(self) -> None:
        """Close now when idle, else after the answer under way."""
        self._close = True
        if not self._busy and not self._buffer and self._head is None:
            self._transport.close()

    def _advance(self) -> None:
        """Take the next complete request out of the buffer and hand it over."""
        try:
            if self._head is None and not self._read_head():
                return
            body = self._read_chunked() if self._chunks is not None else self._read_sized()
            if body is None:
                return
        except ProtocolError as error:
            self._close = True
            self.answer(error.status, dumps({"error": str(error)}))
            return
        assert self._head is not None
        (method, path, headers), self._head, self._chunks = self._head, None, None
        if headers.get(b"connection", b"").lower() == b"close":
            self._close = True
        self._busy = True
        self._without_body = method == "HEAD"
        self._server.dispatch(self, method, path, headers, body)

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > _MAX_HEAD:
                raise ProtocolError("request head is longer than 64 KiB", 431)
            return False
        lines = bytes(self._buffer[:end]).split(b"\r\n")
        del self._buffer[: end + 4]
        try:
            method, path, version = lines[0].decode("ascii").split(" ")
        except ValueError as error:
            raise ProtocolError("this is no HTTP request") from error
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            headers[name.lower()] = value.strip()
        if version == "HTTP/2.0" and method == "PRI":
            self._speak_http2()
            return False
        if version == "HTTP/1.0":
            self._close = True
        if headers.get(b"expect", b"").lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if b"chunked" in headers.get(b"transfer-encoding", b"").lower():
            self._chunks = bytearray()
        else:
            length = headers.get(b"content-length", b"0")
            if not length.isdigit():
                raise ProtocolError("Content-Length is no number")
            self._length = int(length)
            if self._length > _MAX_BODY:
                raise ProtocolError(f"body is larger than {_MAX_BODY >> 20} MiB", 413)
        self._head = (method, path, headers)
        return True

    def _speak_http2(self) -> None:
        """Hand the connection over, with what was read of it: its client knows that we speak HTTP/2, as gRPC's do."""
        try:
            from shallop_pod.modelserver.http2server import Http2Connection
        except ModuleNotFoundError as error:
            raise ProtocolError("HTTP/2 needs the package 'hpack' in this environment", 505) from error
        self._server.connections.discard(self)
        Http2Connection(self._server).start(self._transport, b"PRI * HTTP/2.0\r\n\r\n" + bytes(self._buffer))

    def _read_sized(self) -> bytes | None:
        if len(self._buffer) < self._length:
            return None
        body = bytes(memoryview(self._buffer)[: self._length])
        del self._buffer[: self._length]
        return body

    def _read_chunked(self) -> bytes | None:
        assert self._chunks is not None
        while (end := self._buffer.find(b"\r\n")) >= 0:
            try:
                size = int(bytes(self._buffer[:end]).split(b";")[0], 16)
                if size < 0:
                    raise ValueError
            except ValueError as error:
                raise ProtocolError("bad chunk size") from error
            if len(self._chunks) + size > _MAX_BODY:
                raise ProtocolError(f"body is larger than {_MAX_BODY >> 20} MiB", 413)
            if len(self._buffer) < end + 2 + size + 2:
                return None
            self._chunks += self._buffer[end + 2 : end + 2 + size]
            del self._buffer[: end + 2 + size + 2]
            if size == 0:
                return bytes(self._chunks)
        return None

    def answer(
        self, status: int, body: bytes, *, content_type: str = "application/json", json_length: int | None = None
    ) -> None:
        """Send the answer to the request under way and go on with the next one."""
        extra = "" if json_length is None else f"inference-header-content-length: {json_length}\r\n"
        closing = "connection: close\r\n" if self._close else ""
        head = (
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: {content_type}\r\n"
            f"content-length: {len(body)}\r\n{extra}{closing}\r\n"
        )
        self._transport.write(head.encode("latin-1") + (b"" if self._without_body else body))
        self._busy = False
        if self._close:
            self._transport.close()
        elif self._buffer:
            # In a turn of its own: thousands of requests may wait in one buffer.
            asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        if not self._busy and not self._transport.is_closing():
            self._advance()


class _Job:
    """One request that waits for its prediction."""

    __slots__ = ("connection", "render", "request", "since")

    def __init__(
        self, connection: _Connection, request: Request, render: Callable[[Any], tuple[bytes, int | None]]
    ) -> None:
        self.connection = connection
        self.request = request
        self.render = render
        self.since = time.perf_counter()


class ModelServer:
    """
    Answers requests for one model, in one event loop.

    Requests read in the same turn of the loop are predicted in one call when their rows fit together; a lone request
    never waits for others.
    """

    def __init__(self, model: Model, *, inline: bool) -> None:
        self._model = model
        self._inline = inline
        self._waiting: list[_Job] = []
        self._running = False
        self.connections: set[Any] = set()
        self._requests: dict[tuple[str, int], int] = {}
        self._predict_seconds = Histogram()
        self._ready = True
        repository = f"/v2/repository/models/{model.name}"
        self._controls: dict[str, Callable[[], Any]] = {
            "/v2/repository/index": self._index,
            f"{repository}/load": lambda: self._set_ready(ready=True),
            f"{repository}/unload": lambda: self._set_ready(ready=False),
        }

    def connect(self) -> asyncio.Protocol:
        return _Connection(self)

    @property
    def busy(self) -> bool:
        return self._running or bool(self._waiting)

    def dispatch(
        self, connection: _Connection, method: str, path: str, headers: dict[bytes, bytes], body: bytes
    ) -> None:
        path = path.partition("?")[0]
        try:
            if method == "POST" and path in self._controls:
                connection.answer(200, dumps(self._controls[path]()))
            elif method == "POST":
                self._enqueue(connection, path, headers, body)
            elif method in ("GET", "HEAD"):
                content = self._read(path)
                text = "text/plain; version=0.0.4" if path == "/metrics" else "application/json"
                connection.answer(200, content, content_type=text)
            else:
                raise ProtocolError(f"{method} is not possible here", 405)
        except ProtocolError as error:
            self._count(path, error.status)
            connection.answer(error.status, dumps({"error": str(error)}))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            # A body of a shape that no parser expected: its sender shall hear of it, the connection lives on.
            self._count(path, 400)
            connection.answer(400, dumps({"error": f"the request cannot be read: {type(error).__name__}: {error}"}))

    def _enqueue(self, connection: _Connection, path: str, headers: dict[bytes, bytes], body: bytes) -> None:
        name = self._model.name
        if not self._ready and path.startswith((f"/v1/models/{name}:", f"/v2/models/{name}/")):
            raise ProtocolError(f"Model with name {name} is not ready: it was unloaded.", 503)
        if path == f"/v1/models/{name}:predict":
            job = _Job(connection, parse_v1(body), lambda result: (render_v1(result), None))
        elif path in (f"/v2/models/{name}/infer", f"/v2/models/{name}/versions/1/infer"):
            length = headers.get(b"inference-header-content-length")
            if length is not None and not length.isdigit():
                raise ProtocolError("Inference-Header-Content-Length is no number")
            request = parse_v2(body, int(length) if length else None)
            job = _Job(connection, request, lambda result: render_v2(name, request, result))
        else:
            raise self._unknown(path)
        if not self._waiting and not self._running:
            asyncio.get_running_loop().call_soon(self._flush)
        self._waiting.append(job)

    def _read(self, path: str) -> bytes:
        name, platform = self._model.name, self._model.platform
        shape = [-1, self._model.features or -1]
        tensors: dict[str, Any] = {"inputs": [{"name": "input-0", "datatype": "FP64", "shape": shape}], "outputs": []}
        answers: dict[str, Any] = {
            "/": {"status": "alive"},
            "/healthz": {"status": "alive"},
            "/v1/models": {"models": [name]},
            f"/v1/models/{name}": {"name": name, "ready": self._ready},
            "/v2": _SERVER,
            "/v2/": _SERVER,
            "/v2/health/live": {"live": True},
            "/v2/health/ready": {"ready": self._ready},
            "/v2/models": {"models": [name]},
            f"/v2/models/{name}": {"name": name, "versions": ["1"], "platform": platform, **tensors},
            f"/v2/models/{name}/ready": {"name": name, "ready": self._ready},
            f"/v2/models/{name}/config": {
                "name": name,
                "platform": platform,
                "max_batch_size": _MAX_BATCH_ROWS,
                "input": [{"name": "input-0", "data_type": "TYPE_FP64", "dims": shape[1:]}],
                "output": [],
            },
            f"/v2/models/{name}/stats": self._statistics(),
            "/v2/models/stats": self._statistics(),
            # Nobody can share memory or change tracing here: asked for the state, the answer is "none".
            "/v2/systemsharedmemory/status": [],
            "/v2/cudasharedmemory/status": [],
            "/v2/trace/setting": {},
        }
        if not self._ready and path in ("/v2/health/ready", f"/v2/models/{name}/ready", f"/v1/models/{name}"):
            raise ProtocolError(f"Model with name {name} is not ready: it was unloaded.", 503)
        if path == "/metrics":
            return render_metrics(name, self._requests, self._predict_seconds)
        if path not in answers:
            raise self._unknown(path)
        return dumps(answers[path])

    def _index(self) -> Any:
        state = "READY" if self._ready else "UNAVAILABLE"
        return [{"name": self._model.name, "version": "1", "state": state, "reason": "" if self._ready else "unloaded"}]

    def _set_ready(self, *, ready: bool) -> Any:
        self._ready = ready
        return {"name": self._model.name, "load" if ready else "unload": True}

    def _statistics(self) -> Any:
        done = sum(n for (kind, code), n in self._requests.items() if kind == "predict" and code == 200)
        failed = sum(n for (kind, code), n in self._requests.items() if kind == "predict" and code != 200)
        spent_ns = int(self._predict_seconds.total * 1e9)
        inferences = {
            "success": {"count": done, "ns": spent_ns},
            "fail": {"count": failed, "ns": 0},
            "compute_infer": {"count": done, "ns": spent_ns},
        }
        model = {"name": self._model.name, "version": "1", "inference_count": done, "execution_count": done}
        return {"model_stats": [model | {"inference_stats": inferences}]}

    def _unknown(self, path: str) -> ProtocolError:
        parts = path.split("/")
        if len(parts) > 3 and parts[1] in ("v1", "v2") and parts[2] == "models":
            asked = parts[3].partition(":")[0]
            if asked != self._model.name:
                return ProtocolError(f"Model with name {asked} does not exist; this one is {self._model.name}.", 404)
            if parts[3].endswith(":explain"):
                return ProtocolError("This model has no explainer.", 501)
        return ProtocolError(f"{path}: not found", 404)

    def _flush(self) -> None:
        if self._running or not self._waiting:
            return
        jobs, self._waiting = self._waiting, []
        if self._inline:
            self._deliver(self._predict(jobs))
            return
        self._running = True
        future = asyncio.get_running_loop().run_in_executor(None, self._predict, jobs)
        future.add_done_callback(self._after_thread)

    def _after_thread(self, future: asyncio.Future[list[tuple[_Job, Any]]]) -> None:
        self._running = False
        self._deliver(future.result())
        self._flush()

    def _predict(self, jobs: list[_Job]) -> list[tuple[_Job, Any]]:
        """Return each job with its result or the exception that its own rows cause."""
        start = time.perf_counter()
        outcomes: list[tuple[_Job, Any]] = []
        for group in _groups(jobs):
            outcomes += self._predict_group(group)
        seconds = time.perf_counter() - start
        for _ in jobs:
            self._predict_seconds.observe(seconds)
        return outcomes

    def _predict_group(self, jobs: list[_Job]) -> list[tuple[_Job, Any]]:
        try:
            if len(jobs) == 1:
                return [(jobs[0], self._model.predict(jobs[0].request.rows))]
            import numpy as np

            rows = [job.request.rows for job in jobs]
            result = self._model.predict(np.concatenate(rows))
            if not isinstance(result, np.ndarray) or len(result) != sum(map(len, rows)):
                # Probabilities of several outputs are a list, one array per output: not ours to take apart.
                return [outcome for job in jobs for outcome in self._predict_group([job])]
            ends = np.cumsum([len(part) for part in rows])[:-1]
            return list(zip(jobs, np.split(result, ends), strict=True))
        except Exception as error:
            # The model's own code may raise anything; only the request that caused it shall see it.
            if len(jobs) == 1:
                return [(jobs[0], error)]
            return [outcome for job in jobs for outcome in self._predict_group([job])]

    def _deliver(self, outcomes: list[tuple[_Job, Any]]) -> None:
        for job, result in outcomes:
            if isinstance(result, Exception):
                status = 400 if isinstance(result, ValueError | TypeError | KeyError) else 500
                self._count("predict", status)
                job.connection.answer(status, dumps({"error": f"{type(result).__name__}: {result}"}))
                continue
            try:
                body, json_length = job.render(result)
            except (TypeError, ValueError, AttributeError) as error:
                self._count("predict", 500)
                job.connection.answer(500, dumps({"error": str(error)}))
                continue
            self._count("predict", 200)
            content_type = "application/json" if json_length is None else "application/octet-stream"
            job.connection.answer(200, body, content_type=content_type, json_length=json_length)

    def _count(self, path: str, status: int) -> None:
        key = ("predict" if path == "predict" or path.startswith("/v") else "other", status)
        self._requests[key] = self._requests.get(key, 0) + 1


def _groups(jobs: list[_Job]) -> list[list[_Job]]:
    """Put jobs together whose rows are arrays of one row shape and type, up to a bound of rows."""
    groups: dict[Any, list[list[_Job]]] = {}
    for job in jobs:
        rows = job.request.rows
        fits = hasattr(rows, "dtype") and rows.ndim > 1 and rows.dtype != object and len(rows) < _MAX_BATCH_ROWS
        key: Any = (rows.shape[1:], rows.dtype.str) if fits else id(job)
        parts = groups.setdefault(key, [[]])
        if sum(len(other.request.rows) for other in parts[-1]) >= _MAX_BATCH_ROWS:
            parts.append([])
        parts[-1].append(job)
    return [part for parts in groups.values() for part in parts]


def _is_fast(model: Model) -> bool:
    """Say whether one row is predicted quickly enough to do it in the event loop; also warms the model up."""
    if not model.features:
        return False
    import numpy as np

    row = np.zeros((1, model.features))
    try:
        model.predict(row)
        start = time.perf_counter()
        model.predict(row)
    except Exception:
        # Models that want other types than numbers are asked in a thread, and tell users what they want.
        return False
    return time.perf_counter() - start < _INLINE_S


async def _listen_for_grpc(server: ModelServer, host: str, port: int) -> asyncio.Server | None:
    """Both protocols are spoken on both ports; this one is where clients of KServe's servers expect gRPC."""
    try:
        return await asyncio.get_running_loop().create_server(server.connect, host, port, backlog=2048)
    except OSError as error:
        print(f"no gRPC on port {port}, only on the other one: {error}", file=sys.stderr, flush=True)
        return None


async def _serve(model: Model, host: str, port: int, grpc_port: int) -> None:
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, stopping.set)
    server = ModelServer(model, inline=_is_fast(model))
    listener = await loop.create_server(server.connect, host, port, backlog=2048)
    also = await _listen_for_grpc(server, host, grpc_port) if grpc_port not in (0, port) else None
    print(f"model {model.name!r} ({model.platform}) is ready on port {port}", flush=True)
    await stopping.wait()
    # Who balances the load hears of our end at the same moment as we do: stay open until it must have acted.
    for connection in list(server.connections):
        connection.finish_and_close()
    await asyncio.sleep(_LAME_DUCK_S)
    listener.close()
    if also:
        also.close()
    for connection in list(server.connections):
        connection.finish_and_close()
    deadline = loop.time() + 25
    while (server.connections or server.busy) and loop.time() < deadline:  # noqa: ASYNC110 once, while stopping
        await asyncio.sleep(0.02)


def main(argv: list[str]) -> int:
    """Serve until SIGTERM; exit code 1 and a termination message when the model cannot be loaded."""
    parser = argparse.ArgumentParser(prog="modelserver", description="Serve one model over HTTP.")
    parser.add_argument("--model_name", default="model")
    parser.add_argument("--model_dir", default="/mnt/models")
    parser.add_argument("--http_port", type=int, default=8080)
    parser.add_argument("--grpc_port", type=int, default=8081)
    # uvloop binds in C, past the hook for Pods that share the machine's network.
    parser.add_argument("--host", default=os.environ.get("SHALLOP_POD_IP") or "0.0.0.0")
    parser.add_argument("--nthread", type=int, default=1)
    options, ignored = parser.parse_known_args(argv)
    if ignored:
        print(f"arguments without effect here: {' '.join(ignored)}", file=sys.stderr, flush=True)
    try:
        model = load_model(options.model_name, options.model_dir, threads=options.nthread)
    except LoadError as error:
        print(f"cannot serve {options.model_name!r}: {error}", file=sys.stderr, flush=True)
        _write_termination_message(str(error))
        return 1
    try:
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(model, options.host, options.http_port, options.grpc_port))
    except ModuleNotFoundError:
        asyncio.run(_serve(model, options.host, options.http_port, options.grpc_port))
    return 0


def _write_termination_message(text: str) -> None:
    path = os.environ.get("TERMINATION_LOG", "/dev/termination-log")
    try:
        # Only where the kubelet has prepared the file: it is not ours to create in /dev.
        descriptor = os.open(path, os.O_WRONLY | os.O_TRUNC)
    except OSError:
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(text[:4096])
