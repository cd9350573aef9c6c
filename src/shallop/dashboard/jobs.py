"""Training jobs and searches for parameters as rows of tables. Pure."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shallop.dashboard.endpoints import pod_row
from shallop.kube.objects import (
    Gvk,
    Object,
    annotations_of,
    controller_of,
    find_condition,
    is_condition_true,
    is_deleting,
    labels_of,
)

__all__ = [
    "EXPERIMENT",
    "OPTIMIZATIONJOB",
    "TRAINING_KINDS",
    "TRAINJOB",
    "TRIAL",
    "job_rows",
    "search_row",
    "trial_rows",
]

TRAINJOB = Gvk("trainer.kubeflow.org/v1alpha1", "TrainJob")
OPTIMIZATIONJOB = Gvk("trainer.kubeflow.org/v1alpha1", "OptimizationJob")
EXPERIMENT, TRIAL = Gvk("kubeflow.org/v1beta1", "Experiment"), Gvk("kubeflow.org/v1beta1", "Trial")
_CLASSIC = ("PyTorchJob", "TFJob", "XGBoostJob", "MPIJob", "JAXJob", "PaddleJob")
# Each with the name of its plural, which permissions speak of.
TRAINING_KINDS = {TRAINJOB: "trainjobs"} | {Gvk("kubeflow.org/v1", kind): f"{kind.lower()}s" for kind in _CLASSIC}
_POD_LABELS = ("jobset.sigs.k8s.io/jobset-name", "training.kubeflow.org/job-name")
_ASSIGNMENTS = "tuning.shallop.dev/assignments"
# The first that holds decides.
_STATES = {
    "Failed": "FAILED",
    "Killed": "CANCELED",
    "Complete": "SUCCEEDED",
    "Succeeded": "SUCCEEDED",
    "EarlyStopped": "CANCELED",
    "MetricsUnavailable": "FAILED",
    "Suspended": "SUSPENDED",
    "Running": "RUNNING",
}
_OVER = ("FAILED", "SUCCEEDED", "CANCELED")


def job_rows(jobs: Iterable[Object], pods: Iterable[Object]) -> list[dict[str, Any]]:
    """Return one row for each training job that is not a trial of a search, the newest first."""
    by_job: dict[tuple[str, str], list[Object]] = {}
    for pod in pods:
        name = next((labels_of(pod)[label] for label in _POD_LABELS if label in labels_of(pod)), "")
        if name and not is_deleting(pod):
            by_job.setdefault((pod["metadata"]["namespace"], name), []).append(pod)
    rows = [
        _job_row(job, by_job.get((job["metadata"]["namespace"], job["metadata"]["name"]), []))
        for job in jobs
        if (controller_of(job) or {}).get("kind") not in (TRIAL.kind, OPTIMIZATIONJOB.kind)
    ]
    return sorted(rows, key=lambda row: str(row["created_at"]), reverse=True)


def _job_row(job: Object, pods: Sequence[Object]) -> dict[str, Any]:
    spec, progress = job.get("spec") or {}, (job.get("status") or {}).get("trainerStatus") or {}
    row = _common(job, running=any((pod.get("status") or {}).get("phase") == "Running" for pod in pods))
    return row | {
        "runtime": (spec.get("runtimeRef") or {}).get("name", ""),
        "progress": progress.get("progressPercentage"),
        "left_s": progress.get("estimatedRemainingSeconds"),
        "metrics": [
            {"name": str(metric.get("name", "")), "value": _number(metric.get("value"))}
            for metric in progress.get("metrics") or ()
        ],
        "pods": [pod_row(pod) for pod in sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))],
    }


def _common(obj: Object, *, running: bool = False) -> dict[str, Any]:
    metadata, status = obj["metadata"], obj.get("status") or {}
    type_ = next((name for name in _STATES if is_condition_true(obj, name)), "")
    condition = find_condition(obj, type_) or {}
    state = _STATES.get(type_) or ("RUNNING" if running else "PENDING")
    ended = status.get("completionTime") or (condition.get("lastTransitionTime") if state in _OVER else "")
    return {
        "kind": obj["kind"],
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "state": state,
        "message": str(condition.get("message") or "") if state in ("FAILED", "SUSPENDED") else "",
        "created_at": metadata.get("creationTimestamp", ""),
        "started_at": status.get("startTime") or metadata.get("creationTimestamp", ""),
        "ended_at": ended or "",
    }


def search_row(search: Object, trials: Sequence[Object]) -> dict[str, Any]:
    """
    Return what a table of searches shows of an Experiment or an OptimizationJob.

    Args:
        trials: its Trials, or its TrainJobs.
    """
    rows = trial_rows(search, trials)
    spec = search.get("spec") or {}
    metric, maximize, goal = _objective(search)
    ended = [row for row in rows if row["value"] is not None]
    best = (max if maximize else min)(ended, key=lambda row: row["value"]) if ended else None
    algorithm = (spec.get("algorithm") or {}).get("algorithmName") or next(iter(spec.get("searchAlgorithm") or {}), "")
    states = [row["state"] for row in rows]
    return _common(search, running="RUNNING" in states) | {
        "algorithm": annotations_of(search).get("tuning.shallop.dev/algorithm") or algorithm or "random",
        "metric": metric,
        "maximize": maximize,
        "goal": goal,
        "wanted": spec.get("maxTrialCount") or spec.get("numTrials"),
        "trials": {name: states.count(state) for name, state in _COUNTED.items()} | {"total": len(rows)},
        "best": best,
    }


_COUNTED = {"succeeded": "SUCCEEDED", "running": "RUNNING", "failed": "FAILED", "stopped": "CANCELED"}


def trial_rows(search: Object, trials: Iterable[Object]) -> list[dict[str, Any]]:
    """Return one row for each trial of a search, in the order in which they began."""
    metric, maximize, _ = _objective(search)
    rows = []
    for trial in trials:
        read = _of_trial if trial["kind"] == TRIAL.kind else _of_trainjob
        rows.append(_common(trial) | read(trial, metric, maximize=maximize))
    return sorted(rows, key=lambda row: (str(row["created_at"]), str(row["name"])))


def _objective(search: Object) -> tuple[str, bool, float | None]:
    spec = search.get("spec") or {}
    if search["kind"] == EXPERIMENT.kind:
        objective = spec.get("objective") or {}
        return objective.get("objectiveMetricName", ""), objective.get("type") != "minimize", objective.get("goal")
    first: Mapping[str, Any] = next(iter(spec.get("objectives") or ()), {})
    return first.get("metric", ""), first.get("direction") == "Maximize", None


def _of_trial(trial: Object, metric: str, *, maximize: bool) -> dict[str, Any]:
    spec = trial.get("spec") or {}
    strategies = (spec.get("objective") or {}).get("metricStrategies") or ()
    chosen = {strategy.get("name"): strategy.get("value") for strategy in strategies}
    strategy = chosen.get(metric) or ("max" if maximize else "min")
    observed = ((trial.get("status") or {}).get("observation") or {}).get("metrics") or ()
    value = next((_number(one.get(strategy)) for one in observed if one.get("name") == metric), None)
    parameters = {one["name"]: one["value"] for one in spec.get("parameterAssignments") or ()}
    return {"parameters": parameters, "value": value}


def _of_trainjob(job: Object, metric: str, *, maximize: bool) -> dict[str, Any]:
    reported = ((job.get("status") or {}).get("trainerStatus") or {}).get("metrics") or ()
    value = next((_number(one.get("value")) for one in reported if one.get("name") == metric), None)
    parameters: Mapping[str, Any] = {}
    with contextlib.suppress(ValueError):
        parameters = json.loads(annotations_of(job).get(_ASSIGNMENTS, "{}"))
    return {"parameters": parameters, "value": value}


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if abs(value) < float("inf") else None
