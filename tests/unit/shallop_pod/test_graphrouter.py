"""A graph walks its nodes; the steps are played by functions."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from shallop_pod.graphrouter import Answer, Graph, StepError

Model = Callable[[Any], Any]


class Played(Graph):
    """A graph whose services are functions of the decoded body; an exception or a status may be what they say."""

    def __init__(self, nodes: dict[str, Any], **models: Model) -> None:
        super().__init__({"nodes": nodes})
        self.models = models
        self.seen: list[Mapping[str, str]] = []

    def _step(self, step: Mapping[str, Any], body: bytes, headers: Mapping[str, str]) -> Answer:
        if step.get("nodeName"):
            return super()._step(step, body, headers)
        self.seen.append(headers)
        said = self.models[step["serviceName"]](json.loads(body))
        if isinstance(said, Exception):
            raise said
        return said if isinstance(said, Answer) else Answer(200, json.dumps(said).encode())

    def ask(self, body: Any, **headers: str) -> tuple[int, Any]:
        answer = self.answer(json.dumps(body).encode(), headers)
        return answer.status, json.loads(answer.body)


def node(router: str, *steps: Any) -> dict[str, Any]:
    return {"routerType": router, "steps": list(steps)}


def step(service: str, **fields: Any) -> dict[str, Any]:
    return {"serviceName": service, **fields}


def add(number: int) -> Model:
    return lambda body: {"predictions": [value + number for value in body["instances"]]}


def test_a_sequence_hands_on_what_the_step_before_said() -> None:
    second = step("b", data="$response", mapPredictionsToInstances=True)
    graph = Played({"root": node("Sequence", step("a"), second)}, a=add(1), b=add(10))
    assert graph.ask({"instances": [1]}) == (200, {"predictions": [12]})
    request = Played({"root": node("Sequence", step("a"), step("b", data="$request"))}, a=add(1), b=add(10))
    assert request.ask({"instances": [1]}) == (200, {"predictions": [11]})


def test_a_sequence_stops_where_its_condition_does_not_hold() -> None:
    steps = (step("a"), step("b", condition="[@this].#(kind==dog)"))
    for kind, expected in (("dog", {"breed": "beagle"}), ("cat", {"kind": "cat"})):
        graph = Played(
            {"root": node("Sequence", *steps)}, a=lambda _, k=kind: {"kind": k}, b=lambda _: {"breed": "beagle"}
        )
        assert graph.ask({}) == (200, expected)


@pytest.mark.parametrize(("dependency", "status"), [("Hard", 418), ("Soft", 200)])
def test_only_a_hard_step_ends_a_sequence_by_failing(dependency: str, status: int) -> None:
    steps = (step("a", dependency=dependency), step("b"))
    graph = Played({"root": node("Sequence", *steps)}, a=lambda _: Answer(418, b'{"x":1}'), b=lambda _: {"y": 2})
    assert graph.ask({})[0] == status


def test_a_switch_takes_the_first_way_whose_condition_holds() -> None:
    steps = (step("a", condition="[@this].#(n==1)"), step("b", condition="[@this].#(n==2)"))
    graph = Played({"root": node("Switch", *steps)}, a=lambda _: {"a": 1}, b=lambda _: {"b": 1})
    assert graph.ask({"n": 2}) == (200, {"b": 1})
    code, body = graph.ask({"n": 3})
    assert (code, body["cause"]) == (404, "None of the routes matched with the switch condition")


def test_an_ensemble_answers_with_all_answers_by_name_or_number() -> None:
    graph = Played({"root": node("Ensemble", step("a", name="first"), step("b"))}, a=lambda _: {"a": 1}, b=lambda _: {})
    assert graph.ask({}) == (200, {"first": {"a": 1}, "1": {}})
    hard = Played(
        {"root": node("Ensemble", step("a"), step("b", dependency="Hard"))},
        a=lambda _: {},
        b=lambda _: Answer(503, b'{"down":true}'),
    )
    assert hard.ask({}) == (503, {"down": True})
    for said in ([1], StepError("gone")):
        assert Played({"root": node("Ensemble", step("a"))}, a=lambda _, s=said: s).ask({})[0] == 500


def test_a_splitter_keeps_its_weights() -> None:
    graph = Played(
        {"root": node("Splitter", step("a", weight=20), step("b", weight=80))}, a=lambda _: "a", b=lambda _: "b"
    )
    counts = Counter(graph.ask({})[1] for _ in range(2000))
    assert 300 < counts["a"] < 500


def test_nodes_lead_to_nodes() -> None:
    nodes = {"root": node("Sequence", {"nodeName": "both"}), "both": node("Ensemble", step("a"), step("a"))}
    assert Played(nodes, a=lambda _: {"a": 1}).ask({}) == (200, {"0": {"a": 1}, "1": {"a": 1}})


def test_headers_of_tracing_go_along_and_no_others() -> None:
    graph = Played({"root": node("Sequence", step("a"))}, a=lambda _: {})
    graph.ask({}, **{"X-Request-Id": "7", "Cookie": "secret", "Authorization": "Bearer x"})
    assert dict(graph.seen[0]) == {
        "X-Request-Id": "7",
        "Authorization": "Bearer x",
        "Content-Type": "application/json",
    }
