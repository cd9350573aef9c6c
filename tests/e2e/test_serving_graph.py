"""Components that ask each other: a transformer and an explainer before a predictor, a graph over services."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

DEADLINE_S = 90.0
MODELS = Path(__file__).parents[1] / "unit" / "serving" / "models"
# Adds ADD to each instance; as a transformer or an explainer it asks the predictor that its arguments name.
PROGRAM = """
import argparse, http.server, json, os, urllib.request
parser = argparse.ArgumentParser()
for name in ("--model_name", "--predictor_host", "--http_port"):
    parser.add_argument(name)
options, _ = parser.parse_known_args()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        answer = {"predictions": [value + int(os.environ["ADD"]) for value in body["instances"]]}
        if options.predictor_host:
            url = f"http://{options.predictor_host}/v1/models/{options.model_name}:predict"
            request = urllib.request.Request(url, json.dumps({"instances": answer["predictions"]}).encode())
            answer = json.load(urllib.request.urlopen(request, timeout=60))
            answer["through"] = [self.path, *answer.get("through", [])]
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("0.0.0.0", int(options.http_port or 8080)), Handler).serve_forever()
"""

pytestmark = pytest.mark.timeout(240)


def until(check: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (result := check()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:.0f} s: {what}; last: {result!r}"
        time.sleep(0.1)
    return result


def component(add: int, **fields: Any) -> dict[str, Any]:
    container = {"image": "python:3.11", "command": ["python3", "-c", PROGRAM]}
    return {"containers": [container | {"env": [{"name": "ADD", "value": str(add)}]}], **fields}


def service(name: str, **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "annotations": {"autoscaling.knative.dev/window": "6s"}}
    return {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": metadata, "spec": spec}


def ask(url: str, body: Any) -> tuple[int, Any]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture
def namespace(platform: Any, kubectl: str) -> Iterator[str]:
    name = f"graph-{time.time_ns()}"
    platform.kubectl("create", "namespace", name)
    yield name
    platform.kubectl("delete", "namespace", name, "--wait=false")


def test_a_transformer_and_an_explainer_stand_before_a_predictor_at_zero(platform: Any, namespace: str) -> None:
    spec = {"predictor": component(1, minReplicas=0), "transformer": component(10), "explainer": component(100)}
    platform.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(service("chain", **spec)))
    platform.kubectl("-n", namespace, "wait", "isvc/chain", "--for=condition=Ready", "--timeout=90s")
    shown = json.loads(platform.kubectl("-n", namespace, "get", "isvc", "chain", "-o", "json"))["status"]
    ready = {item["type"] for item in shown["conditions"] if item["status"] == "True"}
    assert {"PredictorReady", "TransformerReady", "ExplainerReady", "IngressReady", "RoutesReady"} <= ready
    assert set(shown["components"]) == {"predictor", "transformer", "explainer"}
    deployment = ["get", "deploy", "chain-predictor-00001-deployment", "-o", "jsonpath={.spec.replicas}"]
    until(lambda: platform.kubectl("-n", namespace, *deployment) == "0", "the predictor is at zero")
    predict = "/v1/models/chain:predict"
    # Through the transformer to the predictor, which the transformer's request starts.
    assert ask(shown["url"] + predict, {"instances": [5]}) == (200, {"predictions": [16], "through": [predict]})
    explain = "/v1/models/chain:explain"
    assert ask(shown["url"] + explain, {"instances": [5]}) == (200, {"predictions": [106], "through": [explain]})
    assert ask(shown["components"]["predictor"]["url"] + predict, {"instances": [5]}) == (200, {"predictions": [6]})


def test_a_graph_leads_requests_through_services(platform: Any, namespace: str) -> None:
    second = {"serviceName": "ten", "data": "$response", "mapPredictionsToInstances": True}
    sum_ = {"routerType": "Sequence", "steps": [{"serviceName": "one"}, second]}
    both = {"routerType": "Ensemble", "steps": [{"serviceName": "one", "name": "first"}, {"serviceName": "ten"}]}
    ways = [
        {"nodeName": "sum", "condition": "[@this].#(way==sum)"},
        {"nodeName": "both", "condition": "[@this].#(way==both)"},
    ]
    nodes = {"root": {"routerType": "Switch", "steps": ways}, "sum": sum_, "both": both}
    graph = {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "InferenceGraph", "metadata": {"name": "ways"}}
    manifests = [service("one", predictor=component(1)), service("ten", predictor=component(10))]
    items = [graph | {"spec": {"nodes": nodes}}, *manifests]
    listed = {"apiVersion": "v1", "kind": "List", "items": items}
    platform.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(listed))
    platform.kubectl("-n", namespace, "wait", "ig/ways", "--for=condition=Ready", "--timeout=90s")
    url = platform.kubectl("-n", namespace, "get", "ig", "ways", "-o", "jsonpath={.status.url}")
    assert ask(url, {"instances": [1], "way": "sum"}) == (200, {"predictions": [12]})
    code, body = ask(url, {"instances": [1], "way": "both"})
    assert (code, body) == (200, {"first": {"predictions": [2]}, "1": {"predictions": [11]}})
    code, body = ask(url, {"instances": [1], "way": "none"})
    assert (code, body["cause"]) == (404, "None of the routes matched with the switch condition")
    bad = graph | {"metadata": {"name": "bad"}, "spec": {"nodes": {"root": {"routerType": "Sequence"}}}}
    said = platform.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(bad), check=False)
    assert "spec.nodes.root.steps" in said


# Keeps the CloudEvents that it gets and answers with them.
SINK = """
import http.server, json
events = []
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        if "ce-id" in self.headers:
            names = ("ce-id", "ce-type", "ce-inferenceservicename", "ce-component")
            events.append([*(self.headers[name] for name in names), json.loads(body)])
        data = json.dumps({"events": events}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"""


def test_requests_are_logged_as_cloud_events_and_gathered_into_batches(platform: Any, namespace: str) -> None:
    sink = component(0)
    sink["containers"][0]["command"][2] = SINK
    logger = {"url": f"http://sink-predictor.{namespace}/", "mode": "all"}
    batcher = {"maxBatchSize": 2, "maxLatency": 20000}
    logged = service("logged", predictor=component(1, logger=logger, batcher=batcher))
    listed = {"apiVersion": "v1", "kind": "List", "items": [service("sink", predictor=sink), logged]}
    platform.kubectl("-n", namespace, "apply", "-f", "-", stdin=json.dumps(listed))
    platform.kubectl("-n", namespace, "wait", "isvc/sink", "isvc/logged", "--for=condition=Ready", "--timeout=90s")
    url = f"{platform.gateway}/serving/{namespace}/logged/v1/models/logged:predict"
    answers: list[Any] = []
    threads = [threading.Thread(target=lambda n=n: answers.append(ask(url, {"instances": [n]}))) for n in (1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(body["predictions"] for _, body in answers) == [[2], [6]]
    assert len({body["batchId"] for _, body in answers}) == 1
    at_sink = f"{platform.gateway}/serving/{namespace}/sink/"
    events = until(lambda: len(found := ask(at_sink, {})[1]["events"]) == 4 and found, "four events")
    assert {(event[2], event[3]) for event in events} == {("logged", "predictor")}
    by_id: dict[str, dict[str, Any]] = {}
    for event in events:
        by_id.setdefault(event[0], {})[event[1].rpartition(".")[2]] = event[4]
    pairs = sorted((pair["request"]["instances"], pair["response"]["predictions"]) for pair in by_id.values())
    assert pairs == [([1], [2]), ([5], [6])]
