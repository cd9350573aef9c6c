"""Which backend answers a request: HTTPRoutes and EndpointSlices as a table. Pure."""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shallop.kube.objects import Object, labels_of

__all__ = ["Backend", "Endpoint", "Route", "RouteTable", "endpoints_by_service", "parse_duration", "parse_routes"]

Endpoint = tuple[str, int]
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(\d{1,5})(ms|h|m|s)")
_MAX_REMEMBERED = 4096


class Backend(NamedTuple):
    """A Service port with its share of the traffic."""

    namespace: str
    service: str
    port: int
    weight: int = 1


@dataclass(frozen=True)
class Route:
    """
    One rule of an HTTPRoute.

    Args:
        host: exact name, ``*.suffix``, or empty for any.
        path: prefix or exact path, without a final slash unless it is the root.
        replace: what the matched prefix becomes; None keeps the path.
        headers: header lines added towards the backend.
        owner: ``namespace/name`` of the HTTPRoute, for messages.
        timeout_s: for a whole request; 0 is none.
    """

    host: bytes
    path: bytes
    exact: bool
    replace: bytes | None
    backends: tuple[Backend, ...]
    headers: tuple[bytes, ...] = ()
    owner: str = ""
    timeout_s: float = 0.0

    def matches(self, host: bytes, path: bytes) -> bool:
        wildcard = self.host.startswith(b"*.") and host.endswith(self.host[1:])
        if self.host and self.host != host and not wildcard:
            return False
        if self.exact:
            return path == self.path
        return self.path in (b"/", path) or path.startswith(self.path + b"/")

    def rewrite(self, target: bytes) -> bytes:
        """Return the request target that the backend sees."""
        if self.replace is None:
            return target
        rest = target[len(self.path) :] if self.path != b"/" else target
        rewritten = self.replace.rstrip(b"/") + rest
        return rewritten if rewritten.startswith(b"/") else b"/" + rewritten


def parse_routes(routes: Iterable[Object]) -> list[Route]:
    """Turn HTTPRoutes into rules, the most specific first: exact path, longer path, exact host."""
    parsed = [rule for route in routes for rule in _rules(route)]
    parsed.sort(key=lambda r: (not r.exact, -len(r.path), not r.host, r.host.startswith(b"*"), -len(r.host)))
    return parsed


def _rules(route: Object) -> Iterable[Route]:
    namespace = route["metadata"]["namespace"]
    owner = f"{namespace}/{route['metadata']['name']}"
    spec = route.get("spec") or {}
    for rule in spec.get("rules") or ():
        backends = tuple(
            Backend(b.get("namespace") or namespace, b["name"], int(b.get("port") or 80), int(b.get("weight", 1)))
            for b in rule.get("backendRefs") or ()
        )
        replace, headers = _filters(rule.get("filters") or ())
        timeout_s = parse_duration((rule.get("timeouts") or {}).get("request") or "")
        for host in spec.get("hostnames") or [""]:
            for match in rule.get("matches") or [{}]:
                path = match.get("path") or {}
                value = path.get("value") or "/"
                prefix = value.rstrip("/") or "/"
                yield Route(
                    host.lower().encode(),
                    prefix.encode(),
                    path.get("type") == "Exact",
                    replace,
                    backends,
                    headers,
                    owner,
                    timeout_s,
                )


def parse_duration(text: str) -> float:
    """Return seconds of a duration of the Gateway API such as ``1m30s``."""
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))


def _filters(filters: Iterable[dict[str, Any]]) -> tuple[bytes | None, tuple[bytes, ...]]:
    replace: bytes | None = None
    headers: list[bytes] = []
    for item in filters:
        if item.get("type") == "URLRewrite":
            path = (item.get("urlRewrite") or {}).get("path") or {}
            if path.get("type") == "ReplacePrefixMatch":
                replace = str(path.get("replacePrefixMatch") or "/").encode()
        elif item.get("type") == "RequestHeaderModifier":
            modifier = item.get("requestHeaderModifier") or {}
            for header in [*(modifier.get("set") or ()), *(modifier.get("add") or ())]:
                headers.append(f"{header['name']}: {header['value']}".encode("latin-1"))
    return replace, tuple(headers)


def endpoints_by_service(slices: Iterable[Object]) -> dict[tuple[str, str], list[tuple[str, dict[str, int]]]]:
    """Return (namespace, service) -> ready addresses with their ports by name."""
    found: dict[tuple[str, str], list[tuple[str, dict[str, int]]]] = {}
    for item in slices:
        service = labels_of(item).get("kubernetes.io/service-name")
        if not service:
            continue
        ports = {str(port.get("name") or ""): int(port["port"]) for port in item.get("ports") or ()}
        addresses = found.setdefault((item["metadata"]["namespace"], service), [])
        for endpoint in item.get("endpoints") or ():
            if (endpoint.get("conditions") or {}).get("ready", True):
                addresses += [(address, ports) for address in endpoint["addresses"]]
    return found


@dataclass
class RouteTable:
    """The routes and endpoints in force; replaced piece by piece as objects change."""

    routes: list[Route] = field(default_factory=list)
    endpoints: dict[tuple[str, str], list[tuple[str, dict[str, int]]]] = field(default_factory=dict)
    port_names: dict[tuple[str, str, int], str] = field(default_factory=dict)
    _found: dict[tuple[bytes, bytes], Route | None] = field(default_factory=dict)
    _turn: int = 0

    def replace_routes(self, routes: list[Route]) -> None:
        self.routes = routes
        self._found.clear()

    def find(self, host: bytes, path: bytes) -> Route | None:
        """Return the first route that matches; few paths are asked for again and again, so that answers are kept."""
        key = (host, path)
        if key not in self._found:
            if len(self._found) >= _MAX_REMEMBERED:
                self._found.clear()
            self._found[key] = next((route for route in self.routes if route.matches(host, path)), None)
        return self._found[key]

    def pick(self, route: Route, avoid: Collection[Endpoint] = ()) -> Endpoint | None:
        """Choose a backend by weight among those with an endpoint not to avoid, then the next endpoint in turn."""
        ready = [(b.weight, found) for b in route.backends if b.weight > 0 and (found := self._addresses(b, avoid))]
        if not ready:
            return None
        addresses = ready[0][1]
        if len(ready) > 1:
            addresses = random.choices(ready, [weight for weight, _ in ready])[0][1]
        self._turn += 1
        return addresses[self._turn % len(addresses)]

    def addresses(self) -> set[Endpoint]:
        """Return every address that a request may go to now."""
        return {
            (address, port) for items in self.endpoints.values() for address, ports in items for port in ports.values()
        }

    def _addresses(self, backend: Backend, avoid: Collection[Endpoint]) -> list[Endpoint]:
        name = self.port_names.get((backend.namespace, backend.service, backend.port), "")
        found = []
        for address, ports in self.endpoints.get((backend.namespace, backend.service), ()):
            if name in ports:
                found.append((address, ports[name]))
            elif len(ports) == 1:
                found.append((address, next(iter(ports.values()))))
        return [endpoint for endpoint in found if endpoint not in avoid] if avoid else found
