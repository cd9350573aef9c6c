"""InferenceGraphs: what is refused, what the router is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shallop.kube.objects import Object
from shallop.serving.inferencegraph import MissingServiceError, predict_path, render_router, resolve, validate


def graph(minReplicas: int = 1, maxReplicas: int = 0, **nodes: Any) -> Object:
    scaling = {"minReplicas": minReplicas, "maxReplicas": maxReplicas}
    return {"metadata": {"name": "pets", "namespace": "team"}, "spec": {"nodes": nodes, **scaling}}


def node(router: str, *steps: Any) -> dict[str, Any]:
    return {"routerType": router, "steps": list(steps)}


def service(name: str = "cats", address: str = "http://cats.team.svc.cluster.local", **model: Any) -> Object:
    status = {"address": {"url": address}} if address else {}
    return {"metadata": {"name": name}, "spec": {"predictor": {"model": model}}, "status": status}


STEP = {"serviceName": "cats"}


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (graph(other=node("Sequence", STEP)), "spec.nodes.root"),
        (graph(root=node("Odd", STEP)), "spec.nodes.root.routerType"),
        (graph(root=node("Sequence")), "spec.nodes.root.steps"),
        (graph(root=node("Sequence", {})), "spec.nodes.root.steps[0]"),
        (graph(root=node("Sequence", STEP | {"nodeName": "root"})), "spec.nodes.root.steps[0]"),
        (graph(root=node("Sequence", {"nodeName": "odd"})), "spec.nodes.root.steps[0].nodeName"),
        (graph(root=node("Splitter", STEP | {"weight": 90})), "spec.nodes.root.steps"),
        (graph(root=node("Sequence", STEP | {"name": "a"}, STEP | {"name": "a"})), "spec.nodes.root.steps"),
        (graph(root=node("Sequence", {"nodeName": "root"})), "spec.nodes"),
        (graph(root=node("Sequence", STEP)) | {"metadata": {"name": "1pet"}}, "metadata.name"),
        (graph(root=node("Sequence", STEP), minReplicas=3, maxReplicas=2), "spec.maxReplicas"),
    ],
)
def test_a_bad_graph_is_refused_with_its_field(bad: Object, field: str) -> None:
    assert field in [error.field for error in validate(bad, None)]


def test_a_good_graph_is_not_refused() -> None:
    nodes = {"root": node("Switch", STEP, {"nodeName": "next"}), "next": node("Splitter", STEP | {"weight": 100})}
    assert validate(graph(**nodes), None) == []


def test_services_become_addresses() -> None:
    given = graph(root=node("Sequence", STEP, {"serviceUrl": "http://else/x"}))
    spec = resolve(given, lambda _: service(protocolVersion="v2", args=["--model_name=tabby"]))
    urls = [step["serviceUrl"] for step in spec["nodes"]["root"]["steps"]]
    assert urls == ["http://cats.team.svc.cluster.local/v2/models/tabby/infer", "http://else/x"]
    assert "serviceUrl" not in given["spec"]["nodes"]["root"]["steps"][0]
    assert predict_path(service("dogs")) == "/v1/models/dogs:predict"
    router = render_router(given, spec)
    (container,) = router["spec"]["template"]["spec"]["containers"]
    assert json.loads(container["args"][1])["nodes"] == spec["nodes"]


@pytest.mark.parametrize(("found", "said"), [(None, "does not exist"), (service(address=""), "no address yet")])
def test_a_service_that_is_missing_is_named(found: Object | None, said: str) -> None:
    with pytest.raises(MissingServiceError, match=said):
        resolve(graph(root=node("Sequence", STEP)), lambda _: found)
