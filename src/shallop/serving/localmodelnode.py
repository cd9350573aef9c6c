"""
LocalModelNode: the models that one node keeps, each brought by a Job of its own.

The caches' controller writes the spec; this one keeps a Job per model and says in ``status.modelStatus`` how far it is.
A download that failed is tried again after a minute. On this machine a copy that has gone from the disk is brought
again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping
from typing import Any

from shallop.controller.kind import Kind, Resource, Result, Watch
from shallop.controller.manager import Context
from shallop.errors import AlreadyExistsError, NotFoundError
from shallop.kube.objects import (
    Gvk,
    Key,
    Object,
    controller_of,
    find_condition,
    is_condition_true,
    is_deleting,
    owner_reference,
    parse_time,
)
from shallop.serving.access import account_env, configured_env
from shallop.serving.clusterstoragecontainer import (
    CLUSTER_STORAGE_CONTAINER,
    DEFAULT_CONTAINER,
    DOWNLOAD_JOB,
    select_container,
)
from shallop.serving.credentials import CredentialsError
from shallop.serving.localmodelnodegroup import LOCAL_MODEL_NODE_GROUP
from shallop.serving.localmodels import JOB_NAMESPACE, folder_of, job_name, render_job
from shallop.serving.schemas import LOCAL_MODEL_NODE as SCHEMA
from shallop.serving.status import merge_status

__all__ = ["LOCAL_MODEL_NODE", "status_key"]

JOB = Gvk("batch/v1", "Job")
_RETRY_S, _LOOK_AGAIN_S = 60.0, 60.0
_PENDING, _DOWNLOADING = "ModelDownloadPending", "ModelDownloading"
_DOWNLOADED, _ERROR = "ModelDownloaded", "ModelDownloadError"


def status_key(model: Mapping[str, Any]) -> str:
    """Return the name of a model in ``modelStatus``."""
    return "/".join(part for part in (model.get("namespace"), model["modelName"]) if part)


async def reconcile(ctx: Context, node: Resource[Any]) -> Result:
    """Bring what is not there yet, drop the Jobs of what is not wanted any more, and say how far each model is."""
    if is_deleting(node.raw) or not ctx.settings.gateway_url:
        return Result()
    wanted, status = set[Key](), dict[str, str]()
    for model in node.spec.get("localModels") or ():
        key = Key(model.get("namespace") or JOB_NAMESPACE, job_name(node.name, model))
        wanted.add(key)
        job = ctx.cache(JOB).get(key)
        state = _state_of(job)
        gone = state == _DOWNLOADED and not await _is_on_disk(ctx, model)
        if job is not None and not is_deleting(job) and (gone or _is_due(ctx, job, state)):
            await _delete(ctx, job)
            state = _PENDING
        elif job is None:
            state = await _start(ctx, node.raw, model)
        # A model of several groups is there when all of its copies are.
        before = status.get(status_key(model), _DOWNLOADED)
        status[status_key(model)] = max(before, state, key=(_DOWNLOADED, _DOWNLOADING, _PENDING, _ERROR).index)
    for job in ctx.cache(JOB).by_owner(node.raw["metadata"]["uid"]):
        if Key(job["metadata"]["namespace"], job["metadata"]["name"]) not in wanted and not is_deleting(job):
            await _delete(ctx, job)
    await ctx.client.patch_status(node.raw, merge_status(node.status, {"modelStatus": status}))
    return Result(requeue_after_s=_LOOK_AGAIN_S if status else None)


def _state_of(job: Object | None) -> str:
    if job is None or is_deleting(job):
        return _PENDING
    if is_condition_true(job, "Complete"):
        return _DOWNLOADED
    if is_condition_true(job, "Failed"):
        return _ERROR
    return _DOWNLOADING if (job.get("status") or {}).get("active") else _PENDING


def _is_due(ctx: Context, job: Object, state: str) -> bool:
    failed = find_condition(job, "Failed")
    if state != _ERROR or failed is None:
        return False
    return (ctx.now() - parse_time(failed["lastTransitionTime"])).total_seconds() >= _RETRY_S


async def _is_on_disk(ctx: Context, model: Mapping[str, Any]) -> bool:
    group = ctx.cache(LOCAL_MODEL_NODE_GROUP.gvk).get(Key("", model.get("nodeGroup") or ""))
    if group is None:
        return True
    folder = folder_of(group, model["sourceModelUri"])
    return await asyncio.to_thread(lambda: os.path.isdir(folder) and bool(os.listdir(folder)))


async def _start(ctx: Context, node: Object, model: Mapping[str, Any]) -> str:
    """Start the Job of a model; returns the state that it is in now."""
    namespace, source = model.get("namespace") or JOB_NAMESPACE, model["sourceModelUri"]
    try:
        env = await account_env(ctx, namespace, model.get("serviceAccountName") or "default")
        if storage := model.get("storage"):
            env = [*env, *await configured_env(ctx, node, namespace, "spec.storage", storage)]
    except CredentialsError as error:
        ctx.events.record(node, "StorageConfigInvalid", f"model {status_key(model)}: {error}", "Warning")
        return _ERROR
    containers = ctx.cache(CLUSTER_STORAGE_CONTAINER.gvk).list()
    container = select_container(source, containers, DOWNLOAD_JOB) or select_container(source, containers)
    job = render_job(node["metadata"]["name"], model, container or DEFAULT_CONTAINER["spec"]["container"], env)
    job["metadata"]["ownerReferences"] = [owner_reference(node)]
    try:
        await ctx.client.create(job)
    except AlreadyExistsError:
        pass
    except NotFoundError:
        return _PENDING  # its namespace is about to be made
    return _PENDING


async def _delete(ctx: Context, job: Object) -> None:
    metadata = job["metadata"]
    try:
        await ctx.client.delete(JOB, metadata["name"], metadata["namespace"], uid=metadata["uid"])
    except NotFoundError:
        pass


def _node_of_job(job: Object) -> Iterable[Key]:
    owner = controller_of(job) or {}
    return [Key("", owner["name"])] if owner.get("kind") == "LocalModelNode" else []


LOCAL_MODEL_NODE = Kind(
    api_version="serving.kserve.io/v1alpha1",
    kind="LocalModelNode",
    plural="localmodelnodes",
    namespaced=False,
    schema=SCHEMA,
    reconcile=reconcile,
    watches=(Watch(JOB, _node_of_job),),
    reads=(Gvk("v1", "Secret"), Gvk("v1", "ServiceAccount")),
)
