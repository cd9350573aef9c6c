"""
CronJob: makes a Job whenever its schedule says so.

Honours schedule, timeZone, concurrencyPolicy, startingDeadlineSeconds, suspend and both history limits. After a time
without us only the last missed run is made up for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from shallop.controller import Context, Kind, Resource, Result
from shallop.embedded.workloads.children import is_controlled_by
from shallop.embedded.workloads.cron import Schedule, parse_schedule
from shallop.embedded.workloads.statuses import write_status
from shallop.errors import AlreadyExistsError, TerminalError
from shallop.kube.objects import (
    Gvk,
    Object,
    format_time,
    is_condition_true,
    is_deleting,
    key_of,
    owner_reference,
    parse_time,
)

__all__ = ["CRONJOB", "CronPlan", "plan_cronjob", "render_job"]

_JOB = Gvk("batch/v1", "Job")
_SCHEDULED_AT = "batch.kubernetes.io/cronjob-scheduled-timestamp"
# Enough for a month of a run per minute; beyond it the exact last time is found by going on from there.
_MAX_MISSED = 50_000


@dataclass(frozen=True)
class CronPlan:
    """
    What a CronJob needs now.

    Args:
        start: the scheduled time of a Job to make.
        replace: active Jobs to end before it starts.
        forget: finished Jobs beyond the history limits.
        skipped: why a run that is due is not made.
    """

    status: dict[str, Any]
    start: datetime | None = None
    replace: tuple[Object, ...] = ()
    forget: tuple[Object, ...] = ()
    skipped: str = ""
    requeue_after_s: float | None = None


def plan_cronjob(cronjob: Object, jobs: Sequence[Object], schedule: Schedule, zone: tzinfo, now: datetime) -> CronPlan:
    """
    Decide what a CronJob does now.

    Args:
        jobs: the Jobs that it controls.
    """
    spec, status = cronjob["spec"], dict(cronjob.get("status") or {})
    active = [job for job in jobs if not _is_finished(job)]
    forget = _beyond_history(spec, [job for job in jobs if _is_finished(job)])
    status.pop("active", None)
    if active:
        status["active"] = [_reference(job) for job in sorted(active, key=lambda job: str(job["metadata"]["name"]))]
    successes = [job["status"]["completionTime"] for job in jobs if is_condition_true(job, "Complete")]
    if successes:
        status["lastSuccessfulTime"] = max(successes)
    if spec.get("suspend") or is_deleting(cronjob):
        return CronPlan(status, forget=forget)
    following = schedule.after(now, zone)
    wait_s = (following - now).total_seconds() if following else None
    due = _last_due(cronjob, schedule, zone, now)
    if due is None:
        return CronPlan(status, forget=forget, requeue_after_s=wait_s)
    policy = spec.get("concurrencyPolicy", "Allow")
    if active and policy == "Forbid":
        skipped = "Not starting job because prior execution is running and concurrency policy is Forbid"
        return CronPlan(status, forget=forget, skipped=skipped, requeue_after_s=wait_s)
    status["lastScheduleTime"] = format_time(due)
    replace = tuple(active) if policy == "Replace" else ()
    return CronPlan(status, due, replace, forget, requeue_after_s=wait_s)


def _is_finished(job: Object) -> bool:
    return is_condition_true(job, "Complete") or is_condition_true(job, "Failed")


def _last_due(cronjob: Object, schedule: Schedule, zone: tzinfo, now: datetime) -> datetime | None:
    """Return the last scheduled time up to now that has had no Job yet and is not too late."""
    last = (cronjob.get("status") or {}).get("lastScheduleTime") or cronjob["metadata"]["creationTimestamp"]
    earliest = parse_time(last)
    deadline_s = cronjob["spec"].get("startingDeadlineSeconds")
    if deadline_s is not None:
        earliest = max(earliest, now - timedelta(seconds=deadline_s))
    found = None
    for _ in range(_MAX_MISSED):
        following = schedule.after(found or earliest, zone)
        if following is None or following > now:
            return found
        found = following
    return found


def _beyond_history(spec: dict[str, Any], finished: Sequence[Object]) -> tuple[Object, ...]:
    forget: list[Object] = []
    for type_, limit in (
        ("Complete", spec.get("successfulJobsHistoryLimit", 3)),
        ("Failed", spec.get("failedJobsHistoryLimit", 1)),
    ):
        ended = [job for job in finished if is_condition_true(job, type_) and not is_deleting(job)]
        ended.sort(key=lambda job: (job["metadata"]["creationTimestamp"], job["metadata"]["name"]))
        forget += ended[: max(0, len(ended) - limit)]
    return tuple(forget)


def _reference(job: Object) -> dict[str, Any]:
    metadata = job["metadata"]
    return {
        "apiVersion": job["apiVersion"],
        "kind": job["kind"],
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "uid": metadata["uid"],
        "resourceVersion": metadata["resourceVersion"],
    }


def render_job(cronjob: Object, scheduled: datetime) -> Object:
    """Return the Job of one scheduled time; its name is a function of both, so it is never made twice."""
    template, metadata = cronjob["spec"]["jobTemplate"], cronjob["metadata"]
    given = template.get("metadata") or {}
    minutes = int(scheduled.timestamp()) // 60
    rendered: dict[str, Any] = {
        "name": f"{metadata['name'][:52]}-{minutes}",
        "namespace": metadata["namespace"],
        "annotations": {**(given.get("annotations") or {}), _SCHEDULED_AT: format_time(scheduled)},
        "ownerReferences": [owner_reference(cronjob)],
    }
    if given.get("labels"):
        rendered["labels"] = given["labels"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": rendered, "spec": template["spec"]}


async def reconcile(ctx: Context, cronjob: Resource[dict[str, Any]]) -> Result:
    """Make the Job that is due, forget old ones, and come back for the next."""
    raw = cronjob.raw
    uid = raw["metadata"]["uid"]
    jobs = [job for job in ctx.cache(_JOB).by_owner(uid) if is_controlled_by(job, uid)]
    schedule, zone = _read_schedule(ctx, raw)
    plan = plan_cronjob(raw, jobs, schedule, zone, ctx.now())
    for job in (*plan.replace, *plan.forget):
        key = key_of(job)
        await ctx.client.delete(_JOB, key.name, key.namespace, uid=job["metadata"]["uid"])
        ctx.events.record(raw, "SuccessfulDelete", f"Deleted job {key.name}")
    if plan.skipped:
        ctx.events.record(raw, "JobAlreadyActive", plan.skipped)
    if plan.start is not None:
        try:
            job = await ctx.client.create(render_job(raw, plan.start))
            ctx.events.record(raw, "SuccessfulCreate", f"Created job {job['metadata']['name']}")
        except AlreadyExistsError:
            # Made before we could write down that it was.
            pass
    await write_status(ctx, raw, plan.status)
    return Result(plan.requeue_after_s)


def _read_schedule(ctx: Context, raw: Object) -> tuple[Schedule, tzinfo]:
    spec = raw["spec"]
    try:
        return parse_schedule(spec["schedule"]), ZoneInfo(spec["timeZone"]) if spec.get("timeZone") else UTC
    except ValueError as error:
        ctx.events.record(raw, "UnparseableSchedule", f"spec.schedule: {error}", "Warning")
        raise TerminalError(f"spec.schedule: {error}") from error
    except ZoneInfoNotFoundError as error:
        ctx.events.record(raw, "UnknownTimeZone", f"spec.timeZone: {error}", "Warning")
        raise TerminalError(f"spec.timeZone: {error}") from error


CRONJOB = Kind(
    api_version="batch/v1",
    kind="CronJob",
    plural="cronjobs",
    reconcile=reconcile,
    owns=(_JOB,),
    component="cronjob-controller",
)
