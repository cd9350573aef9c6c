"""
TrainJob: a training by a runtime's recipe.

Honoured: all of ``spec``; ``managedBy`` of another controller makes this one look away. Status is what Kubeflow's own
controller writes and no more: its SDK takes a job without conditions for a running one, so progress is told in Events.
``trainerStatus`` is what Pods push, see ``progress.py``.

The JobSet of a finished job is not made again, whatever happens to it; the runtime counts as it was when the job was
first seen (ConfigMap ``NAME-runtime-snapshot``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from shallop.controller.kind import Column, Kind, Resource, Result, Watch
from shallop.controller.manager import Context
from shallop.errors import BadRequestError, ConflictError, FieldError, ForbiddenError, InvalidError, NotFoundError
from shallop.kube.client import Client
from shallop.kube.objects import (
    Gvk,
    Key,
    Object,
    controller_of,
    find_condition,
    format_time,
    is_condition_true,
    is_deleting,
    labels_of,
    parse_time,
    set_condition,
)
from shallop.training.admission import default, validate, validate_with_runtime
from shallop.training.failures import first_failure, start_problem, unknown_image
from shallop.training.gang import group_pods
from shallop.training.policies import render_mpi_objects
from shallop.training.progress import status_url
from shallop.training.render import JOBSET, render_jobset, render_snapshot, train
from shallop.training.schemas import TRAIN_JOB as SCHEMA

__all__ = ["TRAIN_JOB", "check_runtime"]

_API = "trainer.kubeflow.org/v1alpha1"
_JOBSET = Gvk(JOBSET, "JobSet")
_POD, _CONFIG_MAP, _SECRET = Gvk("v1", "Pod"), Gvk("v1", "ConfigMap"), Gvk("v1", "Secret")
_RUNTIMES = {kind: Gvk(_API, kind) for kind in ("ClusterTrainingRuntime", "TrainingRuntime")}
_OWN = "trainer.kubeflow.org/trainjob-controller"
_JOBSET_NAME, _JOBSET_UID = "jobset.sigs.k8s.io/jobset-name", "jobset.sigs.k8s.io/jobset-uid"
_COUNTS = ("ready", "succeeded", "failed", "active", "suspended")
_RETRY_S = 5.0


class TrainJobs:
    """The controller of TrainJobs; it remembers what it has told users, so that nothing is told twice."""

    def __init__(self) -> None:
        self._told: dict[str, set[str]] = {}
        self._failures: dict[str, str] = {}

    async def reconcile(self, ctx: Context, job: Resource[dict[str, Any]]) -> Result:
        """Keep one JobSet per TrainJob and copy its state; a finished job is left alone."""
        raw = job.raw
        if is_deleting(raw) or job.spec.get("managedBy", _OWN) != _OWN or is_finished(raw):
            return Result()
        left_s = _deadline_left_s(raw, ctx.now())
        if left_s is not None and left_s <= 0:
            return await self._end(ctx, raw, "DeadlineExceeded", "TrainJob exceeded its active deadline")
        if problem := next(filter(None, map(unknown_image, _pods_of(ctx, raw))), ""):
            # Nothing but a mapping of the image helps: say so at once, and do not keep a client waiting.
            return await self._end(ctx, raw, "ImageNotAvailable", problem)
        jobset = ctx.cache(_JOBSET).get(job.key)
        if jobset is not None and not _is_owned(jobset, raw):
            raise ConflictError(f"JobSet {job.key} belongs to an earlier object of this name")
        if jobset is None or is_deleting(jobset) or job.spec.get("suspend") or jobset["spec"].get("suspend"):
            ready = await self._apply(ctx, raw)
            if ready is None:
                return Result(requeue_after_s=_RETRY_S)
            jobset = ready or jobset
        self._tell(ctx, raw)
        await self._write_status(ctx, raw, jobset)
        return Result(requeue_after_s=left_s)

    async def on_gone(self, ctx: Context, key: Key) -> None:
        """Forget what was told of jobs that no longer exist."""
        alive = {item["metadata"]["uid"] for item in ctx.cache(Gvk(_API, "TrainJob")).list()}
        for memory in (self._told, self._failures):
            for uid in set(memory) - alive:
                memory.pop(uid)

    async def _end(self, ctx: Context, raw: Object, reason: str, message: str) -> Result:
        """Give a job up: its condition says why, its JobSet goes."""
        await ctx.client.patch_status(raw, {"conditions": _conditions(raw, "Failed", reason, message, ctx.now())})
        ctx.events.record(raw, reason, message, "Warning")
        metadata = raw["metadata"]
        try:
            await ctx.client.delete(_JOBSET, metadata["name"], metadata["namespace"])
        except NotFoundError:
            pass
        return Result()

    async def _apply(self, ctx: Context, raw: Object) -> Object | None:
        """Write the JobSet and what it needs; None when that is not possible yet, which an Event explains."""
        try:
            runtime = await _pinned_runtime(ctx, raw)
        except NotFoundError as error:
            self._once(ctx, raw, "TrainJobResourcesCreationFailed", f"spec.runtimeRef: {error}", "Warning")
            return None
        except UnknownRuntimeError as error:
            conditions = _conditions(raw, "Failed", "TrainingRuntimeNotSupported", str(error), ctx.now())
            await ctx.client.patch_status(raw, {"conditions": conditions})
            ctx.events.record(raw, "TrainingRuntimeNotSupported", str(error), "Warning")
            return {}
        if "flux" in (runtime["spec"].get("mlPolicy") or {}):
            text = "spec.mlPolicy.flux of the runtime: stored, without effect here"
            self._once(ctx, raw, "NotHonoured", text, "Warning")
        if labels_of(runtime).get("trainer.kubeflow.org/support") == "deprecated":
            text = f"the runtime {runtime['metadata']['name']} is deprecated and will be removed: use another one"
            self._once(ctx, raw, "RuntimeDeprecated", text, "Warning")
        try:
            training = train(raw, runtime)
            # Before any of its Pods: those that name a group wait for it.
            if group := group_pods(training, runtime["spec"].get("podGroupPolicy") or {}):
                await ctx.client.apply(group, owner=raw, field_manager="trainer")
            keys = await _ssh_keys(ctx, raw) if "mpi" in training.policy else None
            for obj in render_mpi_objects(training, keys):
                await ctx.client.apply(obj, owner=raw, field_manager="trainer")
            url = status_url(ctx.settings, raw)
            return await ctx.client.apply(render_jobset(training, url), owner=raw, field_manager="trainer")
        except (InvalidError, BadRequestError, ForbiddenError) as error:
            self._once(ctx, raw, "TrainJobResourcesCreationFailed", str(error), "Warning")
            return None

    def _tell(self, ctx: Context, raw: Object) -> None:
        """Say in Events of the TrainJob what goes wrong in its Pods."""
        uid = raw["metadata"]["uid"]
        pods = _pods_of(ctx, raw)
        for pod in pods:
            if (problem := start_problem(pod)) and not is_deleting(pod):
                self._once(ctx, raw, "TrainingPodNotStarted", f"Pod {pod['metadata']['name']}: {problem}", "Warning")
        failure = first_failure(pods)
        if failure is not None and failure.identity not in self._told.setdefault(uid, set()):
            self._told[uid].add(failure.identity)
            self._failures[uid] = failure.message
            ctx.events.record(raw, "TrainingProcessFailed", failure.message, "Warning")

    def _once(self, ctx: Context, raw: Object, reason: str, message: str, type_: str = "Normal") -> None:
        told = self._told.setdefault(raw["metadata"]["uid"], set())
        if message not in told:
            told.add(message)
            ctx.events.record(raw, reason, message, type_)

    async def _write_status(self, ctx: Context, raw: Object, jobset: Object | None) -> None:
        before = raw.get("status") or {}
        status = render_status(raw, jobset or {}, self._failures.get(raw["metadata"]["uid"], ""), ctx.now())
        if all(before.get(name) == value for name, value in status.items()):
            return
        await ctx.client.patch_status(raw, status)
        for type_, kind in (("Complete", "Normal"), ("Failed", "Warning")):
            condition = find_condition({"status": status}, type_)
            if condition and condition["status"] == "True":
                ctx.events.record(raw, f"TrainJob{type_}", condition["message"], kind)


def _pods_of(ctx: Context, job: Object) -> list[Object]:
    """Return the Pods of the job's JobSet, not those of an earlier one of this name."""
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    jobset = ctx.cache(_JOBSET).get(Key(namespace, name))
    if jobset is None or not _is_owned(jobset, job):
        return []
    uid = jobset["metadata"]["uid"]
    pods = [pod for pod in ctx.cache(_POD).list(namespace) if labels_of(pod).get(_JOBSET_NAME) == name]
    return [pod for pod in pods if labels_of(pod).get(_JOBSET_UID, uid) == uid]


class UnknownRuntimeError(Exception):
    """A TrainJob names a kind of runtime that there is none of."""


def is_finished(job: Object) -> bool:
    return is_condition_true(job, "Complete") or is_condition_true(job, "Failed")


def render_status(job: Object, jobset: Object, failure: str, now: datetime) -> dict[str, Any]:
    """
    Return what of a TrainJob's status follows from its JobSet.

    Args:
        failure: what is known of the process that failed first, empty for nothing.
    """
    status: dict[str, Any] = {}
    conditions: list[dict[str, Any]] = list((job.get("status") or {}).get("conditions") or ())
    if job["spec"].get("suspend"):
        conditions = set_condition(conditions, "Suspended", "True", "Suspended", "TrainJob is suspended", now)
    elif any(item["type"] == "Suspended" for item in conditions):
        conditions = set_condition(conditions, "Suspended", "False", "Resumed", "TrainJob is resumed", now)
    for source, target, fallback in (("Completed", "Complete", "AllJobsCompleted"), ("Failed", "Failed", "FailedJobs")):
        condition = find_condition(jobset, source)
        if condition and condition.get("status") == "True":
            message = str(condition.get("message") or "")
            if target == "Failed" and failure:
                message = f"{message}; {failure}"[:32768] if message else failure
            reason = str(condition.get("reason") or fallback)
            conditions = set_condition(conditions, target, "True", reason, message or reason, now)
    if conditions:
        status["conditions"] = [{"message": "", "reason": "", **item} for item in conditions]
    if jobs := (jobset.get("status") or {}).get("replicatedJobsStatus"):
        status["jobsStatus"] = [
            {"name": item["name"], **{name: int(item.get(name) or 0) for name in _COUNTS}} for item in jobs
        ]
    return status


def _conditions(job: Object, type_: str, reason: str, message: str, now: datetime) -> list[dict[str, Any]]:
    return set_condition((job.get("status") or {}).get("conditions") or [], type_, "True", reason, message, now)


def _deadline_left_s(job: Object, now: datetime) -> float | None:
    """Return seconds until the deadline; it starts with the job, or anew when a suspended one goes on."""
    limit_s = job["spec"].get("activeDeadlineSeconds")
    if limit_s is None or job["spec"].get("suspend"):
        return None
    start = job["metadata"]["creationTimestamp"]
    resumed = find_condition(job, "Suspended")
    if resumed and resumed["status"] == "True":
        # Just resumed: this reconcile writes the condition that the clock starts from.
        start = format_time(now)
    elif resumed:
        start = resumed["lastTransitionTime"]
    return (parse_time(start) + timedelta(seconds=limit_s) - now).total_seconds()


def _is_owned(obj: Object, owner: Object) -> bool:
    reference = controller_of(obj)
    return reference is not None and reference["uid"] == owner["metadata"]["uid"]


async def check_runtime(client: Client, job: Object) -> Object:
    """
    Refuse a new TrainJob whose runtime is not there or does not fit; returns the job as it is.

    Raises:
        InvalidError: with the fields that are wrong.
    """
    reference = (job.get("spec") or {}).get("runtimeRef")
    if not isinstance(reference, dict) or not reference.get("name") or not isinstance(reference["name"], str):
        return job  # the schema refuses it
    gvk = _runtime_kind(reference)
    if gvk is None:
        return job  # upstream lets it in, too: its condition says why it does not run
    place = job["metadata"].get("namespace", "") if gvk.kind == "TrainingRuntime" else ""
    try:
        runtime = await client.get(gvk, reference["name"], place)
    except NotFoundError:
        there = sorted(item["metadata"]["name"] for item in (await client.list(gvk, place)).items)
        detail = f"{gvk.kind} not found: it must be created before the TrainJob"
        detail += f"; there are {', '.join(there)}" if there else "; there is none"
        errors = [FieldError.invalid("spec.runtimeRef", reference["name"], detail)]
    else:
        try:
            errors = validate_with_runtime(job, runtime)
        except (AttributeError, KeyError, TypeError, ValueError):
            return job  # not of the shape that the schema asks for, which is checked next
    if errors:
        group = Gvk(_API, "").group
        raise InvalidError.of("TrainJob", group, job["metadata"].get("name", ""), errors)
    return job


def _runtime_kind(reference: dict[str, Any]) -> Gvk | None:
    gvk = _RUNTIMES.get(reference.get("kind", "ClusterTrainingRuntime"))
    return gvk if gvk and reference.get("apiGroup", gvk.group) == gvk.group else None


async def _pinned_runtime(ctx: Context, job: Object) -> Object:
    """Return the runtime as it was when the job was first seen; NotFoundError, UnknownRuntimeError."""
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    try:
        snapshot = await ctx.client.get(_CONFIG_MAP, f"{name}-runtime-snapshot", namespace)
    except NotFoundError:
        reference = job["spec"]["runtimeRef"]
        gvk = _runtime_kind(reference)
        if gvk is None:
            raise UnknownRuntimeError(
                f"spec.runtimeRef: {reference.get('apiGroup')}/{reference.get('kind')} is no kind of runtime; "
                f"use {' or '.join(_RUNTIMES)} of {Gvk(_API, '').group}"
            ) from None
        place = namespace if gvk.kind == "TrainingRuntime" else ""
        runtime = await ctx.client.get(gvk, reference["name"], place)
        await ctx.client.apply(render_snapshot(job, runtime), owner=job, field_manager="trainer")
        return runtime
    if not _is_owned(snapshot, job):
        raise ConflictError(f"ConfigMap {namespace}/{name}-runtime-snapshot belongs to an earlier object of this name")
    runtime = await asyncio.to_thread(yaml.safe_load, snapshot["data"]["runtime"])
    return dict(runtime)


async def _ssh_keys(ctx: Context, job: Object) -> tuple[str, str] | None:
    """Return new keys, None when the job has some."""
    name, namespace = job["metadata"]["name"], job["metadata"]["namespace"]
    try:
        await ctx.client.get(_SECRET, f"{name}-mpi-ssh-auth", namespace)
    except NotFoundError:
        return await asyncio.to_thread(_new_keys)
    return None


def _new_keys() -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP521R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private.decode(), public.decode()


def _job_of_pod(pod: Object) -> Iterable[Key]:
    name = labels_of(pod).get(_JOBSET_NAME)
    return [Key(pod["metadata"]["namespace"], name)] if name else []


_CONTROLLER = TrainJobs()

TRAIN_JOB = Kind(
    api_version=_API,
    kind="TrainJob",
    plural="trainjobs",
    schema=SCHEMA,
    columns=(
        Column("State", "string", ".status.conditions[-1:].type"),
        Column("Age", "date", ".metadata.creationTimestamp"),
    ),
    default=default,
    validate=validate,
    reconcile=_CONTROLLER.reconcile,
    on_gone=_CONTROLLER.on_gone,
    owns=(_JOBSET,),
    watches=(Watch(_POD, _job_of_pod),),
)
