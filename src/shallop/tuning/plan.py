"""What an Experiment does next, from its specification and its Trials; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from shallop.kube.objects import Object
from shallop.tuning.conditions import has
from shallop.tuning.observation import objective_value

__all__ = ["LISTS", "Judgement", "Plan", "Tally", "classify", "decide", "judge"]

# Class of a trial -> (count, list of names) in the status.
LISTS = {
    "killed": ("trialsKilled", "killedTrialList"),
    "failed": ("trialsFailed", "failedTrialList"),
    "succeeded": ("trialsSucceeded", "succeededTrialList"),
    "earlyStopped": ("trialsEarlyStopped", "earlyStoppedTrialList"),
    "running": ("trialsRunning", "runningTrialList"),
    "metricsUnavailable": ("trialMetricsUnavailable", "metricsUnavailableTrialList"),
    "pending": ("trialsPending", "pendingTrialList"),
}
_CONDITIONS = (
    ("Killed", "killed"),
    ("Failed", "failed"),
    ("Succeeded", "succeeded"),
    ("EarlyStopped", "earlyStopped"),
    ("Running", "running"),
    ("MetricsUnavailable", "metricsUnavailable"),
)


def classify(trial: Object) -> str:
    """Return the class of a Trial, a key of ``LISTS``."""
    status = trial.get("status") or {}
    return next((name for type_, name in _CONDITIONS if has(status, type_)), "pending")


@dataclass(frozen=True)
class Tally:
    """Trials of an Experiment by class."""

    classes: Mapping[str, Sequence[Object]]

    def count(self, *names: str) -> int:
        return sum(len(self.classes.get(name, ())) for name in names)

    @property
    def active(self) -> list[Object]:
        return [*self.classes.get("pending", ()), *self.classes.get("running", ())]

    @property
    def total(self) -> int:
        return sum(len(trials) for trials in self.classes.values())

    def status(self) -> dict[str, Any]:
        """Return counts and lists of names, the oldest first, as they stand in the status; empty ones are left out."""
        result: dict[str, Any] = {"trials": self.total} if self.total else {}
        for name, (count, names) in LISTS.items():
            if trials := self.classes.get(name):
                ages = sorted((t["metadata"]["creationTimestamp"], t["metadata"]["name"]) for t in trials)
                result |= {count: len(trials), names: [trial for _, trial in ages]}
        return result


class Judgement(NamedTuple):
    """What counts of a Trial: its class and its objective, None while it has none."""

    name: str
    value: float | None


def judge(trial: Object) -> Judgement:
    """Read a Trial once; the answer holds for its resourceVersion."""
    observation = (trial.get("status") or {}).get("observation") or {}
    return Judgement(classify(trial), objective_value(trial["spec"].get("objective") or {}, observation))


@dataclass(frozen=True)
class Plan:
    """
    What to do.

    Args:
        verdict: ``Succeeded`` or ``Failed`` with its reason and message, empty while it goes on.
        create: how many more trials may run now.
        surplus: trials that are too many now, to be deleted.
    """

    verdict: tuple[str, str, str] = ("", "", "")
    create: int = 0
    surplus: tuple[Object, ...] = ()


def decide(spec: Mapping[str, Any], trials: Tally, best: float | None, *, exhausted: bool) -> Plan:
    """
    Decide whether an Experiment is over, and else how many trials to start or to take away.

    Args:
        best: the best objective until now.
        exhausted: the algorithm has said that there is nothing more to try.
    """
    objective = spec["objective"]
    active = trials.active
    done = trials.count("succeeded", "failed", "killed", "earlyStopped", "metricsUnavailable")
    bad = trials.count("failed", "metricsUnavailable")
    goal, most, most_failed = objective.get("goal"), spec.get("maxTrialCount"), spec.get("maxFailedTrialCount")
    if goal is not None and best is not None and (best <= goal if objective["type"] == "minimize" else best >= goal):
        return Plan(
            ("Succeeded", "ExperimentGoalReached", "Experiment has succeeded because Objective goal has reached")
        )
    if most_failed is not None and bad and bad >= most_failed:
        return Plan(("Failed", "ExperimentFailed", "Experiment has failed because max failed count has reached"))
    if most is not None and done >= most:
        message = "Experiment has succeeded because max trial count has reached"
        return Plan(("Succeeded", "ExperimentMaxTrialsReached", message))
    if exhausted and not active:
        message = "Experiment has succeeded because suggestion service has reached the end"
        return Plan(("Succeeded", "ExperimentSuggestionEndReached", message))
    parallel = spec["parallelTrialCount"]
    if len(active) > parallel:
        newest = sorted(active, key=lambda t: t["metadata"]["creationTimestamp"], reverse=True)
        return Plan(surplus=tuple(newest[: len(active) - parallel]))
    required = parallel
    if most is not None:
        required = min(required, most - (done - trials.count("metricsUnavailable")))
    return Plan(create=max(0, required - len(active)))
