"""
PersistentVolumeClaim: becomes a directory at once.

Honours storageClassName (the classes that this provisioner serves), volumeName, accessModes, resources.requests.storage
and the class's reclaimPolicy, volumeBindingMode and allowVolumeExpansion. The size is recorded, grows when the claim
asks for more, and is not enforced. A claim that a Pod uses stays until the Pod ends. A Pod's ephemeral volumes get
claims that the Pod owns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import anyio.to_thread

from shallop.controller import Context, Kind, Resource, Result, Watch
from shallop.embedded.workloads.pods import POD, is_terminal
from shallop.embedded.workloads.statuses import write_status
from shallop.errors import AlreadyExistsError
from shallop.kube.objects import (
    Gvk,
    Key,
    Object,
    annotations_of,
    format_time,
    is_deleting,
    key_of,
    owner_reference,
    parse_quantity,
)

__all__ = ["PERSISTENTVOLUMECLAIM", "PROVISIONER", "STANDARD_CLASS", "claims_of", "render_volume", "select_volume"]

PROVISIONER = "shallop.dev/directory"
_VOLUME = Gvk("v1", "PersistentVolume")
_CLAIM = Gvk("v1", "PersistentVolumeClaim")
_CLASS = Gvk("storage.k8s.io/v1", "StorageClass")
_PROTECTION = "kubernetes.io/pvc-protection"
_DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"

STANDARD_CLASS: Object = {
    "apiVersion": "storage.k8s.io/v1",
    "kind": "StorageClass",
    "metadata": {"name": "standard", "annotations": {_DEFAULT_CLASS: "true"}},
    "provisioner": PROVISIONER,
    "reclaimPolicy": "Delete",
    "volumeBindingMode": "Immediate",
    "allowVolumeExpansion": True,
}


def claims_of(pod: Object) -> list[Key]:
    """Return the claims that a Pod mounts."""
    namespace = pod["metadata"].get("namespace", "")
    volumes = pod["spec"].get("volumes") or ()
    named = [Key(namespace, v["persistentVolumeClaim"]["claimName"]) for v in volumes if v.get("persistentVolumeClaim")]
    return named + [Key(namespace, f"{pod['metadata']['name']}-{v['name']}") for v in volumes if v.get("ephemeral")]


def render_ephemeral(pod: Object, name: str) -> Object | None:
    """Return the claim of that name which belongs to one of a Pod's ephemeral volumes, if it does."""
    for volume in pod["spec"].get("volumes") or ():
        template = (volume.get("ephemeral") or {}).get("volumeClaimTemplate")
        if template and f"{pod['metadata']['name']}-{volume['name']}" == name:
            metadata = {
                **(template.get("metadata") or {}),
                "name": name,
                "namespace": pod["metadata"]["namespace"],
                "ownerReferences": [owner_reference({"apiVersion": "v1", "kind": "Pod", **pod})],
            }
            return {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "metadata": metadata,
                "spec": dict(template["spec"]),
            }
    return None


def render_volume(claim: Object, storage_class: Object, path: Path) -> Object:
    """Return the PersistentVolume made for a claim."""
    metadata, spec = claim["metadata"], claim["spec"]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": f"pvc-{metadata['uid']}",
            "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER},
        },
        "spec": {
            "accessModes": spec.get("accessModes") or ["ReadWriteOnce"],
            "capacity": {"storage": ((spec.get("resources") or {}).get("requests") or {}).get("storage", "1Gi")},
            "claimRef": _claim_reference(claim),
            "hostPath": {"path": str(path), "type": "DirectoryOrCreate"},
            "persistentVolumeReclaimPolicy": storage_class.get("reclaimPolicy") or "Delete",
            "storageClassName": storage_class["metadata"]["name"],
            "volumeMode": "Filesystem",
        },
    }


def _claim_reference(claim: Object) -> dict[str, Any]:
    metadata = claim["metadata"]
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "name": metadata["name"],
        "namespace": metadata["namespace"],
        "uid": metadata["uid"],
    }


def select_volume(claim: Object, volumes: Sequence[Object]) -> Object | None:
    """Choose an existing volume for a claim: one reserved for it, else the smallest free one of its class that fits."""
    spec, metadata = claim["spec"], claim["metadata"]
    wanted = parse_quantity(((spec.get("resources") or {}).get("requests") or {}).get("storage", "0"))
    fitting = []
    for volume in volumes:
        reference = volume["spec"].get("claimRef")
        if reference:
            same_name = (reference.get("namespace"), reference.get("name")) == (metadata["namespace"], metadata["name"])
            if same_name and reference.get("uid") in (None, "", metadata["uid"]):
                return volume
            continue
        capacity = parse_quantity((volume["spec"].get("capacity") or {}).get("storage", "0"))
        modes = set(spec.get("accessModes") or ()) <= set(volume["spec"].get("accessModes") or ())
        same_class = (spec.get("storageClassName") or "") == (volume["spec"].get("storageClassName") or "")
        if is_deleting(volume) or (volume.get("status") or {}).get("phase") == "Released":
            continue
        if spec.get("volumeName"):
            if spec["volumeName"] == volume["metadata"]["name"]:
                return volume
        elif modes and same_class and capacity >= wanted:
            fitting.append((capacity, str(volume["metadata"]["name"]), volume))
    return min(fitting, key=lambda item: item[:2])[2] if fitting else None


class Claims:
    """The controller of claims; it remembers who waits, so that a new volume or class finds them."""

    def __init__(self) -> None:
        self._waiting: set[Key] = set()

    async def reconcile(self, ctx: Context, claim: Resource[dict[str, Any]]) -> Result:
        """Bind a claim to a volume, making one where its class says so; let a deleted one go when no Pod uses it."""
        raw = claim.raw
        self._waiting.discard(claim.key)
        if is_deleting(raw):
            await _let_go(ctx, raw)
            return Result()
        if claim.spec.get("storageClassName") is None and (name := _default_class(ctx.cache(_CLASS).list())):
            patch = {"spec": {"storageClassName": name}}
            raw = await ctx.client.patch(_CLAIM, claim.name, claim.namespace, patch)
        volume = select_volume(raw, ctx.cache(_VOLUME).list())
        if volume is None and not claim.spec.get("volumeName"):
            volume = await _provision(ctx, raw)
        if volume is None:
            self._waiting.add(claim.key)
            await write_status(ctx, raw, {**claim.status, "phase": "Pending"})
        else:
            await _bind(ctx, raw, volume)
        return Result()

    async def on_gone(self, ctx: Context, key: Key) -> None:
        """Make the claim where a Pod has it as an ephemeral volume."""
        self._waiting.discard(key)
        for pod in ctx.cache(POD).list(key.namespace):
            if key in claims_of(pod) and not is_terminal(pod) and not is_deleting(pod):
                if claim := render_ephemeral(pod, key.name):
                    with contextlib.suppress(AlreadyExistsError):
                        await ctx.client.create(claim)
                return

    def keys_of_volume(self, volume: Object) -> Iterable[Key]:
        reference = volume["spec"].get("claimRef")
        return [Key(reference["namespace"], reference["name"])] if reference else list(self._waiting)

    def keys_of_class(self, _class: Object) -> Iterable[Key]:
        return list(self._waiting)


async def _provision(ctx: Context, claim: Object) -> Object | None:
    """Make the directory and the volume of a claim; None when that is not ours to do, or not yet possible."""
    storage_class = _class_of(claim, ctx.cache(_CLASS).list())
    if not storage_class or storage_class["provisioner"] != PROVISIONER:
        _explain(ctx, claim)
        return None
    key = key_of(claim)
    if storage_class.get("volumeBindingMode") == "WaitForFirstConsumer" and not _has_consumer(ctx, key):
        text = "waiting for first consumer to be created before binding"
        ctx.events.record(claim, "WaitForFirstConsumer", text)
        return None
    path = ctx.settings.volumes / key.namespace / key.name
    if any(_path_of(other) == str(path) for other in (await ctx.client.list(_VOLUME)).items):
        # The directory of an earlier claim of this name is still being removed; its volume's end comes here.
        return None
    await anyio.to_thread.run_sync(_make_directory, path)
    volume = await _create_volume(ctx, render_volume(claim, storage_class, path))
    ctx.events.record(claim, "ProvisioningSucceeded", f"Successfully provisioned volume {volume['metadata']['name']}")
    return volume


def _has_consumer(ctx: Context, key: Key) -> bool:
    return any(key in claims_of(pod) and not is_terminal(pod) for pod in ctx.cache(POD).list(key.namespace))


def _make_directory(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.mkdir(exist_ok=True)


def _path_of(volume: Object) -> str:
    return str((volume["spec"].get("hostPath") or {}).get("path", ""))


def _default_class(classes: Sequence[Object]) -> str:
    return next((str(c["metadata"]["name"]) for c in classes if annotations_of(c).get(_DEFAULT_CLASS) == "true"), "")


def _class_of(claim: Object, classes: Sequence[Object]) -> Object | None:
    name = claim["spec"].get("storageClassName")
    return next((c for c in classes if c["metadata"]["name"] == name), None) if name else None


def _explain(ctx: Context, claim: Object) -> None:
    if name := claim["spec"].get("storageClassName"):
        text = f'storageclass.storage.k8s.io "{name}" not found or not served here; the class "standard" is'
        ctx.events.record(claim, "ProvisioningFailed", text, "Warning")
    else:
        text = "no persistent volumes available for this claim and no storage class is set"
        ctx.events.record(claim, "FailedBinding", text)


async def _create_volume(ctx: Context, volume: Object) -> Object:
    try:
        return await ctx.client.create(volume)
    except AlreadyExistsError:
        return await ctx.client.get(_VOLUME, volume["metadata"]["name"])


async def _bind(ctx: Context, claim: Object, volume: Object) -> None:
    name, key = volume["metadata"]["name"], key_of(claim)
    if (volume["spec"].get("claimRef") or {}).get("uid") != claim["metadata"]["uid"]:
        guard = {"resourceVersion": volume["metadata"]["resourceVersion"]}
        patch = {"metadata": guard, "spec": {"claimRef": _claim_reference(claim)}}
        volume = await ctx.client.patch(_VOLUME, name, "", patch)
    if (volume.get("status") or {}).get("phase") != "Bound":
        status = {"phase": "Bound", "lastPhaseTransitionTime": format_time(ctx.now())}
        await ctx.client.patch_status(volume, status)
    if claim["spec"].get("volumeName") != name:
        notes = {"pv.kubernetes.io/bind-completed": "yes", "pv.kubernetes.io/bound-by-controller": "yes"}
        patch = {"metadata": {"annotations": notes}, "spec": {"volumeName": name}}
        claim = await ctx.client.patch(_CLAIM, key.name, key.namespace, patch)
    volume = await _expand(ctx, claim, volume)
    status = {
        "phase": "Bound",
        "accessModes": volume["spec"]["accessModes"],
        "capacity": volume["spec"]["capacity"],
    }
    await write_status(ctx, claim, {**(claim.get("status") or {}), **status})


async def _expand(ctx: Context, claim: Object, volume: Object) -> Object:
    """Grow a volume of ours to what its claim asks for; a directory has the space of its disk anyway."""
    wanted = ((claim["spec"].get("resources") or {}).get("requests") or {}).get("storage", "0")
    known = (volume["spec"].get("capacity") or {}).get("storage", "0")
    ours = annotations_of(volume).get("pv.kubernetes.io/provisioned-by") == PROVISIONER
    if not ours or parse_quantity(wanted) <= parse_quantity(known):
        return volume
    patch = {"spec": {"capacity": {"storage": wanted}}}
    grown = await ctx.client.patch(_VOLUME, volume["metadata"]["name"], "", patch)
    ctx.events.record(claim, "FileSystemResizeSuccessful", f"Volume {volume['metadata']['name']} has {wanted} now")
    return grown


async def _let_go(ctx: Context, claim: Object) -> None:
    key = key_of(claim)
    finalizers = claim["metadata"].get("finalizers") or []
    users = [pod for pod in ctx.cache(POD).list(key.namespace) if key in claims_of(pod) and not is_terminal(pod)]
    if _PROTECTION not in finalizers or users:
        return
    rest = [name for name in finalizers if name != _PROTECTION]
    guard = {"uid": claim["metadata"]["uid"], "resourceVersion": claim["metadata"]["resourceVersion"]}
    await ctx.client.patch(_CLAIM, key.name, key.namespace, {"metadata": {**guard, "finalizers": rest or None}})


_CONTROLLER = Claims()

PERSISTENTVOLUMECLAIM = Kind(
    api_version="v1",
    kind="PersistentVolumeClaim",
    plural="persistentvolumeclaims",
    reconcile=_CONTROLLER.reconcile,
    on_gone=_CONTROLLER.on_gone,
    watches=(
        Watch(POD, claims_of),
        Watch(_VOLUME, _CONTROLLER.keys_of_volume),
        Watch(_CLASS, _CONTROLLER.keys_of_class),
    ),
    component="persistentvolume-controller",
)
