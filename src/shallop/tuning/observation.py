"""From reports to what is known of a trial, and which trial is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from shallop.kube.objects import Object
from shallop.tuning.conditions import has
from shallop.tuning.engine import Outcome
from shallop.tuning.metrics import UNAVAILABLE
from shallop.tuning.tables import Report

__all__ = ["is_available", "metric_names", "objective_value", "outcome", "render_observation"]


def metric_names(objective: Mapping[str, Any]) -> list[str]:
    """Return the metrics that a trial is asked for, the objective first."""
    names = [objective.get("objectiveMetricName", ""), *(objective.get("additionalMetricNames") or ())]
    return [name for name in names if name]


def render_observation(objective: Mapping[str, Any], reports: Sequence[Report]) -> dict[str, Any]:
    """Return ``status.observation``: of each metric the least, the greatest and the latest value."""
    metrics = []
    for name in metric_names(objective):
        values = [report.value for report in reports if report.metric == name]
        if not values:
            continue
        numbers = [(number, value) for value in values if (number := _number(value)) is not None]
        metrics.append(
            {
                "name": name,
                "min": min(numbers)[1] if numbers else UNAVAILABLE,
                "max": max(numbers)[1] if numbers else UNAVAILABLE,
                "latest": values[-1],
            }
        )
    return {"metrics": metrics}


def _number(text: Any) -> float | None:
    try:
        number = float(text)
    except (TypeError, ValueError):
        return None
    return number if not math.isnan(number) else None


def is_available(objective: Mapping[str, Any], observation: Mapping[str, Any]) -> bool:
    """Whether the objective has a value."""
    metric = _metric(objective, observation)
    return metric is not None and metric.get("latest") != UNAVAILABLE


def _metric(objective: Mapping[str, Any], observation: Mapping[str, Any]) -> Mapping[str, Any] | None:
    name = objective.get("objectiveMetricName")
    return next((metric for metric in observation.get("metrics") or () if metric.get("name") == name), None)


def objective_value(objective: Mapping[str, Any], observation: Mapping[str, Any]) -> float | None:
    """Return the objective by its strategy; None when it has no numeric value."""
    metric = _metric(objective, observation)
    if metric is None:
        return None
    kind = next(
        (item.get("value") for item in objective.get("metricStrategies") or () if item["name"] == metric["name"]),
        "min" if objective.get("type") == "minimize" else "max",
    )
    text = metric.get(str(kind), UNAVAILABLE)
    return _number(metric.get("latest") if text == UNAVAILABLE else text)


def outcome(trial: Object) -> Outcome:
    """Return what a Trial tells an algorithm."""
    status = trial.get("status") or {}
    value = objective_value(trial["spec"].get("objective") or {}, status.get("observation") or {})
    for type_, state in (
        ("Killed", "failed"),
        ("Failed", "failed"),
        ("Succeeded", "succeeded"),
        ("EarlyStopped", "stopped"),
        ("MetricsUnavailable", "failed"),
    ):
        if has(status, type_):
            return Outcome(state, None if type_ in ("Killed", "Failed") else value)
    return Outcome("active", None)
