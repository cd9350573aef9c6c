"""The gateway's Prometheus text."""

from __future__ import annotations

from shallop.gateway.metrics import Metrics


def test_requests_are_counted_by_route_and_code_and_timed() -> None:
    metrics = Metrics()
    metrics.observe("ns/iris", 200, 0.0007)
    metrics.observe("ns/iris", 200, 120.0)
    metrics.observe("", 404, 0.0)
    lines = metrics.render().decode().splitlines()
    assert 'shallop_gateway_requests_total{namespace="ns",route="iris",code="200"} 2' in lines
    assert 'shallop_gateway_requests_total{namespace="",route="",code="404"} 1' in lines
    name = "shallop_gateway_request_duration_seconds"
    assert f'{name}_bucket{{namespace="ns",route="iris",le="0.001"}} 1' in lines
    assert f'{name}_bucket{{namespace="ns",route="iris",le="60.0"}} 1' in lines
    assert f'{name}_bucket{{namespace="ns",route="iris",le="+Inf"}} 2' in lines
    assert f'{name}_count{{namespace="ns",route="iris"}} 2' in lines
