"""Rows of training jobs and of searches for parameters."""

from __future__ import annotations

from typing import Any

import pytest

from shallop.dashboard.jobs import job_rows, search_row, trial_rows

Object = dict[str, Any]


def declared(kind: str, name: str, *conditions: str, owner: str = "", at: int = 0, **fields: Any) -> Object:
    metadata: Object = {"namespace": "team", "name": name, "uid": name, "creationTimestamp": f"2026-01-01T00:00:0{at}Z"}
    if owner:
        metadata["ownerReferences"] = [{"kind": owner, "name": "s", "uid": "s", "controller": True}]
    status = fields.pop("status", {})
    listed = [{"type": type_, "status": "True", "message": f"it is {type_}"} for type_ in conditions]
    return {
        "kind": kind,
        "metadata": metadata | fields.pop("metadata", {}),
        "status": {**status, "conditions": listed},
    } | fields


def pod(job: str, name: str, phase: str = "Running") -> Object:
    labels = {"jobset.sigs.k8s.io/jobset-name": job}
    return {"metadata": {"namespace": "team", "name": name, "labels": labels}, "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("conditions", "pods", "state"),
    [
        ((), [], "PENDING"),
        ((), ["Pending"], "PENDING"),
        ((), ["Running"], "RUNNING"),
        (("Created", "Running"), [], "RUNNING"),
        (("Suspended",), [], "SUSPENDED"),
        (("Complete",), [], "SUCCEEDED"),
        (("Failed",), ["Running"], "FAILED"),
    ],
)
def test_the_state_of_a_job(conditions: tuple[str, ...], pods: list[str], state: str) -> None:
    job = declared("TrainJob", "a", *conditions)
    (row,) = job_rows([job], [pod("a", f"a-{phase}", phase) for phase in pods])
    assert row["state"] == state
    assert row["message"] == (f"it is {conditions[0]}" if state in ("FAILED", "SUSPENDED") else "")


def test_a_job_shows_its_pods_and_what_it_has_pushed() -> None:
    progress = {"progressPercentage": 40, "estimatedRemainingSeconds": 9, "metrics": [{"name": "loss", "value": "0.5"}]}
    runtime = {"spec": {"runtimeRef": {"name": "torch-distributed"}}}
    jobs = [declared("TrainJob", "a", status={"trainerStatus": progress}, **runtime), declared("TFJob", "b", at=1)]
    newest, oldest = job_rows(jobs, [pod("a", "a-1"), pod("a", "a-0"), pod("other", "x")])
    assert (newest["name"], newest["pods"], newest["progress"]) == ("b", [], None)
    assert [found["name"] for found in oldest["pods"]] == ["a-0", "a-1"]
    assert (oldest["runtime"], oldest["progress"], oldest["left_s"]) == ("torch-distributed", 40, 9)
    assert oldest["metrics"] == [{"name": "loss", "value": 0.5}]


def test_trials_are_not_among_the_jobs() -> None:
    jobs = [declared("TrainJob", "t", owner="OptimizationJob"), declared("TFJob", "u", owner="Trial")]
    assert job_rows(jobs, []) == []


def trial(name: str, value: str, *conditions: str, at: int = 0, strategy: str = "latest") -> Object:
    objective = {"objectiveMetricName": "loss", "metricStrategies": [{"name": "loss", "value": strategy}]}
    spec = {"objective": objective, "parameterAssignments": [{"name": "x", "value": name}]}
    observed = {"observation": {"metrics": [{"name": "loss", "latest": value, "min": "-9", "max": "9"}]}}
    return declared("Trial", name, *conditions, at=at, spec=spec, status=observed)


def test_an_experiment_shows_its_best_trial_and_how_far_it_is() -> None:
    spec = {
        "objective": {"type": "minimize", "objectiveMetricName": "loss", "goal": 0.1},
        "algorithm": {"algorithmName": "tpe"},
        "maxTrialCount": 6,
    }
    trials = [
        trial("2", "0.2", "Succeeded", at=1),
        trial("1", "0.7", "Succeeded"),
        trial("3", "unavailable", "MetricsUnavailable", at=2),
        trial("4", "0.9", "EarlyStopped", at=3),
        trial("5", "nan", "Running", at=4),
    ]
    row = search_row(declared("Experiment", "s", "Created", "Running", spec=spec), trials)
    assert (row["state"], row["algorithm"], row["metric"], row["goal"], row["wanted"]) == (
        "RUNNING",
        "tpe",
        "loss",
        0.1,
        6,
    )
    assert row["trials"] == {"succeeded": 2, "running": 1, "failed": 1, "stopped": 1, "total": 5}
    assert (row["best"]["name"], row["best"]["value"], row["best"]["parameters"]) == ("2", 0.2, {"x": "2"})


def test_the_strategy_of_a_metric_chooses_its_value_and_trials_are_in_order() -> None:
    search = declared("Experiment", "s", spec={"objective": {"type": "maximize", "objectiveMetricName": "loss"}})
    rows = trial_rows(search, [trial("b", "1", at=2, strategy="max"), trial("a", "1", at=1, strategy="min")])
    assert [(row["name"], row["value"]) for row in rows] == [("a", -9.0), ("b", 9.0)]
    assert search_row(search, [])["best"] is None


def test_an_optimizationjob_has_trainjobs_as_trials() -> None:
    pushed = {"trainerStatus": {"metrics": [{"name": "accuracy", "value": "0.9"}]}}
    notes = {"annotations": {"tuning.shallop.dev/assignments": '{"lr": "0.1"}'}}
    job = declared("TrainJob", "s-trial-1", "Complete", owner="OptimizationJob", status=pushed, metadata=notes)
    spec = {
        "objectives": [{"metric": "accuracy", "direction": "Maximize"}],
        "numTrials": 3,
        "searchAlgorithm": {"grid": {}},
    }
    row = search_row(declared("OptimizationJob", "s", spec=spec), [job])
    assert (row["algorithm"], row["maximize"], row["wanted"], row["best"]["value"]) == ("grid", True, 3, 0.9)
    assert row["best"]["parameters"] == {"lr": "0.1"}
