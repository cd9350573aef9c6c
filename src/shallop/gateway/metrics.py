"""
What the gateway counts, as Prometheus text; served at ``/-/metrics``.

``shallop_gateway_requests_total{namespace,route,code}`` counts requests; the route is the HTTPRoute's name, empty where
none matched. Code 499 is a client that left before its answer was complete.
``shallop_gateway_request_duration_seconds{namespace,route}`` is a histogram of the time from the request's head to the
last byte of the answer.
"""

from __future__ import annotations

from bisect import bisect_left

__all__ = ["Metrics"]

_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_REQUESTS = "shallop_gateway_requests_total"
_DURATION = "shallop_gateway_request_duration_seconds"


class Metrics:
    """Counts per route (``namespace/name``); one event loop writes and reads."""

    def __init__(self) -> None:
        self._requests: dict[tuple[str, int], int] = {}
        self._buckets: dict[str, list[int]] = {}
        self._sums: dict[str, float] = {}

    def observe(self, route: str, code: int, seconds: float) -> None:
        key = (route, code)
        self._requests[key] = self._requests.get(key, 0) + 1
        buckets = self._buckets.get(route)
        if buckets is None:
            buckets = self._buckets[route] = [0] * (len(_BUCKETS) + 1)
            self._sums[route] = 0.0
        buckets[bisect_left(_BUCKETS, seconds)] += 1
        self._sums[route] += seconds

    def render(self) -> bytes:
        """Write all metrics in the text format 0.0.4."""
        lines = [f"# HELP {_REQUESTS} Requests by route and status code.", f"# TYPE {_REQUESTS} counter"]
        for (route, code), count in sorted(self._requests.items()):
            lines.append(f'{_REQUESTS}{{{_labels(route)},code="{code}"}} {count}')
        lines += [f"# HELP {_DURATION} Head of the request to end of the answer.", f"# TYPE {_DURATION} histogram"]
        for route, buckets in sorted(self._buckets.items()):
            lines += self._histogram(_labels(route), buckets, self._sums[route])
        return ("\n".join(lines) + "\n").encode()

    def _histogram(self, labels: str, buckets: list[int], total: float) -> list[str]:
        lines, running = [], 0
        for bound, count in zip((*map(str, _BUCKETS), "+Inf"), buckets, strict=True):
            running += count
            lines.append(f'{_DURATION}_bucket{{{labels},le="{bound}"}} {running}')
        return [*lines, f"{_DURATION}_sum{{{labels}}} {total:.9g}", f"{_DURATION}_count{{{labels}}} {running}"]


def _labels(route: str) -> str:
    # Names of objects hold nothing that the text format would have to escape.
    namespace, _, name = route.partition("/")
    return f'namespace="{namespace}",route="{name}"'
