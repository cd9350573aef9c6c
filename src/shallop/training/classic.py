"""
PyTorchJob, TFJob, XGBoostJob, JAXJob, PaddleJob, MPIJob: one controller, driven by ``classic_table.CLASSIC``.

Honoured: replica specs (replicas, template, restartPolicy Always, OnFailure, Never, ExitCode), runPolicy
(cleanPodPolicy, ttlSecondsAfterFinished, activeDeadlineSeconds, backoffLimit, suspend, managedBy) and each kind's own
fields. Of ``schedulingPolicy`` count ``minAvailable`` and ``minResources``, which start Pods together, and
``priorityClass``, which Pods get that name none themselves; ``queue`` has no effect, which an Event says.
"""

from __future__ import annotations

import base64
import secrets
from collections.abc import Iterable
from typing import Any

from shallop.controller.kind import Column, Kind, Resource, Result, Scale
from shallop.controller.manager import Context
from shallop.errors import AlreadyExistsError, ApiError, ConflictError, FieldError, NotFoundError
from shallop.kube.objects import Gvk, Object, controller_of, is_deleting, owner_reference
from shallop.training.classic_plan import ClassicPlan, plan_classic
from shallop.training.classic_render import render_autoscaler, render_config, render_pod, render_service
from shallop.training.classic_table import CLASSIC, ClassicKind
from shallop.training.failures import first_failure, start_problem
from shallop.training.gang import POD_GROUP, gang_types, render_classic_group
from shallop.training.schemas import classic_schema

__all__ = ["CLASSIC_KINDS"]

_POD, _SERVICE = Gvk("v1", "Pod"), Gvk("v1", "Service")
_API = "kubeflow.org/v1"
_OWN = "kubeflow.org/training-operator"
_RESTART = ("Always", "OnFailure", "Never", "ExitCode")
_CLEAN = ("", "None", "Running", "All")


class ClassicJobs:
    """The controller of one kind of classic job."""

    def __init__(self, kind: ClassicKind) -> None:
        self._kind = kind
        self._told: dict[str, set[str]] = {}

    async def reconcile(self, ctx: Context, job: Resource[dict[str, Any]]) -> Result:
        """Keep a Pod and a Service per replica, replace what may be replaced, and write down how it goes."""
        raw = job.raw
        policy = job.spec.get("runPolicy") or {}
        if is_deleting(raw) or (policy.get("managedBy") or _OWN) != _OWN:
            return Result()
        pods = _controlled(ctx, _POD, raw)
        plan = plan_classic(self._kind, raw, pods, ctx.now())
        if plan.delete_job:
            await ctx.client.delete(job_gvk(self._kind), job.name, job.namespace, uid=raw["metadata"]["uid"])
            return Result()
        self._warn(ctx, raw)
        await self._write(ctx, raw, plan)
        self._tell(ctx, raw, pods)
        if plan.delete_services:
            await self._delete(ctx, raw, _SERVICE, _controlled(ctx, _SERVICE, raw))
        else:
            await self._make(ctx, raw, plan)
        await self._delete(ctx, raw, _POD, plan.delete)
        return Result(plan.requeue_after_s)

    async def _write(self, ctx: Context, raw: Object, plan: ClassicPlan) -> None:
        before = raw.get("status") or {}
        if _without_nulls(plan.status) != _without_nulls({k: v for k, v in before.items() if k in plan.status}):
            await ctx.client.patch_status(raw, plan.status)
        for reason, message, type_ in plan.events:
            ctx.events.record(raw, reason, message, type_)

    async def _make(self, ctx: Context, raw: Object, plan: ClassicPlan) -> None:
        view = self._kind.view(raw)
        if not plan.is_over and (scaler := render_autoscaler(self._kind, view)):
            await ctx.client.apply(scaler, owner=raw)
        if plan.create and (group := render_classic_group(view)):
            # Before any of its Pods: those that name a group wait for it.
            await ctx.client.apply(group, owner=raw)
        if plan.create and self._kind.kind == "MPIJob":
            await self._make_mpi_files(ctx, raw)
        for type_, index in plan.create:
            pod = render_pod(self._kind, view, type_, index)
            if type_ in gang_types(view):
                pod["metadata"]["labels"][POD_GROUP] = view.name
            for obj in (render_service(self._kind, view, type_, index), pod):
                try:
                    await ctx.client.create(
                        obj | {"metadata": obj["metadata"] | {"ownerReferences": [owner_reference(raw)]}}
                    )
                except AlreadyExistsError:
                    # Ours, not in the cache yet, or one of an earlier job of this name that still goes away.
                    await self._check_owner(ctx, raw, obj)
                    continue
                except ApiError as error:
                    ctx.events.record(raw, f"FailedCreate{obj['kind']}", f"Error creating: {error}", "Warning")
                    raise
                what = obj["kind"].lower()
                message = f"Created {what}: {obj['metadata']['name']}"
                ctx.events.record(raw, f"SuccessfulCreate{obj['kind']}", message)

    async def _check_owner(self, ctx: Context, raw: Object, obj: Object) -> None:
        metadata = obj["metadata"]
        there = await ctx.client.get(Gvk("v1", obj["kind"]), metadata["name"], metadata["namespace"])
        if (controller_of(there) or {}).get("uid") != raw["metadata"]["uid"]:
            raise ConflictError(f"{obj['kind']} {metadata['namespace']}/{metadata['name']} belongs to something else")

    async def _make_mpi_files(self, ctx: Context, raw: Object) -> None:
        view = self._kind.view(raw)
        await ctx.client.apply(render_config(view), owner=raw)
        secret = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": f"{view.name}-mpi-key",
                "namespace": view.namespace,
                "ownerReferences": [owner_reference(raw)],
            },
            "data": {"key": base64.b64encode(secrets.token_hex(32).encode()).decode()},
        }
        try:
            await ctx.client.create(secret)
        except AlreadyExistsError:
            pass

    async def _delete(self, ctx: Context, raw: Object, gvk: Gvk, objects: Iterable[Object]) -> None:
        for obj in objects:
            metadata = obj["metadata"]
            if is_deleting(obj):
                continue
            try:
                await ctx.client.delete(gvk, metadata["name"], metadata["namespace"], uid=metadata["uid"])
            except (NotFoundError, ConflictError):
                continue
            ctx.events.record(raw, f"SuccessfulDelete{gvk.kind}", f"Deleted {gvk.kind.lower()}: {metadata['name']}")

    def _tell(self, ctx: Context, raw: Object, pods: Iterable[Object]) -> None:
        """Say in Events of the job what goes wrong in its Pods, each thing once."""
        pods = list(pods)
        told = self._told.setdefault(raw["metadata"]["uid"], set())
        problems = [
            ("TrainingPodNotStarted", f"Pod {pod['metadata']['name']}: {problem}")
            for pod in pods
            if not is_deleting(pod) and (problem := start_problem(pod))
        ]
        failure = first_failure(pods)
        entries = [(reason, text, text) for reason, text in problems]
        if failure is not None:
            entries.append(("TrainingProcessFailed", failure.message, failure.identity))
        for reason, text, identity in entries:
            if identity not in told:
                told.add(identity)
                ctx.events.record(raw, reason, text, "Warning")

    def _warn(self, ctx: Context, raw: Object) -> None:
        if raw.get("status"):
            return
        policy = (raw["spec"].get("runPolicy") or {}).get("schedulingPolicy") or {}
        if policy.get("queue"):
            text = "spec.runPolicy.schedulingPolicy.queue: stored, without effect here"
            ctx.events.record(raw, "NotHonoured", text, "Warning")


def _controlled(ctx: Context, gvk: Gvk, owner: Object) -> list[Object]:
    uid = owner["metadata"]["uid"]
    return [obj for obj in ctx.cache(gvk).by_owner(uid) if (controller_of(obj) or {}).get("uid") == uid]


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


def job_gvk(kind: ClassicKind) -> Gvk:
    return Gvk(_API, kind.kind)


def default_job(kind: ClassicKind, job: Object) -> Object:
    """Set what a job leaves open: spelling of replica types, numbers, policies, the port."""
    spec = dict(job.get("spec") or {})
    replicas = spec.get(kind.specs)
    if not isinstance(replicas, dict):
        return job
    named = {}
    for name, replica in replicas.items():
        if isinstance(replica, dict):
            replica = {"replicas": 1, "restartPolicy": kind.restart, **replica}
        named[kind.type_named(name)] = replica
    spec[kind.specs] = named
    policy = {"suspend": False, **(spec.get("runPolicy") or {})}
    # A launcher that is done leaves workers that only wait: ending them is what everybody wants.
    policy.setdefault("cleanPodPolicy", spec.get("cleanPodPolicy") or ("Running" if kind.kind == "MPIJob" else "None"))
    spec["runPolicy"] = policy
    if kind.kind == "PyTorchJob" and not (spec.get("elasticPolicy") or {}).get("nProcPerNode"):
        spec.setdefault("nprocPerNode", "auto")
    if kind.kind == "TFJob":
        spec.setdefault("successPolicy", "")
    return {**job, "spec": spec}


def validate_job(kind: ClassicKind, job: Object, old: Object | None) -> list[FieldError]:
    """Check names, replica types, images, the container that trains, and what cannot change."""
    errors = _check_name(job)
    view = kind.view(job)
    path = f"spec.{kind.specs}"
    if not view.specs:
        errors.append(FieldError.required(path, "must be specified"))
    for name, replica in view.specs.items():
        where = f"{path}[{name}]"
        if name not in kind.types:
            errors.append(FieldError.not_supported(where, name, kind.types))
            continue
        # An MPIJob's containers may have any names.
        main = view.main_container(name) if kind.kind == "MPIJob" else view.container
        errors += _check_replica(kind, main, replica, where)
        # Of a TFJob's types none has to be there.
        if name in kind.single and view.count(name) not in ((0, 1) if kind.kind == "TFJob" else (1,)):
            errors.append(FieldError.forbidden(f"{where}.replicas", f"must be 1: there is one {name}"))
    for name in kind.required:
        if view.specs and name not in view.specs:
            errors.append(FieldError.required(f"{path}[{name}]", "must be present"))
    if kind.kind == "TFJob" and len(set(kind.chiefs) & set(view.specs)) > 1:
        errors.append(FieldError.forbidden(path, f"must not have more than one of {' and '.join(kind.chiefs)}"))
    return errors + _check_elastic(job) + _check_policy(job, old)


def _check_elastic(job: Object) -> list[FieldError]:
    policy = job["spec"].get("elasticPolicy") or {}
    path = "spec.elasticPolicy"
    errors = []
    if policy.get("nProcPerNode") is not None and job["spec"].get("nprocPerNode") is not None:
        errors.append(FieldError.forbidden(f"{path}.nProcPerNode", "must not be used with spec.nprocPerNode"))
    least, most = policy.get("minReplicas"), policy.get("maxReplicas")
    if least is not None and most is not None and least > most:
        # Upstream lets it in; torchrun then refuses "min:max" in every Pod.
        errors.append(FieldError.invalid(f"{path}.minReplicas", least, f"must not exceed maxReplicas, {most}"))
    return errors


def _check_name(job: Object) -> list[FieldError]:
    name = job["metadata"].get("name", "")
    valid = name and name[0].isalpha() and name.replace("-", "a").isalnum() and name == name.lower()
    if not valid or name.endswith("-") or len(name) > 63:
        detail = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with a letter"
        return [FieldError.invalid("metadata.name", name, f"{detail} and end with an alphanumeric character")]
    return []


def _check_replica(kind: ClassicKind, main: str, replica: Any, where: str) -> list[FieldError]:
    containers = ((replica.get("template") or {}).get("spec") or {}).get("containers") or []
    where_containers = f"{where}.template.spec.containers"
    if not containers:
        return [FieldError.required(where_containers, "must be specified")]
    errors = [
        FieldError.required(f"{where_containers}[{index}].image", "must be required")
        for index, container in enumerate(containers)
        if not container.get("image")
    ]
    if not any(container.get("name") == main for container in containers):
        errors.append(FieldError.required(where_containers, f"must have at least one container with name {main}"))
    policy = replica.get("restartPolicy", kind.restart)
    if policy not in _RESTART:
        errors.append(FieldError.not_supported(f"{where}.restartPolicy", policy, _RESTART))
    if int(replica.get("replicas", 1)) < 0:
        errors.append(FieldError.invalid(f"{where}.replicas", replica["replicas"], "must not be negative"))
    return errors


def _check_policy(job: Object, old: Object | None) -> list[FieldError]:
    policy = job["spec"].get("runPolicy") or {}
    errors = []
    clean = policy.get("cleanPodPolicy", "")
    if clean not in _CLEAN:
        errors.append(FieldError.not_supported("spec.runPolicy.cleanPodPolicy", clean, _CLEAN[1:]))
    managers = (_OWN, "kueue.x-k8s.io/multikueue")
    manager = policy.get("managedBy")
    if manager is not None and manager not in managers:
        errors.append(FieldError.not_supported("spec.runPolicy.managedBy", manager, managers))
    before = ((old or {}).get("spec") or {}).get("runPolicy") or {}
    if old is not None and before.get("managedBy") != manager:
        errors.append(FieldError.invalid("spec.runPolicy.managedBy", manager, "field is immutable"))
    return errors


def _kind(kind: ClassicKind) -> Kind:
    scale = None
    if kind.scalable:
        status = f".status.replicaStatuses.{kind.scalable}"
        spec = f".spec.{kind.specs}.{kind.scalable}.replicas"
        scale = Scale(spec, f"{status}.active", f"{status}.selector")
    return Kind(
        api_version=_API,
        kind=kind.kind,
        plural=kind.plural,
        schema=classic_schema(kind.specs, dict(kind.extra)),
        columns=(
            Column("State", "string", ".status.conditions[-1:].type"),
            Column("Age", "date", ".metadata.creationTimestamp"),
        ),
        scale=scale,
        default=lambda job: default_job(kind, job),
        validate=lambda job, old: validate_job(kind, job, old),
        reconcile=ClassicJobs(kind).reconcile,
        owns=(_POD, _SERVICE),
        workers=2,
    )


CLASSIC_KINDS: tuple[Kind, ...] = tuple(_kind(kind) for kind in CLASSIC)
