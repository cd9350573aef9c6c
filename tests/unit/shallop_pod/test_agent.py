"""The agent's batches and events; component and sink are played by functions."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Mapping
from typing import Any

import pytest

from shallop_pod.agent import Answer, Batcher, Logger, parse_options


class Component:
    """Adds one to every instance; remembers what it was asked, path by path."""

    def __init__(self, status: int = 200) -> None:
        self.asked: list[tuple[str, list[Any]]] = []
        self.status = status

    def __call__(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        instances = json.loads(body)["instances"]
        self.asked.append((path, instances))
        predictions = [value + 1 for value in instances]
        return Answer(self.status, (), json.dumps({"predictions": predictions}).encode())


def together(batcher: Batcher, *requests: tuple[str, list[int]]) -> list[dict[str, Any]]:
    """Send requests at once; returns the answers in their order."""
    answers: list[Answer | None] = [None] * len(requests)

    def send(index: int) -> None:
        path, instances = requests[index]
        answers[index] = batcher.predict(path, {}, instances)

    threads = [threading.Thread(target=send, args=(index,)) for index in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [json.loads(answer.body) | {"status": answer.status} for answer in answers if answer]


def test_a_full_batch_goes_at_once_and_everybody_gets_their_own_part() -> None:
    component = Component()
    answers = together(Batcher(4, 60.0, component), ("/p", [1, 2]), ("/p", [10, 20]))
    assert len(component.asked) == 1
    assert [answer["predictions"] for answer in answers] == [[2, 3], [11, 21]]
    assert len({answer["batchId"] for answer in answers}) == 1


def test_a_lone_request_goes_after_its_latency() -> None:
    component = Component()
    assert together(Batcher(32, 0.01, component), ("/p", [1]))[0]["predictions"] == [2]


def test_paths_are_not_mixed() -> None:
    component = Component()
    together(Batcher(2, 60.0, component), ("/a", [1]), ("/b", [2]), ("/a", [3]), ("/b", [4]))
    assert sorted(path for path, _ in component.asked) == ["/a", "/b"]


@pytest.mark.parametrize("status", [400, 503])
def test_a_batch_that_fails_answers_as_the_component_did(status: int) -> None:
    answers = together(Batcher(2, 60.0, Component(status)), ("/p", [1]), ("/p", [2]))
    assert [answer["status"] for answer in answers] == [status, status]


def test_a_component_that_answers_with_too_few_predictions_is_found_out() -> None:
    def few(*_: Any) -> Answer:
        return Answer(200, (), b'{"predictions": []}')

    assert together(Batcher(1, 60.0, few), ("/p", [1]))[0]["status"] == 502


def options(*more: str) -> Any:
    return parse_options(
        ["--log-url", "http://127.0.0.1:9", "--inference-service", "iris", "--namespace", "team", *more]
    )


def test_events_say_whose_they_are() -> None:
    given = options("--metadata-headers", "X-Team, x-none", "--log-annotations", '{"a": "b"}')
    event = Logger(given).render("request", "7", {"x-team": "blue"}, "application/json")
    assert event["ce-type"] == "org.kubeflow.serving.inference.request"
    assert (event["ce-id"], event["ce-inferenceservicename"], event["ce-namespace"]) == ("7", "iris", "team")
    assert json.loads(event["ce-metadata"]) == {"x-team": ["blue"]}
    assert json.loads(event["ce-annotations"]) == {"a": "b"}


def test_events_of_another_mode_and_those_too_many_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Logger, "_send", lambda _: None)
    logger = Logger(options("--log-mode", "response"))
    logger.log("request", "1", {}, "", b"")
    assert logger.dropped == 0
    monkeypatch.setattr(logger, "_events", queue.Queue(1))
    for _ in range(3):
        logger.log("response", "1", {}, "", b"")
    assert logger.dropped == 2


class Tensors:
    """A V2 component: two outputs, the sum of each row and the row doubled."""

    def __init__(self) -> None:
        self.asked: list[Any] = []

    def __call__(self, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Answer:
        payload = json.loads(body)
        self.asked.append(payload)
        (tensor,) = payload["inputs"]
        rows, width = tensor["shape"]
        data = tensor["data"]
        sums = [sum(data[start : start + width]) for start in range(0, rows * width, width)]
        outputs = [
            {"name": "sum", "datatype": "INT64", "shape": [rows], "data": sums},
            {"name": "double", "datatype": "INT64", "shape": [rows, width], "data": [2 * value for value in data]},
        ]
        answer = {"model_name": "m", "id": payload.get("id", "theirs"), "outputs": outputs}
        return Answer(200, (), json.dumps(answer).encode())


def tensor(data: Any, shape: list[int], **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "x", "datatype": "INT64", "shape": shape, "data": data}], **more}


def infer(batcher: Batcher, *payloads: dict[str, Any]) -> list[Any]:
    answers: list[Any] = [None] * len(payloads)

    def send(index: int) -> None:
        answers[index] = batcher.infer("/v2/models/m/infer", {}, payloads[index])

    threads = [threading.Thread(target=send, args=(index,)) for index in range(len(payloads))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [answer and json.loads(answer.body) for answer in answers]


def test_tensors_are_put_together_by_rows_and_taken_apart_again() -> None:
    component = Tensors()
    first, second = infer(
        Batcher(3, 60.0, component), tensor([1, 2, 3, 4], [2, 2], id="a"), tensor([[5, 6]], [1, 2], id="b")
    )
    assert len(component.asked) == 1
    assert component.asked[0]["inputs"][0]["shape"] == [3, 2]
    assert [(output["shape"], output["data"]) for output in first["outputs"]] == [
        ([2], [3, 7]),
        ([2, 2], [2, 4, 6, 8]),
    ]
    assert [(output["shape"], output["data"]) for output in second["outputs"]] == [([1], [11]), ([1, 2], [10, 12])]
    assert (first["id"], second["id"], first["model_name"]) == ("a", "b", "m")


def test_tensors_of_another_kind_are_not_mixed() -> None:
    component = Tensors()
    infer(Batcher(2, 0.01, component), tensor([1, 2], [1, 2]), tensor([1, 2, 3], [1, 3]), tensor([1, 2], [1, 2], a=1))
    assert len(component.asked) == 3


@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"inputs": []},
        tensor([1, 2], [2, 2]),
        tensor([1, 2], [0, 2]),
        tensor("12", [1, 2]),
        tensor([1], ["1"]),
        {"inputs": [{"name": "x", "datatype": "FP64", "shape": [1], "parameters": {"binary_data_size": 8}}]},
    ],
)
def test_what_is_no_batch_of_json_is_the_components_to_judge(payload: dict[str, Any]) -> None:
    assert infer(Batcher(1, 60.0, Tensors()), payload) == [None]
