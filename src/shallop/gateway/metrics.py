"""
What the gateway counts, as Prometheus text; served at ``/-/metrics``.

``shallop_gateway_requests_total{namespace,route,code}`` counts requests; the route is the HTTPRoute's name, empty where
none matched. Code 499 is a client that left before its answer was complete.
``shallop_gateway_request_duration_seconds{namespace,route}`` is a histogram of the time from the request's head to the
last byte of the answer.
``shallop_gateway_captures_dropped_total`` counts predictions that those who watch models have not seen.
"""

from __future__ import annotations

from bisect import bisect_left

__all__ = ["Metrics"]

_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_REQUESTS = "shallop_gateway_requests_total"
_DROPPED = "shallop_gateway_captures_dropped_total"
_DURATION = "shallop_gateway_request_duration_seconds"


class Series:
    """The counts of one route."""

    __slots__ = ("buckets", "codes", "total")

    def __init__(self) -> None:
        self.codes: dict[int, int] = {}
        self.buckets = [0] * (len(_BUCKETS) + 1)
        self.total = 0.0

    def observe(self, code: int, seconds: float) -> None:
        self.codes[code] = self.codes.get(code, 0) + 1
        self.buckets[bisect_left(_BUCKETS, seconds)] += 1
        self.total += seconds


class Metrics:
    """Counts per route (``namespace/name``); one event loop writes and reads."""

    def __init__(self) -> None:
        self._series: dict[str, Series] = {}

    def observe(self, route: str, code: int, seconds: float) -> None:
        series = self._series.get(route)
        if series is None:
            series = self._series[route] = Series()
        series.observe(code, seconds)

    def render(self, captures_dropped: int = 0) -> bytes:
        """Write all metrics in the text format 0.0.4."""
        lines = [f"# HELP {_REQUESTS} Requests by route and status code.", f"# TYPE {_REQUESTS} counter"]
        for route, series in sorted(self._series.items()):
            lines += [f'{_REQUESTS}{{{_labels(route)},code="{c}"}} {n}' for c, n in sorted(series.codes.items())]
        lines += [f"# HELP {_DURATION} Head of the request to end of the answer.", f"# TYPE {_DURATION} histogram"]
        for route, series in sorted(self._series.items()):
            lines += self._histogram(_labels(route), series.buckets, series.total)
        lines += [f"# TYPE {_DROPPED} counter", f"{_DROPPED} {captures_dropped}"]
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
