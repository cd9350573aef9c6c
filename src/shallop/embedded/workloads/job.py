"""
Job: runs Pods until enough of them have succeeded.

Honours parallelism, completions, completionMode, backoffLimit, backoffLimitPerIndex, maxFailedIndexes, successPolicy,
activeDeadlineSeconds, ttlSecondsAfterFinished, suspend, podFailurePolicy, podReplacementPolicy and managedBy.

Each Pod carries a finalizer until its end is in the Job's status, so that no result is lost or counted twice, whatever
is killed or deleted meanwhile: first the uid goes to ``status.uncountedTerminatedPods``, then the finalizer goes, then
the uid becomes a count. Only the ends that a Job is over with count at once, with the last condition: of a Job that
is over nothing is counted any more. How often an index has failed is written on its Pods: the last failed Pod of an
index keeps its finalizer until the next one carries the number on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from shallop.controller import Context, Kind, Resource, Result
from shallop.embedded.workloads.children import Children, is_namespace_ending
from shallop.embedded.workloads.job_failures import back_off_s, index_back_off_s, judge_failure
from shallop.embedded.workloads.job_indexes import (
    INDEX,
    Failures,
    failures_of,
    format_indexes,
    index_of,
    match_success_policy,
    newest_failures,
    parse_indexes,
)
from shallop.embedded.workloads.latest import Latest
from shallop.embedded.workloads.pods import POD, is_active, is_ready, is_terminal, phase_of
from shallop.embedded.workloads.statuses import replaced
from shallop.errors import ApiError, ConflictError, NotFoundError
from shallop.kube.objects import (
    Gvk,
    Key,
    Object,
    find_condition,
    format_time,
    is_condition_true,
    is_deleting,
    key_of,
    labels_of,
    parse_time,
)

__all__ = ["JOB", "JobPlan", "Jobs", "plan_job", "render_pod"]

_JOB = Gvk("batch/v1", "Job")
_FINALIZER = "batch.kubernetes.io/job-tracking"
_NAME_LABEL = "batch.kubernetes.io/job-name"
_REACHED = ("CompletionsReached", "Reached expected number of succeeded pods")
_MANAGER = "kubernetes.io/job-controller"
# How long the numbers of active and ready Pods may be behind when nothing else has changed: many Jobs are over before.
# Kubernetes waits up to a second before it looks at what Pods do.
_QUIET_S = 0.2
_QUIET = {"active", "ready", "startTime"}
# How long the Pods of a Job that is over are held: nothing counts any more, and whoever waits for its end goes first.
_HELD_S = 0.1
_NEW: dict[str, Any] = {"terminating": 0, "uncountedTerminatedPods": {}}


@dataclass(frozen=True)
class JobPlan:
    """
    What a Job needs now.

    Args:
        status: the JobStatus to write, before anything else is done.
        create: completion indexes of the Pods to create, -1 each for a NonIndexed Job.
        failures: index -> how often it has failed, for the Pods to create; only with ``backoffLimitPerIndex``.
        delete: Pods that are not wanted any more and do not count.
        release: Pods whose end is in ``status``: their finalizer goes.
        requeue_after_s: when time alone changes the answer.
        delete_job: the time to live is over.
    """

    status: dict[str, Any]
    create: tuple[int, ...] = ()
    failures: Mapping[int, Failures] | None = None
    delete: tuple[Object, ...] = ()
    release: tuple[Object, ...] = ()
    requeue_after_s: float | None = None
    delete_job: bool = False


class _Ending(NamedTuple):
    type: str
    reason: str
    message: str


@dataclass
class _Tally:
    """Pods of one Job, and what is known of its ended ones."""

    active: list[Object] = field(default_factory=list)
    terminating: list[Object] = field(default_factory=list)
    succeeded: list[Object] = field(default_factory=list)
    failed: list[Object] = field(default_factory=list)
    succeeded_count: int = 0
    failed_count: int = 0
    uncounted: dict[str, list[str]] = field(default_factory=dict)
    indexes: set[int] = field(default_factory=set)
    failed_indexes: set[int] = field(default_factory=set)
    # Index -> its last failed Pod, which waits for its successor, and the failures that this one starts with.
    held: dict[int, tuple[Object, Failures]] = field(default_factory=dict)
    release: list[Object] = field(default_factory=list)
    verdict: str = ""

    def count_all(self, *, indexed: bool) -> None:
        """Make counts of what waits to be one."""
        self.succeeded_count = len(self.indexes) if indexed else self.succeeded_count + len(self.uncounted["succeeded"])
        self.failed_count += len(self.uncounted["failed"])
        self.uncounted = {"succeeded": [], "failed": []}


def plan_job(job: Object, pods: Sequence[Object], now: datetime) -> JobPlan:
    """
    Decide what a Job does next.

    Args:
        pods: all Pods that the Job controls, ended and terminating ones included.
    """
    spec = job["spec"]
    before = job.get("status") or {}
    tally = _count(job, pods)
    conditions = list(before.get("conditions") or ())
    if _ending_of(conditions, ("Complete", "Failed")):
        return _plan_finished(job, tally, now)
    start = before.get("startTime")
    if not start and not spec.get("suspend"):
        start = format_time(now)
    ending = _ending_of(conditions, ("SuccessCriteriaMet", "FailureTarget")) or _decide_ending(job, tally, start, now)
    create: tuple[int, ...] = ()
    delete: tuple[Object, ...] = ()
    waits: list[float] = []
    if ending:
        conditions = _conditions(conditions, ending, now)
        delete = tuple(tally.active)
        if not (tally.active or tally.terminating or tally.held):
            tally.count_all(indexed=spec.get("completionMode") == "Indexed")
            final = "Complete" if ending.type == "SuccessCriteriaMet" else "Failed"
            conditions = _conditions(conditions, ending._replace(type=final), now)
    elif spec.get("suspend"):
        delete, start = tuple(tally.active), None
        conditions = _conditions(conditions, _Ending("Suspended", "JobSuspended", "Job suspended"), now)
    else:
        if any(c["type"] == "Suspended" and c["status"] == "True" for c in conditions):
            resumed = _Ending("Suspended", "JobResumed", "Job resumed")
            conditions = _conditions(conditions, resumed, now, status="False")
            start = format_time(now)
        create, delete, wait = _plan_pods(spec, tally, now)
        waits = [wait] if wait else []
        if spec.get("activeDeadlineSeconds") is not None and start:
            waits.append(_left_s(start, spec["activeDeadlineSeconds"], now))
    status = _render_status(job, tally, conditions, start, now)
    failures = None
    if spec.get("backoffLimitPerIndex") is not None:
        failures = {index: known for index, (_, known) in tally.held.items()}
    return JobPlan(status, create, failures, delete, tuple(tally.release), min(waits, default=None))


def _count(job: Object, pods: Sequence[Object]) -> _Tally:
    """Sort the Pods and account for those that ended; see the module's text for the order of steps."""
    spec, before = job["spec"], job.get("status") or {}
    known = before.get("uncountedTerminatedPods") or {}
    suspended = bool(spec.get("suspend"))
    replace_failed_only = spec.get("podReplacementPolicy") == "Failed"
    tally = _Tally(
        succeeded_count=int(before.get("succeeded") or 0),
        failed_count=int(before.get("failed") or 0),
        uncounted={"succeeded": [], "failed": []},
        indexes=parse_indexes(before.get("completedIndexes") or ""),
        failed_indexes=parse_indexes(before.get("failedIndexes") or ""),
    )
    tracked = {pod["metadata"]["uid"] for pod in pods if _FINALIZER in (pod["metadata"].get("finalizers") or ())}
    for kind in ("succeeded", "failed"):
        for uid in known.get(kind) or ():
            if uid in tracked:
                tally.uncounted[kind].append(uid)
            elif kind == "succeeded":
                tally.succeeded_count += 1
            else:
                tally.failed_count += 1
    indexed = spec.get("completionMode") == "Indexed"
    is_over = _ending_of(before.get("conditions") or (), ("SuccessCriteriaMet", "FailureTarget", "Complete", "Failed"))
    newest = newest_failures(pods) if spec.get("backoffLimitPerIndex") is not None and not is_over else None
    for pod in sorted(pods, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"])):
        uid = pod["metadata"]["uid"]
        if is_active(pod):
            tally.active.append(pod)
            continue
        if not is_terminal(pod):
            tally.terminating.append(pod)
            if replace_failed_only:
                continue
        success = phase_of(pod) == "Succeeded"
        (tally.succeeded if success else tally.failed).append(pod)
        if uid not in tracked:
            continue
        tally.release.append(pod)
        kind = "succeeded" if success else "failed"
        if uid in tally.uncounted[kind]:
            continue
        if indexed and success:
            index = index_of(pod)
            if index in tally.indexes or not 0 <= index < (spec.get("completions") or 0):
                continue
            tally.indexes.add(index)
        elif not success:
            if suspended and is_deleting(pod):
                continue
            verdict = judge_failure(spec.get("podFailurePolicy"), pod)
            if verdict.action == "FailJob":
                tally.verdict = tally.verdict or verdict.message
            elif newest is not None and _is_held(spec, tally, pod, verdict.action, newest):
                tally.release.pop()
                continue
            if verdict.action == "Ignore":
                continue
        tally.uncounted[kind].append(uid)
    if indexed:
        pending = len(tally.uncounted["succeeded"])
        tally.succeeded_count = len(tally.indexes) - pending
    return tally


def _is_held(spec: Mapping[str, Any], tally: _Tally, pod: Object, action: str, newest: Mapping[int, int]) -> bool:
    """Account for a failed Pod of a Job with a limit per index; True when it has to wait for its successor."""
    index, before = index_of(pod), failures_of(pod)
    if index in tally.indexes or index in tally.failed_indexes or not 0 <= index < (spec.get("completions") or 0):
        return False
    counts = action != "Ignore"
    after = Failures(before.counted + counts, before.ignored + (not counts))
    if action == "FailIndex" or after.counted > spec["backoffLimitPerIndex"]:
        tally.failed_indexes.add(index)
        tally.held.pop(index, None)
        return False
    if newest[index] > before.total:
        return False
    tally.held[index] = (pod, after)
    return True


def _ending_of(conditions: Iterable[dict[str, Any]], types: tuple[str, ...]) -> _Ending | None:
    for condition in conditions:
        if condition["type"] in types and condition["status"] == "True":
            return _Ending(condition["type"], condition.get("reason", ""), condition.get("message", ""))
    return None


def _decide_ending(job: Object, tally: _Tally, start: str | None, now: datetime) -> _Ending | None:
    spec = job["spec"]
    if tally.verdict:
        return _Ending("FailureTarget", "PodFailurePolicy", tally.verdict)
    limit = spec.get("backoffLimit", 6)
    restarts = _restarts(tally.active) if _restarts_in_place(spec) else 0
    failed = tally.failed_count + len(tally.uncounted["failed"])
    if failed > limit or (restarts and restarts >= max(limit, 1)):
        text = "Job has reached the specified backoff limit"
        return _Ending("FailureTarget", "BackoffLimitExceeded", text)
    if len(tally.failed_indexes) > spec.get("maxFailedIndexes", len(tally.failed_indexes)):
        text = "Job has exceeded the specified maximal number of failed indexes"
        return _Ending("FailureTarget", "MaxFailedIndexesExceeded", text)
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and start and not spec.get("suspend") and _left_s(start, deadline, now) <= 0:
        return _Ending("FailureTarget", "DeadlineExceeded", "Job was active longer than specified deadline")
    if matched := match_success_policy(spec.get("successPolicy"), tally.indexes):
        return _Ending("SuccessCriteriaMet", "SuccessPolicy", matched)
    succeeded = tally.succeeded_count + len(tally.uncounted["succeeded"])
    completions = spec.get("completions")
    if tally.failed_indexes and succeeded + len(tally.failed_indexes) >= (completions or 0):
        return _Ending("FailureTarget", "FailedIndexes", "Job has failed indexes")
    if completions is None:
        done = succeeded > 0 and not tally.active and not tally.terminating
    else:
        done = succeeded >= completions
    return _Ending("SuccessCriteriaMet", *_REACHED) if done else None


def _restarts_in_place(spec: dict[str, Any]) -> bool:
    return (spec["template"].get("spec") or {}).get("restartPolicy") == "OnFailure"


def _restarts(pods: Iterable[Object]) -> int:
    return sum(
        int(container.get("restartCount", 0))
        for pod in pods
        for name in ("initContainerStatuses", "containerStatuses")
        for container in (pod.get("status") or {}).get(name) or ()
    )


def _left_s(start: str, limit_s: float, now: datetime) -> float:
    return (parse_time(start) + timedelta(seconds=limit_s) - now).total_seconds()


def _conditions(
    conditions: Sequence[dict[str, Any]], ending: _Ending, now: datetime, *, status: str = "True"
) -> list[dict[str, Any]]:
    stamp = format_time(now)
    fresh = {
        "type": ending.type,
        "status": status,
        "lastProbeTime": stamp,
        "lastTransitionTime": stamp,
        "reason": ending.reason,
        "message": ending.message,
    }
    for number, old in enumerate(conditions):
        if old["type"] == ending.type:
            if old["status"] == status:
                return list(conditions)
            return [*conditions[:number], fresh, *conditions[number + 1 :]]
    return [*conditions, fresh]


def _plan_pods(
    spec: dict[str, Any], tally: _Tally, now: datetime
) -> tuple[tuple[int, ...], tuple[Object, ...], float | None]:
    """Return what to create, what to delete, and seconds until a create that the back-off holds back."""
    completions, parallelism = spec.get("completions"), spec.get("parallelism", 1)
    succeeded = tally.succeeded_count + len(tally.uncounted["succeeded"])
    # A Pod that is ending may still run: with the policy Failed it keeps its place until it is gone.
    blocking = tally.terminating if spec.get("podReplacementPolicy") == "Failed" else []
    if completions is None:
        wanted = len(tally.active) if succeeded else parallelism
    else:
        wanted = min(parallelism, completions - succeeded - len(tally.failed_indexes))
    indexed = spec.get("completionMode") == "Indexed"
    keep, surplus = _choose(tally, indexed, completions or 0)
    surplus += keep[wanted:]
    keep = keep[:wanted]
    missing = wanted - len(keep) - len(blocking)
    if missing <= 0 or surplus:
        return (), tuple(surplus), None
    per_index = spec.get("backoffLimitPerIndex") is not None
    if not per_index and (wait := back_off_s(tally.failed, tally.succeeded, now)):
        return (), (), wait
    if not indexed:
        return (-1,) * missing, (), None
    taken = tally.indexes | tally.failed_indexes | {index_of(pod) for pod in [*keep, *blocking]}
    free = [index for index in range(completions or 0) if index not in taken]
    delays = {index: index_back_off_s(pod, known.total, now) for index, (pod, known) in tally.held.items()}
    ready = [index for index in free if not delays.get(index)][:missing]
    waits = [delays[index] for index in free if delays.get(index)] if len(ready) < missing else []
    return tuple(ready), (), min(waits, default=None)


def _choose(tally: _Tally, indexed: bool, completions: int) -> tuple[list[Object], list[Object]]:
    """Split active Pods into those worth keeping, best first, and those that repeat an index or have a wrong one."""
    ordered = sorted(tally.active, key=lambda pod: not is_ready(pod))
    if not indexed:
        return ordered, []
    keep, surplus = [], []
    taken = tally.indexes | tally.failed_indexes
    for pod in ordered:
        index = index_of(pod)
        if 0 <= index < completions and index not in taken:
            taken.add(index)
            keep.append(pod)
        else:
            surplus.append(pod)
    return keep, surplus


def _plan_finished(job: Object, tally: _Tally, now: datetime) -> JobPlan:
    spec, status = job["spec"], job.get("status") or {}
    plan = JobPlan(status, delete=tuple(tally.active), release=tuple(tally.release))
    ttl_s = spec.get("ttlSecondsAfterFinished")
    if ttl_s is None:
        return plan
    finished = find_condition(job, "Complete") or find_condition(job, "Failed") or {}
    left = _left_s(finished["lastTransitionTime"], ttl_s, now)
    if left > 0:
        return JobPlan(status, delete=plan.delete, release=plan.release, requeue_after_s=left)
    return JobPlan(status, delete=plan.delete, release=plan.release, delete_job=True)


def _render_status(
    job: Object, tally: _Tally, conditions: list[dict[str, Any]], start: str | None, now: datetime
) -> dict[str, Any]:
    before = job.get("status") or {}
    counts = {"active": len(tally.active), "succeeded": tally.succeeded_count, "failed": tally.failed_count}
    status: dict[str, Any] = {name: count for name, count in counts.items() if count}
    if conditions:
        status["conditions"] = conditions
    if start:
        status["startTime"] = start
    if tally.indexes:
        status["completedIndexes"] = format_indexes(tally.indexes)
    if job["spec"].get("backoffLimitPerIndex") is not None:
        status["failedIndexes"] = format_indexes(tally.failed_indexes)
    if _ending_of(conditions, ("Complete",)):
        status["completionTime"] = before.get("completionTime") or format_time(now)
    status["ready"] = sum(is_ready(pod) for pod in tally.active)
    status["terminating"] = len(tally.terminating)
    status["uncountedTerminatedPods"] = {kind: uids for kind, uids in tally.uncounted.items() if uids}
    return status


def render_pod(job: Object, index: int = -1, failures: Failures | None = None) -> Object:
    """
    Return the Pod of a Job.

    Args:
        index: its completion index, -1 for a NonIndexed Job.
        failures: how often the index has failed, for a Job that counts it.
    """
    template = job["spec"]["template"]
    metadata = template.get("metadata") or {}
    name = job["metadata"]["name"]
    rendered: dict[str, Any] = {
        "generateName": f"{name[:246]}-",
        "namespace": job["metadata"]["namespace"],
        "labels": dict(metadata.get("labels") or {}),
        "finalizers": [_FINALIZER],
    }
    if metadata.get("annotations"):
        rendered["annotations"] = dict(metadata["annotations"])
    spec = template["spec"]
    if index >= 0:
        rendered["generateName"] = f"{name[:236]}-{index}-"
        rendered["labels"][INDEX] = str(index)
        counted = failures.annotations() if failures else {}
        rendered["annotations"] = {**rendered.get("annotations", {}), INDEX: str(index), **counted}
        spec = _with_index(spec, f"{name}-{index}"[:63])
    return {"apiVersion": "v1", "kind": "Pod", "metadata": rendered, "spec": spec}


def _with_index(spec: dict[str, Any], hostname: str) -> dict[str, Any]:
    reference = {"apiVersion": "v1", "fieldPath": f"metadata.labels['{INDEX}']"}
    variable = {"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": reference}}

    def extended(container: dict[str, Any]) -> dict[str, Any]:
        env = container.get("env") or []
        if any(entry["name"] == variable["name"] for entry in env):
            return container
        return {**container, "env": [*env, variable]}

    result = {"hostname": hostname, **spec}
    for name in ("initContainers", "containers"):
        if spec.get(name):
            result[name] = [extended(container) for container in spec[name]]
    return result


class Jobs:
    """The controller of Jobs."""

    def __init__(self) -> None:
        self._pods = Children(POD)
        self._latest = Latest()
        # Since when the numbers of Pods are not shown, and since when a Job that is over holds its Pods.
        self._unshown: dict[Key, datetime] = {}
        self._held: dict[Key, datetime] = {}

    async def reconcile(self, ctx: Context, job: Resource[dict[str, Any]]) -> Result:
        """Create Pods as planned, write down what ended, and only then let go of it."""
        raw = self._latest.of(job.raw)
        if is_deleting(raw):
            self._latest.forget(raw["metadata"]["uid"])
            await _release_all(ctx, job.key)
            return Result()
        if job.spec.get("managedBy", _MANAGER) != _MANAGER:
            return Result()
        plan = plan_job(raw, await self._pods.of(ctx, raw), ctx.now())
        if plan.delete_job:
            key = job.key
            uid = raw["metadata"]["uid"]
            await ctx.client.delete(_JOB, key.name, key.namespace, propagation="Foreground", uid=uid)
            return Result()
        status = plan.status
        if plan.create:
            status = await self._create(ctx, raw, plan)
        if not (plan.release or plan.delete) and (left_s := self._quiet_s(ctx, raw, status)):
            return Result(min(left_s, plan.requeue_after_s or left_s))
        await self._latest.write_status(ctx, raw, status)
        self._tell(ctx, raw, status)
        if plan.release and not plan.delete and (left_s := self._held_s(ctx, job.key, status)):
            return Result(min(left_s, plan.requeue_after_s or left_s))
        for pod in plan.release:
            await _remove_finalizer(ctx, pod)
        for pod in plan.delete:
            # Without the finalizer it is not counted: we end it, it did not fail.
            if not await _remove_finalizer(ctx, pod):
                continue
            await self._pods.delete(ctx, raw, pod)
            ctx.events.record(raw, "SuccessfulDelete", f"Deleted pod: {pod['metadata']['name']}")
        return Result(plan.requeue_after_s)

    async def on_gone(self, ctx: Context, key: Key) -> None:
        self._unshown.pop(key, None)
        self._held.pop(key, None)
        await _release_all(ctx, key)

    def _quiet_s(self, ctx: Context, raw: Object, status: dict[str, Any]) -> float:
        """Return for how long the status may stay as it is; 0 when it is due."""
        key, changed = key_of(raw), replaced(_NEW | (raw.get("status") or {}), status)
        if not changed or not changed.keys() <= _QUIET:
            self._unshown.pop(key, None)
            return 0.0
        left_s = _QUIET_S - (ctx.now() - self._unshown.setdefault(key, ctx.now())).total_seconds()
        if left_s <= 0:
            del self._unshown[key]
        return max(0.0, left_s)

    def _held_s(self, ctx: Context, key: Key, status: dict[str, Any]) -> float:
        """Return for how long Pods may wait to be let go; 0 when it is time."""
        if not _ending_of(status.get("conditions") or (), ("Complete", "Failed")):
            return 0.0
        return max(0.0, _HELD_S - (ctx.now() - self._held.setdefault(key, ctx.now())).total_seconds())

    async def _create(self, ctx: Context, raw: Object, plan: JobPlan) -> dict[str, Any]:
        for index in plan.create:
            try:
                failures = plan.failures.get(index, Failures()) if plan.failures is not None else None
                pod = await self._pods.create(ctx, raw, render_pod(raw, index, failures))
            except ApiError as error:
                if is_namespace_ending(error):
                    return plan.status
                ctx.events.record(raw, "FailedCreate", f"Error creating: {error}", "Warning")
                raise
            ctx.events.record(raw, "SuccessfulCreate", f"Created pod: {pod['metadata']['name']}")
        return {**plan.status, "active": plan.status.get("active", 0) + len(plan.create)}

    def _tell(self, ctx: Context, raw: Object, status: dict[str, Any]) -> None:
        after = {"status": status}
        if is_condition_true(after, "Complete") and not is_condition_true(raw, "Complete"):
            ctx.events.record(raw, "Completed", "Job completed")
        if is_condition_true(after, "Failed") and not is_condition_true(raw, "Failed"):
            condition = find_condition(after, "Failed") or {}
            ctx.events.record(raw, condition["reason"], condition["message"], "Warning")
        if is_condition_true(after, "Suspended") != is_condition_true(raw, "Suspended"):
            condition = find_condition(after, "Suspended") or {}
            ctx.events.record(
                raw, {"JobSuspended": "Suspended"}.get(condition["reason"], "Resumed"), condition["message"]
            )


async def _release_all(ctx: Context, key: Key) -> None:
    """Free the Pods of a Job that goes or is gone: nobody counts them any more."""
    for pod in ctx.cache(POD).list(key.namespace):
        if labels_of(pod).get(_NAME_LABEL) == key.name:
            await _remove_finalizer(ctx, pod)


async def _remove_finalizer(ctx: Context, pod: Object) -> bool:
    """Return False when the Pod has changed meanwhile; that change brings its Job back here."""
    metadata = pod["metadata"]
    finalizers = metadata.get("finalizers") or []
    if _FINALIZER not in finalizers:
        return True
    rest = [name for name in finalizers if name != _FINALIZER]
    guard = {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]}
    key = key_of(pod)
    try:
        await ctx.client.patch(POD, key.name, key.namespace, {"metadata": {**guard, "finalizers": rest or None}})
    except (ConflictError, NotFoundError):
        return False
    return True


_CONTROLLER = Jobs()

JOB = Kind(
    api_version="batch/v1",
    kind="Job",
    plural="jobs",
    reconcile=_CONTROLLER.reconcile,
    on_gone=_CONTROLLER.on_gone,
    owns=(POD,),
    component="job-controller",
)
