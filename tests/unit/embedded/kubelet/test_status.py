"""The status of Pods, computed from what their containers do."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from shallop.embedded.kubelet.sandbox import Ended
from shallop.embedded.kubelet.status import ContainerRecord, render_status, terminated_state
from shallop.kube.objects import Object

NOW = datetime(2026, 1, 1, tzinfo=UTC)
POD: Object = {"metadata": {"name": "p", "namespace": "team", "uid": "u", "generation": 2}, "spec": {}}


def record(name: str = "main", **fields: Any) -> ContainerRecord:
    return ContainerRecord(name, "python", **fields)


def ended(code: int, signal: int | None = None, message: str = "") -> dict[str, Any]:
    return terminated_state(Ended("main-0", code, signal, 100.0, 101.0), "u", message)


def status(*records: ContainerRecord, **options: Any) -> dict[str, Any]:
    return render_status(POD, records, address="10.244.0.2", start_time="2026-01-01T00:00:00Z", now=NOW, **options)


def condition(rendered: dict[str, Any], name: str) -> dict[str, Any]:
    return next(c for c in rendered["conditions"] if c["type"] == name)


RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def test_a_pod_runs_while_a_container_runs() -> None:
    found = status(record(state=RUNNING, ready=True, started=True))
    assert found["phase"] == "Running" and condition(found, "Ready")["status"] == "True"
    assert found["podIP"] == "10.244.0.2"
    unready = status(record(state=RUNNING), record("side", state=RUNNING, ready=True))
    assert condition(unready, "Ready")["message"] == "containers with unready status: [main]"


def test_a_pod_is_over_when_all_containers_are() -> None:
    good, bad = record(state=ended(0), finished=True), record("other", state=ended(3), finished=True)
    assert status(good)["phase"] == "Succeeded"
    assert condition(status(good), "Ready")["reason"] == "PodCompleted"
    assert status(good, bad)["phase"] == "Failed"
    assert condition(status(good, bad), "Ready")["reason"] == "PodFailed"
    assert status(good, record("more", state=RUNNING))["phase"] == "Running"


def test_a_container_that_will_run_again_is_no_end() -> None:
    assert status(record(state=ended(1), restarts=1))["phase"] == "Running"


def test_init_containers_hold_the_others_back() -> None:
    waiting = record(state={"waiting": {"reason": "PodInitializing"}})
    found = status(record("first", init=True, state=RUNNING), waiting)
    assert found["phase"] == "Pending"
    assert condition(found, "Initialized")["message"] == "containers with incomplete status: [first]"
    failed = status(record("first", init=True, state=ended(5), finished=True), waiting)
    assert failed["phase"] == "Failed"
    side = record("side", init=True, sidecar=True, state=RUNNING, started=True)
    assert condition(status(side, record(state=RUNNING, ready=True)), "Initialized")["status"] == "True"


def test_reasons_of_ends() -> None:
    assert ended(0)["terminated"]["reason"] == "Completed"
    assert ended(1)["terminated"]["reason"] == "Error"
    assert ended(128)["terminated"]["reason"] == "StartError"
    assert ended(137, 9)["terminated"]["signal"] == 9
    assert len(ended(1, message="x" * 9000)["terminated"]["message"]) == 4096


def test_a_verdict_overrides_what_containers_say() -> None:
    found = status(record(state=ended(137, 9)), phase="Failed", reason="DeadlineExceeded", message="too long")
    assert (found["phase"], found["reason"], found["message"]) == ("Failed", "DeadlineExceeded", "too long")
