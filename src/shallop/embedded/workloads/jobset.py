"""
JobSet: a group of Jobs that start, fail and end together.

Honours replicatedJobs (replicas, groupName, dependsOn), network, successPolicy, failurePolicy (maxRestarts, rules with
FailJobSet, RestartJobSet, RestartJobSetAndIgnoreMaxRestarts; Recreate, BlockingRecreate), startupPolicy, suspend,
coordinator, managedBy, ttlSecondsAfterFinished and volumeClaimPolicies. Restarts in place and of single Jobs, which
upstream has behind feature gates, are refused. Exclusive placement has no meaning on one node: an Event says so.

The status says which attempt is the current one and is written first; Jobs carry the attempt that they belong to. So
a restart of the JobSet is one write, and whoever is killed after it finds the old Jobs by their label.
"""

from __future__ import annotations

from typing import Any

from shallop.controller import Column, Context, Kind, Resource, Result
from shallop.embedded.workloads.children import Children, is_namespace_ending
from shallop.embedded.workloads.jobset_admission import MANAGER, default, validate
from shallop.embedded.workloads.jobset_plan import JobSetPlan, NewJob, plan_jobset
from shallop.embedded.workloads.jobset_render import render_claims, render_job, render_service
from shallop.embedded.workloads.jobset_schema import SCHEMA
from shallop.embedded.workloads.latest import Latest
from shallop.errors import AlreadyExistsError, ApiError
from shallop.kube.objects import Gvk, Object, annotations_of, is_deleting, key_of

__all__ = ["JOBSET", "JobSets"]

_JOB = Gvk("batch/v1", "Job")
_JOBSET = Gvk("jobset.x-k8s.io/v1alpha2", "JobSet")
_SERVICE = Gvk("v1", "Service")
_CLAIM = Gvk("v1", "PersistentVolumeClaim")
_EXCLUSIVE = "alpha.jobset.sigs.k8s.io/exclusive-topology"


class JobSets:
    """The controller of JobSets."""

    def __init__(self) -> None:
        self._jobs = Children(_JOB)
        self._latest = Latest()

    async def reconcile(self, ctx: Context, jobset: Resource[dict[str, Any]]) -> Result:
        """Write down where the JobSet stands, then create, suspend, resume and delete Jobs as planned."""
        raw = self._latest.of(jobset.raw)
        if is_deleting(raw) or jobset.spec.get("managedBy", MANAGER) != MANAGER:
            self._latest.forget(raw["metadata"]["uid"])
            return Result()
        jobs = await self._jobs.of(ctx, raw)
        plan = plan_jobset(raw, jobs, ctx.now())
        if plan.delete_jobset:
            uid = raw["metadata"]["uid"]
            await ctx.client.delete(_JOBSET, jobset.name, jobset.namespace, propagation="Foreground", uid=uid)
            return Result()
        if not jobset.status and _EXCLUSIVE in annotations_of(raw):
            text = f"annotation {_EXCLUSIVE} has no effect: there is one node"
            ctx.events.record(raw, "FieldIgnored", text, "Warning")
        raw = await self._latest.write_status(ctx, raw, plan.status)
        for tell in plan.tells:
            ctx.events.record(raw, tell.reason, tell.message, tell.type)
        await self._act(ctx, raw, plan)
        return Result(plan.requeue_after_s)

    async def _act(self, ctx: Context, raw: Object, plan: JobSetPlan) -> None:
        for job in plan.delete:
            await self._jobs.delete(ctx, raw, job, propagation="Foreground")
        if plan.wants_children:
            await _ensure_service(ctx, raw)
            await _ensure_claims(ctx, raw)
        for job in plan.suspend:
            await _patch_job(ctx, job, {"suspend": True})
        for job in plan.resume:
            await _patch_job(ctx, job, _resumed(raw, job))
        for new in plan.create:
            await self._create(ctx, raw, new)

    async def _create(self, ctx: Context, raw: Object, new: NewJob) -> None:
        job = render_job(raw, new.rjob, new.replica, int(raw["status"]["restarts"]))
        try:
            await self._jobs.ensure(ctx, raw, job)
        except ApiError as error:
            if not is_namespace_ending(error):
                text = f"Job {job['metadata']['name']}: {error}"
                ctx.events.record(raw, "JobCreationFailed", text, "Warning")
                raise


def _resumed(jobset: Object, job: Object) -> dict[str, Any]:
    """Return the patch of a Job's spec that starts it as the JobSet's template is now."""
    name = job["metadata"]["labels"]["jobset.sigs.k8s.io/replicatedjob-name"]
    rjob = next(rjob for rjob in jobset["spec"]["replicatedJobs"] if rjob["name"] == name)
    index = int(job["metadata"]["labels"]["jobset.sigs.k8s.io/job-index"])
    rendered = render_job(jobset, rjob, index, int(jobset["status"]["restarts"]))["spec"]["template"]
    metadata = {key: rendered["metadata"][key] for key in ("labels", "annotations")}
    template: dict[str, Any] = {"metadata": metadata}
    if not (job.get("status") or {}).get("startTime"):
        # Once a Job has run, its place is fixed.
        changeable = ("nodeSelector", "tolerations", "schedulingGates")
        placing = {key: rendered["spec"][key] for key in changeable if key in rendered["spec"]}
        if placing:
            template["spec"] = placing
    return {"suspend": False, "template": template}


async def _patch_job(ctx: Context, job: Object, spec: dict[str, Any]) -> None:
    key = key_of(job)
    patch = {"metadata": {"uid": job["metadata"]["uid"]}, "spec": spec}
    await ctx.client.patch(_JOB, key.name, key.namespace, patch)


async def _ensure_service(ctx: Context, raw: Object) -> None:
    service = render_service(raw)
    if service is None or ctx.cache(_SERVICE).get(key_of(service)):
        return
    try:
        await ctx.client.create(service)
    except AlreadyExistsError:
        pass
    except ApiError as error:
        if not is_namespace_ending(error):
            text = f"Service {service['metadata']['name']}: {error}"
            ctx.events.record(raw, "HeadlessServiceCreationFailed", text, "Warning")
            raise


async def _ensure_claims(ctx: Context, raw: Object) -> None:
    for claim in render_claims(raw):
        if ctx.cache(_CLAIM).get(key_of(claim)):
            continue
        try:
            await ctx.client.create(claim)
        except AlreadyExistsError:
            pass
        except ApiError as error:
            if not is_namespace_ending(error):
                text = f"PersistentVolumeClaim {claim['metadata']['name']}: {error}"
                ctx.events.record(raw, "ClaimCreationFailed", text, "Warning")
                raise


_CONTROLLER = JobSets()

JOBSET = Kind(
    api_version="jobset.x-k8s.io/v1alpha2",
    kind="JobSet",
    plural="jobsets",
    schema=SCHEMA,
    columns=(
        Column("TerminalState", "string", ".status.terminalState"),
        Column("Restarts", "string", ".status.restarts"),
        Column("Completed", "string", '.status.conditions[?(@.type=="Completed")].status'),
        Column("Suspended", "string", ".spec.suspend"),
        Column("Age", "date", ".metadata.creationTimestamp"),
    ),
    default=default,
    validate=validate,
    reconcile=_CONTROLLER.reconcile,
    owns=(_JOB, _SERVICE),
    component="jobset-controller",
)
