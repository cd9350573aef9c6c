"""
Suggestion: the values that an Experiment tries, as its algorithm proposes them.

Honoured: ``spec.requests``, ``algorithm``, ``earlyStopping``, ``resumePolicy``; the search space is that of the
Experiment of the same name. The algorithm runs in this process: there is no Deployment, and ``DeploymentReady`` is true
at once. ``status.suggestions`` shows the last 100; all of them are rows.
"""

from __future__ import annotations

from collections.abc import Mapping
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

__all__ = ["ENDED", "render_problem", "suggestion_kind"]

ENDED = "SuggestionEndReached"
_SHOWN = 100


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


class Suggestions:
    """The controller; ``searches`` is shared with everything that asks for suggestions."""

    def __init__(self, searches: Searches) -> None:
        self._searches = searches
        self._outcome = Remembered(outcome)

    async def reconcile(self, ctx: Context, suggestion: Resource[SuggestionSpec]) -> Result:
        """Make as many suggestions as are asked for."""
        status = suggestion.status
        if is_deleting(suggestion.raw) or has(status, "Failed") or has(status, "Succeeded"):
            return Result()
        experiment = ctx.cache(EXPERIMENT).get(suggestion.key)
        if experiment is None:
            return Result()
        try:
            known, ended = await self._advance(ctx, suggestion, experiment)
        except ValueError as error:
            await self._write(ctx, suggestion.raw, self._failed(ctx, status, str(error)))
            return Result()
        await self._write(ctx, suggestion.raw, self._running(ctx, status, known, ended))
        return Result()

    async def _advance(
        self, ctx: Context, suggestion: Resource[SuggestionSpec], experiment: Object
    ) -> tuple[list[Suggested], bool]:
        spec, owner = experiment["spec"], owner_of(experiment)
        known = await self._searches.suggested(ctx.database, owner)
        missing = suggestion.spec.requests - len(known)
        if missing <= 0:
            return known, False
        problem = render_problem(experiment)
        name = spec["algorithm"]["algorithmName"]
        if not known:
            ALGORITHMS[name]().check(problem)
            check_settings(spec.get("earlyStopping"))
        trials = ctx.cache(TRIAL).by_owner(experiment["metadata"]["uid"])
        rules = await _rules(ctx, spec, trials)
        outcomes = {trial["metadata"]["name"]: self._outcome(trial) for trial in trials}
        return await self._searches.propose(ctx.database, owner, name, problem, outcomes, missing, rules)

    def _running(self, ctx: Context, status: Mapping[str, Any], known: list[Suggested], ended: bool) -> dict[str, Any]:
        now = ctx.now()
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

    def _failed(self, ctx: Context, status: Mapping[str, Any], message: str) -> dict[str, Any]:
        conditions = with_condition(
            status.get("conditions") or (), "Failed", "True", "SuggestionFailed", message, ctx.now()
        )
        return {**status, "conditions": conditions}

    async def _write(self, ctx: Context, suggestion: Object, status: dict[str, Any]) -> None:
        if patch := status_patch(suggestion.get("status") or {}, status):
            await ctx.client.patch_status(suggestion, patch | {"lastReconcileTime": format_time(ctx.now())})


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


async def _rules(ctx: Context, spec: Mapping[str, Any], trials: list[Object]) -> list[dict[str, Any]]:
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
