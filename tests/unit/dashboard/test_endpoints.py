"""Rows of InferenceServices and example requests."""

from __future__ import annotations

from typing import Any

import pytest

from shallop.dashboard.endpoints import count_pods, endpoint_rows, example_request, predict_path


def service(name: str, **status: Any) -> dict[str, Any]:
    model = {"modelFormat": {"name": "sklearn"}, "storageUri": "/models/iris"}
    return {
        "metadata": {"namespace": "team", "name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"predictor": {"model": model}},
        "status": status,
    }


def ready(status: str, reason: str = "", message: str = "") -> list[dict[str, str]]:
    return [{"type": "Ready", "status": status, "reason": reason, "message": message}]


def pod(name: str, service: str, phase: str = "Running", restarts: int = 0) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "team", "name": name, "labels": {"serving.kserve.io/inferenceservice": service}},
        "status": {
            "phase": phase,
            "conditions": [{"type": "Ready", "status": "True"}],
            "initContainerStatuses": [{"restartCount": restarts}],
            "containerStatuses": [{"restartCount": 1}],
        },
    }


def test_a_row_has_what_a_table_shows() -> None:
    found = service("iris", url="http://gateway/serving/team/iris", conditions=ready("True"))
    (row,) = endpoint_rows([found], [pod("iris-1", "iris", restarts=2), pod("other-1", "other")])
    assert row["ready"] == "True"
    assert row["url"] == "http://gateway/serving/team/iris"
    assert (row["format"], row["storage"]) == ("sklearn", "/models/iris")
    assert row["pods"] == [{"name": "iris-1", "phase": "Running", "ready": True, "restarts": 3}]


def test_a_new_service_is_unknown_and_rows_are_in_order() -> None:
    rows = endpoint_rows([service("b"), service("a")], [])
    assert [(row["name"], row["ready"], row["message"]) for row in rows] == [("a", "Unknown", ""), ("b", "Unknown", "")]


def test_what_the_container_said_is_part_of_the_reason() -> None:
    failed = service(
        "iris",
        conditions=ready("False", "ModelLoadFailed", "container ended with code 1: see its log"),
        modelStatus={"lastFailureInfo": {"message": "Traceback\nValueError: bad pickle"}},
    )
    (row,) = endpoint_rows([failed], [])
    assert row["message"].startswith("container ended with code 1")
    assert "bad pickle" in row["message"]


def test_a_reason_is_not_said_twice() -> None:
    failed = service(
        "iris", conditions=ready("False", "X", "no file"), modelStatus={"lastFailureInfo": {"message": "no file"}}
    )
    assert endpoint_rows([failed], [])[0]["message"] == "no file"


def test_deleted_pods_are_left_out() -> None:
    leaving = pod("iris-1", "iris")
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert endpoint_rows([service("iris")], [leaving])[0]["pods"] == []


def test_pods_are_counted_by_phase() -> None:
    pods = [pod("a", "x"), pod("b", "x", "Failed"), pod("c", "x", "Succeeded"), {"metadata": {"name": "d"}}]
    assert count_pods(pods) == {"total": 4, "running": 1, "pending": 1, "failed": 1}


def test_paths_of_both_protocols() -> None:
    assert predict_path("v1", "iris") == "/v1/models/iris:predict"
    assert predict_path("v2", "iris") == "/v2/models/iris/infer"


METADATA = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 3]}]}


def test_an_example_has_the_shape_that_the_model_tells() -> None:
    assert example_request("v1", METADATA) == {"instances": [[0.0] * 3, [0.0] * 3]}
    assert example_request("v2", METADATA) == {
        "inputs": [{"name": "x", "shape": [2, 3], "datatype": "FP32", "data": [0.0] * 6}]
    }


def test_columns_of_their_own_become_fields() -> None:
    columns = {
        "inputs": [{"name": "a", "datatype": "INT64", "shape": [-1]}, {"name": "b", "datatype": "BYTES", "shape": [-1]}]
    }
    assert example_request("v1", columns) == {"instances": [{"a": 0, "b": ""}]}


@pytest.mark.parametrize("metadata", [None, {}, {"inputs": []}])
def test_a_model_that_tells_nothing_gets_the_usual_shape(metadata: dict[str, Any] | None) -> None:
    assert example_request("v1", metadata) == {"instances": [[0.0] * 4] * 2}
    assert example_request("v2", metadata)["inputs"][0]["shape"] == [2, 4]


def test_an_example_of_a_large_tensor_has_one_row() -> None:
    image = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, 28, 28]}]}
    tensor = example_request("v2", image)["inputs"][0]
    assert tensor["shape"] == [1, 28, 28]
    assert len(tensor["data"]) == 784
