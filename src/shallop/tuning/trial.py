"""
Trial: one run of a user's template with chosen values, and what it measured.

Honours every field: runs of any kind that is served, success and failure conditions, collectors, early stopping rules,
``retainRun``. An early stopped run is deleted, retained or not: nothing else ends a run of any kind. Katib's states are
reached in its order; a trial has succeeded when its run has and the objective was measured.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import datetime
from typing import Any, NamedTuple

from shallop.controller import Column, Context, Kind, Resource, Result, Watch
from shallop.errors import AlreadyExistsError, ApiError, NotFoundError
from shallop.kube.objects import Gvk, Key, Object, format_time, gvk_of, is_deleting, labels_of, owner_reference
from shallop.settings import Settings
from shallop.tuning import tables
from shallop.tuning.checkpoints import needs_checkpoint, prepare_checkpoint, remove_checkpoint
from shallop.tuning.collect import READ, last_lines, read_metrics, remove_metrics, size_bytes
from shallop.tuning.conditions import has, status_patch, with_condition
from shallop.tuning.earlystopping import asha_stops, rules_fire, settings_of
from shallop.tuning.gjson import GjsonError, Match, evaluate
from shallop.tuning.metrics import UNAVAILABLE
from shallop.tuning.names import API_VERSION, EXPERIMENT, EXPERIMENT_LABEL, TRIAL, TRIAL_LABEL, experiment_of
from shallop.tuning.observation import is_available, metric_names, render_observation
from shallop.tuning.schemas import ANY
from shallop.tuning.scrape import scrape
from shallop.tuning.tables import Report

__all__ = ["trial_kind"]

_POD = Gvk("v1", "Pod")
_LOOK_S = 1.0
_SCRAPE_S = 0.2
_SHORT_BYTES = 256 << 10
# A trial that is over before it has run for so long is never shown as one that runs.
_SHOWN_S = 0.5
# How long the run of a trial that is over stays: the next trial begins first.
_LINGER_S = 0.1
_OVER = ("Succeeded", "Failed", "Killed", "MetricsUnavailable", "EarlyStopped")


def is_over(trial: Mapping[str, Any]) -> bool:
    return any(has(trial.get("status") or {}, type_) for type_ in _OVER)


class Found(NamedTuple):
    """What was read of Pods that had ended, so that nothing will be added."""

    pods: frozenset[str]
    reports: list[Report]


def _uids(pods: Sequence[Object]) -> frozenset[str]:
    return frozenset(pod["metadata"]["uid"] for pod in pods)


class Looks:
    """When what trials measure was last read, by uid: a run that goes on is not read anew whenever it changes."""

    def __init__(self) -> None:
        self._at: dict[str, datetime] = {}
        self._began: dict[str, datetime] = {}
        self._ended: dict[str, datetime] = {}
        self._found: dict[str, Found] = {}
        self._failures: dict[str, set[str]] = {}

    def found(self, trial: Object, pods: Sequence[Object]) -> list[Report] | None:
        """Return what was read when all these Pods had ended; None when it was not."""
        found = self._found.get(trial["metadata"]["uid"])
        return found.reports if found is not None and found.pods == _uids(pods) else None

    def keep_found(self, trial: Object, pods: Sequence[Object], reports: list[Report]) -> None:
        self._found[trial["metadata"]["uid"]] = Found(_uids(pods), reports)

    def is_new_failure(self, trial: Object, pod: Object) -> bool:
        """Whether nobody has asked about this Pod before."""
        told = self._failures.setdefault(trial["metadata"]["uid"], set())
        is_new = pod["metadata"]["uid"] not in told
        told.add(pod["metadata"]["uid"])
        return is_new

    def linger_s(self, trial: Object, now: datetime) -> float:
        """Return seconds until the run of a trial that is over should go."""
        return _LINGER_S - (now - self._ended.setdefault(trial["metadata"]["uid"], now)).total_seconds()

    def unshown_s(self, trial: Object, now: datetime) -> float:
        """Return seconds until a trial that has just been started is worth being shown as one that runs."""
        return _SHOWN_S - (now - self._began.setdefault(trial["metadata"]["uid"], now)).total_seconds()

    def left_s(self, trial: Object, now: datetime) -> float:
        """Return seconds until the next look is due; the first one is when the trial has run for a while."""
        every_s = _SCRAPE_S if _collector(trial) == "PrometheusMetric" else _LOOK_S
        since = self._at.setdefault(trial["metadata"]["uid"], now)
        return every_s - (now - since).total_seconds()

    def done(self, trial: Object, now: datetime) -> None:
        self._at[trial["metadata"]["uid"]] = now

    def forget(self, trial: Object) -> None:
        for known in self._all():
            known.pop(trial["metadata"]["uid"], None)

    def keep(self, uids: Set[str]) -> None:
        """Forget the trials that are no longer there."""
        for known in self._all():
            for uid in set(known) - uids:
                del known[uid]

    def _all(self) -> tuple[dict[str, Any], ...]:
        return self._at, self._began, self._ended, self._found, self._failures


async def reconcile(ctx: Context, trial: Resource[Any], looks: Looks) -> Result:
    """Run the trial, watch what it measures, say how it ended."""
    raw = trial.raw
    if is_deleting(raw):
        return Result()
    if is_over(raw):
        if (linger_s := looks.linger_s(raw, ctx.now())) > 0:
            return Result(linger_s)
        looks.forget(raw)
        await _clean_up(ctx, raw)
        return Result()
    run = await _ensure_run(ctx, raw)
    if run is None:
        return Result()
    raw = await _label(ctx, raw)
    try:
        failed = evaluate(raw["spec"]["failureCondition"], run)
        succeeded = None if failed else evaluate(raw["spec"]["successCondition"], run)
    except GjsonError as error:
        await _end(
            ctx, raw, "Failed", "TrialFailed", f"the condition of the trial template cannot be read: {error}", []
        )
        return Result()
    left_s = looks.left_s(raw, ctx.now())
    pods = _pods(ctx, raw, run)
    # What has ended writes no more: it is read while the run finds out that it has ended, too.
    ended = bool(pods) and all(_is_terminal(pod) for pod in pods) and _collector(raw) in READ
    if failed is None and succeeded is None and not (ended and looks.found(raw, pods) is None):
        unshown_s = looks.unshown_s(raw, ctx.now())
        if unshown_s <= 0:
            raw = await _mark_running(ctx, raw)
        if left_s > 0:
            return Result(min(left_s, unshown_s) if unshown_s > 0 else left_s)
    looks.done(raw, ctx.now())
    reports = looks.found(raw, pods) if ended else None
    fresh = ended and reports is None
    if reports is None:
        reports = await _collect(ctx, raw, pods)
        if ended:
            looks.keep_found(raw, pods, reports)
    if failed is not None:
        await _end(ctx, raw, "Failed", "TrialFailed", await _why(ctx, raw, pods, failed), reports)
    elif succeeded is not None:
        await _succeed(ctx, raw, pods, succeeded, reports)
    elif not ended and await _is_stopped(ctx, raw, reports):
        await _end(ctx, raw, "EarlyStopped", "TrialEarlyStopped", "Trial is early stopped", reports)
    else:
        if not fresh:
            await _tell_failures(ctx, raw, pods, looks)
        return Result(looks.left_s(raw, ctx.now()))
    return Result()


async def _tell_failures(ctx: Context, trial: Object, pods: Sequence[Object], looks: Looks) -> None:
    """Say in Events why Pods have failed whose run goes on: it tries again, maybe for long."""
    for pod in pods:
        if (pod.get("status") or {}).get("phase") == "Failed" and looks.is_new_failure(trial, pod):
            text = f"Pod {pod['metadata']['name']} has failed, and its run goes on"
            container = trial["spec"].get("primaryContainerName", "")
            if lines := await asyncio.to_thread(last_lines, ctx.settings, [pod], container):
                text += f". Last lines of the log: {lines}"
            ctx.events.record(trial, "TrialPodFailed", text, "Warning")


def _collector(trial: Object) -> str:
    return str(((trial["spec"].get("metricsCollector") or {}).get("collector") or {}).get("kind", "StdOut"))


async def _ensure_run(ctx: Context, trial: Object) -> Object | None:
    """Return the run, created when it is not there; None when it cannot be, which ends the trial."""
    body = trial["spec"].get("runSpec") or {}
    try:
        gvk = gvk_of(body)
    except KeyError:
        await _end(ctx, trial, "Failed", "TrialFailed", "spec.runSpec: must have apiVersion and kind", [])
        return None
    name, namespace = trial["metadata"]["name"], trial["metadata"]["namespace"]
    try:
        run = await ctx.client.get(gvk, name, namespace)
    except NotFoundError:
        try:
            run = await _create_run(ctx, trial, body)
        except NotFoundError as error:
            if not await _is_served(ctx, gvk):
                text = f"spec.runSpec: no kind {gvk.kind} in {gvk.api_version} is served here; install its CRD"
                await _end(ctx, trial, "Failed", "TrialFailed", text, [])
                return None
            raise error
        except ApiError as error:
            if error.code in (400, 403, 422):
                await _end(ctx, trial, "Failed", "TrialFailed", f"the run was refused: {error.message}", [])
                return None
            raise
    ctx.watch_children(TRIAL, gvk)
    return run


async def _create_run(ctx: Context, trial: Object, body: Object) -> Object:
    if needs_checkpoint(trial):
        await asyncio.to_thread(prepare_checkpoint, ctx.settings, trial)
    metadata = {**(body.get("metadata") or {})}
    metadata |= {"name": trial["metadata"]["name"], "namespace": trial["metadata"]["namespace"]}
    metadata["ownerReferences"] = [owner_reference(trial)]
    try:
        return await ctx.client.create({**body, "metadata": metadata})
    except AlreadyExistsError:
        return await ctx.client.get(gvk_of(body), metadata["name"], metadata["namespace"])


async def _is_served(ctx: Context, gvk: Gvk) -> bool:
    return any(found.gvk == gvk for found in await ctx.client.resource_types())


async def _label(ctx: Context, trial: Object) -> Object:
    """Let a trial be found as one of its experiment, now that its run exists."""
    name = experiment_of(trial)
    if not name or labels_of(trial).get(EXPERIMENT_LABEL) == name:
        return trial
    metadata = trial["metadata"]
    patch = {"metadata": {"labels": {EXPERIMENT_LABEL: name}}}
    return await ctx.client.patch(TRIAL, metadata["name"], metadata["namespace"], patch)


async def _mark_running(ctx: Context, trial: Object) -> Object:
    status = trial.get("status") or {}
    if has(status, "Running"):
        return trial
    now = ctx.now()
    conditions = with_condition(
        status.get("conditions") or (), "Created", "True", "TrialCreated", "Trial is created", now
    )
    conditions = with_condition(conditions, "Running", "True", "TrialRunning", "Trial is running", now)
    start = {"startTime": status.get("startTime") or format_time(now), "lastReconcileTime": format_time(now)}
    return await ctx.client.patch_status(trial, {"conditions": conditions, **start})


def _pods(ctx: Context, trial: Object, run: Object) -> list[Object]:
    """Return the trial's primary Pods, the oldest first."""
    wanted = trial["spec"].get("primaryPodLabels") or {}
    name, store = trial["metadata"]["name"], ctx.cache(_POD)
    # Most runs own their Pods; only where objects stand between have all Pods of the namespace to be looked at.
    candidates = store.by_owner(run["metadata"]["uid"]) or store.list(trial["metadata"]["namespace"])
    pods = [
        pod
        for pod in candidates
        if labels_of(pod).get(TRIAL_LABEL) == name and wanted.items() <= labels_of(pod).items()
    ]
    return sorted(pods, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"]))


def _trials_of(pod: Object) -> Iterable[Key]:
    """Return the Trial that should look at a Pod now, because it has ended."""
    name = labels_of(pod).get(TRIAL_LABEL)
    return [Key(pod["metadata"]["namespace"], name)] if name and _is_terminal(pod) and not is_deleting(pod) else []


def _is_terminal(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


async def _collect(ctx: Context, trial: Object, pods: list[Object]) -> list[Report]:
    """Store what can be read now; return everything that is known of the trial."""
    name = trial["metadata"]["name"]
    if _collector(trial) == "PrometheusMetric":
        collected = await scrape(trial, pods, ctx.now())
        for source, reports in collected:
            await ctx.database.write(lambda c, s=source, r=reports: tables.append_reports(c, name, s, r))  # type: ignore[misc]
    elif _collector(trial) in READ:
        # A log of usual length is read by the thread that stores what it holds: each hand-over costs a moment.
        short = await ctx.database.write(lambda c: _read_into(c, ctx.settings, trial, pods, _SHORT_BYTES))
        if short is not None:
            return short
        collected = await asyncio.to_thread(read_metrics, ctx.settings, trial, pods)
        return await ctx.database.write(lambda c: tables.add_all_reports(c, name, collected))
    return await ctx.database.read(lambda connection: tables.reports_of(connection, name))


def _read_into(
    connection: Any, settings: Settings, trial: Object, pods: Sequence[Object], most_bytes: int
) -> list[Report] | None:
    """Read and store what a trial has measured; None, and nothing read, when there is more than ``most_bytes``."""
    if size_bytes(settings, trial, pods) > most_bytes:
        return None
    return tables.add_all_reports(connection, trial["metadata"]["name"], read_metrics(settings, trial, pods))


async def _why(ctx: Context, trial: Object, pods: list[Object], failed: Match) -> str:
    message = "Trial has failed"
    if failed.message or failed.reason:
        message += f". Job message: {failed.message}. Job reason: {failed.reason}"
    container = trial["spec"].get("primaryContainerName", "")
    if text := await asyncio.to_thread(last_lines, ctx.settings, pods, container):
        message += f". Last lines of the log: {text}"
    return message


async def _succeed(ctx: Context, trial: Object, pods: Sequence[Object], match: Match, reports: list[Report]) -> None:
    objective = trial["spec"]["objective"]
    more = f". Job message: {match.message}. Job reason: {match.reason}" if match.message or match.reason else ""
    if _collector(trial) == "None":
        await _end(ctx, trial, "Succeeded", "TrialSucceeded", f"Trial has succeeded{more}", reports)
        return
    observation = render_observation(objective, reports)
    if is_available(objective, observation):
        await _end(ctx, trial, "Succeeded", "TrialSucceeded", f"Trial has succeeded{more}", reports)
        return
    name, metric = trial["metadata"]["name"], objective["objectiveMetricName"]
    missing = Report(metric, UNAVAILABLE)
    await ctx.database.write(lambda c: tables.add_reports(c, name, "end", [missing]))
    message = (
        f"Metrics are not available: the run ended without a value of {metric!r}{_other_containers(trial, pods)}{more}"
    )
    await _end(ctx, trial, "MetricsUnavailable", "MetricsUnavailable", message, [*reports, missing])


def _other_containers(trial: Object, pods: Sequence[Object]) -> str:
    """Say so when no Pod has the container whose log or files are read."""
    wanted = trial["spec"].get("primaryContainerName", "")
    names = {container["name"] for pod in pods for container in pod["spec"]["containers"]}
    if not names or wanted in names or _collector(trial) not in READ:
        return ""
    return f"; primaryContainerName {wanted!r} is none of its containers, which are {', '.join(sorted(names))}"


async def _is_stopped(ctx: Context, trial: Object, reports: list[Report]) -> bool:
    objective = trial["spec"]["objective"]
    metric, maximize = objective["objectiveMetricName"], objective["type"] == "maximize"
    values: dict[str, list[float]] = {name: [] for name in metric_names(objective)}
    for report in reports:
        try:
            values.setdefault(report.metric, []).append(float(report.value))
        except ValueError:
            continue
    if rules := trial["spec"].get("earlyStoppingRules"):
        return rules_fire(rules, values, metric, maximize)
    experiment = ctx.cache(EXPERIMENT).get(Key(trial["metadata"]["namespace"], experiment_of(trial)))
    stopping = ((experiment or {}).get("spec") or {}).get("earlyStopping") or {}
    if experiment is None or stopping.get("algorithmName") != "asha" or not values[metric]:
        return False
    siblings = [
        other["metadata"]["name"]
        for other in ctx.cache(TRIAL).by_owner(experiment["metadata"]["uid"])
        if other["metadata"]["name"] != trial["metadata"]["name"]
    ]
    found = await ctx.database.read(lambda c: tables.objective_reports(c, siblings, metric))
    return asha_stops(settings_of(stopping), values[metric], list(found.values()), maximize)


async def _end(ctx: Context, trial: Object, type_: str, reason: str, message: str, reports: list[Report]) -> None:
    old, now = trial.get("status") or {}, ctx.now()
    conditions = with_condition(old.get("conditions") or (), "Created", "True", "TrialCreated", "Trial is created", now)
    conditions = with_condition(conditions, "Running", "False", "TrialRunning", "Trial is not running", now)
    conditions = with_condition(conditions, type_, "True", reason, message, now)
    status = {**old, "conditions": conditions, "completionTime": format_time(now)}
    status.setdefault("startTime", format_time(now))
    observation = render_observation(trial["spec"].get("objective") or {}, reports)
    if observation["metrics"]:
        status["observation"] = observation
    patch = status_patch(old, status)
    if patch:
        raw = await ctx.client.patch_status(trial, patch | {"lastReconcileTime": format_time(now)})
        kind = "Normal" if type_ in ("Succeeded", "EarlyStopped") else "Warning"
        ctx.events.record(raw, reason, message, kind)


async def _clean_up(ctx: Context, trial: Object) -> None:
    """Delete the run of a trial that is over, unless it is to be kept."""
    stopped = has(trial["status"], "EarlyStopped")
    if trial["spec"].get("retainRun") and not stopped:
        return
    try:
        gvk = gvk_of(trial["spec"]["runSpec"])
        run = await ctx.client.get(gvk, trial["metadata"]["name"], trial["metadata"]["namespace"])
    except (NotFoundError, KeyError):
        return
    owners = {reference["uid"] for reference in run["metadata"].get("ownerReferences") or ()}
    if is_deleting(run) or trial["metadata"]["uid"] not in owners:
        return
    metadata = run["metadata"]
    try:
        await ctx.client.delete(gvk, metadata["name"], metadata["namespace"], uid=metadata["uid"])
    except NotFoundError:
        return


async def gone(ctx: Context, key: Key, looks: Looks) -> None:
    """What a deleted trial measured goes with it."""
    looks.keep({trial["metadata"]["uid"] for trial in ctx.cache(TRIAL).list()})
    await ctx.database.write(lambda connection: tables.delete_reports(connection, key.name))
    await asyncio.to_thread(remove_metrics, ctx.settings, key.namespace, key.name)
    await asyncio.to_thread(remove_checkpoint, ctx.settings, key.namespace, key.name)


def trial_kind() -> Kind:
    looks = Looks()
    return Kind(
        api_version=API_VERSION,
        kind="Trial",
        plural="trials",
        categories=("all", "kubeflow", "katib"),
        schema=ANY,
        columns=(
            Column("Type", "string", ".status.conditions[-1:].type"),
            Column("Status", "string", ".status.conditions[-1:].status"),
            Column("Age", "date", ".metadata.creationTimestamp"),
        ),
        reconcile=lambda ctx, trial: reconcile(ctx, trial, looks),
        on_gone=lambda ctx, key: gone(ctx, key, looks),
        watches=(Watch(_POD, _trials_of),),
        workers=8,
    )
