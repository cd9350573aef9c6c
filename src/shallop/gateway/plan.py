"""
What to do with a request, decided from its head alone; pure.

Clients send the same head again and again over a connection, so that plans are kept by the head's bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from shallop.gateway.http1 import Head, MessageError
from shallop.gateway.routes import Route, RouteTable, fixed_draw

__all__ = [
    "HOP_HEADERS",
    "Captured",
    "Plan",
    "find_route",
    "hop_headers",
    "is_captured",
    "is_repeatable",
    "plan_request",
]

HOP_HEADERS = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"upgrade", b"te"})
# No "Connection: Content-Length" may take away what tells where a message ends.
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"host"})
# What asks a model and changes nothing, so that it may be asked twice.
_PREDICTIONS = (b":predict", b"/infer", b":explain")
_GRPC_SERVICE, _GRPC_CHANGES = b"/inference.GRPCInferenceService/", b"Repository"


class Captured(NamedTuple):
    """What the head of a prediction tells those who watch models."""

    path: str
    request_id: str
    content_type: str

    @classmethod
    def of(cls, lines: Sequence[bytes], path: bytes) -> Captured:
        found = {b"x-request-id": "", b"content-type": ""}
        for line in lines:
            name, _, value = line.partition(b":")
            if name.lower() in found:
                found[name.lower()] = value.strip().decode("latin-1")
        return cls(path.decode("latin-1"), found[b"x-request-id"], found[b"content-type"])


class Plan:
    """
    One kind of request.

    Args:
        head: as the backend gets it, with its final empty line.
        length: of the body, as in ``Head``.
        persistent: the client speaks HTTP/1.1, and so may a backend's connection be kept.
        keep_alive: the client wants to send more requests.
        number: decides the share of a split; None where each request draws its own.
        repeatable: may be asked again when its backend died over it.
        captured: what a capture of it says of the request itself; None where none is wanted.
    """

    __slots__ = ("captured", "head", "keep_alive", "length", "method", "number", "persistent", "repeatable", "route")

    def __init__(self, request: Head, route: Route, head: bytes) -> None:
        self.head, self.route, self.length, self.method = head, route, request.length, request.start[0]
        self.persistent, self.keep_alive = request.start[2] == b"HTTP/1.1", request.keep_alive
        self.number = fixed_draw(request.lines) if len(route.backends) > 1 else 0.0
        path = request.start[1].partition(b"?")[0]
        self.repeatable = is_repeatable(route, self.method, path)
        self.captured = Captured.of(request.lines, path) if is_captured(route, path) else None


def plan_request(request: Head, table: RouteTable) -> Plan:
    """
    Decide where a request goes.

    Raises:
        MessageError: nowhere.
    """
    method, target, version = request.start
    route = find_route(table, request.host, method, target, request.lines)
    drop = hop_headers(request) | route.remove
    start = (method, route.rewrite(target), version)
    return Plan(request, route, request._replace(start=start).render(drop=drop, add=route.headers))


def find_route(table: RouteTable, host: bytes, method: bytes, target: bytes, lines: Sequence[bytes]) -> Route:
    """
    Return the route of a request; ``host`` as in ``Head``, ``lines`` are header lines.

    Raises:
        MessageError: there is none.
    """
    path = target.partition(b"?")[0]
    for route in table.find(host, path):
        if not route.conditional or route.accepts(method, target, lines):
            return route
    raise MessageError(
        f"no route for host {host.decode('latin-1')!r} and path {path.decode('latin-1')!r}; "
        "see 'kubectl get inferenceservices -A' for the URLs",
        404,
    )


def is_repeatable(route: Route, method: bytes, path: bytes) -> bool:
    """Say whether a request changes nothing, so that it may be asked again when its backend died over it."""
    if not route.repeat:
        return False
    _, found, call = path.rpartition(_GRPC_SERVICE)
    return path.endswith(_PREDICTIONS) or method in (b"GET", b"HEAD") or bool(found and _GRPC_CHANGES not in call)


def is_captured(route: Route, path: bytes) -> bool:
    return route.capture and (path.endswith(_PREDICTIONS) or path.endswith(_GRPC_SERVICE + b"ModelInfer"))


def hop_headers(head: Head) -> frozenset[bytes]:
    """Return the names of the headers that are for this connection only."""
    return HOP_HEADERS | (head.hop - _FRAMING) if head.hop else HOP_HEADERS
