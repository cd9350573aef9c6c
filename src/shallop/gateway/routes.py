"""Which backend answers a request: HTTPRoutes and EndpointSlices as a table. Pure."""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

from shallop.kube.objects import Object, annotations_of, labels_of

__all__ = [
    "H2C",
    "Backend",
    "Endpoint",
    "Matcher",
    "Route",
    "RouteTable",
    "ServiceKey",
    "endpoints_by_service",
    "fixed_draw",
    "parse_duration",
    "parse_routes",
    "service_of",
]

log = logging.getLogger(__name__)
Endpoint = tuple[str, int]
ServiceKey = tuple[str, str]
"""Namespace and name of a Service."""
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_DURATION = re.compile(r"(\d{1,5})(ms|h|m|s)")
CAPTURE = "gateway.shallop.dev/capture"
# The protocol of a Service's port whose servers speak HTTP/2 without TLS, and nothing else.
H2C = "kubernetes.io/h2c"
_MAX_REMEMBERED = 4096
_GOLDEN = (5**0.5 - 1) / 2


class Backend(NamedTuple):
    """A Service port with its share of the traffic."""

    namespace: str
    service: str
    port: int
    weight: int = 1

    @property
    def key(self) -> ServiceKey:
        return self.namespace, self.service


class Matcher(NamedTuple):
    """What a header or a query parameter must be; the name of a header in lower case."""

    source: str
    name: str
    pattern: re.Pattern[str]


@dataclass(frozen=True)
class Route:
    """
    One rule of an HTTPRoute.

    Args:
        host: exact name, ``*.suffix``, or empty for any.
        path: prefix or exact path, without a final slash unless it is the root.
        replace: what the matched prefix becomes; None keeps the path.
        replace_full: what the whole path becomes; None keeps it.
        headers: header lines added towards the backend.
        owner: ``namespace/name`` of the HTTPRoute, for messages.
        timeout_s: for a whole request; 0 is none.
        remove: names of headers, lower case, that the backend does not see.
        method: the only method it is for; empty for all.
        matchers: of headers and query parameters; all must fit.
        path_pattern: what the whole path must be, instead of ``path``.
        capture: predictions are handed to whoever watches models, see ``controller.captures``.
        repeat: a prediction that was lost with its backend may be asked again; predictions change nothing.
    """

    host: bytes
    path: bytes
    exact: bool
    replace: bytes | None
    backends: tuple[Backend, ...]
    headers: tuple[bytes, ...] = ()
    owner: str = ""
    timeout_s: float = 0.0
    remove: frozenset[bytes] = frozenset()
    method: bytes = b""
    matchers: tuple[Matcher, ...] = ()
    path_pattern: re.Pattern[str] | None = None
    repeat: bool = False
    replace_full: bytes | None = None
    capture: bool = False

    @property
    def conditional(self) -> bool:
        """Whether more than host and path decides."""
        return bool(self.method or self.matchers)

    def accepts(self, method: bytes, target: bytes, lines: Sequence[bytes]) -> bool:
        """Say whether a request whose host and path fit is for this route."""
        if self.method and self.method != method:
            return False
        query: dict[str, str] | None = None
        headers: dict[str, str] | None = None
        for matcher in self.matchers:
            if matcher.source == "query":
                query = query if query is not None else dict(reversed(parse_qsl(_query(target), True)))
                value = query.get(matcher.name)
            else:
                headers = headers if headers is not None else _headers(lines)
                value = headers.get(matcher.name)
            if value is None or not matcher.pattern.fullmatch(value):
                return False
        return True

    def matches(self, host: bytes, path: bytes) -> bool:
        wildcard = self.host.startswith(b"*.") and host.endswith(self.host[1:])
        if self.host and self.host != host and not wildcard:
            return False
        if self.path_pattern:
            return self.path_pattern.fullmatch(path.decode("latin-1")) is not None
        if self.exact:
            return path == self.path
        return self.path in (b"/", path) or path.startswith(self.path + b"/")

    def rewrite(self, target: bytes) -> bytes:
        """Return the request target that the backend sees."""
        if self.replace_full is not None:
            _, mark, query = target.partition(b"?")
            return self.replace_full + mark + query
        if self.replace is None:
            return target
        rest = target[len(self.path) :] if self.path != b"/" else target
        rewritten = self.replace.rstrip(b"/") + rest
        return rewritten if rewritten.startswith(b"/") else b"/" + rewritten


def _query(target: bytes) -> str:
    return target.partition(b"?")[2].decode("latin-1")


def _headers(lines: Sequence[bytes]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(b":")
        key, text = name.decode("latin-1").lower(), value.strip(b" \t").decode("latin-1")
        headers[key] = f"{headers[key]},{text}" if key in headers else text
    return headers


def parse_routes(routes: Iterable[Object]) -> list[Route]:
    """Turn HTTPRoutes into rules, the most specific first: exact path, longer path, exact host, more conditions."""
    parsed = [rule for route in routes for rule in _rules(route)]
    parsed.sort(
        key=lambda r: (
            *(not r.exact, -len(r.path), not r.host, r.host.startswith(b"*"), -len(r.host)),
            *(not r.method, -sum(m.source == "header" for m in r.matchers), -len(r.matchers)),
        )
    )
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
        replace, full, headers, remove = _filters(rule.get("filters") or ())
        timeout_s = parse_duration((rule.get("timeouts") or {}).get("request") or "")
        for host in spec.get("hostnames") or [""]:
            for match in rule.get("matches") or [{}]:
                path = match.get("path") or {}
                value = path.get("value") or "/"
                prefix = value.rstrip("/") or "/"
                try:
                    matchers = (
                        *_matchers("header", match.get("headers")),
                        *_matchers("query", match.get("queryParams")),
                    )
                    pattern = re.compile(value) if path.get("type") == "RegularExpression" else None
                except re.error as error:
                    # One rule that cannot be read must not take the others down; nothing can match it.
                    log.warning("HTTPRoute %s: a regular expression cannot be read: %s", owner, error)
                    continue
                yield Route(
                    host.lower().encode(),
                    prefix.encode(),
                    path.get("type") == "Exact",
                    replace,
                    backends,
                    headers,
                    owner,
                    timeout_s,
                    remove,
                    str(match.get("method") or "").encode(),
                    matchers,
                    pattern,
                    bool((rule.get("retry") or {}).get("attempts")),
                    full,
                    annotations_of(route).get(CAPTURE) == "true",
                )


def _matchers(source: str, items: Any) -> tuple[Matcher, ...]:
    found = []
    for item in items or ():
        value = str(item.get("value", ""))
        pattern = value if item.get("type") == "RegularExpression" else re.escape(value)
        name = str(item["name"])
        found.append(Matcher(source, name.lower() if source == "header" else name, re.compile(pattern)))
    return tuple(found)


def parse_duration(text: str) -> float:
    """Return seconds of a duration of the Gateway API such as ``1m30s``."""
    return sum(float(number) * _UNITS[unit] for number, unit in _DURATION.findall(text))


def _filters(
    filters: Iterable[dict[str, Any]],
) -> tuple[bytes | None, bytes | None, tuple[bytes, ...], frozenset[bytes]]:
    replace: bytes | None = None
    full: bytes | None = None
    headers: list[bytes] = []
    remove: set[bytes] = set()
    for item in filters:
        if item.get("type") == "URLRewrite":
            path = (item.get("urlRewrite") or {}).get("path") or {}
            if path.get("type") == "ReplacePrefixMatch":
                replace = str(path.get("replacePrefixMatch") or "/").encode()
            elif path.get("type") == "ReplaceFullPath":
                full = str(path.get("replaceFullPath") or "/").encode()
        elif item.get("type") == "RequestHeaderModifier":
            modifier = item.get("requestHeaderModifier") or {}
            for header in modifier.get("set") or ():
                remove.add(str(header["name"]).lower().encode("latin-1"))
            for header in [*(modifier.get("set") or ()), *(modifier.get("add") or ())]:
                headers.append(f"{header['name']}: {header['value']}".encode("latin-1"))
            remove |= {str(name).lower().encode("latin-1") for name in modifier.get("remove") or ()}
    return replace, full, tuple(headers), frozenset(remove)


def fixed_draw(lines: Sequence[bytes]) -> float | None:
    """
    Return the number of [0, 1) that a request's ``X-Request-Id`` decides its share of a split by; None without one.

    It, its retries and the calls it causes stay with one revision, and who is in a canary of 10 % is in it at 20 % too.
    """
    for line in lines:
        if len(line) > 12 and line[12:13] == b":" and line[:12].lower() == b"x-request-id":
            return zlib.crc32(line[13:].strip(b" \t")) / 2**32
    return None


def service_of(item: Object) -> ServiceKey | None:
    """Return namespace and name of the Service that an EndpointSlice belongs to."""
    name = labels_of(item).get("kubernetes.io/service-name")
    return (item["metadata"]["namespace"], name) if name else None


def endpoints_by_service(slices: Iterable[Object]) -> dict[tuple[str, str], list[tuple[str, dict[str, int]]]]:
    """Return (namespace, service) -> ready addresses with their ports by name."""
    found: dict[tuple[str, str], list[tuple[str, dict[str, int]]]] = {}
    for item in slices:
        key = service_of(item)
        if key is None:
            continue
        ports = {str(port.get("name") or ""): int(port["port"]) for port in item.get("ports") or ()}
        addresses = found.setdefault(key, [])
        for endpoint in item.get("endpoints") or ():
            if (endpoint.get("conditions") or {}).get("ready", True):
                addresses += [(address, ports) for address in endpoint["addresses"]]
    return found


class RouteTable:
    """
    The routes and endpoints in force; replaced piece by piece as objects change.

    Attributes:
        scalable: Services whose Pods an autoscaler starts when a request waits for them.
        http2_ports: namespace, Service and number of the ports whose servers speak HTTP/2 only.
        generation: counts the replacements of ``routes``, so that what was decided by them can be forgotten.
    """

    def __init__(
        self,
        routes: Sequence[Route] = (),
        endpoints: Mapping[ServiceKey, Sequence[tuple[str, dict[str, int]]]] | None = None,
        *,
        scalable: Collection[ServiceKey] = (),
    ) -> None:
        self.routes = list(routes)
        self.scalable = set(scalable)
        self.http2_ports: Collection[tuple[str, str, int]] = ()
        self.generation = 0
        self._endpoints: Mapping[ServiceKey, Sequence[tuple[str, dict[str, int]]]] = endpoints or {}
        self._port_names: Mapping[tuple[str, str, int], str] = {}
        self._found: dict[tuple[bytes, bytes], tuple[Route, ...]] = {}
        self._addresses: dict[Backend, list[Endpoint]] = {}
        self._draws: dict[str, float] = {}
        self._turn = 0

    @property
    def endpoints(self) -> Mapping[ServiceKey, Sequence[tuple[str, dict[str, int]]]]:
        """Ready addresses of each Service, with their ports by name."""
        return self._endpoints

    @endpoints.setter
    def endpoints(self, endpoints: Mapping[ServiceKey, Sequence[tuple[str, dict[str, int]]]]) -> None:
        self._endpoints = endpoints
        self._addresses.clear()

    @property
    def port_names(self) -> Mapping[tuple[str, str, int], str]:
        """Names of the ports of Services, by namespace, name and number."""
        return self._port_names

    @port_names.setter
    def port_names(self, names: Mapping[tuple[str, str, int], str]) -> None:
        self._port_names = names
        self._addresses.clear()

    def replace_routes(self, routes: list[Route]) -> None:
        self.routes = routes
        self.generation += 1
        self._found.clear()
        owners = {route.owner for route in routes}
        self._draws = {owner: number for owner, number in self._draws.items() if owner in owners}

    def draw(self, route: Route) -> float:
        """
        Return a number of [0, 1) that decides a request's share of a split.

        Numbers of one route fill the interval evenly, so that shares are met much closer than by chance: of any run of
        requests, each backend gets its share up to a few.

        Source: additive recurrence of the golden ratio, a low-discrepancy sequence.
        """
        number = (self._draws.get(route.owner, 0.0) + _GOLDEN) % 1.0
        self._draws[route.owner] = number
        return number

    def find(self, host: bytes, path: bytes) -> tuple[Route, ...]:
        """
        Return the routes that match, most specific first, up to the first without conditions.

        Few paths are asked for again and again, so that answers are kept.
        """
        key = (host, path)
        found = self._found.get(key)
        if found is None:
            if len(self._found) >= _MAX_REMEMBERED:
                self._found.clear()
            found = self._found[key] = self._search(host, path)
        return found

    def _search(self, host: bytes, path: bytes) -> tuple[Route, ...]:
        found = []
        for route in self.routes:
            if route.matches(host, path):
                found.append(route)
                if not route.conditional:
                    break
        return tuple(found)

    def choose(self, route: Route, number: float, avoid: Collection[Endpoint] = ()) -> Backend | None:
        """
        Choose a backend by weight among those that can answer, now or once a Pod of theirs is started.

        Args:
            number: of [0, 1), from ``draw`` or ``fixed_draw``.
        """
        if len(route.backends) == 1:
            only = route.backends[0]
            return only if only.weight > 0 and self._can_answer(only, avoid) else None
        able = [backend for backend in route.backends if backend.weight > 0 and self._can_answer(backend, avoid)]
        place = number * sum(backend.weight for backend in able)
        for backend in able:
            place -= backend.weight
            if place < 0:
                return backend
        return able[-1] if able else None

    def _can_answer(self, backend: Backend, avoid: Collection[Endpoint]) -> bool:
        return backend.key in self.scalable or bool(self.addresses_of(backend, avoid))

    def pick(self, backend: Backend, avoid: Collection[Endpoint] = ()) -> Endpoint | None:
        """Choose the next endpoint in turn among those not to avoid."""
        addresses = self.addresses_of(backend, avoid)
        if not addresses:
            return None
        self._turn += 1
        return addresses[self._turn % len(addresses)]

    def speaks_http2(self, backend: Backend | None) -> bool:
        """Say whether requests have to reach a backend by HTTP/2."""
        ports = self.http2_ports
        return bool(ports) and backend is not None and (backend.namespace, backend.service, backend.port) in ports

    def addresses(self) -> set[Endpoint]:
        """Return every address that a request may go to now."""
        return {
            (address, port) for items in self.endpoints.values() for address, ports in items for port in ports.values()
        }

    def addresses_of(self, backend: Backend, avoid: Collection[Endpoint] = ()) -> list[Endpoint]:
        found = self._addresses.get(backend)
        if found is None:
            found = self._addresses[backend] = self._resolve(backend)
        return [endpoint for endpoint in found if endpoint not in avoid] if avoid else found

    def _resolve(self, backend: Backend) -> list[Endpoint]:
        name = self._port_names.get((backend.namespace, backend.service, backend.port), "")
        found = []
        for address, ports in self._endpoints.get(backend.key, ()):
            if name in ports:
                found.append((address, ports[name]))
            elif len(ports) == 1:
                found.append((address, next(iter(ports.values()))))
        return found
