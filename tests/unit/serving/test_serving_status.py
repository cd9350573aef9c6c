"""The status that clients read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from shallop.kube.objects import Object, find_condition
from shallop.serving.status import (
    Component,
    Failure,
    Observed,
    blocked_status,
    find_failure,
    merge_status,
    render_status,
    stopped_status,
)

NOW = datetime(2026, 1, 2, tzinfo=UTC)
TRACE = "Traceback (most recent call last):\n  ...\nValueError: node array is of another version\n"


def service(**status: Any) -> Object:
    return {"metadata": {"name": "iris", "namespace": "team", "generation": 4}, "spec": {}, "status": status}


def deployment(*, available: bool = False, updated: int = 1, **conditions: tuple[str, str]) -> Object:
    listed = [{"type": "Available", "status": "True" if available else "False"}]
    listed += [{"type": name, "status": value, "message": text} for name, (value, text) in conditions.items()]
    counts = {"replicas": 1, "updatedReplicas": updated, "availableReplicas": 1 if available else 0}
    return {
        "kind": "Deployment",
        "metadata": {
            "name": "iris-predictor",
            "generation": 2,
            "annotations": {"deployment.kubernetes.io/revision": "2"},
        },
        "spec": {"replicas": 1},
        "status": {"observedGeneration": 2, "conditions": listed, **counts},
    }


def pod(*, initial: bool = False, ready: bool = False, name: str = "iris-1", **container: Any) -> Object:
    key = "initContainerStatuses" if initial else "containerStatuses"
    status = {"name": "storage-initializer" if initial else "kserve-container", "ready": ready, **container}
    ready_condition = {"type": "Ready", "status": "True" if ready else "False"}
    return {
        "metadata": {"name": name},
        "status": {"phase": "Running", key: [status], "conditions": [ready_condition]},
    }


def ended(message: str, code: int = 1) -> dict[str, Any]:
    return {
        "terminated": {"exitCode": code, "message": message, "finishedAt": "2026-01-01T00:00:00Z", "reason": "Error"}
    }


def status_of(
    deployment_: Object, *pods: Object, old: Object | None = None, reachable: bool = True, **route: Any
) -> dict[str, Any]:
    runtime = {"kind": "ClusterServingRuntime", "metadata": {"name": "kserve-sklearnserver"}}
    routes = [{"metadata": {"name": "iris"}, "status": route}]
    slices = [{"endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": reachable}}]}]
    predictor = Component(deployment_, pods, slices, "http://g/serving/team/iris-predictor", "http://iris-predictor")
    observed = Observed({"predictor": predictor}, routes, runtime, "http://g/serving/team/iris")
    return render_status(old or service(), observed, NOW)


def condition(status: dict[str, Any], type_: str) -> tuple[str, str, str]:
    found = find_condition({"status": status}, type_) or {}
    return found.get("status", ""), found.get("reason", ""), found.get("message", "")


def test_a_service_whose_deployment_is_available_is_ready() -> None:
    status = status_of(deployment(available=True), pod(ready=True, state={"running": {}}))
    assert [item["type"] for item in status["conditions"]] == ["IngressReady", "PredictorReady", "Ready", "Stopped"]
    assert condition(status, "Ready") == ("True", "", "")
    assert condition(status, "Stopped")[0] == "False"
    assert status["url"] == "http://g/serving/team/iris"
    assert status["address"] == {"url": "http://iris-predictor"}
    assert (status["observedGeneration"], status["clusterServingRuntimeName"]) == (4, "kserve-sklearnserver")
    assert status["components"]["predictor"]["latestReadyRevision"] == "2"
    assert status["modelStatus"] == {
        "transitionStatus": "UpToDate",
        "states": {"activeModelState": "Loaded", "targetModelState": "Loaded"},
        "copies": {"failedCopies": 0, "totalCopies": 1},
    }


def test_a_starting_service_says_what_it_waits_for() -> None:
    waiting = {"waiting": {"reason": "ContainerCreating", "message": "building the environment"}}
    status = status_of(deployment(), pod(state=waiting))
    assert condition(status, "Ready") == (
        "Unknown",
        "Progressing",
        "Pod iris-1, container kserve-container: building the environment",
    )
    assert status["modelStatus"]["states"] == {"activeModelState": "", "targetModelState": "Loading"}
    assert status_of(deployment())["modelStatus"]["states"]["targetModelState"] == "Pending"


def test_a_service_at_zero_is_ready_and_its_model_pending() -> None:
    status = status_of(deployment(available=True))
    assert condition(status, "Ready") == ("True", "", "")
    assert status["modelStatus"] == {
        "transitionStatus": "InProgress",
        "states": {"activeModelState": "Loaded", "targetModelState": "Pending"},
        "copies": {"failedCopies": 0, "totalCopies": 0},
    }


def test_a_model_that_cannot_be_loaded_is_told_in_its_own_last_words() -> None:
    crashed = pod(state={"waiting": {"reason": "CrashLoopBackOff"}}, lastState=ended(TRACE))
    status = status_of(deployment(), crashed)
    expected = "Pod iris-1, container kserve-container ended with code 1: ValueError: node array is of another version"
    assert condition(status, "PredictorReady") == ("False", "ModelLoadFailed", expected)
    assert condition(status, "Ready") == ("False", "ModelLoadFailed", expected)
    assert status["modelStatus"]["transitionStatus"] == "BlockedByFailedLoad"
    assert status["modelStatus"]["states"]["targetModelState"] == "FailedToLoad"
    assert status["modelStatus"]["lastFailureInfo"] == {
        "reason": "ModelLoadFailed",
        "message": TRACE.strip(),
        "location": "iris-1",
        "exitCode": 1,
        "time": "2026-01-01T00:00:00Z",
    }


def test_a_model_that_cannot_be_fetched_is_told_from_one_that_cannot_be_loaded() -> None:
    status = status_of(deployment(), pod(initial=True, state=ended("/models/x does not exist")))
    assert condition(status, "Ready")[1:] == (
        "StorageInitializerFailed",
        "Pod iris-1, container storage-initializer ended with code 1: /models/x does not exist",
    )


def test_an_image_without_environment_is_told() -> None:
    waiting = {"waiting": {"reason": "ErrImagePull", "message": "no local environment for image 'acme/x'"}}
    status = status_of(deployment(), pod(state=waiting))
    assert condition(status, "Ready")[1] == "ErrImagePull"
    assert "no local environment for image 'acme/x'" in condition(status, "Ready")[2]
    assert status["modelStatus"]["lastFailureInfo"]["reason"] == "RuntimeUnhealthy"


def test_a_bad_update_leaves_the_service_ready_and_says_that_it_is_blocked() -> None:
    bad = pod(name="iris-2", state=ended(TRACE))
    status = status_of(deployment(available=True, updated=0), pod(ready=True, state={"running": {}}), bad)
    assert condition(status, "Ready")[0] == "True"
    assert status["modelStatus"]["transitionStatus"] == "BlockedByFailedLoad"
    assert status["modelStatus"]["states"] == {"activeModelState": "Loaded", "targetModelState": "FailedToLoad"}
    assert status["modelStatus"]["copies"] == {"failedCopies": 1, "totalCopies": 1}
    assert "latestReadyRevision" not in status["components"]["predictor"]


def test_a_restarted_container_that_runs_is_no_failure() -> None:
    assert find_failure([pod(ready=True, state={"running": {}}, lastState=ended(TRACE))]) is None
    assert find_failure([pod(state=ended("", code=0))]) is None
    leaving = pod(state=ended(TRACE))
    leaving["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert find_failure([leaving]) is None


def test_a_container_that_is_tried_again_has_still_failed() -> None:
    failure = find_failure([pod(state={"running": {}}, lastState=ended(TRACE))])
    assert failure is not None
    assert failure.exit_code == 1
    assert find_failure([pod(state={"waiting": {"reason": "BuildingEnvironment"}})]) is None


def test_a_deployment_that_gave_up_is_not_ready() -> None:
    status = status_of(deployment(Progressing=("False", "took too long")))
    assert condition(status, "Ready") == ("False", "Progressing", "took too long")


def test_a_route_that_the_gateway_refuses_is_told() -> None:
    refused = {"type": "Accepted", "status": "False", "reason": "NoGateway", "message": "no such gateway"}
    status = status_of(deployment(available=True), parents=[{"conditions": [refused]}])
    assert condition(status, "IngressReady") == ("False", "NoGateway", "HTTPRoute iris: no such gateway")
    assert condition(status, "Ready")[0] == "False"


def test_a_service_is_not_ready_before_the_gateway_can_reach_it() -> None:
    status = status_of(deployment(available=True), reachable=False)
    assert condition(status, "PredictorReady")[0] == "True"
    assert condition(status, "Ready")[:2] == ("Unknown", "NoReadyEndpoint")


def test_a_blocked_service_keeps_its_address() -> None:
    failure = Failure("NoSupportingRuntime", "no runtime serves x", "NoSupportingRuntime")
    status = blocked_status(service(url="http://old"), failure, NOW, transition="InvalidSpec")
    assert status["url"] == "http://old"
    assert condition(status, "Ready") == ("False", "NoSupportingRuntime", "no runtime serves x")
    assert status["modelStatus"]["lastFailureInfo"]["reason"] == "NoSupportingRuntime"


def test_a_stopped_service_says_so() -> None:
    status = stopped_status(service(url="http://old"), NOW)
    assert condition(status, "Stopped")[0] == "True"
    assert condition(status, "PredictorReady")[:2] == ("False", "Stopped")
    assert "url" not in status


def test_transition_times_move_with_the_status_only() -> None:
    old = service(conditions=[{"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}])
    status = status_of(deployment(available=True), old=old)
    times = {item["type"]: item["lastTransitionTime"] for item in status["conditions"]}
    assert times["Ready"] == "2020-01-01T00:00:00Z"
    assert times["PredictorReady"] == "2026-01-02T00:00:00Z"


def test_what_is_gone_from_the_status_is_removed() -> None:
    old = {"url": "u", "modelStatus": {"lastFailureInfo": {"a": 1}, "copies": {"x": 1}}}
    patch = merge_status(old, {"modelStatus": {"copies": {"x": 2}}})
    assert patch == {"url": None, "modelStatus": {"lastFailureInfo": None, "copies": {"x": 2}}}
