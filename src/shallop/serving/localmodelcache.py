"""
LocalModelCache and LocalModelNamespaceCache: a model that is kept on the nodes of some groups, brought once.

Honoured: ``sourceModelUri``, ``nodeGroups``, ``serviceAccountName``, ``storage``; ``modelSize`` is held against the
groups' limits. An InferenceService whose ``storageUri`` is the source or lies below it gets marks when it is made or
changed, and its Pods mount the copy, read-only. A LocalModelCache in use may not be deleted; a LocalModelNamespaceCache
stays until nobody uses it. Then its claims, volumes and files are removed.

Source: KServe v1alpha1 LocalModelCache controller.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Iterable, Sequence
from typing import Any

from shallop.controller.kind import Column, Kind, Resource, Result, Watch
from shallop.controller.manager import Context
from shallop.errors import AlreadyExistsError, FieldError, NotFoundError
from shallop.kube.objects import (
    Gvk,
    Key,
    Object,
    annotations_of,
    gvk_of,
    is_condition_true,
    is_deleting,
    key_of,
    labels_of,
    parse_quantity,
)
from shallop.serving.localmodelnode import LOCAL_MODEL_NODE, status_key
from shallop.serving.localmodelnodegroup import LOCAL_MODEL_NODE_GROUP
from shallop.serving.localmodels import (
    CACHE_LABEL,
    JOB_NAMESPACE,
    NAMESPACE_NOTE,
    folder_of,
    is_same_cache,
    nodes_of,
    render_claim,
    render_local_models,
    render_volume,
)
from shallop.serving.schemas import LOCAL_MODEL_CACHE as SCHEMA
from shallop.serving.status import merge_status
from shallop.serving.storage import check_uri

__all__ = ["LOCAL_MODEL_CACHE", "LOCAL_MODEL_NAMESPACE_CACHE"]

SERVICE = Gvk("serving.kserve.io/v1beta1", "InferenceService")
NODE, JOB, NAMESPACE = Gvk("v1", "Node"), Gvk("batch/v1", "Job"), Gvk("v1", "Namespace")
VOLUME, CLAIM = Gvk("v1", "PersistentVolume"), Gvk("v1", "PersistentVolumeClaim")
CACHE = Gvk("serving.kserve.io/v1alpha1", "LocalModelCache")
NAMESPACE_CACHE = Gvk("serving.kserve.io/v1alpha1", "LocalModelNamespaceCache")
FINALIZER = "localmodel.kserve.io/finalizer"
_WAIT_S, _LOOK_AGAIN_S = 1.0, 60.0
# What a node says of a model -> what the cache says of the node.
_STATES = {
    "ModelDownloadPending": "NodeDownloadPending",
    "ModelDownloading": "NodeDownloading",
    "ModelDownloaded": "NodeDownloaded",
    "ModelDownloadError": "NodeDownloadError",
}


def validate(cache: Object, old: Object | None) -> list[FieldError]:
    """Check what a schema cannot say."""
    spec = cache.get("spec") or {}
    uri, errors = spec.get("sourceModelUri") or "", []
    before = ((old or {}).get("spec") or {}).get("sourceModelUri")
    if before is not None and before != uri:
        errors.append(FieldError.invalid("spec.sourceModelUri", uri, "StorageUri is immutable"))
    problem = check_uri(uri) or ("is on this machine already" if uri.startswith(("/", "file:", "pvc:")) else "")
    if problem:
        errors.append(FieldError.invalid("spec.sourceModelUri", uri, problem))
    return errors


def held(cache: Object) -> str:
    """Say who uses a cache."""
    users = (cache.get("status") or {}).get("inferenceServices") or ()
    names = ", ".join(f"{user['namespace']}/{user['name']}" for user in users)
    return f"it is being used by InferenceService {names}; delete these first" if names else ""


async def reconcile(ctx: Context, cache: Resource[Any]) -> Result:
    """Keep the claims and volumes of a cache, have its nodes bring the model, and say how far they are."""
    raw = cache.raw
    if not ctx.settings.gateway_url:
        # Nodes of another cluster keep models by what runs there.
        ctx.events.record(raw, "NotHonoured", "models are kept on the machine of shallop only", "Warning")
        return Result()
    services = _services(ctx, raw)
    if is_deleting(raw):
        return await _let_go(ctx, raw, services)
    if FINALIZER not in (raw["metadata"].get("finalizers") or ()):
        finalizers = [*(raw["metadata"].get("finalizers") or ()), FINALIZER]
        patch = {"metadata": {"resourceVersion": raw["metadata"]["resourceVersion"], "finalizers": finalizers}}
        raw = await ctx.client.patch(_gvk(raw), cache.name, cache.namespace, patch)
    groups = _groups(ctx, raw)
    for missing in [name for name in cache.spec["nodeGroups"] if name not in {g["metadata"]["name"] for g in groups}]:
        _warn(ctx, raw, "NodeGroupNotFound", f'spec.nodeGroups: there is no LocalModelNodeGroup "{missing}"')
    _warn_of_size(ctx, raw, groups)
    if not cache.namespace:
        with contextlib.suppress(AlreadyExistsError):
            if ctx.cache(NAMESPACE).get(Key("", JOB_NAMESPACE)) is None:
                await ctx.client.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": JOB_NAMESPACE}})
    namespaces = {cache.namespace or JOB_NAMESPACE} | {service["metadata"]["namespace"] for service in services}
    wanted = [
        obj
        for group in groups
        for namespace in sorted(namespaces)
        for obj in (render_volume(raw, group, namespace), render_claim(raw, group, namespace))
    ]
    tidy = await _remove_others(ctx, raw, wanted)
    for obj in wanted if tidy else ():
        await ctx.client.apply(obj)
    await _apply_nodes(ctx)
    await ctx.client.patch_status(raw, merge_status(cache.status, _status(ctx, raw, groups, services)))
    # Groups and nodes do not know their caches: look now and then, sooner while something is missing.
    return Result(requeue_after_s=_LOOK_AGAIN_S if tidy and len(groups) == len(cache.spec["nodeGroups"]) else _WAIT_S)


async def _remove_others(ctx: Context, cache: Object, wanted: Sequence[Object]) -> bool:
    """Remove claims and volumes of namespaces that use a cache no more; says whether nothing is left of them."""
    keys, tidy = {(gvk_of(obj), key_of(obj)) for obj in wanted}, True
    for gvk in (CLAIM, VOLUME):
        for item in await _children(ctx, cache, gvk):
            # A volume that was bound once belongs to that claim for ever.
            spent = (item.get("status") or {}).get("phase") == "Released"
            if (gvk, key_of(item)) not in keys or spent or is_deleting(item):
                tidy = tidy and (gvk, key_of(item)) not in keys
                await _remove(ctx, gvk, item)
    return tidy


async def _children(ctx: Context, cache: Object, gvk: Gvk) -> list[Object]:
    """Return the objects of a kind that a cache has; a claim of another cache of this name is none."""
    metadata = cache["metadata"]
    own = metadata.get("namespace", "")
    found = await ctx.client.list(gvk, "" if gvk == VOLUME else own, label_selector=f"{CACHE_LABEL}={metadata['name']}")
    return [item for item in found.items if labels_of(item).get(NAMESPACE_NOTE, "") == own]


async def _remove(ctx: Context, gvk: Gvk, item: Object) -> None:
    if not is_deleting(item):
        key, how = key_of(item), "Foreground" if gvk == JOB else "Background"
        with contextlib.suppress(NotFoundError):
            await ctx.client.delete(gvk, key.name, key.namespace, propagation=how)


def _gvk(cache: Object) -> Gvk:
    return Gvk(cache["apiVersion"], cache["kind"])


def _warn(ctx: Context, cache: Object, reason: str, message: str) -> None:
    """Record an Event once per generation."""
    if (cache.get("status") or {}).get("nodeStatus") is None:
        ctx.events.record(cache, reason, message, "Warning")


def _warn_of_size(ctx: Context, cache: Object, groups: Sequence[Object]) -> None:
    for group in groups:
        name = group["metadata"]["name"]
        others = [other for other in _caches(ctx) if name in other["spec"]["nodeGroups"] and not is_deleting(other)]
        total = sum(parse_quantity(other["spec"]["modelSize"]) for other in others)
        if total > parse_quantity(group["spec"]["storageLimit"]):
            text = f"the models of LocalModelNodeGroup {name} take more than its storageLimit together"
            _warn(ctx, cache, "StorageLimitExceeded", text)


def _caches(ctx: Context) -> list[Object]:
    return [*ctx.cache(CACHE).list(), *ctx.cache(NAMESPACE_CACHE).list()]


def _groups(ctx: Context, cache: Object) -> list[Object]:
    found = [ctx.cache(LOCAL_MODEL_NODE_GROUP.gvk).get(Key("", name)) for name in cache["spec"]["nodeGroups"]]
    return [group for group in found if group is not None]


def _services(ctx: Context, cache: Object) -> list[Object]:
    services = ctx.cache(SERVICE).list(cache["metadata"].get("namespace", ""))
    return [service for service in services if is_same_cache(service, cache) and not is_deleting(service)]


async def _apply_nodes(ctx: Context) -> None:
    nodes = ctx.cache(NODE).list()
    groups = {
        group["metadata"]["name"]: [node["metadata"]["name"] for node in nodes_of(group, nodes)]
        for group in ctx.cache(LOCAL_MODEL_NODE_GROUP.gvk).list()
    }
    for node in nodes:
        wanted = render_local_models(node["metadata"]["name"], _caches(ctx), groups)
        if wanted["spec"]["localModels"] or ctx.cache(LOCAL_MODEL_NODE.gvk).get(Key("", node["metadata"]["name"])):
            await ctx.client.apply(wanted)


def _status(ctx: Context, cache: Object, groups: Sequence[Object], services: Sequence[Object]) -> dict[str, Any]:
    metadata, states = cache["metadata"], dict[str, str]()
    key = status_key({"modelName": metadata["name"], "namespace": metadata.get("namespace")})
    for group in groups:
        for node in nodes_of(group, ctx.cache(NODE).list()):
            name = node["metadata"]["name"]
            local = ctx.cache(LOCAL_MODEL_NODE.gvk).get(Key("", name)) or {}
            said = ((local.get("status") or {}).get("modelStatus") or {}).get(key, "")
            state = _STATES.get(said, "NodeDownloadPending")
            states[name] = state if is_condition_true(node, "Ready") else "NodeNotReady"
            _tell(ctx, cache, name, state)
    counts = [list(states.values()).count(state) for state in ("NodeDownloaded", "NodeDownloadError")]
    users = [{"name": item["metadata"]["name"], "namespace": item["metadata"]["namespace"]} for item in services]
    users.sort(key=lambda user: (user["namespace"], user["name"]))
    copies = {"available": counts[0], "failed": counts[1], "total": len(states)}
    return {"nodeStatus": states, "copies": copies, "inferenceServices": users}


def _tell(ctx: Context, cache: Object, node: str, state: str) -> None:
    """Record an Event when a node has the model, or could not get it."""
    before = ((cache.get("status") or {}).get("nodeStatus") or {}).get(node)
    if before == state:
        return
    uri = cache["spec"]["sourceModelUri"]
    if state == "NodeDownloaded":
        ctx.events.record(cache, "ModelDownloaded", f"node {node} has {uri}")
    elif state == "NodeDownloadError":
        where = cache["metadata"].get("namespace") or JOB_NAMESPACE
        text = (
            f"node {node} could not get {uri}; 'kubectl -n {where} logs -l {CACHE_LABEL}={cache['metadata']['name']}'"
        )
        ctx.events.record(cache, "ModelDownloadFailed", f"{text} says why; it is tried again in a minute", "Warning")


async def _let_go(ctx: Context, cache: Object, services: Sequence[Object]) -> Result:
    """Remove what a cache that is being deleted has on the cluster and on disk, once nobody uses it."""
    metadata = cache["metadata"]
    if FINALIZER not in (metadata.get("finalizers") or ()):
        return Result()
    if services:
        users = ", ".join(str(service["metadata"]["name"]) for service in services)
        ctx.events.record(cache, "InUse", f"stays until no InferenceService uses it: {users}", "Warning")
        return Result()
    await _apply_nodes(ctx)  # drops the Jobs
    for gvk in (JOB, CLAIM, VOLUME):
        left = await _children(ctx, cache, gvk)
        for item in left:
            await _remove(ctx, gvk, item)
        if left and gvk != VOLUME:
            return Result(requeue_after_s=_WAIT_S)  # Pods may still write
    for folder in _folders_of_nobody(ctx, cache):
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
    finalizers = [name for name in metadata["finalizers"] if name != FINALIZER]
    patch = {"metadata": {"uid": metadata["uid"], "finalizers": finalizers or None}}
    key = key_of(cache)
    await ctx.client.patch(_gvk(cache), key.name, key.namespace, patch)
    return Result()


def _folders_of_nobody(ctx: Context, cache: Object) -> list[str]:
    """Return the folders of a cache that no other cache has its model in."""
    others = [item for item in _caches(ctx) if item["metadata"]["uid"] != cache["metadata"]["uid"]]
    kept = {folder_of(group, other["spec"]["sourceModelUri"]) for other in others for group in _groups(ctx, other)}
    folders = {folder_of(group, cache["spec"]["sourceModelUri"]) for group in _groups(ctx, cache)}
    return sorted(folder for folder in folders if folder and folder not in kept)


def _cache_of_service(namespaced: bool) -> Any:
    def to_keys(service: Object) -> Iterable[Key]:
        name, namespace = labels_of(service).get(CACHE_LABEL), annotations_of(service).get(NAMESPACE_NOTE, "")
        return [Key(namespace, name)] if name and bool(namespace) == namespaced else []

    return to_keys


def _caches_of_node(namespaced: bool) -> Any:
    def to_keys(node: Object) -> Iterable[Key]:
        for model in (node.get("spec") or {}).get("localModels") or ():
            if bool(model.get("namespace")) == namespaced:
                yield Key(model.get("namespace") or "", model["modelName"])

    return to_keys


def _kind(kind: str, plural: str, *, namespaced: bool) -> Kind:
    return Kind(
        api_version="serving.kserve.io/v1alpha1",
        kind=kind,
        plural=plural,
        namespaced=namespaced,
        schema=SCHEMA,
        columns=(
            Column("Source", "string", ".spec.sourceModelUri"),
            Column("Available", "integer", ".status.copies.available"),
            Column("Total", "integer", ".status.copies.total"),
            Column("Age", "date", ".metadata.creationTimestamp"),
        ),
        validate=validate,
        # A namespace that goes takes its caches with it: there a finalizer waits instead.
        held=None if namespaced else held,
        reconcile=reconcile,
        watches=(
            Watch(SERVICE, _cache_of_service(namespaced)),
            Watch(LOCAL_MODEL_NODE.gvk, _caches_of_node(namespaced)),
        ),
    )


LOCAL_MODEL_CACHE = _kind("LocalModelCache", "localmodelcaches", namespaced=False)
LOCAL_MODEL_NAMESPACE_CACHE = _kind("LocalModelNamespaceCache", "localmodelnamespacecaches", namespaced=True)
