"""
Experiment: a search for the best parameters, by many trials.

Honours everything that Katib's API has: counts, goals, strategies, resume policies (all of them keep the algorithm's
state, which is rows), trial templates of any kind inline or in a ConfigMap, collectors, early stopping. When the
parallel count is lowered, only trials that have not ended are deleted.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from shallop.controller import Column, Context, Kind, Resource, Result
from shallop.errors import AlreadyExistsError, NotFoundError
from shallop.kube.objects import Gvk, Key, Object, format_time, is_deleting, owner_reference
from shallop.tuning.admission import default, validate
from shallop.tuning.conditions import has, status_patch, with_condition, without_condition
from shallop.tuning.engine import Searches, Suggested, owner_of
from shallop.tuning.ledger import Ledger
from shallop.tuning.names import API_VERSION, EXPERIMENT, EXPERIMENT_LABEL, SUGGESTION, TRIAL
from shallop.tuning.plan import Plan, Tally, decide
from shallop.tuning.schemas import EXPERIMENT as SCHEMA
from shallop.tuning.suggestion import ENDED, advance, publish
from shallop.tuning.template import TemplateError, render_run

__all__ = ["experiment_kind", "render_trial"]

_CONFIG_MAP = Gvk("v1", "ConfigMap")
_SHOWN_FOR_S = 1.0


class Experiments:
    """The controller."""

    def __init__(self, searches: Searches) -> None:
        self._searches = searches
        # What is known of the trials of a search, by the Experiment's uid.
        self._ledgers: dict[str, Ledger] = {}
        # When the objects of a search last showed how it stands, by the Experiment's uid.
        self._shown: dict[str, datetime] = {}
        # How many trials had ended when an algorithm had nothing to propose, by the Experiment's uid.
        self._asked: dict[str, int] = {}

    async def reconcile(self, ctx: Context, experiment: Resource[Any]) -> Result:
        """Start trials, take away what is too much, say how it stands, and when it is over."""
        raw = experiment.raw
        if is_deleting(raw):
            return Result()
        ledger = self._ledger(ctx, raw)
        counted, best = ledger.tally(), ledger.best()
        suggestion = ctx.cache(SUGGESTION).get(experiment.key)
        failure = _condition(suggestion, "Failed")
        ended = (_condition(suggestion, "Succeeded") or {}).get("reason") == ENDED
        # What was suggested last may not have become a trial yet.
        suggested = ((suggestion or {}).get("status") or {}).get("suggestionCount") or 0
        exhausted = ended and counted.total >= suggested
        plan = decide(raw["spec"], counted, best[1] if best else None, exhausted=exhausted)
        if failure is not None and not plan.verdict[0]:
            plan = Plan(("Failed", "ExperimentFailed", str(failure.get("message", ""))))
        over = has(experiment.status, "Succeeded") or has(experiment.status, "Failed")
        resumed = over and _is_resumed(raw, counted)
        if over and not resumed:
            plan = Plan()
        left_s = self._quiet_s(ctx, raw)
        if left_s <= 0 or plan.verdict[0] or not has(experiment.status, "Running"):
            left_s = 0.0
            await self._show_suggestions(ctx, raw, ledger, suggestion)
            status = render_status(raw, counted, best[0] if best else None, plan, resumed=resumed, now=ctx.now())
            await self._write(ctx, raw, status)
            if has(status, "Succeeded") or has(status, "Failed"):
                await self._close(ctx, raw, suggestion)
                return Result()
        await self._act(ctx, raw, plan, ledger, suggestion)
        return Result(left_s or None)

    def _ledger(self, ctx: Context, raw: Object) -> Ledger:
        uid, maximize = raw["metadata"]["uid"], raw["spec"]["objective"]["type"] == "maximize"
        ledger = self._ledgers.get(uid)
        if ledger is None or ledger.maximize != maximize:
            ledger = self._ledgers[uid] = Ledger(maximize=maximize)
        ledger.update(ctx.cache(TRIAL).by_owner(uid))
        return ledger

    def _quiet_s(self, ctx: Context, raw: Object) -> float:
        """Return for how long what has been shown will do: with many short trials showing costs more than running."""
        shown = self._shown.get(raw["metadata"]["uid"])
        return 0.0 if shown is None else _SHOWN_FOR_S - (ctx.now() - shown).total_seconds()

    async def _act(self, ctx: Context, raw: Object, plan: Plan, ledger: Ledger, suggestion: Object | None) -> None:
        for trial in plan.surplus:
            metadata = trial["metadata"]
            try:
                await ctx.client.delete(TRIAL, metadata["name"], metadata["namespace"], uid=metadata["uid"])
            except NotFoundError:
                continue
        suggestion = await self._resume(ctx, raw, suggestion)
        if not plan.create:
            return
        known = await self._searches.suggested(ctx.database, owner_of(raw))
        missing = [one for one in known if one.name not in ledger]
        wanted = len(known) + max(0, plan.create - len(missing))
        if known and wanted > len(known):
            known = await self._ask(ctx, raw, suggestion, wanted)
            missing = [one for one in known if one.name not in ledger]
        for one in missing[: plan.create]:
            await self._create(ctx, raw, one)
        if suggestion is None:
            await ctx.client.create(_render_suggestion(raw, wanted))
        elif wanted > len(known) and suggestion["spec"].get("requests", 0) < wanted:
            await self._request(ctx, suggestion, wanted)

    async def _ask(self, ctx: Context, raw: Object, suggestion: Object | None, wanted: int) -> list[Suggested]:
        """Return all suggestions, new ones among them unless the algorithm waits for results or has ended."""
        uid = raw["metadata"]["uid"]
        trials = [trial for trial in ctx.cache(TRIAL).by_owner(uid) if not is_deleting(trial)]
        over = sum(1 for trial in trials if (trial.get("status") or {}).get("completionTime"))
        known = await self._searches.suggested(ctx.database, owner_of(raw))
        if suggestion is None or has(suggestion.get("status") or {}, "Succeeded") or self._asked.get(uid) == over:
            return known
        try:
            found, ended = await advance(ctx, self._searches, raw, trials, wanted)
        except ValueError:
            # The Suggestion meets the same and says so.
            return known
        if ended:
            await publish(ctx, suggestion, found, ended=True)
        if len(found) == len(known):
            self._asked[uid] = over
        return found

    async def _request(self, ctx: Context, suggestion: Object, requests: int) -> Object:
        metadata = suggestion["metadata"]
        patch = {"spec": {"requests": requests}}
        return await ctx.client.patch(SUGGESTION, metadata["name"], metadata["namespace"], patch)

    async def _show_suggestions(self, ctx: Context, raw: Object, ledger: Ledger, suggestion: Object | None) -> None:
        """Let the Suggestion object catch up with the rows."""
        if suggestion is None or any(has(suggestion.get("status") or {}, type_) for type_ in ("Failed", "Succeeded")):
            return
        # Those that were made ahead and are no trials yet are nobody's business.
        known = [one for one in await self._searches.suggested(ctx.database, owner_of(raw)) if one.name in ledger]
        if len(known) <= ((suggestion.get("status") or {}).get("suggestionCount") or 0):
            return
        if suggestion["spec"].get("requests", 0) < len(known):
            suggestion = await self._request(ctx, suggestion, len(known))
        await publish(ctx, suggestion, known, ended=False)

    async def _resume(self, ctx: Context, raw: Object, suggestion: Object | None) -> Object | None:
        """A suggestion that was closed with its Experiment goes on when the Experiment does."""
        condition = _condition(suggestion, "Succeeded")
        if suggestion is None or condition is None or condition.get("reason") == ENDED:
            return suggestion
        conditions = without_condition((suggestion.get("status") or {}).get("conditions") or (), "Succeeded")
        return await ctx.client.patch_status(suggestion, {"conditions": conditions, "completionTime": None})

    async def _create(self, ctx: Context, raw: Object, one: Suggested) -> None:
        try:
            text = await self._template_text(ctx, raw)
            trial = render_trial(raw, text, one)
        except TemplateError as error:
            ctx.events.record(raw, "TrialTemplateInvalid", str(error), "Warning")
            raise NotFoundError(str(error)) from error  # a ConfigMap may yet come: try again
        try:
            await ctx.client.create(trial)
        except AlreadyExistsError:
            return

    async def _template_text(self, ctx: Context, raw: Object) -> str | None:
        source = raw["spec"]["trialTemplate"].get("configMap")
        if not source:
            return None
        name, namespace, path = source["configMapName"], source["configMapNamespace"], source["templatePath"]
        try:
            found = await ctx.client.get(_CONFIG_MAP, name, namespace)
        except NotFoundError as error:
            raise TemplateError(f"trialTemplate.configMap: no ConfigMap {namespace}/{name}; create it") from error
        text = (found.get("data") or {}).get(path)
        if text is None:
            raise TemplateError(
                f"trialTemplate.configMap.templatePath: ConfigMap {namespace}/{name} has no key {path!r}"
            )
        return str(text)

    async def _close(self, ctx: Context, raw: Object, suggestion: Object | None) -> None:
        if suggestion is None or raw["spec"]["resumePolicy"] == "LongRunning":
            return
        status = suggestion.get("status") or {}
        if has(status, "Succeeded") or has(status, "Failed"):
            return
        now = ctx.now()
        conditions = with_condition(
            status.get("conditions") or (), "Running", "False", "SuggestionRunning", "Suggestion is not running", now
        )
        message = "Suggestion is succeeded, its Experiment is over"
        conditions = with_condition(conditions, "Succeeded", "True", "SuggestionSucceeded", message, now)
        await ctx.client.patch_status(suggestion, {"conditions": conditions, "completionTime": format_time(now)})

    async def _write(self, ctx: Context, raw: Object, status: dict[str, Any]) -> None:
        old = raw.get("status") or {}
        patch = status_patch(old, status)
        if patch is None:
            return
        self._shown[raw["metadata"]["uid"]] = ctx.now()
        await ctx.client.patch_status(raw, patch | {"lastReconcileTime": format_time(ctx.now())})
        for type_ in ("Succeeded", "Failed"):
            if has(status, type_) and not has(old, type_):
                condition = _condition({"status": status}, type_) or {}
                kind = "Normal" if type_ == "Succeeded" else "Warning"
                ctx.events.record(raw, condition["reason"], condition["message"], kind)

    async def gone(self, ctx: Context, key: Key) -> None:
        """Rows of Experiments that no longer exist go."""
        alive = {item["metadata"]["uid"] for item in ctx.cache(EXPERIMENT).list()}
        for memory in (self._shown, self._asked, self._ledgers):
            for uid in set(memory) - alive:
                del memory[uid]
        await self._searches.drop(ctx.database, "Experiment", alive)


def _condition(obj: Mapping[str, Any] | None, type_: str) -> Mapping[str, Any] | None:
    """Return a condition that is True."""
    conditions = ((obj or {}).get("status") or {}).get("conditions") or ()
    return next((c for c in conditions if c.get("type") == type_ and c.get("status") == "True"), None)


def _is_resumed(experiment: Object, trials: Tally) -> bool:
    """Whether an Experiment that is over has been given a greater budget."""
    reason = (_condition(experiment, "Succeeded") or {}).get("reason")
    spec, done = experiment["spec"], trials.total - len(trials.active)
    if reason != "ExperimentMaxTrialsReached" or spec["resumePolicy"] not in ("LongRunning", "FromVolume"):
        return False
    return spec.get("maxTrialCount") is None or spec["maxTrialCount"] > done


def render_status(
    experiment: Object, trials: Tally, best: Object | None, plan: Plan, *, resumed: bool, now: Any
) -> dict[str, Any]:
    """Return the whole status."""
    old = experiment.get("status") or {}
    conditions = list(old.get("conditions") or ())
    conditions = with_condition(conditions, "Created", "True", "ExperimentCreated", "Experiment is created", now)
    status: dict[str, Any] = {"startTime": old.get("startTime") or format_time(now)} | trials.status()
    if best is not None:
        status["currentOptimalTrial"] = {
            "bestTrialName": best["metadata"]["name"],
            "parameterAssignments": best["spec"].get("parameterAssignments") or [],
            "observation": best["status"]["observation"],
        }
    if old.get("completionTime") and not resumed:
        status["completionTime"] = old["completionTime"]
    if resumed:
        conditions = without_condition(conditions, "Succeeded")
        message = "Experiment is restarted"
        conditions = with_condition(conditions, "Restarting", "True", "ExperimentRestarting", message, now)
    over = any(c["type"] in ("Succeeded", "Failed") and c["status"] == "True" for c in conditions)
    if plan.verdict[0]:
        type_, reason, message = plan.verdict
        conditions = with_condition(
            conditions, "Running", "False", "ExperimentRunning", "Experiment is not running", now
        )
        conditions = with_condition(conditions, type_, "True", reason, message, now)
        status["completionTime"] = format_time(now)
    elif not over and trials.total:
        if any(c["type"] == "Restarting" and c["status"] == "True" for c in conditions) and not resumed:
            message = "Experiment goes on"
            conditions = with_condition(conditions, "Restarting", "False", "ExperimentRestarting", message, now)
        conditions = with_condition(conditions, "Running", "True", "ExperimentRunning", "Experiment is running", now)
    status["conditions"] = conditions
    if "lastReconcileTime" in old:
        status["lastReconcileTime"] = old["lastReconcileTime"]
    return status


def _render_suggestion(experiment: Object, requests: int) -> Object:
    spec, metadata = experiment["spec"], experiment["metadata"]
    body = {"algorithm": spec["algorithm"], "requests": requests, "resumePolicy": spec["resumePolicy"]}
    if spec.get("earlyStopping"):
        body["earlyStopping"] = spec["earlyStopping"]
    return {
        "apiVersion": SUGGESTION.api_version,
        "kind": SUGGESTION.kind,
        "metadata": {
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "labels": {EXPERIMENT_LABEL: metadata["name"]},
            "ownerReferences": [owner_reference(experiment)],
        },
        "spec": body,
    }


def render_trial(experiment: Object, text: str | None, one: Suggested) -> Object:
    """
    Return the Trial of a suggestion.

    Args:
        text: the template in the ConfigMap, None when the Experiment has it.
    """
    spec, metadata = experiment["spec"], experiment["metadata"]
    template = spec["trialTemplate"]
    run = render_run(template, text, one.assignments, one.name, metadata["namespace"])
    body: dict[str, Any] = {
        "objective": spec["objective"],
        "parameterAssignments": [{"name": name, "value": value} for name, value in one.assignments.items()],
        "runSpec": run,
        "metricsCollector": spec["metricsCollectorSpec"],
        "primaryContainerName": template["primaryContainerName"],
        "successCondition": template["successCondition"],
        "failureCondition": template["failureCondition"],
    }
    if template.get("primaryPodLabels"):
        body["primaryPodLabels"] = template["primaryPodLabels"]
    if template.get("retain"):
        body["retainRun"] = True
    if one.labels:
        body["labels"] = one.labels
    if one.rules:
        body["earlyStoppingRules"] = one.rules
    # Clients that list the trials of an experiment get the TrainJob of each and fail when one is not there yet: such a
    # trial is found by its label only when its run exists, see trial.py.
    labels = {} if run["kind"] == "TrainJob" else {EXPERIMENT_LABEL: metadata["name"]}
    return {
        "apiVersion": TRIAL.api_version,
        "kind": TRIAL.kind,
        "metadata": {
            "name": one.name,
            "namespace": metadata["namespace"],
            "labels": one.labels | labels,
            "ownerReferences": [owner_reference(experiment)],
        },
        "spec": body,
    }


def experiment_kind(searches: Searches) -> Kind:
    controller = Experiments(searches)
    return Kind(
        api_version=API_VERSION,
        kind="Experiment",
        plural="experiments",
        categories=("all", "kubeflow", "katib"),
        schema=SCHEMA,
        columns=(
            Column("Type", "string", ".status.conditions[-1:].type"),
            Column("Status", "string", ".status.conditions[-1:].status"),
            Column("Age", "date", ".metadata.creationTimestamp"),
        ),
        default=default,
        validate=validate,
        reconcile=controller.reconcile,
        on_gone=controller.gone,
        owns=(TRIAL, SUGGESTION),
    )
