"""
OptimizationJob (trainer.kubeflow.org): a search whose trials are TrainJobs.

Each trial is a TrainJob with its values in variables ``KUBEFLOW_TRAINER_OPT_<NAME>`` and in an annotation. The
objective is what the TrainJob pushed into ``status.trainerStatus.metrics``; a script that pushes nothing may print
``name=value`` as for Katib. Every algorithm of this part but ``pbt``, ``enas`` and ``darts`` can be chosen by
annotations, so that the object stays valid on any cluster: ``tuning.shallop.dev/algorithm: tpe`` and
``tuning.shallop.dev/algorithm-settings: '{"n_startup_trials": "5"}'``.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from shallop.controller import Column, Context, Kind, Resource, Result
from shallop.errors import AlreadyExistsError, ApiError, FieldError
from shallop.kube.objects import (
    Gvk,
    Key,
    Object,
    annotations_of,
    is_condition_true,
    is_deleting,
    labels_of,
    owner_reference,
    set_condition,
)
from shallop.tuning.algorithms import ALGORITHMS
from shallop.tuning.algorithms.contract import Problem
from shallop.tuning.collect import read_metrics
from shallop.tuning.conditions import status_patch
from shallop.tuning.engine import Outcome, Searches, Suggested, owner_of, seed_of
from shallop.tuning.optimizationjob_schema import SCHEMA
from shallop.tuning.space import Parameter, parse_parameter

__all__ = ["optimizationjob_kind", "render_problem", "render_trainjob"]

TRAINJOB, POD = Gvk("trainer.kubeflow.org/v1alpha1", "TrainJob"), Gvk("v1", "Pod")
ALGORITHM = "tuning.shallop.dev/algorithm"
SETTINGS = "tuning.shallop.dev/algorithm-settings"
ASSIGNMENTS = "tuning.shallop.dev/assignments"
_VARIABLE = "KUBEFLOW_TRAINER_OPT_"
_JOBSET = "jobset.sigs.k8s.io/jobset-name"
_MAX_NAME = 63 - len("-trial-12345678")


def parameters_of(spec: Mapping[str, Any]) -> tuple[Parameter, ...]:
    """Return the search space in this part's own words."""
    found = []
    for raw in spec["parameters"]:
        space = raw["searchSpace"]
        if "categorical" in space:
            one = {"parameterType": "categorical", "feasibleSpace": {"list": space["categorical"]["choices"]}}
        else:
            kind = "logUniform" if "logUniform" in space else "uniform"
            bounds = space[kind]
            type_ = "int" if bounds.get("type") == "Int" else "double"
            feasible = {"min": bounds["min"], "max": bounds["max"], "distribution": kind}
            one = {"parameterType": type_, "feasibleSpace": feasible}
        found.append(parse_parameter({"name": raw["name"], **one}))
    return tuple(found)


def algorithm_of(job: Object) -> tuple[str, dict[str, str]]:
    """
    Return the algorithm and its settings.

    Raises:
        ValueError: the annotations cannot be read.
    """
    search = job["spec"].get("searchAlgorithm") or {"random": {}}
    name, settings = next(iter(search)), {}
    seed = (search.get("random") or {}).get("seed")
    if seed is not None:
        settings["random_state"] = str(seed)
    name = annotations_of(job).get(ALGORITHM, name)
    if name not in ALGORITHMS or name in ("enas", "darts", "pbt"):
        known = ", ".join(one for one in ALGORITHMS if one not in ("enas", "darts", "pbt"))
        raise ValueError(f"annotation {ALGORITHM}: {name!r} is not one of {known}")
    if text := annotations_of(job).get(SETTINGS):
        try:
            settings |= {str(key): str(value) for key, value in json.loads(text).items()}
        except (ValueError, AttributeError):
            raise ValueError(f"annotation {SETTINGS}: must be a JSON object of names and values") from None
    return name, settings


def render_problem(job: Object) -> tuple[str, Problem]:
    """
    Return the algorithm and the search.

    Raises:
        ValueError: what the schema cannot say is wrong.
    """
    spec, metadata = job["spec"], job["metadata"]
    name, settings = algorithm_of(job)
    problem = Problem(
        name=metadata["name"],
        parameters=parameters_of(spec),
        maximize=spec["objectives"][0].get("direction") == "Maximize",
        seed=seed_of(metadata.get("uid", ""), settings.get("random_state")),
        settings=settings,
        parallel=spec.get("parallelTrials", 1),
        # A grid that is smaller than the number of trials ends early instead of being refused.
        budget=None,
    )
    return name, problem


def validate(job: Object, old: Object | None) -> list[FieldError]:
    """Check what the schema's rules do not."""
    if old is not None:
        return []
    errors = []
    name = job["metadata"].get("name") or ""
    if len(name) > _MAX_NAME or not re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name or "x"):
        detail = f"must be a DNS label of at most {_MAX_NAME} characters: names of its TrainJobs begin with it"
        errors.append(FieldError.invalid("metadata.name", name, detail))
    try:
        chosen, problem = render_problem(job)
        ALGORITHMS[chosen]().check(problem)
    except ValueError as error:
        errors.append(FieldError.invalid("spec", "", str(error)))
    return errors


class OptimizationJobs:
    """The controller."""

    def __init__(self, searches: Searches) -> None:
        self._searches = searches

    async def reconcile(self, ctx: Context, job: Resource[Any]) -> Result:
        """Start TrainJobs until enough have ended, then name the best."""
        raw = job.raw
        if is_deleting(raw) or is_condition_true(raw, "Complete") or is_condition_true(raw, "Failed"):
            return Result()
        if not is_condition_true(raw, "Created"):
            raw = await self._write(ctx, raw, "Created", "OptimizationJobCreated", "OptimizationJob is created", None)
        trials = [trial for trial in ctx.cache(TRAINJOB).by_owner(raw["metadata"]["uid"]) if not is_deleting(trial)]
        outcomes = {trial["metadata"]["name"]: await outcome(ctx, raw, trial) for trial in trials}
        try:
            known, ended = await self._propose(ctx, raw, outcomes)
            await self._start(ctx, raw, known, trials, outcomes)
        except ValueError as error:
            await self._write(ctx, raw, "Failed", "AlgorithmFailed", str(error), None)
            return Result()
        except ApiError as error:
            if error.code not in (400, 403, 422):
                raise
            await self._write(ctx, raw, "Failed", "TrainJobsCreationFailed", error.message, None)
            return Result()
        over = [name for name, found in outcomes.items() if found.state != "active"]
        if len(over) >= raw["spec"].get("numTrials", 1) or (ended and known and len(over) >= len(known)):
            await self._finish(ctx, raw, outcomes)
        return Result()

    async def _propose(
        self, ctx: Context, raw: Object, outcomes: Mapping[str, Outcome]
    ) -> tuple[list[Suggested], bool]:
        owner, spec = owner_of(raw), raw["spec"]
        known = await self._searches.suggested(ctx.database, owner)
        active = sum(1 for one in known if outcomes.get(one.name, Outcome("active", None)).state == "active")
        count = min(spec.get("parallelTrials", 1) - active, spec.get("numTrials", 1) - len(known))
        if count <= 0:
            return known, False
        name, problem = render_problem(raw)
        prefix = f"{raw['metadata']['name']}-trial"
        total = len(known) + count
        return await self._searches.propose(ctx.database, owner, name, problem, outcomes, total, prefix=prefix)

    async def _start(
        self,
        ctx: Context,
        raw: Object,
        known: Sequence[Suggested],
        trials: Sequence[Object],
        outcomes: Mapping[str, Outcome],
    ) -> None:
        existing = {trial["metadata"]["name"] for trial in trials}
        active = sum(1 for found in outcomes.values() if found.state == "active")
        waiting = [one for one in known if one.name not in existing]
        for one in waiting[: raw["spec"].get("parallelTrials", 1) - active]:
            try:
                await ctx.client.create(render_trainjob(raw, one))
            except AlreadyExistsError:
                continue

    async def _finish(self, ctx: Context, raw: Object, outcomes: Mapping[str, Outcome]) -> None:
        sign = 1 if raw["spec"]["objectives"][0].get("direction") == "Maximize" else -1
        values = {name: found.value for name, found in sorted(outcomes.items()) if found.value is not None}
        if not values:
            metric = raw["spec"]["objectives"][0]["metric"]
            text = f"none of {len(outcomes)} TrainJobs succeeded with a value of {metric!r}"
            await self._write(ctx, raw, "Failed", "NoObjective", text, None)
            return
        best = max(values, key=lambda name: sign * (values[name] or 0.0))
        known = await self._searches.suggested(ctx.database, owner_of(raw))
        assignments = next((one.assignments for one in known if one.name == best), {})
        result = {
            "trainJobName": best,
            "parameters": [{"name": name, "value": value} for name, value in assignments.items()],
        }
        text = f"{len(outcomes)} trials have ended; the best objective is {values[best]!r}"
        await self._write(ctx, raw, "Complete", "MaxTrialsReached", text, result)

    async def _write(
        self, ctx: Context, raw: Object, type_: str, reason: str, message: str, result: Object | None
    ) -> Object:
        old = raw.get("status") or {}
        conditions = set_condition(old.get("conditions") or [], type_, "True", reason, message, ctx.now())
        status = {**old, "conditions": conditions} | ({"result": result} if result else {})
        patch = status_patch(old, status)
        if patch is None:
            return raw
        if type_ != "Created":
            ctx.events.record(raw, reason, message, "Normal" if type_ == "Complete" else "Warning")
        return await ctx.client.patch_status(raw, patch)

    async def gone(self, ctx: Context, key: Key) -> None:
        """Rows of jobs that no longer exist go."""
        alive = {item["metadata"]["uid"] for item in ctx.cache(Gvk(TRAINJOB.api_version, "OptimizationJob")).list()}
        await self._searches.drop(ctx.database, "OptimizationJob", alive)


async def outcome(ctx: Context, job: Object, trial: Object) -> Outcome:
    """Return what a TrainJob tells the algorithm."""
    if is_condition_true(trial, "Failed"):
        return Outcome("failed", None)
    if not is_condition_true(trial, "Complete"):
        return Outcome("active", None)
    metric = job["spec"]["objectives"][0]["metric"]
    for found in ((trial.get("status") or {}).get("trainerStatus") or {}).get("metrics") or ():
        if found.get("name") == metric:
            try:
                return Outcome("succeeded", float(found["value"]))
            except ValueError:
                break
    return Outcome("succeeded", await _printed(ctx, trial, metric))


async def _printed(ctx: Context, trial: Object, metric: str) -> float | None:
    """Return the last value that the trial's first Pod has printed."""
    name = trial["metadata"]["name"]
    pods = [
        pod
        for pod in ctx.cache(POD).list(trial["metadata"]["namespace"])
        if labels_of(pod).get(_JOBSET) == name
        and labels_of(pod).get("batch.kubernetes.io/job-completion-index", "0") == "0"
    ]
    for pod in pods:
        for container in pod["spec"]["containers"]:
            body = {
                "metadata": trial["metadata"],
                "spec": {
                    "objective": {"objectiveMetricName": metric},
                    "metricsCollector": {"collector": {"kind": "StdOut"}},
                    "primaryContainerName": container["name"],
                },
            }
            collected = await asyncio.to_thread(read_metrics, ctx.settings, body, [pod])
            for _, reports in reversed(collected):
                if reports:
                    try:
                        return float(reports[-1].value)
                    except ValueError:
                        return None
    return None


def render_trainjob(job: Object, one: Suggested) -> Object:
    """Return the TrainJob of a suggestion."""
    template, metadata = job["spec"]["trainJobTemplate"], job["metadata"]
    variables = [
        {"name": _VARIABLE + re.sub(r"\W", "_", name).upper(), "value": value}
        for name, value in one.assignments.items()
    ]
    spec = {**template["spec"]}
    trainer = {**(spec.get("trainer") or {})}
    names = {variable["name"] for variable in variables}
    kept = [variable for variable in trainer.get("env") or () if variable.get("name") not in names]
    spec["trainer"] = trainer | {"env": [*kept, *variables]}
    given = template.get("metadata") or {}
    annotations = {**(given.get("annotations") or {}), ASSIGNMENTS: json.dumps(one.assignments)}
    labels = {**(given.get("labels") or {}), "trainer.kubeflow.org/optimizationjob-name": metadata["name"]}
    return {
        "apiVersion": TRAINJOB.api_version,
        "kind": TRAINJOB.kind,
        "metadata": {
            "name": one.name,
            "namespace": metadata["namespace"],
            "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner_reference(job)],
        },
        "spec": spec,
    }


def optimizationjob_kind(searches: Searches) -> Kind:
    controller = OptimizationJobs(searches)
    return Kind(
        api_version=TRAINJOB.api_version,
        kind="OptimizationJob",
        plural="optimizationjobs",
        schema=SCHEMA,
        columns=(
            Column("State", "string", ".status.conditions[-1:].type"),
            Column("Age", "date", ".metadata.creationTimestamp"),
        ),
        validate=validate,
        reconcile=controller.reconcile,
        on_gone=controller.gone,
        owns=(TRAINJOB,),
    )
