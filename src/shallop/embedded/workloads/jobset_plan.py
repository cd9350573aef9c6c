"""What a JobSet does next; pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from shallop.embedded.workloads.jobset_render import RESTARTS, job_name
from shallop.kube.objects import (
    Object,
    find_condition,
    is_condition_true,
    is_deleting,
    labels_of,
    parse_time,
    set_condition,
)

__all__ = ["JobSetPlan", "Tell", "plan_jobset"]

_REPLICATED_JOB = "jobset.sigs.k8s.io/replicatedjob-name"
_IN_ORDER = "InOrderStartupPolicy"


class Tell(NamedTuple):
    """An Event of the JobSet."""

    reason: str
    message: str
    type: str = "Normal"


class NewJob(NamedTuple):
    """A Job to create: one replica of a replicated Job."""

    rjob: Mapping[str, Any]
    replica: int


@dataclass
class JobSetPlan:
    """
    What a JobSet needs now.

    Args:
        status: to be written before anything else is done: it says which Jobs belong to the current attempt.
        delete: Jobs of earlier attempts, or that still run when all is over.
        suspend, resume: Jobs whose ``spec.suspend`` has to change.
        delete_jobset: the time to live is over.
        wants_children: whether the Service and the claims have to be there.
    """

    status: dict[str, Any]
    create: list[NewJob] = field(default_factory=list)
    delete: list[Object] = field(default_factory=list)
    suspend: list[Object] = field(default_factory=list)
    resume: list[Object] = field(default_factory=list)
    tells: list[Tell] = field(default_factory=list)
    requeue_after_s: float | None = None
    delete_jobset: bool = False
    wants_children: bool = False


@dataclass
class _Jobs:
    """The Jobs of one JobSet by what they are to it."""

    active: list[Object] = field(default_factory=list)
    succeeded: list[Object] = field(default_factory=list)
    failed: list[Object] = field(default_factory=list)
    previous: list[Object] = field(default_factory=list)


def plan_jobset(jobset: Object, jobs: Sequence[Object], now: datetime) -> JobSetPlan:
    """
    Decide what a JobSet does next.

    Args:
        jobs: all Jobs that the JobSet controls, terminating ones included.
    """
    before = jobset.get("status") or {}
    restarts = int(before.get("restarts") or 0)
    sorted_jobs = _sort(jobs, restarts)
    counts = [_count(rjob, sorted_jobs) for rjob in jobset["spec"].get("replicatedJobs") or ()]
    plan = JobSetPlan({**before, "restarts": restarts, "replicatedJobsStatus": counts})
    if is_condition_true(jobset, "Completed") or is_condition_true(jobset, "Failed"):
        _finish(plan, jobset, sorted_jobs, now)
        return plan
    plan.wants_children = True
    plan.delete = [job for job in sorted_jobs.previous if not is_deleting(job)]
    if sorted_jobs.failed:
        _fail(plan, jobset, sorted_jobs, now)
    elif _has_succeeded(jobset["spec"], sorted_jobs):
        _end(plan, "Completed", "AllJobsCompleted", "jobset completed successfully", now)
    else:
        _go_on(plan, jobset, jobs, sorted_jobs, now)
    return plan


def _sort(jobs: Sequence[Object], restarts: int) -> _Jobs:
    result = _Jobs()
    for job in sorted(jobs, key=lambda job: str(job["metadata"]["name"])):
        attempt = labels_of(job).get(RESTARTS, "0")
        if is_deleting(job) or (attempt.isdigit() and int(attempt) < restarts):
            result.previous.append(job)
        elif is_condition_true(job, "Complete"):
            result.succeeded.append(job)
        elif is_condition_true(job, "Failed"):
            result.failed.append(job)
        else:
            result.active.append(job)
    return result


def _count(rjob: Mapping[str, Any], jobs: _Jobs) -> dict[str, Any]:
    active = _of(jobs.active, rjob["name"])
    return {
        "name": rjob["name"],
        "active": sum(bool(_number(job, "active")) for job in active),
        "failed": len(_of(jobs.failed, rjob["name"])),
        "ready": sum(_is_ready(job) for job in active),
        "succeeded": len(_of(jobs.succeeded, rjob["name"])),
        "suspended": sum(bool(job["spec"].get("suspend")) for job in active),
    }


def _of(jobs: Sequence[Object], name: str) -> list[Object]:
    return [job for job in jobs if labels_of(job).get(_REPLICATED_JOB) == name]


def _number(job: Object, name: str) -> int:
    return int((job.get("status") or {}).get(name) or 0)


def _is_ready(job: Object) -> bool:
    parallelism = int(job["spec"].get("parallelism", 1))
    wanted = min(parallelism, int(job["spec"].get("completions") or parallelism))
    return _number(job, "succeeded") + _number(job, "ready") >= wanted


def _finish(plan: JobSetPlan, jobset: Object, jobs: _Jobs, now: datetime) -> None:
    plan.delete = [job for job in [*jobs.active, *jobs.previous] if not is_deleting(job)]
    ttl_s = jobset["spec"].get("ttlSecondsAfterFinished")
    if ttl_s is None:
        return
    conditions = [find_condition(jobset, type_) for type_ in ("Completed", "Failed")]
    finished = next(c for c in conditions if c and c["status"] == "True")
    left = (parse_time(finished["lastTransitionTime"]) + timedelta(seconds=ttl_s) - now).total_seconds()
    plan.delete_jobset = left <= 0
    plan.requeue_after_s = left if left > 0 else None


def _has_succeeded(spec: Mapping[str, Any], jobs: _Jobs) -> bool:
    policy = spec.get("successPolicy") or {}
    targets = policy.get("targetReplicatedJobs") or [rjob["name"] for rjob in spec.get("replicatedJobs") or ()]
    succeeded = [job for job in jobs.succeeded if labels_of(job).get(_REPLICATED_JOB) in targets]
    if policy.get("operator") == "Any":
        return bool(succeeded)
    wanted = sum(int(rjob.get("replicas", 1)) for rjob in spec.get("replicatedJobs") or () if rjob["name"] in targets)
    return bool(succeeded) and len(succeeded) >= wanted


def _end(plan: JobSetPlan, type_: str, reason: str, message: str, now: datetime) -> None:
    plan.status["terminalState"] = type_
    _set(plan, type_, "True", reason, message, now)
    plan.tells.append(Tell(reason, message, "Warning" if type_ == "Failed" else "Normal"))


def _set(plan: JobSetPlan, type_: str, status: str, reason: str, message: str, now: datetime) -> None:
    conditions = plan.status.get("conditions") or []
    plan.status["conditions"] = set_condition(conditions, type_, status, reason, message, now)


def _fail(plan: JobSetPlan, jobset: Object, jobs: _Jobs, now: datetime) -> None:
    """Apply the failure policy to the Jobs that have failed."""
    policy = jobset["spec"].get("failurePolicy")
    failed = sorted(jobs.failed, key=_failed_at)
    if policy is None:
        text = _with_first("jobset failed due to one or more job failures", failed[0])
        _end(plan, "Failed", "FailedJobs", text, now)
        return
    action, job = _find_rule(policy.get("rules") or (), failed)
    text = _with_first(f"applying {action} failure policy action", job)
    if action == "FailJobSet":
        _end(plan, "Failed", "FailJobSetFailurePolicyAction", text, now)
        return
    counted = int(plan.status.get("restartsCountTowardsMax") or 0)
    if action == "RestartJobSet":
        if counted >= int(policy.get("maxRestarts") or 0):
            text = _with_first("jobset failed due to reaching max number of restarts", job)
            _end(plan, "Failed", "ReachedMaxRestarts", text, now)
            return
        plan.status["restartsCountTowardsMax"] = counted + 1
    plan.status["restarts"] += 1
    plan.tells.append(Tell(f"{action}FailurePolicyAction", text, "Warning"))
    # The Jobs of this attempt go when the new attempt is written down; until then nothing is created.
    plan.delete = [old for old in [*jobs.active, *jobs.succeeded, *jobs.failed, *jobs.previous] if not is_deleting(old)]


def _find_rule(rules: Sequence[Mapping[str, Any]], failed: Sequence[Object]) -> tuple[str, Object]:
    for rule in rules:
        for job in failed:
            if _matches(rule, job):
                return str(rule["action"]), job
    return "RestartJobSet", failed[0]


def _matches(rule: Mapping[str, Any], job: Object) -> bool:
    condition = find_condition(job, "Failed") or {}
    reasons, patterns = rule.get("onJobFailureReasons"), rule.get("onJobFailureMessagePatterns")
    targets = rule.get("targetReplicatedJobs")
    return (
        (not reasons or condition.get("reason") in reasons)
        and (not patterns or any(re.search(pattern, condition.get("message", "")) for pattern in patterns))
        and (not targets or labels_of(job).get(_REPLICATED_JOB) in targets)
    )


def _failed_at(job: Object) -> tuple[str, str]:
    return str((find_condition(job, "Failed") or {}).get("lastTransitionTime", "")), str(job["metadata"]["name"])


def _with_first(text: str, job: Object) -> str:
    return f"{text} (first failed job: {job['metadata']['name']})"


def _go_on(plan: JobSetPlan, jobset: Object, jobs: Sequence[Object], current: _Jobs, now: datetime) -> None:
    """Create what may start now; suspend or resume what is there."""
    spec = jobset["spec"]
    suspended = bool(spec.get("suspend"))
    policy = spec.get("failurePolicy") or {}
    blocked = bool(current.previous) and policy.get("restartStrategy") == "BlockingRecreate"
    taken = {str(job["metadata"]["name"]) for job in jobs}
    rjobs = spec.get("replicatedJobs") or ()
    counts = {count["name"]: count for count in plan.status["replicatedJobsStatus"]}
    in_order = (spec.get("startupPolicy") or {}).get("startupPolicyOrder") == "InOrder"
    started = True
    for rjob in rjobs:
        if not suspended and not all(_is_met(dependency, rjobs, counts) for dependency in rjob.get("dependsOn") or ()):
            continue
        names = [job_name(jobset, rjob, index) for index in range(int(rjob.get("replicas", 1)))]
        if not blocked:
            plan.create += [NewJob(rjob, index) for index, name in enumerate(names) if name not in taken]
        active = _of(current.active, rjob["name"])
        if suspended:
            plan.suspend += [job for job in active if not job["spec"].get("suspend")]
            continue
        plan.resume += [job for job in active if job["spec"].get("suspend")]
        if in_order and not _is_started(rjob, counts[rjob["name"]]):
            started = False
            break
    _tell_suspension(plan, jobset, suspended, now)
    if in_order and not suspended:
        _tell_order(plan, jobset, started, now)


def _is_started(rjob: Mapping[str, Any], count: Mapping[str, Any]) -> bool:
    return int(count["ready"] + count["failed"] + count["succeeded"]) == int(rjob.get("replicas", 1))


def _is_met(
    dependency: Mapping[str, Any], rjobs: Sequence[Mapping[str, Any]], counts: Mapping[str, Mapping[str, Any]]
) -> bool:
    rjob = next((rjob for rjob in rjobs if rjob["name"] == dependency["name"]), None)
    if rjob is None:
        return False
    count = counts[rjob["name"]]
    if dependency["status"] == "Complete":
        return int(count["succeeded"]) == int(rjob.get("replicas", 1))
    return _is_started(rjob, count)


def _tell_suspension(plan: JobSetPlan, jobset: Object, suspended: bool, now: datetime) -> None:
    if suspended != is_condition_true(jobset, "Suspended"):
        reason, text = ("SuspendedJobs", "jobset is suspended") if suspended else ("ResumeJobs", "jobset is resumed")
        _set(plan, "Suspended", "True" if suspended else "False", reason, text, now)
        plan.tells.append(Tell(reason, text))


def _tell_order(plan: JobSetPlan, jobset: Object, started: bool, now: datetime) -> None:
    if started:
        if find_condition(jobset, "StartupPolicyInProgress"):
            reason, text = f"{_IN_ORDER}Completed", "in order startup policy has completed"
            _set(plan, "StartupPolicyInProgress", "False", reason, text, now)
        type_, reason, text = "StartupPolicyCompleted", f"{_IN_ORDER}Completed", "in order startup policy has completed"
    else:
        if find_condition(jobset, "StartupPolicyCompleted"):
            reason, text = f"{_IN_ORDER}InProgress", "in order startup policy is in progress"
            _set(plan, "StartupPolicyCompleted", "False", reason, text, now)
        type_, reason = "StartupPolicyInProgress", f"{_IN_ORDER}InProgress"
        text = "in order startup policy is in progress"
    if not is_condition_true(jobset, type_):
        _set(plan, type_, "True", reason, text, now)
        plan.tells.append(Tell(reason, text))
