"""Prometheus text for one model, with the histogram names of KServe's servers."""

from __future__ import annotations

from bisect import bisect_left

__all__ = ["Histogram", "render_metrics"]

# Seconds; the default buckets of the Prometheus clients, so that existing dashboards fit.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)


class Histogram:
    """Counts of observations per bucket."""

    def __init__(self) -> None:
        self.counts = [0] * (len(_BUCKETS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(_BUCKETS, seconds)] += 1
        self.total += seconds


def render_metrics(model: str, requests: dict[tuple[str, int], int], predict: Histogram) -> bytes:
    """Write all metrics in the text format 0.0.4."""
    lines = ["# TYPE request_predict_seconds histogram"]
    running = 0
    for bound, count in zip((*map(str, _BUCKETS), "+Inf"), predict.counts, strict=True):
        running += count
        lines.append(f'request_predict_seconds_bucket{{model_name="{model}",le="{bound}"}} {running}')
    lines.append(f'request_predict_seconds_count{{model_name="{model}"}} {running}')
    lines.append(f'request_predict_seconds_sum{{model_name="{model}"}} {predict.total:.9g}')
    lines.append("# TYPE requests_total counter")
    for (kind, status), count in sorted(requests.items()):
        lines.append(f'requests_total{{model_name="{model}",kind="{kind}",code="{status}"}} {count}')
    return ("\n".join(lines) + "\n").encode()
