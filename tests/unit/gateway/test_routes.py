"""Routes: the most specific wins, only ready endpoints get traffic, weights hold."""

from __future__ import annotations

from collections import Counter
from typing import Any

from shallop.gateway.routes import RouteTable, endpoints_by_service, parse_duration, parse_routes
from shallop.kube.objects import Object


def route(name: str, *, host: str = "", path: str = "/", rewrite: str = "", **weights: int) -> Object:
    rule: dict[str, Any] = {
        "matches": [{"path": {"type": "PathPrefix", "value": path}}],
        "backendRefs": [{"name": service, "port": 80, "weight": weight} for service, weight in weights.items()],
    }
    if rewrite:
        replacement = {"type": "ReplacePrefixMatch", "replacePrefixMatch": rewrite}
        rule["filters"] = [{"type": "URLRewrite", "urlRewrite": {"path": replacement}}]
    spec: dict[str, Any] = {"rules": [rule]} | ({"hostnames": [host]} if host else {})
    return {"metadata": {"namespace": "ns", "name": name}, "spec": spec}


def endpoint_slice(service: str, *addresses: str, ready: bool = True) -> Object:
    endpoints = [{"addresses": [address], "conditions": {"ready": ready}} for address in addresses]
    labels = {"kubernetes.io/service-name": service}
    return {"metadata": {"namespace": "ns", "labels": labels}, "ports": [{"port": 8080}], "endpoints": endpoints}


def owner(table: RouteTable, host: bytes, path: bytes) -> str:
    found = table.find(host, path)
    return found.owner if found else ""


def test_the_longest_path_wins_and_prefixes_end_at_a_slash() -> None:
    table = RouteTable(
        parse_routes([route("all"), route("iris", path="/serving/ns/iris"), route("deep", path="/serving/ns/iris/v2")])
    )
    assert owner(table, b"x", b"/serving/ns/iris/v1/models") == "ns/iris"
    assert owner(table, b"x", b"/serving/ns/iris/v2/models") == "ns/deep"
    assert owner(table, b"x", b"/serving/ns/iris2") == "ns/all"


def test_hosts_match_exactly_or_by_wildcard() -> None:
    table = RouteTable(parse_routes([route("a", host="a.example.com"), route("w", host="*.example.com")]))
    assert owner(table, b"a.example.com", b"/") == "ns/a"
    assert owner(table, b"b.example.com", b"/") == "ns/w"
    assert owner(table, b"example.org", b"/") == ""


def test_the_prefix_is_replaced_and_the_query_kept() -> None:
    (rule,) = parse_routes([route("iris", path="/serving/ns/iris", rewrite="/", iris=1)])
    assert rule.rewrite(b"/serving/ns/iris/v1/models/m:predict?x=1") == b"/v1/models/m:predict?x=1"
    assert rule.rewrite(b"/serving/ns/iris") == b"/"


def test_weights_share_the_traffic_among_ready_backends_only() -> None:
    (rule,) = parse_routes([route("r", stable=90, canary=10, broken=50)])
    slices = [endpoint_slice("stable", "10.0.0.1"), endpoint_slice("canary", "10.0.0.2")]
    table = RouteTable([rule], endpoints_by_service([*slices, endpoint_slice("broken", "10.0.0.3", ready=False)]))
    counts = Counter(table.pick(rule) for _ in range(5000))
    assert set(counts) == {("10.0.0.1", 8080), ("10.0.0.2", 8080)}
    assert 0.05 < counts["10.0.0.2", 8080] / 5000 < 0.16


def test_replicas_take_turns_and_a_failed_one_is_avoided() -> None:
    (rule,) = parse_routes([route("r", web=1)])
    table = RouteTable([rule], endpoints_by_service([endpoint_slice("web", "10.0.0.1", "10.0.0.2")]))
    assert len({table.pick(rule) for _ in range(2)}) == 2
    assert {table.pick(rule, avoid={("10.0.0.1", 8080)}) for _ in range(4)} == {("10.0.0.2", 8080)}


def test_no_ready_endpoint_gives_no_backend() -> None:
    (rule,) = parse_routes([route("r", web=1)])
    assert RouteTable([rule]).pick(rule) is None


def test_nothing_is_left_when_every_endpoint_is_avoided() -> None:
    (rule,) = parse_routes([route("r", web=1)])
    table = RouteTable([rule], endpoints_by_service([endpoint_slice("web", "10.0.0.1")]))
    assert table.pick(rule, avoid={("10.0.0.1", 8080)}) is None
    assert table.addresses() == {("10.0.0.1", 8080)}


def test_new_routes_replace_remembered_answers() -> None:
    table = RouteTable(parse_routes([route("old")]))
    assert owner(table, b"x", b"/") == "ns/old"
    table.replace_routes(parse_routes([route("new")]))
    assert owner(table, b"x", b"/") == "ns/new"


def test_durations_are_read_in_all_units() -> None:
    assert parse_duration("1m30s") == 90
    assert parse_duration("250ms") == 0.25
    assert parse_duration("") == 0
