"""
Early stopping: which trials are not worth going on with.

``medianstop`` gives each new trial a rule, as Katib does: the objective must have been better than the mean of what
succeeded trials had after ``start_step`` reports (``use_median`` takes the median instead). ``asha`` judges a running
trial at the steps ``min_step * eta^k``: it goes on only among the best ``1/eta`` of all that came so far.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["EARLY_STOPPING", "asha_stops", "check_settings", "median_rules", "rules_fire", "settings_of"]

EARLY_STOPPING = ("medianstop", "asha")


def settings_of(spec: Mapping[str, Any] | None) -> dict[str, str]:
    """Return ``algorithmSettings`` as a mapping."""
    return {str(item["name"]): str(item.get("value", "")) for item in (spec or {}).get("algorithmSettings") or ()}


def check_settings(spec: Mapping[str, Any] | None) -> None:
    """
    Check ``spec.earlyStopping``.

    Raises:
        ValueError: in words for users.
    """
    if not spec:
        return
    known = {
        "medianstop": {"min_trials_required": 0, "start_step": 1, "use_median": 0},
        "asha": {"min_step": 1, "eta": 2},
    }[spec["algorithmName"]]
    for name, value in settings_of(spec).items():
        if name not in known:
            raise ValueError(f"earlyStopping setting {name!r} is not known; known are {', '.join(known)}")
        if name == "use_median":
            if value.lower() not in ("true", "false"):
                raise ValueError(f"earlyStopping setting use_median: {value!r} must be true or false")
        elif not value.isdigit() or int(value) < known[name]:
            least = known[name]
            raise ValueError(f"earlyStopping setting {name}: {value!r} must be a whole number of at least {least}")


def median_rules(
    settings: Mapping[str, str], metric: str, maximize: bool, succeeded: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
    """
    Return the rules of a new trial.

    Args:
        succeeded: for each succeeded trial the reports of its objective, in order of time.
    """
    required = int(settings.get("min_trials_required", 3))
    start = int(settings.get("start_step", 4))
    means = [statistics.fmean(reports[:start]) for reports in succeeded if reports]
    if not means or len(means) < required:
        return []
    middle = statistics.median if settings.get("use_median", "").lower() == "true" else statistics.fmean
    rule = {"name": metric, "value": repr(float(middle(means))), "comparison": "less" if maximize else "greater"}
    return [rule | {"startStep": start}]


def rules_fire(
    rules: Sequence[Mapping[str, Any]], reports: Mapping[str, Sequence[float]], objective: str, maximize: bool
) -> bool:
    """
    Whether all rules of a trial have fired, at any time since it began.

    Args:
        reports: metric -> its values so far. The objective is judged by its best value so far, other metrics by each.
    """
    return bool(rules) and all(_fires(rule, reports.get(str(rule["name"]), ()), objective, maximize) for rule in rules)


def _fires(rule: Mapping[str, Any], values: Sequence[float], objective: str, maximize: bool) -> bool:
    bound, comparison, start = float(rule["value"]), rule.get("comparison"), int(rule.get("startStep") or 0)
    best = None
    for count, value in enumerate(values, 1):
        best = value if best is None else (max if maximize else min)(best, value)
        shown = best if rule["name"] == objective else value
        if count < start:
            continue
        if (
            (comparison == "less" and shown < bound)
            or (comparison == "greater" and shown > bound)
            or (comparison == "equal" and shown == bound)
        ):
            return True
    return False


def asha_stops(
    settings: Mapping[str, str], own: Sequence[float], others: Sequence[Sequence[float]], maximize: bool
) -> bool:
    """
    Whether a trial falls behind at one of the steps it has reached.

    Args:
        own: reports of the trial's objective, in order of time.
        others: those of every other trial of the search.

    Source: Li et al., "A System for Massively Parallel Hyperparameter Tuning" (2020), stopping variant.
    """
    eta, step = int(settings.get("eta", 3)), int(settings.get("min_step", 1))
    sign = 1.0 if maximize else -1.0
    while step <= len(own):
        mine = max(sign * value for value in own[:step])
        rivals = [max(sign * value for value in reports[:step]) for reports in others if len(reports) >= step]
        if len(rivals) + 1 >= eta:
            kept = sorted([mine, *rivals], reverse=True)[: max(1, (len(rivals) + 1) // eta)]
            if mine < kept[-1]:
                return True
        step *= eta
    return False
