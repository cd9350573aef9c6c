"""
Suggestion: the values that an Experiment tries, as its algorithm proposes them.

Honoured: ``spec.requests``, ``algorithm``, ``earlyStopping``, ``resumePolicy``; the search space is that of the
Experiment of the same name. The algorithm runs in this process: there is no Deployment, and ``DeploymentReady`` is true
at once. ``status.suggestions`` shows the last 100; all of them are rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from shallop.controller import Column, Context, Kind, Resource, Result
from shallop.kube.objects import Object, format_time, is_deleting
from shallop.tuning import tables
from shallop.tuning.algorithms import ALGORITHMS
from shallop.tuning.algorithms.contract import Problem
from shallop.tuning.conditions import has, status_patch, with_condition
from shallop.tuning.earlystopping import check_settings, median_rules, settings_of
from shallop.tuning.engine import Searches, Suggested, owner_of, seed_of
from shallop.tuning.names import API_VERSION, EXPERIMENT, TRIAL
from shallop.tuning.observation import outcome
from shallop.tuning.plan import classify
from shallop.tuning.remembered import Remembered
from shallop.tuning.schemas import ANY
from shallop.tuning.space import parse_parameter

__all__ = ["ENDED", "advance", "publish", "render_problem", "suggestion_kind"]

ENDED = "SuggestionEndReached"
_SHOWN = 100
_AHEAD = 16


class SuggestionSpec(msgspec.Struct, frozen=True, rename="camel"):
    requests: int = 0


def render_problem(experiment: Object) -> Problem:
    """
    Return the search that an Experiment describes.

    Raises:
        ValueError: its parameters cannot be read.
    """
    spec = experiment["spec"]
    settings = settings_of(spec["algorithm"])
    metadata = experiment["metadata"]
    return Problem(
        name=metadata["name"],
        parameters=tuple(parse_parameter(parameter) for parameter in spec.get("parameters") or ()),
        maximize=spec["objective"]["type"] == "maximize",
        seed=seed_of(metadata["uid"], settings.get("random_state")),
        settings=settings,
        parallel=spec["parallelTrialCount"],
        budget=spec.get("maxTrialCount"),
        nas=spec.get("nasConfig") or {},
    )


_outcome = Remembered(outcome)


async def advance(
    ctx: Context, searches: Searches, experiment: Object, trials: Sequence[Object], total: int
) -> tuple[list[Suggested], bool]:
    """
    Make suggestions until there are ``total``; returns all, and whether there will never be more.

    There may be more than ``total``: of an algorithm that does not care for results a few are made ahead.

    Raises:
        ValueError: the algorithm cannot work with the Experiment.
    """
    spec, owner = experiment["spec"], owner_of(experiment)
    problem, name = render_problem(experiment), spec["algorithm"]["algorithmName"]
    if not await searches.suggested(ctx.database, owner):
        ALGORITHMS[name]().check(problem)
        check_settings(spec.get("earlyStopping"))
    rules = await _rules(ctx, spec, trials)
    # Rules come from results: with early stopping each suggestion waits until it is needed.
    ahead = 0 if spec.get("earlyStopping") else max(0, min(_AHEAD, (problem.budget or total + _AHEAD) - total))
    outcomes = {trial["metadata"]["name"]: _outcome(trial) for trial in trials}
    return await searches.propose(ctx.database, owner, name, problem, outcomes, total, rules, ahead=ahead)


async def publish(ctx: Context, suggestion: Object, known: Sequence[Suggested], *, ended: bool) -> None:
    """Show in a Suggestion what has been suggested."""
    await _write(ctx, suggestion, render_running(suggestion.get("status") or {}, known, ended=ended, now=ctx.now()))


def render_running(
    status: Mapping[str, Any], known: Sequence[Suggested], *, ended: bool, now: datetime
) -> dict[str, Any]:
    conditions = list(status.get("conditions") or ())
    for type_, reason, message in (
        ("Created", "SuggestionCreated", "Suggestion is created"),
        ("DeploymentReady", "DeploymentReady", "The algorithm runs in the control plane"),
        ("Running", "SuggestionRunning", "Suggestion is running"),
    ):
        conditions = with_condition(conditions, type_, "True", reason, message, now)
    if ended:
        conditions = with_condition(
            conditions, "Running", "False", "SuggestionRunning", "Suggestion is not running", now
        )
        conditions = with_condition(conditions, "Succeeded", "True", ENDED, "There is nothing more to try", now)
    return {
        **status,
        "startTime": status.get("startTime") or format_time(now),
        "suggestionCount": len(known),
        "suggestions": [_assignment(one) for one in known[-_SHOWN:]],
        "conditions": conditions,
    }


async def _write(ctx: Context, suggestion: Object, status: dict[str, Any]) -> None:
    if patch := status_patch(suggestion.get("status") or {}, status):
        await ctx.client.patch_status(suggestion, patch | {"lastReconcileTime": format_time(ctx.now())})


class Suggestions:
    """The controller; ``searches`` is shared with everything that asks for suggestions."""

    def __init__(self, searches: Searches) -> None:
        self._searches = searches

    async def reconcile(self, ctx: Context, suggestion: Resource[SuggestionSpec]) -> Result:
        """Make as many suggestions as are asked for; Experiments ask for more than the first ones directly."""
        raw, status = suggestion.raw, suggestion.status
        if is_deleting(raw) or has(status, "Failed") or has(status, "Succeeded"):
            return Result()
        experiment = ctx.cache(EXPERIMENT).get(suggestion.key)
        if experiment is None:
            return Result()
        trials = ctx.cache(TRIAL).by_owner(experiment["metadata"]["uid"])
        try:
            known, ended = await advance(ctx, self._searches, experiment, trials, suggestion.spec.requests)
        except ValueError as error:
            conditions = status.get("conditions") or ()
            conditions = with_condition(conditions, "Failed", "True", "SuggestionFailed", str(error), ctx.now())
            await _write(ctx, raw, {**status, "conditions": conditions})
            return Result()
        await publish(ctx, raw, known if ended else known[: suggestion.spec.requests], ended=ended)
        return Result()


def _assignment(one: Suggested) -> dict[str, Any]:
    result: dict[str, Any] = {
        "name": one.name,
        "parameterAssignments": [{"name": name, "value": value} for name, value in one.assignments.items()],
    }
    if one.labels:
        result["labels"] = one.labels
    if one.rules:
        result["earlyStoppingRules"] = one.rules
    return result


async def _rules(ctx: Context, spec: Mapping[str, Any], trials: Sequence[Object]) -> list[dict[str, Any]]:
    stopping = spec.get("earlyStopping")
    if not stopping or stopping.get("algorithmName") != "medianstop":
        return []
    metric, maximize = spec["objective"]["objectiveMetricName"], spec["objective"]["type"] == "maximize"
    names = [trial["metadata"]["name"] for trial in trials if classify(trial) == "succeeded"]
    reports = await ctx.database.read(lambda connection: tables.objective_reports(connection, names, metric))
    return median_rules(settings_of(stopping), metric, maximize, list(reports.values()))


def suggestion_kind(searches: Searches) -> Kind:
    return Kind(
        api_version=API_VERSION,
        kind="Suggestion",
        plural="suggestions",
        categories=("all", "kubeflow", "katib"),
        spec=SuggestionSpec,
        schema=ANY,
        columns=(
            Column("Type", "string", ".status.conditions[-1:].type"),
            Column("Status", "string", ".status.conditions[-1:].status"),
            Column("Requested", "string", ".spec.requests"),
            Column("Assigned", "string", ".status.suggestionCount"),
            Column("Age", "date", ".metadata.creationTimestamp"),
        ),
        reconcile=Suggestions(searches).reconcile,
    )
