"""
HTTP/2 and gRPC for the router of an InferenceGraph.

A call of ``ModelInfer`` walks the graph as the V2 request in JSON that it stands for, so that conditions read it and
steps are asked as ever; the answer goes back as a message. Steps of an Ensemble answer together: their outputs are
named ``STEP/OUTPUT``. Each message of ``ModelStreamInfer`` walks the graph for itself. The server and the model are
ready as soon as the router lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from typing import TYPE_CHECKING, Any, Callable, Sequence  # noqa: UP035  environments may be Python 3.9

from shallop_pod.modelserver.http2server import Http2Connection
from shallop_pod.modelserver.openinference import tensor_values
from shallop_pod.modelserver.protocol import ProtocolError, dumps

if TYPE_CHECKING:
    from shallop_pod.graphrouter import Answer, Graph
    from shallop_pod.modelserver.http import Application

__all__ = ["as_inference", "serve_application", "serve_http2", "with_data"]


def serve_http2(graph: Graph, connection: socket.socket, data: bytes) -> None:
    """
    Answer a client until it leaves.

    Args:
        data: what was read of its connection, from the preface on.
    """
    serve_application(lambda connections: _Application(graph, connections), connection, data)


def serve_application(make: Callable[[set[Any]], Application], connection: socket.socket, data: bytes) -> None:
    """
    Answer a client in an event loop of its own until it leaves.

    Args:
        make: called in the loop, with the set of connections that the application is to have.
    """
    asyncio.run(_serve(make, connection, data))


async def _serve(make: Callable[[set[Any]], Application], connection: socket.socket, data: bytes) -> None:
    left = asyncio.Event()
    made = Http2Connection(make(_Connections(left)))
    loop = asyncio.get_running_loop()
    connection.setblocking(False)
    transport, _ = await loop.connect_accepted_socket(asyncio.Protocol, connection.dup())
    made.start(transport, data)
    await left.wait()


class _Connections(set[Any]):
    """The one connection; says when it is over."""

    def __init__(self, left: asyncio.Event) -> None:
        super().__init__()
        self._left = left

    def discard(self, connection: Any) -> None:
        super().discard(connection)
        self._left.set()


class _Application:
    """What a connection hands its requests to."""

    def __init__(self, graph: Graph, connections: set[Any]) -> None:
        self._graph = graph
        self._loop = asyncio.get_running_loop()
        self.connections = connections

    def dispatch(
        self,
        connection: Any,
        method: str,
        path: str,
        headers: dict[bytes, bytes],
        body: bytes,
        tensors: Sequence[bytes | memoryview] | None = None,
    ) -> None:
        if method in ("GET", "HEAD"):
            self._tell(connection, path)
            return
        if path.startswith("/v2/repository/"):
            connection.answer(501, dumps({"error": "a graph has no repository of models"}))
            return
        given = _Names((name.decode("latin-1"), value.decode("latin-1")) for name, value in headers.items())
        if tensors is not None:
            given["content-type"] = "application/json"
            try:
                body = dumps(with_data(json.loads(body), tensors))
            except ProtocolError as error:
                connection.answer(400, dumps({"error": str(error)}))
                return
        # Walks wait for steps: each has a thread, as over HTTP/1.1.
        arguments = (connection, body, given, tensors is not None)
        threading.Thread(target=self._walk, args=arguments, daemon=True).start()

    def _tell(self, connection: Any, path: str) -> None:
        if path in ("/v2/health/live", "/v2/health/ready", "/readyz", "/"):
            connection.answer(200, dumps({"live": True, "ready": True}))
        elif path.startswith("/v2/models/") and path.endswith("/ready"):
            connection.answer(200, dumps({"name": path.split("/")[3], "ready": True}))
        elif path == "/v2":
            connection.answer(200, dumps({"name": "shallop graph", "version": "1", "extensions": []}))
        else:
            connection.answer(501, dumps({"error": f"{path}: a graph only infers; ask its services what they are"}))

    def _walk(self, connection: Any, body: bytes, headers: _Names, grpc: bool) -> None:
        answer = self._graph.answer(body, headers).read()
        status, content = as_inference(answer) if grpc else (answer.status, answer.body)
        with contextlib.suppress(RuntimeError):  # the client has left, and with it the loop
            self._loop.call_soon_threadsafe(lambda: connection.answer(status, content))


class _Names(dict[str, str]):
    """Headers, asked for in any case."""

    def get(self, name: str, default: Any = None) -> Any:
        return super().get(name.lower(), default)


def with_data(request: dict[str, Any], tensors: Sequence[bytes | memoryview]) -> dict[str, Any]:
    """Return a V2 request with its binary tensors as JSON."""
    for tensor, raw in zip(request["inputs"], tensors):  # noqa: B905  strict is Python 3.10
        tensor["data"] = tensor_values(tensor["datatype"], raw)
        tensor["parameters"].pop("binary_data_size", None)
    request["parameters"].pop("binary_data_output", None)
    return request


def as_inference(answer: Answer) -> tuple[int, bytes]:
    """Return status and V2 response that an answer of a graph is; outputs of several steps are put together."""
    if not answer.good:
        return answer.status, answer.body
    said = json.loads(answer.body)
    if isinstance(said, dict) and "outputs" not in said and said:
        outputs = {step: part.get("outputs") if isinstance(part, dict) else None for step, part in said.items()}
        if all(isinstance(found, list) for found in outputs.values()):
            named = [{**o, "name": f"{step}/{o['name']}"} for step, found in outputs.items() for o in found or ()]
            said = {"outputs": named}
    if not isinstance(said, dict) or not isinstance(said.get("outputs"), list):
        # Its steps speak V1: there is no message for what they say.
        return 501, dumps({"error": "the graph answered no V2 inference response; gRPC needs steps that speak V2"})
    return 200, dumps(said)
