"""Routes: the most specific wins, only ready endpoints get traffic, weights hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import pytest

from shallop.gateway.routes import (
    Endpoint,
    Route,
    RouteTable,
    endpoints_by_service,
    fixed_draw,
    parse_duration,
    parse_routes,
)
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
    return found[0].owner if found else ""


def pick(table: RouteTable, route: Route, number: float = 0.0, avoid: Collection[Endpoint] = ()) -> Endpoint | None:
    backend = table.choose(route, number, avoid)
    return table.pick(backend, avoid) if backend else None


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
    counts = Counter(pick(table, rule, table.draw(rule)) for _ in range(5000))
    assert set(counts) == {("10.0.0.1", 8080), ("10.0.0.2", 8080)}
    assert 0.05 < counts["10.0.0.2", 8080] / 5000 < 0.16


def test_replicas_take_turns_and_a_failed_one_is_avoided() -> None:
    (rule,) = parse_routes([route("r", web=1)])
    table = RouteTable([rule], endpoints_by_service([endpoint_slice("web", "10.0.0.1", "10.0.0.2")]))
    assert len({pick(table, rule) for _ in range(2)}) == 2
    assert {pick(table, rule, avoid={("10.0.0.1", 8080)}) for _ in range(4)} == {("10.0.0.2", 8080)}


def test_no_ready_endpoint_gives_no_backend() -> None:
    (rule,) = parse_routes([route("r", web=1)])
    assert pick(RouteTable([rule]), rule) is None


def test_nothing_is_left_when_every_endpoint_is_avoided() -> None:
    (rule,) = parse_routes([route("r", web=1)])
    table = RouteTable([rule], endpoints_by_service([endpoint_slice("web", "10.0.0.1")]))
    assert pick(table, rule, avoid={("10.0.0.1", 8080)}) is None
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


def conditional(name: str, *services: str, **match: Any) -> Object:
    made = route(name, **dict.fromkeys(services, 1))
    made["spec"]["rules"][0]["matches"] = [match]
    return made


def accepted(table: RouteTable, target: bytes, *lines: bytes, method: bytes = b"GET") -> str:
    for found in table.find(b"x", target.partition(b"?")[0]):
        if not found.conditional or found.accepts(method, target, lines):
            return found.owner
    return ""


def test_headers_queries_methods_and_expressions_decide() -> None:
    header = {"name": "X-Team", "value": "blue"}
    pattern = {"name": "v", "value": "[0-9]+", "type": "RegularExpression"}
    table = RouteTable(
        parse_routes(
            [
                route("rest"),
                conditional("header", headers=[header]),
                conditional("query", queryParams=[pattern]),
                conditional("post", method="POST"),
                conditional("regex", path={"type": "RegularExpression", "value": "/v1/models/[a-z]+:explain"}),
            ]
        )
    )
    assert accepted(table, b"/") == "ns/rest"
    assert accepted(table, b"/", b"x-team: blue") == "ns/header"
    assert accepted(table, b"/", b"X-Team: red") == "ns/rest"
    assert accepted(table, b"/?v=12") == "ns/query"
    assert accepted(table, b"/?v=x") == "ns/rest"
    assert accepted(table, b"/", method=b"POST") == "ns/post"
    assert accepted(table, b"/v1/models/iris:explain") == "ns/regex"
    assert accepted(table, b"/v1/models/iris:predict") == "ns/rest"


def test_a_whole_path_is_replaced_and_the_query_kept() -> None:
    made = route("r", path="/a", web=1)
    full = {"type": "ReplaceFullPath", "replaceFullPath": "/x"}
    made["spec"]["rules"][0]["filters"] = [{"type": "URLRewrite", "urlRewrite": {"path": full}}]
    (rule,) = parse_routes([made])
    assert rule.rewrite(b"/a/b?c=1") == b"/x?c=1"


def test_an_expression_that_cannot_be_read_takes_no_other_rule_down() -> None:
    table = RouteTable(
        parse_routes([route("rest"), conditional("bad", path={"type": "RegularExpression", "value": "/(("})])
    )
    assert accepted(table, b"/((") == "ns/rest"


def test_a_request_id_stays_with_its_backend_while_the_canary_grows() -> None:
    numbers = {request: fixed_draw([b"X-Request-Id: %d" % request]) for request in range(300)}
    assert numbers == {request: fixed_draw([b"x-request-id:%d" % request]) for request in range(300)}
    chosen: dict[int, set[int]] = {}
    for percent in (10, 30):
        (rule,) = parse_routes([route("r", canary=percent, stable=100 - percent)])
        table = RouteTable([rule], scalable={("ns", "canary"), ("ns", "stable")})
        picks = {request: table.choose(rule, number) for request, number in numbers.items()}
        chosen[percent] = {request for request, backend in picks.items() if backend and backend.service == "canary"}
    assert chosen[10] < chosen[30]


def test_a_backend_without_pods_gets_its_share_when_somebody_can_start_one() -> None:
    (rule,) = parse_routes([route("r", asleep=50, awake=50)])
    table = RouteTable([rule], endpoints_by_service([endpoint_slice("awake", "10.0.0.1")]))
    assert {choice.service for n in range(10) if (choice := table.choose(rule, n / 10))} == {"awake"}
    table.scalable.add(("ns", "asleep"))
    assert {choice.service for n in range(10) if (choice := table.choose(rule, n / 10))} == {"asleep", "awake"}


@pytest.mark.parametrize("percent", [1, 10, 20, 30, 50])
@pytest.mark.parametrize("count", [100, 200, 1000])
def test_every_run_of_requests_lies_well_within_the_binomial_bounds(percent: int, count: int) -> None:
    (rule,) = parse_routes([route("a")])
    share, table = percent / 100, RouteTable([rule])
    half = 2.576 * (count * share * (1 - share)) ** 0.5
    numbers = [table.draw(rule) for _ in range(5000)]
    for start in range(5000 - count):
        drawn = sum(number < share for number in numbers[start : start + count])
        assert abs(drawn - count * share) <= min(half, 4), (start, drawn)
