"""
HTTP/2 and gRPC for an agent that gathers predictions: each call becomes the V2 request in JSON that it stands for.

So calls of gRPC are parts of the same batches as requests of REST, and are logged as those are. The component is asked
by REST.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import threading
from typing import TYPE_CHECKING, Any, Mapping, Sequence  # noqa: UP035  environments may be Python 3.9

from shallop_pod.graphhttp2 import serve_application, with_data
from shallop_pod.modelserver.protocol import ProtocolError, dumps

if TYPE_CHECKING:
    from shallop_pod.agent import Agent

__all__ = ["serve_http2"]


def serve_http2(agent: Agent, connection: socket.socket) -> None:
    """Answer a client, of whom nothing has been read yet, until it leaves."""
    serve_application(lambda connections: _Application(agent, connections), connection, b"")


class _Application:
    """What a connection hands its requests to."""

    def __init__(self, agent: Agent, connections: set[Any]) -> None:
        self._agent = agent
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
        given = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}
        given["host"] = given.get(":authority", "localhost")
        given = {name: value for name, value in given.items() if not name.startswith((":", "grpc-"))}
        if given.get("content-type", "").startswith("application/grpc"):
            given["content-type"] = "application/json"
        if tensors is not None:
            try:
                body = dumps(with_data(json.loads(body), tensors))
            except ProtocolError as error:
                connection.answer(400, dumps({"error": str(error)}))
                return
        # A request waits for others: each has a thread, as over HTTP/1.1.
        arguments = (connection, method, path, given, body)
        threading.Thread(target=self._ask, args=arguments, daemon=True).start()

    def _ask(self, connection: Any, method: str, path: str, headers: Mapping[str, str], body: bytes) -> None:
        try:
            answer = self._agent.handle(method, path, headers, body).read()
        except (OSError, http.client.HTTPException) as error:
            broken = dumps({"error": f"the component broke off: {error}"})
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(lambda: connection.answer(502, broken))
            return
        said = {name.lower(): value for name, value in answer.headers}
        content, tensors = answer.body, None
        if (length := said.get("inference-header-content-length", "")).isdigit():
            content, tensors = answer.body[: int(length)], [answer.body[int(length) :]]
        kind = said.get("content-type", "application/json")
        with contextlib.suppress(RuntimeError):  # the client has left, and with it the loop
            self._loop.call_soon_threadsafe(
                lambda: connection.answer(answer.status, content, content_type=kind, tensors=tensors)
            )
